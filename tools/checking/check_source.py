"""The validation pass over a dataset that is read record by record (TFDS, scenes); see `check_data`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from pp_ops.sources import open_source
from tools.checking.check_data import Options, Problem, watched
from uvim_like.errors import UserError
from uvim_like.own_data.check import label_problems

BAD = (tf.errors.OpError, ValueError, UserError)
MAPS = ("depth", "semantic", "normals", "panoptic_image", "labels", "segmentation_label")
_SLACK = 1e-3  # of a box's side, in float32 of pixels divided by the image's


def check(dataset: str, data_dir: str | None, options: Options) -> tuple[int, list[Problem]]:
  """(number of examples, problems); UserError for a dataset or split that does not exist."""
  if options.split is None:
    raise UserError(f"--split is missing: which part of '{dataset}' to check, e.g. --split=train")
  source = open_source(dataset, options.split, data_dir=data_dir)
  problems, seen = [], {}
  for index in watched(range(len(source)), total=len(source), name=source.name):
    name = source.example_id(index)
    try:
      example = source[index]
    except BAD as error:
      problems.append(Problem(name, "cannot be read", str(getattr(error, "message", error))[:300]))
      continue
    identity = _identity(example)
    if identity is not None and seen.setdefault(identity, name) != name:
      problems.append(Problem(name, "duplicate id", f"{identity!r} is also {seen[identity]}"))
    problems += [Problem(name, *found) for found in example_problems(example, options)]
  return len(source), problems


def _identity(example: Mapping[str, Any]) -> Any:
  for key in ("image/id", "image_id", "image/filename"):
    if key in example:
      return example[key].item() if isinstance(example[key], np.ndarray) else example[key]
  return None


def example_problems(example: Mapping[str, Any], options: Options) -> Iterator[tuple[str, str]]:
  """(kind, detail) of all that is wrong with the features of one example."""
  size = example["image"].shape[:2] if "image" in example else None
  for key in MAPS:
    if key in example and size is not None and example[key].shape[:2] != size:
      yield "size mismatch", f"'{key}' {example[key].shape[:2]}, its image {size}"
  if "depth" in example:
    depth = np.asarray(example["depth"], np.float32)
    if not np.isfinite(depth).all():
      yield "not finite", f"{(~np.isfinite(depth)).sum()} values of 'depth'"
    if (depth < 0).any():
      yield "negative depth", f"{(depth < 0).sum()} pixels"
  for key in ("labels", "semantic"):
    if key in example and np.issubdtype(example[key].dtype, np.integer):
      yield from label_problems(example[key], options)
  for key, value in example.items():
    if key.endswith("/bbox"):
      yield from box_problems(key, np.asarray(value))
  if "panoptic_image" in example and "panoptic_objects/id" in example:
    yield from panoptic_problems(example["panoptic_image"], example["panoptic_objects/id"])


def box_problems(key: str, boxes: np.ndarray) -> Iterator[tuple[str, str]]:
  """Boxes (n, 4) as [ymin, xmin, ymax, xmax] in 0..1 that leave the image, are turned round or are no numbers."""
  for i, box in enumerate(boxes.reshape(-1, 4)):
    inside = np.isfinite(box).all() and (box >= -_SLACK).all() and (box <= 1 + _SLACK).all()
    if not inside or box[2] < box[0] or box[3] < box[1]:
      yield "annotation outside its image", f"{key}[{i}] {np.round(box, 4).tolist()}"


def panoptic_problems(pixels: np.ndarray, ids: np.ndarray) -> Iterator[tuple[str, str]]:
  """Segments without pixels, listed twice, or in the picture but not in the list; pixels (H, W, 3), ids (n,)."""
  drawn = set(np.unique(pixels.astype(np.int64) @ [1, 256, 65536]).tolist()) - {0}
  listed = [int(i) for i in ids]
  for what, numbers in (("segment without pixels", set(listed) - drawn), ("pixels of no segment", drawn - set(listed)),
                        ("duplicate id", {i for i in listed if listed.count(i) > 1})):
    if numbers:
      yield what, ", ".join(map(str, sorted(numbers)[:5])) + ("" if len(numbers) < 6 else f", … ({len(numbers)})")
