"""COCO's objects, joints and captions, joined by image from the JSON files as downloaded.

`objects/*` are those of coco/2017 in TFDS, and what TFDS leaves out: masks (n, H, W), keypoints (n, J, 3) = (x, y,
visibility) in pixels, captions. Joints lie in the middle of their pixels here (+0.5 to the annotated numbers), where
pixel i covers [i, i + 1), so that a mirror takes them right.
"""

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from etils import epath
from pycocotools import mask as rle

from pp_ops.files import MAX_PIXELS, check_links, plain_name, read_bytes
from pp_ops.source import Source, Specs, count, locate, split_spans
from pp_ops.sources_coco import ALIASES
from pp_ops.sources_folder import entry_errors, whole_number
from uvim_like.errors import UserError
from uvim_like.joints import NAMES as JOINTS

ANNOTATED = "_annotated"   # "train2017_annotated": images with an object that is no crowd; what MAD and AiT train on
_HALF = 0.5
_FARTHEST = 2 ** 16   # pixels from the corner of an image, where a polygon may have points


class Picture(NamedTuple):
  """One entry of the list of images."""
  id: int
  file: str
  height: int
  width: int


class Thing(NamedTuple):
  """One annotated object.

  Attributes:
    id: of the annotation.
    label: 0-based position of its category in the file's list.
    area: pixels, as annotated.
    box: x, y, w, h in pixels.
    crowd: whether it stands for a pile.
    shape: polygons, arrays of x, y, x, y, …, or run lengths as in the file.
    points: (J, 3) x, y, visibility, or None.
  """
  id: int
  label: int
  area: float
  box: np.ndarray
  crowd: bool
  shape: tuple[np.ndarray, ...] | Mapping[str, Any]
  points: np.ndarray | None


class Table(NamedTuple):
  """One split's annotations.

  Attributes:
    folder: of the pictures.
    pictures: in the file's order.
    things: image id -> objects.
    captions: image id -> (id, text), or None without a file of captions.
    joints: number of joints, 0 without a file of keypoints.
  """
  folder: epath.Path
  pictures: tuple[Picture, ...]
  things: Mapping[int, Sequence[Thing]]
  captions: Mapping[int, Sequence[tuple[int, str]]] | None
  joints: int


# --- files --------------------------------------------------------------------------------------------------------

def open_split(root: epath.Path, split: str, *, skip_decode: Collection[str] = ()) -> "CocoInstances":
  """A split of root/annotations/instances_<name>.json and root/<name>/*.jpg.

  person_keypoints_<name>.json and captions_<name>.json beside it are joined where they are. "train" and "validation"
  mean train2017 and val2017 where these exist; "<name>_annotated" has the images with objects only.
  """
  where, notes = f"coco_instances '{root}'", root / "annotations"
  found = {p.stem.removeprefix("instances_") for p in notes.iterdir()
           if p.name.startswith("instances_") and p.suffix == ".json"} if notes.is_dir() else set()
  if not found:
    raise UserError(f"{where}: there is no annotations/instances_<split>.json")
  names = {name: name for name in found} | {a: n for a, n in ALIASES.items() if n in found and a not in found}
  wanted = {part.split("[")[0].strip() for part in split.split("+")}
  tables = {n: load(str(root), file) for n, file in names.items() if {n, n + ANNOTATED} & wanted}
  tables |= {n + ANNOTATED: annotated(tables[n]) for n in tuple(tables)}
  lengths = {n: len(tables[n].pictures) if n in tables else 0 for name in names for n in (name, name + ANNOTATED)}
  return CocoInstances(f"{where} '{split}'", tables, split_spans(split, lengths, where=where), skip_decode=skip_decode)


def annotated(table: Table) -> Table:
  """Without the images that show nothing but crowds, or nothing."""
  kept = tuple(p for p in table.pictures if any(not t.crowd for t in table.things.get(p.id, ())))
  return table._replace(pictures=kept)


def load(root: str, name: str) -> Table:
  """The joined annotations of a split; kept, since training and every evaluation ask for them."""
  notes = epath.Path(root) / "annotations"
  paths = [notes / f"{kind}_{name}.json" for kind in ("instances", "person_keypoints", "captions")]
  return _load(root, name, tuple((str(p), p.stat().mtime) if p.exists() else None for p in paths))


@functools.lru_cache(maxsize=4)
def _load(root: str, name: str, stamps: tuple) -> Table:
  instances, people, captions = (epath.Path(stamp[0]) if stamp else None for stamp in stamps)
  table, folder = read_table(instances, ("images", "annotations", "categories")), epath.Path(root) / name
  pictures = _pictures(table, instances, folder)
  points, joints = _points(people) if people else ({}, 0)
  known = {p.id for p in pictures}
  things: dict[int, list[Thing]] = {}
  labels: dict[int, int] = {}
  for position, category in enumerate(table["categories"]):
    with entry_errors(instances, "categories", position):
      labels[whole_number(category["id"])] = position
  for position, entry in enumerate(table["annotations"]):
    with entry_errors(instances, "annotations", position):
      if entry["image_id"] not in known:
        raise ValueError(f"image_id {entry['image_id']!r:.50} is not among the images")
      things.setdefault(entry["image_id"], []).append(_thing(entry, labels, points))
  texts = _captions(captions) if captions else None
  return Table(folder, pictures, things, texts, joints)


