"""A folder of images, with optional label maps paired by file name, as a source."""

import contextlib
import json
import math
import operator
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from etils import epath

from pp_ops import files as safe_files
from pp_ops.files import open_image
from pp_ops.source import Source, Specs, count, locate, split_spans
from uvim_like.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MILLIMETRE = 0.001   # unit of 16-bit depth PNGs


class Kind(NamedTuple):
  """One sort of label file: the folder's name gives the files, `feature` the key in an example."""
  feature: str
  suffixes: tuple[str, ...]
  shape: tuple[int | None, ...]
  dtype: tf.DType


KINDS = {
    "labels": Kind("labels", (".png",), (None, None, 1), tf.int32),
    "depth": Kind("depth", (".png", ".npy"), (None, None), tf.float32),
    "semantic": Kind("semantic", (".png",), (None, None, 1), tf.uint8),
    "normals": Kind("normals", (".png",), (None, None, 3), tf.uint8),
    "panoptic": Kind("panoptic_image", (".png",), (None, None, 3), tf.uint8),
}
_OBJECTS = {"area": ((None,), tf.int64), "bbox": ((None, 4), tf.float32), "id": ((None,), tf.int64),
            "is_crowd": ((None,), tf.bool), "label": ((None,), tf.int64)}

Objects = Mapping[str, np.ndarray]


class Files(NamedTuple):
  """One named split of paired files.

  Attributes:
    stems: names of the examples, in their order.
    images: stem -> image file.
    labels: name in KINDS -> stem -> file.
    objects: stem -> {"id" (n,), "label" (n,), …} as in coco/2017_panoptic; None without panoptic labels.
    ids: stem -> "image/id".
  """
  stems: Sequence[str]
  images: Mapping[str, epath.Path]
  labels: Mapping[str, Mapping[str, epath.Path]]
  objects: Mapping[str, Objects] | None
  ids: Mapping[str, int]


# --- files --------------------------------------------------------------------------------------------------------

def list_files(folder: epath.Path, suffixes: Sequence[str]) -> dict[str, epath.Path]:
  """Stem -> file of the named suffixes, sorted.

  Raises:
    UserError: two files differ in the suffix alone; a link leads out of the dataset.
  """
  safe_files.check_links(folder, folder.parent)
  files: dict[str, epath.Path] = {}
  for path in sorted(folder.iterdir(), key=lambda p: p.name):
    if path.suffix.lower() in suffixes and not path.name.startswith("."):
      if path.stem in files:
        raise UserError(f"{folder}: both {files[path.stem].name} and {path.name}; a name must occur once")
      files[path.stem] = path
  return files


def check_pairs(images: Collection[str], labels: Collection[str], folder: epath.Path) -> None:
  """UserError that names the files without partner."""
  missing, spare = sorted(set(images) - set(labels)), sorted(set(labels) - set(images))
  if missing or spare:
    parts = [f"{len(names)} {what} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
             for names, what in ((missing, "images without a file there"), (spare, "files without an image")) if names]
    raise UserError(f"{folder}: {' and '.join(parts)}; files are paired by name without suffix")


def panoptic_objects(segments: Sequence[Mapping], positions: Mapping[int, int], size: tuple[int, int]) -> dict:
  """`segments_info` of a COCO panoptic JSON -> arrays as in coco/2017_panoptic.

  Args:
    segments: dicts with id, category_id, area, bbox [x, y, w, h] in pixels, iscrowd.
    positions: category id -> 0-based position in the JSON's list, the label.
    size: (H, W), by which boxes [ymin, xmin, ymax, xmax] are divided.
  """
  h, w = size
  index = operator.index   # a number with a fraction is no id
  corners = [(y / h, x / w, (y + dy) / h, (x + dx) / w) for x, y, dx, dy in (s.get("bbox", [0] * 4) for s in segments)]
  return {"area": np.array([int(s.get("area", 0)) for s in segments], np.int64),
          "bbox": np.array(corners, np.float32).reshape(-1, 4),
          "id": np.array([index(s["id"]) for s in segments], np.int64),
          "is_crowd": np.array([s.get("iscrowd", 0) for s in segments], bool),
          "label": np.array([positions[s["category_id"]] for s in segments], np.int64)}


