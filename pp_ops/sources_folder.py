"""A folder of images, with optional label maps paired by file name, as a source."""

import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from etils import epath
from PIL import Image, UnidentifiedImageError

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
  """Stem -> file of the named suffixes, sorted; UserError when two files differ in the suffix alone."""
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
  corners = [(y / h, x / w, (y + dy) / h, (x + dx) / w) for x, y, dx, dy in (s.get("bbox", [0] * 4) for s in segments)]
  return {"area": np.array([s.get("area", 0) for s in segments], np.int64),
          "bbox": np.array(corners, np.float32).reshape(-1, 4),
          "id": np.array([s["id"] for s in segments], np.int64),
          "is_crowd": np.array([s.get("iscrowd", 0) for s in segments], bool),
          "label": np.array([positions[s["category_id"]] for s in segments], np.int64)}


def read_json(path: epath.Path) -> dict:
  """A COCO panoptic table; UserError when it is missing, is no JSON or lacks a list."""
  if not path.exists():
    raise UserError(f"{path} is missing: panoptic labels need their list of segments")
  try:
    table = json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise UserError(f"{path} is not JSON: {error}") from error
  missing = {"images", "annotations", "categories"} - set(table)
  if missing:
    raise UserError(f"{path}: no list '{min(missing)}', which a COCO panoptic table has")
  return table


def list_objects(table: Mapping[str, Any], path: epath.Path) -> dict[str, dict]:
  """Stem of the panoptic PNG -> its objects; `path` names the table in errors."""
  positions = {category["id"]: i for i, category in enumerate(table["categories"])}
  sizes = {im["id"]: (im["height"], im["width"]) for im in table["images"]}
  objects = {}
  for entry in table["annotations"]:
    stem = pathlib.PurePath(entry["file_name"]).stem
    size = sizes.get(entry["image_id"])
    if size is None:
      raise UserError(f"{path}: no entry in 'images' for image_id {entry['image_id']}")
    unlisted = {s["category_id"] for s in entry["segments_info"]} - set(positions)
    if unlisted:
      raise UserError(f"{path}: {entry['file_name']} has category ids {sorted(unlisted)} that 'categories' does not list")
    objects[stem] = panoptic_objects(entry["segments_info"], positions, size)
  return objects


def scan(folder: epath.Path) -> Files:
  """The paired files of a folder with images/ and any of labels/ depth/ semantic/ normals/ panoptic/."""
  images = list_files(folder / "images", IMAGE_SUFFIXES)
  labels = {}
  for name, kind in KINDS.items():
    if (folder / name).exists():
      labels[name] = list_files(folder / name, kind.suffixes)
      check_pairs(images, labels[name], folder / name)
  objects = None
  if "panoptic" in labels:
    objects = list_objects(read_json(folder / "panoptic.json"), folder / "panoptic.json")
    check_pairs(images, objects, folder / "panoptic.json")
  numbers = all(stem.isdecimal() for stem in images)
  ids = {stem: int(stem) if numbers else i for i, stem in enumerate(images)}
  return Files(tuple(images), images, labels, objects, ids)


def open_split(root: epath.Path, split: str, *, skip_decode: Collection[str] = ()) -> "FileSource":
  """A split of root/<split>/images/…, or of root/images/…, whose one split is called "train"."""
  if (root / "images").exists():
    folders = {"train": root}
  elif root.exists():
    folders = {p.name: p for p in root.iterdir() if (p / "images").exists()}
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
      size = image_size(files.images[stem])
      for key, shape in maps.items():
        if shape != size:
          path = files.labels[self._kinds[key]][stem]
          raise UserError(f"{path}: {shape[0]}x{shape[1]} pixels, its image has {size[0]}x{size[1]}")
    return raw

  def _fetch_one(self, files: Files, stem: str, key: str) -> Any:
    if key == "image":
      return files.images[stem].read_bytes()
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

def image_size(path: epath.Path) -> tuple[int, int]:
  """(H, W) from the file's header."""
  return _opened(path, pixels=False).size[::-1]


def read_classes(path: epath.Path, dtype: np.dtype) -> np.ndarray:
  """Class ids of a grey, palette or bilevel PNG, 8 or 16 bits: (H, W, 1)."""
  image = _opened(path)
  if image.mode not in ("L", "P", "1", "I", "I;16"):
    raise UserError(f"{path}: a label PNG needs one channel of class ids (grey or palette), not {image.mode}")
  ids = np.asarray(image)
  if ids.size and ids.max() > np.iinfo(dtype).max:
    raise UserError(f"{path}: class id {ids.max()} does not fit {np.dtype(dtype).name}; put such maps into labels/")
  return ids.astype(dtype)[..., None]


def read_depth(path: epath.Path) -> np.ndarray:
  """float32 (H, W) metres: of .npy as it is, of 16-bit PNG in millimetres."""
  if path.suffix == ".npy":
    with path.open("rb") as file:
      depth = np.load(file, allow_pickle=False)
  else:
    image = _opened(path)
    if image.mode not in ("I", "I;16"):
      raise UserError(f"{path}: depth needs a 16-bit PNG in millimetres, not {image.mode}")
    depth = np.asarray(image) * MILLIMETRE
  if depth.ndim == 3 and depth.shape[-1] == 1:
    depth = depth[..., 0]
  if depth.ndim != 2:
    raise UserError(f"{path}: depth needs shape (H, W), not {depth.shape}")
  return depth.astype(np.float32)


def read_colors(path: epath.Path) -> np.ndarray:
  """uint8 (H, W, 3)."""
  return np.asarray(_opened(path).convert("RGB"))


def _opened(path: epath.Path, *, pixels: bool = True) -> Image.Image:
  try:
    with path.open("rb") as file:
      image = Image.open(file)
      if pixels:
        image.load()
      return image
  except (UnidentifiedImageError, OSError, SyntaxError) as error:
    raise UserError(f"{path} is not an image that can be read: {error}") from error


READERS = {
    "labels": lambda path: read_classes(path, np.int32), "semantic": lambda path: read_classes(path, np.uint8),
    "depth": read_depth, "normals": read_colors, "panoptic": read_colors,
}
