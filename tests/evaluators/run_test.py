"""The runner: padding, targets, order, one batch in flight, and the means of losses."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.evaluators import coco_panoptic, mean, nyu_depth, run
from uvim_like.evaluators import panoptic_quality as pq
from uvim_like.evaluators.base import Metric


def batches_of(images: np.ndarray, targets: list[dict], batch_size: int) -> list:
  """(batch, targets) pairs as `eval_batches` gives them, the last padded with zeros."""
  result = []
  for start in range(0, len(images), batch_size):
    part = images[start:start + batch_size]
    pad = batch_size - len(part)
    batch = dict(image=np.pad(part, [(0, pad)] + [(0, 0)] * (images.ndim - 1)),
                 _mask=np.pad(np.ones(len(part), np.float32), (0, pad)),
                 _index=np.pad(np.arange(start, start + len(part)), (0, pad)))
    result.append((batch, targets[start:start + batch_size]))
  return result


@jax.jit
def predict_depth(image):
  return dict(depth=jnp.abs(image[..., 0]) + 1.0)


def predict(batch):
  return predict_depth(batch["image"])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_padding_changes_no_number(batch_size):
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (5, 6, 8, 3)).astype(np.float32)
  targets = [dict(depth=rng.uniform(1, 2, (12 + k, 9))) for k in range(5)]
  metric = nyu_depth.make("plain")
  results = run.evaluate(predict, batches_of(images, targets, batch_size), metric)
  stats = metric.init()
  for image, target in zip(images, targets):
    stats = metric.update(stats, dict(depth=np.abs(image[..., 0]) + np.float32(1)), target)
  assert results == pytest.approx(metric.compute(stats), rel=1e-6) and results["images"] == 5


def test_padded_panoptic_batches_change_no_number():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 11, (3, 4, 4, 2)).astype(np.int32)
  gt = np.kron(rng.integers(0, 3, (3, 4, 4)), np.ones((1, 2, 3), int))
  targets = [{"panoptic_image": pq.id_to_rgb(g), "panoptic_objects": dict(
      id=np.array([1, 2]), label=np.array([0, 6]), is_crowd=np.array([False, False]))} for g in gt]
  metric = coco_panoptic.make(dataset="scenes")

  def predict_panoptic(batch):
    return dict(semantics=jnp.asarray(batch["image"][..., 0]), instances=jnp.asarray(batch["image"][..., 1]))
  one, padded = (run.evaluate(predict_panoptic, batches_of(images, targets, size), metric) for size in (1, 2))
  assert one == pytest.approx(padded, rel=1e-12, nan_ok=True) and one["All_n"] >= 2


def recorder() -> Metric:
  """Keeps what `update` was given."""
  return Metric(init=tuple, update=lambda stats, output, target: stats + ((output, target),),
                merge=lambda a, b: a + b, compute=lambda stats: dict(seen=stats))


def test_target_is_the_raw_features_over_the_own_batch_entries():
  batch = dict(image=np.zeros((2, 4, 4, 3)), labels=np.arange(2), _mask=np.array([0.0, 1.0]))
  raw = dict(image=np.full((9, 7, 3), 5, np.uint8), objects=dict(label=[1, 2], deep=dict(er=3)))
  ((output, target),) = run.evaluate(lambda b: dict(x=b["labels"] * 10), [(batch, [raw])], recorder())["seen"]
  assert output["x"] == 10 and target["labels"] == 1 and target["image"].shape == (9, 7, 3)
  np.testing.assert_array_equal(target["objects/label"], [1, 2])
  assert target["objects/deep/er"] == 3 and "_mask" not in target


def test_next_batch_is_dispatched_before_the_last_is_read():
  events = []

  def dispatch(batch):
    events.append(f"dispatch {int(batch['image'][0])}")
    return dict(x=batch["image"])
  metric = recorder()._replace(update=lambda stats, output, target: events.append(f"read {int(output['x'])}") or stats)
  run.evaluate(dispatch, batches_of(np.arange(3), [{}] * 3, 1), metric, progress=lambda n: events.append(f"done {n}"))
  assert events == ["dispatch 0", "dispatch 1", "read 0", "done 1", "dispatch 2", "read 1", "done 2", "read 2",
                    "done 3"]


def test_no_batches_and_batches_of_padding_only():
  assert run.evaluate(predict, [], mean.make()) == {}
  batch = dict(image=np.ones((2, 3, 3, 3), np.float32), _mask=np.zeros(2))
  assert run.evaluate(predict, [(batch, [])], nyu_depth.make("plain"))["images"] == 0


def test_rows_and_targets_must_be_as_many():
  with pytest.raises(UserError, match="2 real rows, but 1 targets"):
    run.evaluate(predict, [(dict(image=np.ones((2, 3, 3, 3))), [{}])], mean.make())


def test_mean_of_losses_counts_real_examples_once():
  losses = np.array([1.0, 2.0, 6.0, 3.0, 5.0], np.float32)

  def loss_fn(batch):
    return dict(loss=jnp.asarray(batch["image"]) + 0.0, twice=2 * jnp.asarray(batch["image"]))
  for batch_size in (1, 2, 4, 7):
    results = run.evaluate(loss_fn, batches_of(losses, [{}] * 5, batch_size), mean.make())
    assert results == dict(loss=pytest.approx(3.4), twice=pytest.approx(6.8))


def test_word_frequencies_become_a_summary_over_the_whole_evaluation():
  """Two examples that each use one word of four: together two, evenly; other vectors have no mean to report."""
  rows = np.eye(4, dtype=np.float32)[[0, 2]]
  found = run.evaluate(lambda batch: {"code_use": jnp.asarray(batch["image"]), "other": jnp.ones((1, 3))},
                       batches_of(rows, [{}] * 2, 1), mean.make())
  assert found == {"code_used": 0.5, "code_dead": 2.0, "code_perplexity": pytest.approx(2.0)}


def test_results_spread_over_devices_are_read_whole():
  devices = jax.devices()
  mesh = jax.sharding.Mesh(np.array(devices), ("data",))
  rows = np.arange(len(devices) * 2)
  sharded = jax.device_put(rows, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
  np.testing.assert_array_equal(run.local_rows(sharded), rows)
  with jax.transfer_guard("disallow"):
    np.testing.assert_array_equal(run.local_rows(sharded), rows)


def test_evaluators_are_found_by_name():
  assert run.load("coco_panoptic") is coco_panoptic and run.load("proj.mean") is mean
  for name, hint in (("coco_panoptik", "did you mean 'coco_panoptic'"), ("run", "valid: "), ("../mean", "mean")):
    with pytest.raises(UserError, match=hint):
      run.load(name)


@pytest.fixture
def free_port() -> int:
  """A port of this machine that nobody listens on."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


_WORKER = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), initialization_timeout=60)
import numpy as np
from jax.experimental import multihost_utils
from uvim_like.evaluators import mean, run
rank = jax.process_index()
local = np.array([[1., 2.], [7., 0.]])[rank]
batch = dict(loss=local, _mask=np.array([[1., 1.], [1., 0.]])[rank])
mesh = jax.sharding.Mesh(jax.devices(), ("data",))
spec = jax.sharding.PartitionSpec("data")
def loss_fn(batch):
  return dict(loss=multihost_utils.host_local_array_to_global_array(batch["loss"], mesh, spec))
print("RESULT", run.evaluate(loss_fn, [(batch, [{}] * int(batch["_mask"].sum()))], mean.make())["loss"])
"""


def test_two_processes_report_the_same_mean(free_port):
  env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", _WORKER, f"localhost:{free_port}"]
  root = pathlib.Path(__file__).resolve().parents[2]
  workers = [subprocess.Popen(command + [str(rank)], env=env, cwd=root, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) for rank in range(2)]
  try:
    texts = [worker.communicate(timeout=120)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  for text in texts:
    assert f"RESULT {10 / 3}" in text, text[-3000:]