def read_json(path: epath.Path) -> dict[str, Any]:
  """A COCO panoptic table; UserError when it is missing, is no JSON, or its lists are not lists of objects."""
  if not path.exists():
    raise UserError(f"{path} is missing: panoptic labels need their list of segments")
  try:
    table = json.loads(path.read_text())
  except (ValueError, OSError, RecursionError) as error:   # ValueError: no JSON, no UTF-8, a number of 5000 digits
    raise UserError(f"{path} is not JSON: {error}") from error
  if not isinstance(table, dict):
    raise UserError(f"{path}: an object is expected at the top, not {type(table).__name__}")
  for key in ("images", "annotations", "categories"):
    if key not in table:
      raise UserError(f"{path}: no list '{key}', which a COCO panoptic table has")
    if not isinstance(table[key], list) or not all(isinstance(entry, dict) for entry in table[key]):
      raise UserError(f"{path}: '{key}' must be a list of objects")
  return table


def list_objects(table: Mapping[str, Any], path: epath.Path) -> dict[str, dict]:
  """Stem of the panoptic PNG -> its objects; `path` names the table in errors."""
  positions, sizes, objects = {}, {}, {}
  for position, category in enumerate(table["categories"]):
    with entry_errors(path, "categories", position):
      positions[whole_number(category["id"])] = position
  for position, image in enumerate(table["images"]):
    with entry_errors(path, "images", position):
      sizes[whole_number(image["id"])] = whole_number(image["height"], least=1), whole_number(image["width"], least=1)
  if len(sizes) < len(table["images"]):
    raise UserError(f"{path}: {len(table['images']) - len(sizes)} ids in 'images' occur twice")
  for position, entry in enumerate(table["annotations"]):
    with entry_errors(path, "annotations", position):
      stem, segments = _entry_objects(entry, positions, sizes, path)
      if stem in objects:
        raise UserError(f"{path}: '{stem}' has two entries in 'annotations'")
      objects[stem] = segments
  return objects


def _entry_objects(entry: Mapping[str, Any], positions: Mapping[int, int], sizes: Mapping[int, tuple[int, int]],
                   path: epath.Path) -> tuple[str, dict]:
  """(stem of the PNG, its objects) of one entry of 'annotations'."""
  stem = pathlib.PurePath(safe_files.plain_name(entry["file_name"], where=f"{path}")).stem
  size = sizes.get(entry["image_id"])
  if size is None:
    raise UserError(f"{path}: no entry in 'images' for image_id {entry['image_id']!r:.50}")
  unlisted = {s["category_id"] for s in entry["segments_info"]} - set(positions)
  if unlisted:
    raise UserError(f"{path}: {entry['file_name']} has category ids {sorted(unlisted, key=repr)} that 'categories' "
                    "does not list")
  return stem, panoptic_objects(entry["segments_info"], positions, size)


@contextlib.contextmanager
def entry_errors(path: epath.Path, key: str, position: int) -> Iterator[None]:
  """Turns what a value of a wrong kind raises into a UserError that names the entry of the table."""
  try:
    yield
  except UserError:
    raise
  except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
    reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
    raise UserError(f"{path}: {key}[{position}]: {reason}") from error


def whole_number(value: Any, *, least: int = -2 ** 63) -> int:
  """The value if it is an integer of 64 bits, `least` or more."""
  if not least <= operator.index(value) < 2 ** 63:
    raise ValueError(f"{value!r:.50} is out of range")
  return int(value)


