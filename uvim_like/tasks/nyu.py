"""The 40 classes of NYU Depth v2, and how its 894 raw labels become them."""

import pathlib

import numpy as np

from uvim_like.errors import UserError

RAW_CLASSES = 894
# Gupta et al., CVPR 2013: 37 named classes and three for what is left.
NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refridgerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop")
_MAP_VARIABLE = "mapClass"  # in the published classMapping40.mat: entry raw - 1 is the class 1..40


def read_table(path: str | pathlib.Path) -> np.ndarray:
  """(894,) classes 1..40 of the raw labels 1..894, from the published classMapping40.mat (or an .npy of the same).

  Raises:
    UserError: no such file, or no such table in it.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"{path}: no such file; the table of NYU's 40 classes is published as classMapping40.mat")
  if path.suffix == ".npy":
    return check_table(np.load(path, allow_pickle=False), where=str(path))
  import scipy.io  # Only here: one file, read once.
  try:
    stored = scipy.io.loadmat(path)
  except (ValueError, OSError, NotImplementedError) as error:
    raise UserError(f"{path}: not a readable .mat file ({error})") from error
  if _MAP_VARIABLE not in stored:
    raise UserError(f"{path}: no '{_MAP_VARIABLE}' in it; is it classMapping40.mat?")
  return check_table(stored[_MAP_VARIABLE], where=str(path))


def check_table(table: np.ndarray, *, where: str = "table") -> np.ndarray:
  """The table as (894,) int64; UserError unless it maps 894 labels to 0..40."""
  table = np.asarray(table).reshape(-1).astype(np.int64)
  if table.size != RAW_CLASSES or table.min() < 0 or table.max() > len(NAMES):
    raise UserError(f"{where}: {RAW_CLASSES} entries 0..{len(NAMES)} are needed, not {table.size} of "
                    f"{table.min()}..{table.max()}")
  return table


def to_labels(raw: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Raw labels 0..894, any shape and integer type -> uint8 labels: 0 = unlabelled, 1..40.

  Raises:
    UserError: a raw label that does not exist.
  """
  raw = np.asarray(raw).astype(np.int64)
  if raw.size and not 0 <= raw.min() <= raw.max() <= RAW_CLASSES:
    raise UserError(f"NYU raw labels must be 0..{RAW_CLASSES}, not {raw.min()}..{raw.max()}")
  return np.concatenate([[0], check_table(table)])[raw].astype(np.uint8)
