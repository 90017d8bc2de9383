"""The 40 classes of NYU Depth V2: from the 894 names of the annotation, through the published table.

Not a task of its own. The table (Gupta et al., classMapping40.mat) and the 795/654 split (splits.mat) are downloaded
with the data; they are read, not copied.
"""

import os

import numpy as np
import scipy.io

from uvim_like.errors import UserError

# Gupta et al., CVPR 2013: 37 named classes and three for what is left; spelled as published.
NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refridgerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop")
CLASSES = len(NAMES)
VOID = 255   # train id of what is not labelled


def read_mapping(path: str | os.PathLike) -> np.ndarray:
  """(894,) uint8: class 1..40 of each annotated name, from classMapping40.mat.

  Raises:
    UserError: no such file, or another one.
  """
  table = _mat(path, "mapClass").reshape(-1)
  if not table.size or table.min() < 1 or table.max() > CLASSES:
    raise UserError(f"{path}: 'mapClass' has classes {table.min()}..{table.max()}, 1..{CLASSES} are expected")
  return table.astype(np.uint8)


def read_splits(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """{"train": (795,), "test": (654,)} 0-based frames, from splits.mat, which counts from 1."""
  return {name: np.sort(_mat(path, key).reshape(-1).astype(np.int64)) - 1
          for name, key in (("train", "trainNdxs"), ("test", "testNdxs"))}


# Of scipy's reader: another format or a damaged one (ValueError, TypeError), and MATLAB 7.3, which is HDF5 and which it
# refuses by a kind of RuntimeError.
MAT_ERRORS = (ValueError, TypeError, RuntimeError)


def _mat(path: str | os.PathLike, key: str) -> np.ndarray:
  try:
    table = scipy.io.loadmat(os.fspath(path))
  except (OSError, *MAT_ERRORS) as error:
    raise UserError(f"{path}: not a MATLAB file that can be read ({error}); it comes with the NYU data") from error
  if key not in table:
    raise UserError(f"{path}: no '{key}' in it")
  return table[key]


def to_classes(raw: np.ndarray, mapping: np.ndarray) -> np.ndarray:
  """Annotated names 0..894 (any shape; 0 = not labelled) -> uint8 classes 0..40, 0 = not labelled.

  Raises:
    UserError: a name beyond the table.
  """
  if raw.size and raw.max() > len(mapping):
    raise UserError(f"NYU label {raw.max()} in a map, but the table of classes ends at {len(mapping)}")
  return np.concatenate([[0], mapping]).astype(np.uint8)[raw]


def to_train_ids(classes: np.ndarray) -> np.ndarray:
  """Classes 0..40 -> uint8 train ids 0..39, 255 where not labelled."""
  return (classes.astype(np.int16) - 1).astype(np.uint8)   # -1 wraps to 255