def scan(folder: epath.Path) -> Files:
  """The paired files of a folder with images/ and any of labels/ depth/ semantic/ normals/ panoptic/."""
  images = list_files(folder / "images", IMAGE_SUFFIXES)
  labels = {}
  for name, kind in KINDS.items():
    if (folder / name).is_dir():
      labels[name] = list_files(folder / name, kind.suffixes)
      check_pairs(images, labels[name], folder / name)
  objects = None
  if "panoptic" in labels:
    objects = list_objects(read_json(folder / "panoptic.json"), folder / "panoptic.json")
    check_pairs(images, objects, folder / "panoptic.json")
  return Files(tuple(images), images, labels, objects, image_ids(images))


def image_ids(stems: Collection[str]) -> dict[str, int]:
  """Stem -> "image/id": the number that it is, where all are different numbers; else its position."""
  numbers = [int(stem) for stem in stems if stem.isdecimal() and len(stem) < 19]
  return dict(zip(stems, numbers if len(set(numbers)) == len(stems) else range(len(stems))))


def open_split(root: epath.Path, split: str, *, skip_decode: Collection[str] = ()) -> "FileSource":
  """A split of root/<split>/images/…, or of root/images/…, whose one split is called "train"."""
  if (root / "images").is_dir():
    folders = {"train": root}
  elif root.is_dir():
    folders = {p.name: p for p in root.iterdir() if (p / "images").is_dir()}
  else:
    folders = {}
  if not folders:
    raise UserError(f"folder '{root}': there is neither images/ nor <split>/images/ in it")
  lengths = {name: len(list_files(folder / "images", IMAGE_SUFFIXES)) for name, folder in folders.items()}
  spans = split_spans(split, lengths, where=f"folder '{root}'")
  splits = {name: scan(folders[name]) for name in {s.split for s in spans}}
  return FileSource(f"folder '{root}' '{split}'", splits, spans, skip_decode=skip_decode)


# --- the source ---------------------------------------------------------------------------------------------------

class FileSource(Source):
  """Images and label maps in files, as bytes and decoded arrays."""

  def __init__(self, name: str, splits: Mapping[str, Files], spans, *, skip_decode: Collection[str] = ()):
    self.name = name
    self._splits, self._spans = splits, spans
    kinds = [set(files.labels) for files in splits.values()]
    if any(k != kinds[0] for k in kinds):
      raise UserError(f"{name}: the splits have different labels: {' / '.join(str(sorted(k)) for k in kinds)}")
    self._encoded = "image" in skip_decode
    image = tf.TensorSpec([], tf.string) if self._encoded else tf.TensorSpec([None, None, 3], tf.uint8)
    self.features = {"image": image, "image/id": tf.TensorSpec([], tf.int64),
                     "image/filename": tf.TensorSpec([], tf.string)}
    self._kinds = {KINDS[k].feature: k for k in kinds[0]}
    self.features |= {f: tf.TensorSpec(KINDS[k].shape, KINDS[k].dtype) for f, k in self._kinds.items()}
    if "panoptic_image" in self._kinds:
      self.features["panoptic_image/filename"] = tf.TensorSpec([], tf.string)
      self.features |= {f"panoptic_objects/{k}": tf.TensorSpec(*spec) for k, spec in _OBJECTS.items()}

  def __len__(self) -> int:
    return count(self._spans)

  def _find(self, index: int) -> tuple[Files, str]:
    split, position = locate(index, self._spans)
    return self._splits[split], self._splits[split].stems[position]

  def example_id(self, index: int) -> str:
    return self._find(index)[1]

  def raw_specs(self, keys: Collection[str]) -> Specs:
    return {k: tf.TensorSpec([], tf.string) if k == "image" else self.features[k] for k in keys}

  def fetch(self, index: int, keys: Collection[str]) -> dict[str, Any]:
    files, stem = self._find(index)
    raw = {k: self._fetch_one(files, stem, k) for k in keys}
    maps = {k: raw[k].shape[:2] for k in keys if k in self._kinds}
    if maps:
      size = safe_files.image_size(files.images[stem])
      for key, shape in maps.items():
        if shape != size:
          path = files.labels[self._kinds[key]][stem]
          raise UserError(f"{path}: {shape[0]}x{shape[1]} pixels, its image has {size[0]}x{size[1]}")
    return raw

  def _fetch_one(self, files: Files, stem: str, key: str) -> Any:
    if key == "image":
      return safe_files.read_bytes(files.images[stem])
    if key == "image/id":
      return np.int64(files.ids[stem])
    if key == "image/filename":
      return files.images[stem].name.encode()
    if key == "panoptic_image/filename":
      return files.labels["panoptic"][stem].name.encode()
    if key.startswith("panoptic_objects/"):
      return files.objects[stem][key.partition("/")[2]]
    return READERS[self._kinds[key]](files.labels[self._kinds[key]][stem])

  def parse(self, raw: Mapping[str, tf.Tensor], keys: Collection[str]) -> dict[str, tf.Tensor]:
    features = {k: raw[k] for k in keys}
    if "image" in features and not self._encoded:
      image = tf.io.decode_image(raw["image"], channels=3, expand_animations=False)
      features["image"] = tf.ensure_shape(image, [None, None, 3])
    return features


