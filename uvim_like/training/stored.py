"""What the arrays of an .npz of finished examples mean: the batch keys, their forms on disk and in a batch."""

import pathlib
from collections.abc import Mapping

import numpy as np

from uvim_like.errors import UserError

# Everything a model may be given; (h,w) of masks is the image or a divisor of it.
MODEL_KEYS = ("image", "image_ctx", "labels", "boxes", "box_labels", "masks", "box_masks", "keypoints", "captions",
              "valid_size", "task_id")
TARGET_KEYS = MODEL_KEYS[2:-2]   # a training needs one of them
PICTURE_KEYS = ("image", "image_ctx", "labels")
PACKED_MASKS = "masks/packed"
MIRRORED_CAPTIONS = "captions/mirrored"   # what "left" and "right" become is known only where sentences are written
STORED_KEYS = (*MODEL_KEYS, PACKED_MASKS, MIRRORED_CAPTIONS)
# Axes of one example's array, and whether its numbers are whole.
FORMS = {"boxes": (2, False), "box_labels": (1, True), "masks": (3, True), PACKED_MASKS: (3, True),
         "box_masks": (3, True), "keypoints": (3, False), "captions": (2, True), MIRRORED_CAPTIONS: (2, True),
         "valid_size": (1, True), "task_id": (0, True)}


def convert(key: str, array: np.ndarray) -> np.ndarray:
  """Stored array to batch type.

  uint8 pictures (`image`, `image_ctx`, `labels` of 3 channels) become float32 in [-1, 1] by x/127.5 - 1; `labels` int8
  of 3 channels unit vectors; masks stay uint8; other integers (class and instance ids, tokens) become int32; other
  floats (metres, boxes) float32.
  """
  if key in ("masks", "box_masks"):
    return array.astype(np.uint8, copy=False)
  if key in PICTURE_KEYS and array.shape[-1] == 3 and array.dtype == np.uint8:
    return array.astype(np.float32) / np.float32(127.5) - np.float32(1)
  if key == "labels" and is_normals(array):
    return unit(array)
  return array.astype(np.float32 if np.issubdtype(array.dtype, np.floating) else np.int32, copy=False)


def is_normals(labels: np.ndarray) -> bool:
  """Whether stored labels are surface normals: int8 with 3 channels."""
  return labels.dtype == np.int8 and labels.shape[-1] == 3


def unit(levels: np.ndarray) -> np.ndarray:
  """(…, 3) vectors of any length to float32 unit vectors; zeros, where nothing was measured, stay zeros."""
  vectors = levels.astype(np.float32)
  length = np.sqrt(np.sum(vectors ** 2, axis=-1, keepdims=True))
  return vectors / np.maximum(length, np.float32(1e-6))


def to_batch(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Stored arrays of some examples as batch types, masks unpacked to the image's shape or a divisor of it."""
  rows = dict(arrays)
  if PACKED_MASKS in rows:
    packed, (height, width) = rows.pop(PACKED_MASKS), rows["image"].shape[1:3]
    rows["masks"] = np.unpackbits(packed, axis=-1, count=round(width * packed.shape[2] / height))
  return {key: convert(key, array) for key, array in rows.items()}


def check(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """UserError that names the array whose axes or dtype are not those of its key."""
  for key, (axes, whole) in FORMS.items():
    array = arrays.get(key)
    if array is None:
      continue
    if array.ndim != axes + 1:
      raise UserError(f"{path}: '{key}' has the shape {array.shape}; {axes + 1} axes are needed")
    if not (np.issubdtype(array.dtype, np.integer if whole else np.floating) or whole and array.dtype == bool):
      raise UserError(f"{path}: '{key}' has the dtype {array.dtype}; {'integers' if whole else 'floats'} are needed")
  if "boxes" in arrays and "box_labels" not in arrays:
    raise UserError(f"{path}: 'boxes' without 'box_labels', which tell objects from empty slots")