def read_table(path: epath.Path, keys: Sequence[str]) -> dict[str, list[dict]]:
  """A COCO table with the named lists; UserError when it is no JSON or lacks one."""
  try:
    table = json.loads(path.read_text())
  except (ValueError, OSError, RecursionError) as error:
    raise UserError(f"{path} is not JSON: {error}") from error
  for key in keys:
    entries = table.get(key) if isinstance(table, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
      raise UserError(f"{path}: no list '{key}' of objects")
  return table


def _pictures(table, path, folder) -> tuple[Picture, ...]:
  pictures = []
  for position, image in enumerate(table["images"]):
    with entry_errors(path, "images", position):
      file = plain_name(image["file_name"], where=f"{path}: images[{position}]")
      pictures.append(Picture(whole_number(image["id"]), file, int(image["height"]), int(image["width"])))
      if min(pictures[-1][2:]) < 1 or pictures[-1].height * pictures[-1].width > MAX_PIXELS:
        raise ValueError(f"{pictures[-1].height} x {pictures[-1].width} pixels are no size, or more than {MAX_PIXELS:,}")
  if len({p.id for p in pictures}) < len(pictures):
    raise UserError(f"{path}: an id in 'images' occurs twice")
  if folder.is_dir():
    check_links(folder, folder.parent)
  there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
  missing = [p.file for p in pictures if p.file not in there]
  if missing:
    raise UserError(f"{folder}: {len(missing)} images of {path.name} are missing ({', '.join(missing[:5])}, …)")
  return tuple(pictures)


def _thing(entry: Mapping, labels: Mapping[int, int], points: Mapping[int, np.ndarray]) -> Thing:
  if entry["category_id"] not in labels:
    raise ValueError(f"category_id {entry['category_id']!r:.50} is not among the categories")
  shape = entry.get("segmentation") or ()
  if not isinstance(shape, dict):
    shape = tuple(np.array(polygon, np.float64) for polygon in shape)
    if any(p.ndim != 1 or p.size < 6 or p.size % 2 for p in shape):
      raise ValueError("a polygon of 'segmentation' is no list of at least three points x, y")
    if any(not (np.abs(p) <= _FARTHEST).all() for p in shape):   # COCO's rasteriser writes past its memory there
      raise ValueError(f"a polygon of 'segmentation' has points beyond {_FARTHEST} pixels")
  box = np.array(entry["bbox"], np.float64)
  if box.shape != (4,):
    raise ValueError(f"'bbox' has {box.size} numbers, not 4")
  return Thing(whole_number(entry["id"]), labels[entry["category_id"]], float(entry["area"]), box,
               bool(entry.get("iscrowd", 0)), shape, points.get(entry["id"]))


def _points(path: epath.Path) -> tuple[dict[int, np.ndarray], int]:
  """Annotation id -> (J, 3) with joints in the middle of their pixels, and J."""
  table = read_table(path, ("annotations", "categories"))
  named = [c["keypoints"] for c in table["categories"] if isinstance(c.get("keypoints"), list)]
  joints = max(map(len, named), default=0) or len(JOINTS)
  points = {}
  for position, entry in enumerate(table["annotations"]):
    with entry_errors(path, "annotations", position):
      p = np.array(entry["keypoints"], np.float32).reshape(joints, 3)
      points[entry["id"]] = np.where(p[:, 2:] > 0, p + np.array([_HALF, _HALF, 0], np.float32), 0)
  return points, joints


def _captions(path: epath.Path) -> dict[int, list[tuple[int, str]]]:
  texts: dict[int, list] = {}
  for position, entry in enumerate(read_table(path, ("annotations",))["annotations"]):
    with entry_errors(path, "annotations", position):
      texts.setdefault(entry["image_id"], []).append((whole_number(entry["id"]), str(entry["caption"])))
  return texts


# --- the source ---------------------------------------------------------------------------------------------------

class CocoInstances(Source):
  """Pictures with their joined annotations; masks are drawn when they are asked for."""

  def __init__(self, name: str, tables: Mapping[str, Table], spans, *, skip_decode: Collection[str] = ()):
    self.name = name
    self._tables, self._spans = tables, spans
    used = [tables[span.split] for span in spans]
    if len({(t.joints, t.captions is None) for t in used}) > 1:
      raise UserError(f"{name}: its parts do not all have person_keypoints and captions files")
    self._joints = used[0].joints
    self._encoded = "image" in skip_decode
    shapes = {"id": ((None,), tf.int64), "area": ((None,), tf.float64), "bbox": ((None, 4), tf.float32),
              "is_crowd": ((None,), tf.bool), "label": ((None,), tf.int64), "masks": ((None, None, None), tf.uint8)}
    if self._joints:
      shapes |= {"keypoints": ((None, self._joints, 3), tf.float32), "num_keypoints": ((None,), tf.int64)}
    shapes = {f"objects/{key}": spec for key, spec in shapes.items()}
    shapes |= {"image/id": ((), tf.int64), "image/filename": ((), tf.string), "image/size": ((2,), tf.int64)}
    if used[0].captions is not None:
      shapes |= {"captions/id": ((None,), tf.int64), "captions/text": ((None,), tf.string)}
    self.features = {"image": tf.TensorSpec([], tf.string) if self._encoded
                     else tf.TensorSpec([None, None, 3], tf.uint8)}
    self.features |= {key: tf.TensorSpec(*spec) for key, spec in shapes.items()}

  def __len__(self) -> int:
    return count(self._spans)

  def _find(self, index: int) -> tuple[Table, Picture]:
    split, position = locate(index, self._spans)
    return self._tables[split], self._tables[split].pictures[position]

  def example_id(self, index: int) -> str:
    return self._find(index)[1].file

  def raw_specs(self, keys: Collection[str]) -> Specs:
    return {k: tf.TensorSpec([], tf.string) if k == "image" else self.features[k] for k in keys}

  def fetch(self, index: int, keys: Collection[str]) -> dict[str, Any]:
    table, picture = self._find(index)
    things = table.things.get(picture.id, ())
    return {key: self._one(table, picture, things, key) for key in keys}

  def _one(self, table: Table, picture: Picture, things: Sequence[Thing], key: str) -> Any:
    if key == "image":
      return read_bytes(table.folder / picture.file)
    if key.startswith("captions/"):
      entries = table.captions.get(picture.id, ())
      return (np.array([i for i, _ in entries], np.int64) if key == "captions/id" else
              np.array([text.encode() for _, text in entries], object))
    fixed = {"image/id": np.int64(picture.id), "image/filename": picture.file.encode(),
             "image/size": np.array([picture.height, picture.width], np.int64)}
    return fixed[key] if key in fixed else self._objects(things, picture, key.partition("/")[2])

  def _objects(self, things: Sequence[Thing], picture: Picture, name: str) -> np.ndarray:
    size = (picture.height, picture.width)
    if name == "masks":
      return np.stack([draw(t.shape, size) for t in things]) if things else np.zeros((0, *size), np.uint8)
    if name == "bbox":
      return np.array([fractions(t.box, size) for t in things], np.float32).reshape(-1, 4)
    if name == "keypoints":
      none = np.zeros((self._joints, 3), np.float32)
      return np.array([none if t.points is None else t.points for t in things], np.float32).reshape(-1, *none.shape)
    if name == "num_keypoints":
      return np.array([0 if t.points is None else (t.points[:, 2] > 0).sum() for t in things], np.int64)
    values = {"id": ([t.id for t in things], np.int64), "area": ([t.area for t in things], np.float64),
              "is_crowd": ([t.crowd for t in things], bool), "label": ([t.label for t in things], np.int64)}
    return np.array(*values[name])

  def parse(self, raw: Mapping[str, tf.Tensor], keys: Collection[str]) -> dict[str, tf.Tensor]:
    features = {k: raw[k] for k in keys}
    if "image" in features and not self._encoded:
      image = tf.io.decode_image(raw["image"], channels=3, expand_animations=False)
      features["image"] = tf.ensure_shape(image, [None, None, 3])
    return features


def fractions(box: np.ndarray, size: tuple[int, int]) -> list[float]:
  """x, y, w, h in pixels -> [y0, x0, y1, x1] as fractions of (H, W)."""
  x, y, w, h = box
  return [y / size[0], x / size[1], (y + h) / size[0], (x + w) / size[1]]


def draw(shape: Sequence[np.ndarray] | Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
  """uint8 (H, W) of polygons or run lengths, by COCO's own rasteriser; empty where nothing is given."""
  if not isinstance(shape, Mapping):
    if not shape:
      return np.zeros(size, np.uint8)
    return rle.decode(rle.merge(rle.frPyObjects([p.tolist() for p in shape], *size)))
  if tuple(shape.get("size", size)) != tuple(size):
    raise UserError(f"run lengths of a mask are for {shape['size']} pixels, the image has {list(size)}")
  counts = shape["counts"]
  try:
    if isinstance(counts, list):
      drawn = rle.decode(rle.frPyObjects({"size": list(size), "counts": counts}, *size))
    else:
      drawn = rle.decode({"size": list(size), "counts": counts.encode() if isinstance(counts, str) else counts})
  except (ValueError, OverflowError, TypeError) as error:
    raise UserError(f"run lengths of a mask cannot be read: {error}") from error
  if isinstance(counts, list) and sum(counts) != size[0] * size[1] or drawn.max(initial=0) > 1:
    raise UserError(f"run lengths of a mask do not fill its {size[0]} x {size[1]} pixels")   # the rest is not even zeros
  return drawn