# --- readers: through Pillow, because tf.io turns palette PNGs into colours -----------------------------------------

def read_classes(path: epath.Path, dtype: np.dtype) -> np.ndarray:
  """Class ids of a grey, palette or bilevel PNG, 8 or 16 bits: (H, W, 1)."""
  image = open_image(path)
  if image.mode not in ("L", "P", "1", "I", "I;16"):
    raise UserError(f"{path}: a label PNG needs one channel of class ids (grey or palette), not {image.mode}")
  ids = np.asarray(image)
  if ids.size and ids.max() > np.iinfo(dtype).max:
    raise UserError(f"{path}: class id {ids.max()} does not fit {np.dtype(dtype).name}; put such maps into labels/")
  return ids.astype(dtype)[..., None]


def read_depth(path: epath.Path) -> np.ndarray:
  """float32 (H, W) metres: of .npy as it is, of 16-bit PNG in millimetres."""
  if path.suffix == ".npy":
    depth = _read_npy(path)
  else:
    image = open_image(path)
    if image.mode not in ("I", "I;16"):
      raise UserError(f"{path}: depth needs a 16-bit PNG in millimetres, not {image.mode}")
    depth = np.asarray(image) * MILLIMETRE
  if depth.ndim == 3 and depth.shape[-1] == 1:
    depth = depth[..., 0]
  if depth.ndim != 2:
    raise UserError(f"{path}: depth needs shape (H, W), not {depth.shape}")
  return depth.astype(np.float32)


def _read_npy(path: epath.Path) -> np.ndarray:
  """One array of real numbers, without pickle, no larger than a picture may be."""
  try:
    with path.open("rb") as file:
      shape, _, dtype = NPY_HEADERS[np.lib.format.read_magic(file)](file)
      if dtype.kind not in "iuf" or math.prod(shape) > safe_files.MAX_PIXELS:
        raise UserError(f"{path}: {dtype} of shape {shape}; real numbers, at most {safe_files.MAX_PIXELS:,} of them, "
                        "are needed")
      file.seek(0)
      return np.load(file, allow_pickle=False)
  except UserError:
    raise
  except (ValueError, OSError, EOFError, KeyError, TypeError, SyntaxError, OverflowError) as error:
    raise UserError(f"{path} is not a .npy file that can be read: {error}") from error


def read_colors(path: epath.Path) -> np.ndarray:
  """uint8 (H, W, 3)."""
  return np.asarray(open_image(path).convert("RGB"))


# Version in the file -> reader of its header.
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
READERS = {
    "labels": lambda path: read_classes(path, np.int32), "semantic": lambda path: read_classes(path, np.uint8),
    "depth": read_depth, "normals": read_colors, "panoptic": read_colors,
}
