"""The generated dataset `scenes`, rendered on the fly and kept in memory, so that the second epoch costs nothing."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epath

from pp_ops.source import Source, Specs, count, locate, split_spans
from uvim_like import scenes

_CACHED_EXAMPLES = 20_000   # 25 KB each at 64 px, 100 KB at 128 px with image and panoptic labels alone


def feature_specs(size: int | None) -> Specs:
  """Features of `scenes` at `size` pixels (None: any): panoptic ones as in coco/2017_panoptic, depth as in nyu_depth_v2."""
  shapes = {
      "image": ((size, size, 3), tf.uint8), "image/id": ((), tf.int64), "image/filename": ((), tf.string),
      "depth": ((size, size), tf.float16), "normals": ((size, size, 3), tf.uint8),
      "semantic": ((size, size, 1), tf.uint8), "panoptic_image": ((size, size, 3), tf.uint8),
      "panoptic_image/filename": ((), tf.string), "captions/id": ((None,), tf.int64),
      "captions/text": ((None,), tf.string), "camera/tan_half_fov": ((), tf.float32),
      "objects/keypoints": ((None, 17, 3), tf.float32), "objects/num_keypoints": ((None,), tf.int64)}
  for group in ("panoptic_objects", "objects"):
    shapes |= {f"{group}/area": ((None,), tf.int64), f"{group}/bbox": ((None, 4), tf.float32),
               f"{group}/id": ((None,), tf.int64), f"{group}/is_crowd": ((None,), tf.bool),
               f"{group}/label": ((None,), tf.int64)}
  return {name: tf.TensorSpec(shape, dtype) for name, (shape, dtype) in shapes.items()}


@functools.lru_cache(maxsize=_CACHED_EXAMPLES)
def render(split: str, index: int, size: int, keys: frozenset[str]) -> Mapping[str, Any]:
  """The named features of one example, with exactly the types of `feature_specs`; callers must not write to it."""
  flat = flatten(scenes.example(split, index, size=size))
  return {k: _typed(flat[k], spec.dtype) for k, spec in feature_specs(size).items() if k in keys}


def flatten(example: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dicts -> one dict, names joined by "/"."""
  flat = {}
  for name, value in example.items():
    flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
  return flat


def _typed(value: Any, dtype: tf.DType) -> Any:
  if dtype != tf.string:
    return np.asarray(value, dtype.as_numpy_dtype)
  return value.encode() if isinstance(value, str) else np.array([str(v).encode() for v in value], object)


class ScenesSource(Source):
  """`scenes` or `scenes/<config>` without files; examples are those of `uvim_like.scenes.example`."""

  def __init__(self, dataset: str, split: str):
    config = scenes.parse_name(dataset)
    self.name = f"{dataset} '{split}'"
    self.features = feature_specs(config.size)
    self._size = config.size
    self._spans = split_spans(split, config.splits, where=dataset)

  def __len__(self) -> int:
    return count(self._spans)

  def example_id(self, index: int) -> str:
    return scenes.file_name(*locate(index, self._spans)).rpartition(".")[0]

  def raw_specs(self, keys: Collection[str]) -> Specs:
    return {k: self.features[k] for k in keys}

  def fetch(self, index: int, keys: Collection[str]) -> dict[str, Any]:
    return dict(render(*locate(index, self._spans), self._size, frozenset(keys)))


def prepared_path(dataset: str, data_dir: str | None) -> epath.Path | None:
  """Folder of the newest version that was written as TFDS under data_dir, or None: then it is rendered.

  A prepared config may have a size of its own ("scenes/full_96x128"), which the renderer's table does not list.
  """
  if data_dir is None:
    return None
  config = dataset.partition("/")[2] or scenes.DEFAULT_CONFIG
  root = epath.Path(data_dir).expanduser() / "scenes" / config
  versions = [p for p in root.iterdir() if (p / "dataset_info.json").exists()] if root.exists() else []
  return max(versions, key=lambda p: [int(n) if n.isdigit() else -1 for n in p.name.split(".")], default=None)
