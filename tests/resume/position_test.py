"""Going on at step k costs the same whatever k is: the data position is reached, not replayed."""

import time

import numpy as np
import pytest

from uvim_like.training import batches

STEPS = (10, 100_000)


def seconds_to_first_batch(make, step: int) -> float:
  """The best of a few: other work on the machine only adds."""
  found = []
  for _ in range(4):
    began = time.perf_counter()
    stream = make(step)
    batch = next(stream)
    found.append(time.perf_counter() - began)
    stream.close()
  assert len(batch["_index"]) == 8
  return min(found)


def check(make) -> None:
  seconds_to_first_batch(make, 0)  # imports, files, renderings
  near, far = (seconds_to_first_batch(make, step) for step in STEPS)
  print(f"first batch at step {STEPS[0]}: {near * 1e3:.1f} ms, at step {STEPS[1]}: {far * 1e3:.1f} ms")
  assert far < 3 * near + 0.2


def test_npz(experiment):
  check(lambda step: batches.train_batches(dataset="npz", split="train", data_dir=str(experiment.data), batch_size=8,
                                           pp="flip_lr", start_step=step))


def test_preprocessing_pipeline():
  pytest.importorskip("tensorflow")
  from pp_ops import pipeline
  check(lambda step: pipeline.train_batches(
      dataset="scenes/tiny", split="train[:16]", batch_size=8, start_step=step,
      pp='decode|nyu_depth|randu("fliplr")|det_fliplr(key="image")|det_fliplr(key="labels")|inception_box|'
         'crop_box(key="image")|crop_box(key="labels")|resize(32)|resize(32, key="labels", method="nearest")|'
         'value_range(-1, 1)|keep("image", "labels")'))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_batch_of_a_step_on_any_number_of_hosts(processes, experiment):
  options = dict(dataset="npz", split="train", data_dir=str(experiment.data), batch_size=8, pp="flip_lr", seed=3)
  stream = batches.train_batches(**options)
  for _ in range(7):
    want = next(stream)
  stream.close()
  parts = []
  for index in range(processes):
    part = batches.train_batches(**options, start_step=6, process_index=index, process_count=processes)
    parts.append(next(part))
    part.close()
  for key in want:
    np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), want[key])
