"""Writes `scenes` as one .npz per split: finished training examples of a task, and what its evaluation needs."""

import pathlib
import tempfile
import zipfile
from collections.abc import Iterable

import numpy as np

_LUMA = (0.2989, 0.587, 0.114)  # Rec. 601, as tf.image.rgb_to_grayscale
_SHARED_TARGETS = ("image/id", "depth", "panoptic_image")
_OBJECT_FIELDS = ("id", "area", "label", "is_crowd", "bbox")


def finish_depth(example: dict) -> dict[str, np.ndarray]:
  """image (H, W, 3) uint8 and labels (H, W, 1) float16 metres, 0 = no reading."""
  return {"image": example["image"], "labels": example["depth"][..., None]}


def finish_panoptic(example: dict) -> dict[str, np.ndarray]:
  """image and labels (H, W, 2) int16: label + 1, and the segments numbered from 1 in canonical order; 0 = void.

  Canonical order is that of the centres of mass, by cx + H·cy ascending, as UViM numbers them; stuff is numbered too.
  """
  ids = example["panoptic_image"].astype(np.int64) @ [1, 256, 65536]
  objects = example["panoptic_objects"]
  h = len(ids)
  semantics, instances = np.zeros(ids.shape, np.int16), np.zeros(ids.shape, np.int16)
  masks = [ids == number for number in objects["id"]]
  centre = [np.mean(np.nonzero(mask), axis=1) @ [h, 1] for mask in masks]
  for rank, i in enumerate(np.argsort(centre, kind="stable")):
    semantics[masks[i]] = objects["label"][i] + 1
    instances[masks[i]] = rank + 1
  return {"image": example["image"], "labels": np.stack([semantics, instances], -1)}


def finish_colorization(example: dict) -> dict[str, np.ndarray]:
  """image: the luma, cut to uint8, three times; labels: the colours, uint8."""
  luma = (example["image"] @ np.array(_LUMA)).astype(np.uint8)
  return {"image": np.repeat(luma[..., None], 3, axis=-1), "labels": example["image"]}


TASKS = {"depth": finish_depth, "panoptic_segmentation": finish_panoptic, "colorization": finish_colorization}


def arrays_of(example: dict, task: str) -> dict[str, np.ndarray]:
  """One example's arrays under their names in the file, the lists of objects not yet padded."""
  row = {key: np.asarray(example[key]) for key in _SHARED_TARGETS}
  row |= {f"panoptic_objects/{key}": example["panoptic_objects"][key] for key in _OBJECT_FIELDS}
  return TASKS[task](example) | row


def write(examples: Iterable[dict], count: int, folder: pathlib.Path, split: str, *, task: str) -> list[str]:
  """Writes `<split>.npz`, uncompressed so that arrays can be mapped; memory does not grow with the pictures.

  Every array has leading dimension `count`; `panoptic_objects/*` are padded with zeros (id 0) to the longest list.

  Returns:
    What was written, relative to the folder.
  """
  path = folder / f"{split}.npz"
  lists: dict[str, list] = {f"panoptic_objects/{key}": [] for key in _OBJECT_FIELDS}
  with tempfile.TemporaryDirectory(dir=folder) as scratch:
    files: dict[str, np.ndarray] = {}
    for i, example in enumerate(examples):
      for name, value in arrays_of(example, task).items():
        if name in lists:
          lists[name].append(value)
          continue
        if name not in files:
          files[name] = np.lib.format.open_memmap(_part(scratch, name), "w+", value.dtype, (count, *value.shape))
        files[name][i] = value
    for array in files.values():
      array.flush()
    for name, rows in lists.items():
      np.save(_part(scratch, name), pad_lists(rows))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
      for name in [*files, *lists]:
        archive.write(_part(scratch, name), f"{name}.npy")
  return [path.name]


def _part(scratch, name) -> pathlib.Path:
  return pathlib.Path(scratch) / (name.replace("/", "__") + ".npy")


def pad_lists(rows: list[np.ndarray]) -> np.ndarray:
  """(n, longest, …) of n arrays (m_i, …), zeros where a row is shorter."""
  longest = max(len(row) for row in rows)
  padded = np.zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
  for target, row in zip(padded, rows):
    target[:len(row)] = row
  return padded
