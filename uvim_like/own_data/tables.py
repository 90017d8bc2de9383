"""COCO's tables (panoptic, instances, person_keypoints, captions): JSON read with suspicion, joined by picture.

Joints lie in the middle of their pixels here (+0.5 to the annotated numbers), where pixel i covers [i, i + 1), so that
a mirror takes them right.
"""

import contextlib
import functools
import json
import operator
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from pycocotools import mask as rle

from uvim_like import pictures as safe
from uvim_like.errors import UserError
from uvim_like.joints import NAMES as JOINTS

HALF = 0.5
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
    folder: of the pictures, None where they do not matter.
    pictures: in the file's order.
    things: image id -> objects; None without a file of instances.
    captions: image id -> (id, text), or None without a file of captions.
    joints: number of joints, 0 without keypoints.
    categories: name of each label.
    ids: category id of each label.
  """
  folder: epath.Path | None
  pictures: tuple[Picture, ...]
  things: Mapping[int, Sequence[Thing]] | None
  captions: Mapping[int, Sequence[tuple[int, str]]] | None
  joints: int
  categories: tuple[str, ...] = ()
  ids: tuple[int, ...] = ()


# --- panoptic -------------------------------------------------------------------------------------------------------


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
  stem = pathlib.PurePath(safe.plain_name(entry["file_name"], where=f"{path}")).stem
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


# --- objects, joints, captions --------------------------------------------------------------------------------------


def annotated(table: Table) -> Table:
  """Without the images that show nothing but crowds, or nothing."""
  kept = tuple(p for p in table.pictures if any(not t.crowd for t in table.things.get(p.id, ())))
  return table._replace(pictures=kept)


def load(folder: epath.Path | None, files: Mapping[str, epath.Path], *, root: epath.Path | None = None) -> Table:
  """The joined annotations of a split; kept, since training and every evaluation ask for them.

  Args:
    folder: of the pictures, which must be there; None: only the tables are wanted.
    files: "instances" -> table, and any of "person_keypoints", "captions"; keypoints may stand in "instances" too.
    root: of the dataset, which links must not leave; None for the folder above the pictures.

  Raises:
    UserError: a table that cannot be read; an entry of a wrong kind, with its place; pictures that are not there.
  """
  stamps = tuple((kind, str(files[kind]), files[kind].stat().mtime) for kind in sorted(files) if kind != "panoptic")
  home = folder.parent if root is None and folder is not None else root
  return _load("" if folder is None else str(folder), str(home), stamps)


@functools.lru_cache(maxsize=4)
def _load(place: str, root: str, stamps: tuple) -> Table:
  paths = {kind: epath.Path(path) for kind, path, _ in stamps}
  first, folder = paths.get("instances") or paths["captions"], epath.Path(place) if place else None
  table = read_table(first, ("images", "annotations", "categories") if "instances" in paths else ("images",))
  pictures = _pictures(table, first, folder, epath.Path(root))
  own = "person_keypoints" in paths
  points, joints = _points(paths["person_keypoints"] if own else first, own) if "instances" in paths else ({}, 0)
  labels = _labels(table["categories"], first) if "instances" in paths else {}
  things = _things(table, first, {p.id for p in pictures}, labels, points) if "instances" in paths else None
  texts = _captions(paths["captions"]) if "captions" in paths else None
  names = tuple(str(category.get("name", category["id"])) for category in table["categories"]) if labels else ()
  return Table(folder, pictures, things, texts, joints, names, tuple(labels))


def _labels(categories: Sequence[Mapping], path: epath.Path) -> dict[int, int]:
  """Category id -> label, its position."""
  labels: dict[int, int] = {}
  for position, category in enumerate(categories):
    with entry_errors(path, "categories", position):
      labels[whole_number(category["id"])] = position
  return labels


def _things(table: Mapping, path: epath.Path, known: set[int], labels: Mapping[int, int],
            points: Mapping) -> dict[int, list[Thing]]:
  """Image id -> objects."""
  things: dict[int, list[Thing]] = {}
  for position, entry in enumerate(table["annotations"]):
    with entry_errors(path, "annotations", position):
      if entry["image_id"] not in known:
        raise ValueError(f"image_id {entry['image_id']!r:.50} is not among the images")
      things.setdefault(entry["image_id"], []).append(_thing(entry, labels, points))
  return things


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


def _pictures(table, path, folder, root) -> tuple[Picture, ...]:
  pictures = []
  for position, image in enumerate(table["images"]):
    with entry_errors(path, "images", position):
      file = safe.plain_name(image["file_name"], where=f"{path}: images[{position}]")
      pictures.append(Picture(whole_number(image["id"]), file, int(image["height"]), int(image["width"])))
      if min(pictures[-1][2:]) < 1 or pictures[-1].height * pictures[-1].width > safe.MAX_PIXELS:
        size = f"{pictures[-1].height} x {pictures[-1].width}"
        raise ValueError(f"{size} pixels are no size, or more than {safe.MAX_PIXELS:,}")
  if len({p.id for p in pictures}) < len(pictures):
    raise UserError(f"{path}: an id in 'images' occurs twice")
  if folder is None:
    return tuple(pictures)
  if folder.is_dir():
    safe.check_links(folder, root)
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


def _points(path: epath.Path, own_file: bool) -> tuple[dict[int, np.ndarray], int]:
  """Annotation id -> (J, 3) with joints in the middle of their pixels, and J; ({}, 0) where no entry has keypoints (null is none).

  All entries of a file of their own (`own_file`) must have them.
  """
  table = read_table(path, ("annotations", "categories"))
  named = [c["keypoints"] for c in table["categories"] if isinstance(c.get("keypoints"), list)]
  joints = max(map(len, named), default=0) or len(JOINTS)
  marked = [(i, entry) for i, entry in enumerate(table["annotations"]) if own_file or entry.get("keypoints")]
  if not marked and not own_file:
    return {}, 0
  points = {}
  for position, entry in marked:
    with entry_errors(path, "annotations", position):
      p = np.array(entry["keypoints"], np.float32).reshape(joints, 3)
      points[entry["id"]] = np.where(p[:, 2:] > 0, p + np.array([HALF, HALF, 0], np.float32), 0)
  return points, joints


def _captions(path: epath.Path) -> dict[int, list[tuple[int, str]]]:
  texts: dict[int, list] = {}
  for position, entry in enumerate(read_table(path, ("annotations",))["annotations"]):
    with entry_errors(path, "annotations", position):
      texts.setdefault(entry["image_id"], []).append((whole_number(entry["id"]), str(entry["caption"])))
  return texts


def fractions(box: np.ndarray, size: tuple[int, int]) -> list[float]:
  """x, y, w, h in pixels -> [y0, x0, y1, x1] as fractions of (H, W)."""
  x, y, w, h = box
  return [y / size[0], x / size[1], (y + h) / size[0], (x + w) / size[1]]


def draw(shape: Sequence[np.ndarray] | Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
  """uint8 (H, W) of polygons or run lengths, by COCO's own rasteriser; empty where nothing is given.

  Raises:
    UserError: run lengths that are none, or of another size.
  """
  if not isinstance(shape, Mapping):
    if not shape:
      return np.zeros(size, np.uint8)
    return rle.decode(rle.merge(rle.frPyObjects([p.tolist() for p in shape], *size)))
  given, counts = shape.get("size", size), shape.get("counts")
  if not isinstance(given, (list, tuple)) or not isinstance(counts, (list, str, bytes)):
    raise UserError("run lengths of a mask need 'size' [height, width] and 'counts', a list or a text")
  if tuple(given) != tuple(size):
    raise UserError(f"run lengths of a mask are for {list(given)} pixels, the image has {list(size)}")
  try:
    if isinstance(counts, list):
      drawn = rle.decode(rle.frPyObjects({"size": list(size), "counts": counts}, *size))
    else:
      drawn = rle.decode({"size": list(size), "counts": counts.encode() if isinstance(counts, str) else counts})
  except (ValueError, OverflowError, TypeError) as error:
    raise UserError(f"run lengths of a mask cannot be read: {error}") from error
  if isinstance(counts, list) and sum(counts) != size[0] * size[1] or drawn.max(initial=0) > 1:
    # What they leave out would not even be zeros.
    raise UserError(f"run lengths of a mask do not fill its {size[0]} x {size[1]} pixels")
  return drawn


def things_first(table: Mapping[str, Any]) -> dict[str, Any]:
  """A panoptic table whose categories begin with the countable ones, as models with a head for things want them."""
  return {**table, "categories": sorted(table["categories"], key=lambda category: not category.get("isthing", 1))}


def ids_of(images: Sequence[Mapping[str, Any]], path: epath.Path) -> dict[str, int]:
  """Stem of each picture that a table lists -> its id; UserError for an entry without one."""
  ids = {}
  for position, image in enumerate(images):
    with entry_errors(path, "images", position):
      ids[pathlib.PurePath(safe.plain_name(image["file_name"], where=f"{path}")).stem] = whole_number(image["id"])
  return ids


def names_in(paths: Iterable[epath.Path]) -> frozenset[str] | None:
  """Stems of the pictures that any of some tables lists; None where one cannot be read, which is told elsewhere."""
  names = set()
  for path in paths:
    try:
      names |= set(ids_of(read_table(path, ("images",))["images"], path))
    except UserError:
      return None
  return frozenset(names)
