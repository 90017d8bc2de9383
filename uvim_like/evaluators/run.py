"""The one evaluation runner: predictions from the device, metrics on the host, padding dropped, hosts merged."""

import functools
import pickle
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from uvim_like import evaluators, names
from uvim_like.errors import UserError
from uvim_like.evaluators.base import Metric

Batch = Mapping[str, np.ndarray]
Batches = Iterable[tuple[Batch, list[Mapping[str, Any]]]]
PredictFn = Callable[[Batch], Mapping[str, jax.Array]]


def load(name: str) -> types.ModuleType:
  """The evaluator module of a config's name, e.g. "coco_panoptic"; UserError with the nearest when there is none."""
  return names.load(evaluators.__name__, name, where="evals", needs="make")


def evaluate(predict_fn: PredictFn, batches: Batches, metric: Metric, *,
             progress: Callable[[int], None] | None = None) -> dict[str, float]:
  """Runs a metric over a split.

  One batch is always in flight: the next is dispatched before the results of the last are fetched.

  Args:
    predict_fn: batch -> {key: (B, …) device array}. Called with the batch as `batches` gives it.
    batches: (batch, targets) pairs; "_mask" (B,) is 0 on padding (all rows are real without it), and `targets` has one
      dict of raw features per real row. With several processes, every process must see as many batches as the others.
    metric: what to compute; its `target` is the raw features, nested ones flattened with "/", on top of the example's
      own batch entries, so that a raw feature wins where names collide.
    progress: called with the number of examples seen, after every batch.

  Returns:
    {name: value}, the same on every process.
  """
  stats, seen = metric.init(), 0
  for outputs, batch, targets in _one_ahead(predict_fn, batches):
    stats, seen = _update_batch(metric, stats, outputs, batch, targets), seen + len(targets)
    if progress:
      progress(seen)
  return metric.compute(functools.reduce(metric.merge, gather(stats)))


def _one_ahead(predict_fn: PredictFn, batches: Batches) -> Iterator[tuple]:
  """Yields (outputs, batch, targets), each only after the batch behind it was dispatched."""
  pending = None
  for batch, targets in batches:
    dispatched = (predict_fn(batch), batch, targets)
    if pending is not None:
      yield pending
    pending = dispatched
  if pending is not None:
    yield pending


def _update_batch(metric: Metric, stats: Any, outputs: Mapping[str, jax.Array], batch: Batch,
                  targets: list[Mapping[str, Any]]) -> Any:
  """Stats after the real rows of one batch."""
  outputs = {key: local_rows(value) for key, value in outputs.items()}
  for row, target in zip(real_rows(batch, len(targets)), targets, strict=True):
    output = {key: value[row] for key, value in outputs.items()}
    stats = metric.update(stats, output, example_target(batch, row, target))
  return stats


def real_rows(batch: Batch, num_targets: int) -> np.ndarray:
  """Positions of the rows that are no padding; UserError when they are not as many as the targets."""
  if "_mask" in batch:
    rows = np.flatnonzero(np.asarray(batch["_mask"]) > 0)
  else:
    rows = np.arange(len(next(iter(batch.values()))))
  if len(rows) != num_targets:
    raise UserError(f"evaluation batch: {len(rows)} real rows, but {num_targets} targets")
  return rows


def example_target(batch: Batch, row: int, target: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """What a metric gets as the target of one row: its batch entries, then the raw features over them.

  Where the batch's image is on a canvas, "canvas_size" keeps the canvas: a raw "image" would hide it.
  """
  own = {key: np.asarray(value[row]) for key, value in batch.items() if key != "_mask"}
  canvas = {"canvas_size": np.array(own["image"].shape[:2])} if {"valid_size", "image"} <= own.keys() else {}
  return {**own, **canvas, **flatten_features(target)}


def flatten_features(features: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
  """Nested features -> {"panoptic_objects/id": array, …}."""
  flat = {}
  for key, value in features.items():
    nested = isinstance(value, Mapping)
    flat |= flatten_features(value, f"{prefix}{key}/") if nested else {prefix + key: np.asarray(value)}
  return flat


def local_rows(array: jax.Array | np.ndarray) -> np.ndarray:
  """The rows of a (B, …) result that this process fed, on the host, copies on several devices counted once."""
  if not isinstance(array, jax.Array) or array.is_fully_addressable:
    return np.asarray(jax.device_get(array))
  shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([jax.device_get(shards[start]) for start in sorted(shards)])


def gather(stats: Any) -> list[Any]:
  """The stats of all processes, in their order; only this one's without others.

  Stats travel pickled, since they differ in length between hosts and float64 must not be rounded on a device.
  """
  if jax.process_count() == 1:
    return [stats]
  data = np.frombuffer(pickle.dumps(stats), np.uint8)
  sizes = multihost_utils.process_allgather(np.array([data.size], np.int32)).reshape(-1)
  padded = np.zeros(sizes.max(), np.uint8)
  padded[:data.size] = data
  rows = multihost_utils.process_allgather(padded)
  return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]
