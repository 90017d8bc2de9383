"""Writes `scenes` as one .npz per split: finished training examples of a task, and what its evaluation needs."""

import json
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tools.rendering import instance_arrays
from uvim_like.errors import UserError
from uvim_like.own_data.form import STORED_NAMES
from uvim_like.scenes import classes
from uvim_like.tasks import text

_LUMA = (0.2989, 0.587, 0.114)  # Rec. 601, as tf.image.rgb_to_grayscale
_SHARED_TARGETS = ("image/id", "depth", "panoptic_image")
_OBJECT_FIELDS = ("id", "area", "label", "is_crowd", "bbox")
_THING_FIELDS = (*_OBJECT_FIELDS, "keypoints", "num_keypoints")
TEXT_MODEL = "captions.model"  # beside the splits
_TEXT_LENGTH = 120  # characters kept of a caption; the longest has about 90


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


def finish_semantics(example: dict) -> dict[str, np.ndarray]:
  """image and labels (H, W, 1) uint8: 0 = void, class + 1."""
  semantic = example["semantic"]
  return {"image": example["image"], "labels": np.where(semantic == 255, 0, semantic + 1).astype(np.uint8)}


def finish_normals(example: dict) -> dict[str, np.ndarray]:
  """image and labels (H, W, 3) int8: unit vectors times 127, zeros = no normal."""
  levels = example["normals"]
  vectors = levels / 127.5 - 1
  vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
  labels = np.where((levels > 0).any(-1, keepdims=True), np.round(vectors * 127), 0)
  return {"image": example["image"], "labels": labels.astype(np.int8)}


TASKS = {"depth": finish_depth, "panoptic_segmentation": finish_panoptic, "colorization": finish_colorization,
         "semantic_segmentation": finish_semantics, "surface_normals": finish_normals}
INSTANCES = "instances"  # boxes, masks, keypoints and captions; may stand beside one of TASKS
CHOICES = (*TASKS, INSTANCES)
# What the numbers in a task's arrays are called, as a config's `class_names` has it.
_CATEGORIES = [{key: category[key] for key in ("id", "name", "isthing")} for category in classes.categories()]
_NAMES = {"semantic_segmentation": {"semantic": list(classes.NAMES)}, "panoptic_segmentation": {"panoptic": _CATEGORIES},
          INSTANCES: {"objects": [{"id": c["id"], "name": c["name"]} for c in _CATEGORIES if c["isthing"]]}}
_OWN_TARGETS = {"semantic_segmentation": ("semantic",), "surface_normals": ("normals",)}


def arrays_of(example: dict, tasks: Sequence[str], tokenizer: text.Tokenizer | None = None,
              **sizes: int) -> dict[str, np.ndarray]:
  """One example's arrays under their names in the file, the lists of objects not yet padded.

  Args:
    example: as `scenes.example` gives it.
    tasks: of CHOICES, at most one of TASKS among them.
    tokenizer: of the captions, for "instances".
    **sizes: `slots` and `box_mask` of `finish_instances`.
  """
  shared = (*_SHARED_TARGETS, *(key for task in tasks for key in _OWN_TARGETS.get(task, ())))
  row = {key: np.asarray(example[key]) for key in shared}
  row |= {f"panoptic_objects/{key}": example["panoptic_objects"][key] for key in _OBJECT_FIELDS}
  if INSTANCES in tasks:
    row |= instance_arrays.finish_instances(example, tokenizer=tokenizer, **sizes)
    row |= {f"objects/{key}": example["objects"][key] for key in _THING_FIELDS}
    row["captions/text"] = np.array(example["captions"]["text"], f"U{_TEXT_LENGTH}")
  for task in tasks:
    row |= TASKS[task](example) if task in TASKS else {}
  return row


def is_list(name: str) -> bool:
  """Whether an array's length differs between examples."""
  return name.startswith(("panoptic_objects/", "objects/"))


def write(examples: Iterable[dict], count: int, folder: pathlib.Path, split: str, *, tasks: Sequence[str],
          **sizes: int) -> list[str]:
  """Writes `<split>.npz`, uncompressed so that arrays can be mapped; memory does not grow with the pictures.

  Every array has leading dimension `count`; `panoptic_objects/*` and `objects/*` are padded with zeros (id 0) to the
  longest list. With "instances", the model that writes the captions' tokens lies beside it as captions.model; the names
  of classes, where a task has them, as class_names.json, from which a training takes them.

  Returns:
    What was written, relative to the folder.
  """
  path, model = folder / f"{split}.npz", folder / TEXT_MODEL
  if INSTANCES in tasks and not model.exists():
    shutil.copyfile(text.scenes_model(), model)
  tokenizer = text.load(model) if INSTANCES in tasks else None
  lists: dict[str, list] = {}
  with tempfile.TemporaryDirectory(dir=folder) as scratch:
    files: dict[str, np.ndarray] = {}
    for i, example in enumerate(examples):
      for name, value in arrays_of(example, tasks, tokenizer, **sizes).items():
        if is_list(name):
          lists.setdefault(name, []).append(value)
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
  names = {kind: listed for task in tasks for kind, listed in _NAMES.get(task, {}).items()}
  if names:
    (folder / STORED_NAMES).write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
  return [path.name, *([model.name] if tokenizer else []), *([STORED_NAMES] if names else [])]


def stored(folder: pathlib.Path, counts: Mapping[str, int]) -> bool:
  """Whether a folder holds finished examples of all splits.

  Raises:
    UserError: it does, but not as many as wanted, {split: number}; or a file that cannot be read.
  """
  if not all((folder / f"{split}.npz").exists() for split in counts):
    return False
  for split, wanted in counts.items():
    if (found := count_of(folder / f"{split}.npz")) != wanted:
      raise UserError(f"{folder}: {split}.npz holds {found} examples, and {wanted} are asked for; ask for {found}, remove "
                      "the folder, or give another one")
  return True


def count_of(path: pathlib.Path) -> int:
  """The number of examples in a file of `write`, from one header; UserError where that cannot be read."""
  try:
    with zipfile.ZipFile(path) as archive, archive.open("image.npy") as file:
      np.lib.format.read_magic(file)
      return np.lib.format.read_array_header_1_0(file)[0][0]
  except (zipfile.BadZipFile, OSError, KeyError, ValueError, IndexError) as error:
    raise UserError(f"{path}: no finished examples ({error}); remove it") from error


def _part(scratch, name) -> pathlib.Path:
  return pathlib.Path(scratch) / (name.replace("/", "__") + ".npy")


def pad_lists(rows: list[np.ndarray]) -> np.ndarray:
  """(n, longest, …) of n arrays (m_i, …), zeros where a row is shorter."""
  longest = max(len(row) for row in rows)
  padded = np.zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
  for target, row in zip(padded, rows):
    target[:len(row)] = row
  return padded
