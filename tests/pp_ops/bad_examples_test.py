"""Examples that cannot be read: another takes their place, always the same one, on any number of hosts."""

import itertools
import logging

import numpy as np
import pytest
from PIL import Image

from pp_ops import bad_examples, pipeline, sources_folder
from uvim_like.errors import UserError
from uvim_like.training import batches

PP = ('decode|resize(8)|resize(8, key="labels", method="nearest")|randu("fliplr")|det_fliplr|det_fliplr(key="labels")'
      '|value_range(-1, 1)|keep("image","labels")')
COUNT, BAD = 10, (2, 7)


@pytest.fixture
def data(tmp_path):
  """Ten images of one grey each, two of them damaged."""
  for kind in ("images", "labels"):
    (tmp_path / kind).mkdir()
    for i in range(COUNT):
      Image.new("RGB" if kind == "images" else "L", (9, 7), (20 * i,) * 3 if kind == "images" else i).save(
          tmp_path / kind / f"{i}.png")
  for i in BAD:
    path = tmp_path / "images" / f"{i}.png"
    path.write_bytes(path.read_bytes()[:40])
  return tmp_path


def stream(data, **options):
  given = dict(dataset="folder", data_dir=str(data), split="everything", pp=PP, batch_size=4, seed=3, on_bad_example="skip",
               max_bad_share=0.5)
  return pipeline.train_batches(**given | options)


def take(count, *args, **options):
  return list(itertools.islice(stream(*args, **options), count))


def assert_same(a, b):
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])


def test_bad_ones_never_come_and_every_batch_is_full(data, caplog):
  with caplog.at_level(logging.WARNING):
    found = stream(data)
    taken = list(itertools.islice(found, 8))
  assert not set(np.concatenate([b["_index"] for b in taken]).tolist()) & set(BAD)
  assert all(b["image"].shape == (4, 8, 8, 3) and b["image"].dtype == np.float32 for b in taken)
  for batch in taken:  # image and labels are of the example that _index names
    np.testing.assert_array_equal(batch["labels"][:, 0, 0, 0], batch["_index"])
    np.testing.assert_allclose(batch["image"][:, 0, 0, 0], 20 * batch["_index"] / 127.5 - 1, atol=1e-6)
  assert set(found.bad) == {"2", "7"}
  assert caplog.text.count("is left out") == 2 and "example '2' is left out" in caplog.text


def test_the_good_ones_are_those_of_a_run_without_damage(data):
  skipped = take(5, data)
  for i in BAD:
    Image.new("RGB", (9, 7), (20 * i,) * 3).save(data / "images" / f"{i}.png")
  for with_bad, without in zip(skipped, take(5, data, on_bad_example="error")):
    good = ~np.isin(without["_index"], BAD)
    assert_same({k: v[good] for k, v in with_bad.items()}, {k: v[good] for k, v in without.items()})


def test_a_step_is_reached_directly_on_any_number_of_processes(data):
  whole = take(6, data)
  assert_same(take(1, data, start_step=5)[0], whole[5])
  parts = [take(6, data, process_index=i, process_count=2) for i in (0, 1)]
  for step, batch in enumerate(whole):
    assert_same({k: np.concatenate([part[step][k] for part in parts]) for k in batch}, batch)


def test_labels_out_of_range_are_bad_too(data):
  found = stream(data, label_limits=(9,))
  taken = np.concatenate([b["_index"] for b in itertools.islice(found, 6)])
  assert not {2, 7, 9} & set(taken.tolist()) and "label 9 in channel 0, which has 9 classes" in found.bad["9"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyError("depth")])
def test_storage_that_fails_below_python(error, data, monkeypatch):
  """Substitutes, and the example to blame, are read without TensorFlow, which would have made its own error of it."""
  fetch = sources_folder.FileSource.fetch

  def broken(self, index, keys):
    if index < 6:
      raise error
    return fetch(self, index, keys)

  monkeypatch.setattr(sources_folder.FileSource, "fetch", broken)
  words = "there is no 'depth'" if isinstance(error, KeyError) else "Input/output error"
  found = stream(data, max_bad_share=1.0)
  assert set(np.concatenate([b["_index"] for b in itertools.islice(found, 6)]).tolist()) <= {6, 8, 9}
  assert any(words in problem for problem in found.bad.values())
  with pytest.raises(UserError, match=f"example '[0-57]': .*{words}"):
    take(8, data, on_bad_example="error")


def test_labels_with_other_channels_are_said_at_once(data, tmp_path):
  with pytest.raises(UserError, match="'labels' have 1 channels, the model's have 2"):
    take(1, data, label_limits=(9, 9))
  np.savez(tmp_path / "train.npz", image=np.zeros((4, 4, 4, 3), np.uint8), labels=np.zeros((4, 4, 4, 1), np.int16))
  with pytest.raises(UserError, match="split 'train': 'labels' have 1 channels, the model's have 3"):
    batches.train_batches(dataset="npz", split="train", data_dir=tmp_path, batch_size=2, label_limits=(5, 5, 5),
                          on_bad_example="skip")


def test_above_the_share_it_stops(data):
  with pytest.raises(UserError, match=r"2 of 10 examples are bad, more than max_bad_share = 0.15; the last: '[27]': "):
    take(8, data, max_bad_share=0.15)


def test_a_dataset_that_is_broken_as_a_whole(data):
  for path in (data / "images").iterdir():
    path.write_bytes(b"gone")
  with pytest.raises(UserError, match="16 others in its place cannot be read"):
    take(1, data, max_bad_share=1.0)


def test_the_other_policy_stops_at_the_first(data):
  with pytest.raises(UserError, match="example '[27]': "):
    take(8, data, on_bad_example="error")


def test_substitutes_are_pinned():
  """A resumed run must find them again after any upgrade."""
  assert [bad_examples.substitute(5, 1, 2, attempt, length=100) for attempt in range(3)] == [12, 78, 62]
  assert bad_examples.substitute(-1, 0, 2 ** 40, 0, length=7) in range(7)


def test_arrays_skip_labels_out_of_range(tmp_path, caplog):
  labels = np.zeros((10, 4, 4, 1), np.int16)
  labels[3], labels[6] = 5, -2
  np.savez(tmp_path / "train.npz", image=np.zeros((10, 4, 4, 3), np.uint8), labels=labels)
  place = dict(dataset="npz", split="train", data_dir=tmp_path, batch_size=5, label_limits=(5,))
  found = batches.train_batches(**place, on_bad_example="skip", max_bad_share=0.2)
  taken = [next(found) for _ in range(4)]
  assert not {3, 6} & set(np.concatenate([b["_index"] for b in taken]).tolist())
  assert all(b["labels"].max() == 0 and len(b["labels"]) == 5 for b in taken)
  assert "2 examples with labels out of range are left out: 3, 6" in caplog.text
  assert_same(next(batches.train_batches(**place, on_bad_example="skip", max_bad_share=0.2, start_step=3)), taken[3])
  with pytest.raises(UserError, match="2 of 10 examples have labels out of range, .* = 0.1; the first: 3"):
    batches.train_batches(**place, on_bad_example="skip", max_bad_share=0.1)
  assert 3 in next(batches.train_batches(**place, seed=1))["_index"].tolist() + next(
      batches.train_batches(**place, seed=1, start_step=1))["_index"].tolist()
