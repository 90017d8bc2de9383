"""Saved predictions read back: maps, segments, COCO's lists; as tools.predict writes them. See `evaluate_files`."""

import json
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from uvim_like import pictures
from uvim_like.errors import UserError
from uvim_like.own_data import maps

INDEX = "predictions.json"
SUFFIXES = (".npz", ".npy", ".png")   # in the order of preference: arrays are not rounded
VOID, WIDE_VOID = 255, 65535   # of label PNGs with 8 and 16 bits
LISTS = {"instances": ("instances", "keypoints"), "captions": ("captions",)}

Grouped = Mapping[Any, Sequence[Mapping[str, Any]]]


class Predictions(NamedTuple):
  """What was predicted.

  Attributes:
    place: where, for messages.
    kind: of maps.
    maps: name of the picture -> file.
    listed: name -> segments_info of panoptic.json.
    categories: of panoptic.json.
    classes: number of semantic classes, where the predictions say so.
    entries: "instances", "keypoints" or "captions" -> name (or id) of the picture -> its entries.
    looked_at: names of the pictures that were predicted, by predictions.json; None where ids are the truth's own.
  """
  place: str
  kind: str
  maps: Mapping[str, epath.Path] = {}
  listed: Mapping[str, Sequence[Mapping]] = {}
  categories: Sequence[Mapping] = ()
  classes: int | None = None
  entries: Mapping[str, Grouped] = {}
  looked_at: frozenset[str] | None = None

  @property
  def kinds(self) -> tuple[str, ...]:
    """"boxes", "masks", "keypoints": what the lists hold."""
    found = [entry for own in self.entries["instances"].values() for entry in own]
    has = {"boxes": not found or any("bbox" in d for d in found), "masks": any("segmentation" in d for d in found),
           "keypoints": "keypoints" in self.entries or any("keypoints" in d for d in found)}
    return tuple(kind for kind, there in has.items() if there)

  def names_of_maps(self) -> set[str]:
    """Pictures with a map."""
    return set(self.maps)

  def names_of_segments(self) -> set[str]:
    """Pictures with a map and its list."""
    if lacking := sorted(set(self.listed) ^ set(self.maps)):
      raise UserError(f"--pred: {self.place}: panoptic.json and the PNGs are not of the same pictures: "
                      f"{', '.join(lacking[:5])}")
    return set(self.maps)

  def names_of_lists(self) -> set[str] | None:
    """Pictures that were looked at, found something or not; None where only the truth can tell."""
    return None if self.looked_at is None else set(self.looked_at)

  def map(self, name: str) -> np.ndarray:
    """Metres (H, W), classes (H, W) from 1 with 0 = void, or normals (H, W, 3)."""
    path = self.maps[name]
    if self.kind == "semantic":
      return class_values(maps.read_classes(path)[..., 0], self.classes)
    if self.kind == "depth":
      return maps.read_depth(path)
    if path.suffix.lower() == ".png":
      levels = maps.read_colors(path)
      return np.where(np.any(levels > 0, -1, keepdims=True), levels / 127.5 - 1, 0.0)
    return maps.read_array(path, self.kind, channels=3)

  def segments(self, name: str) -> np.ndarray:
    """The panoptic PNG (H, W, 3)."""
    return np.asarray(pictures.open_image(self.maps[name]).convert("RGB"))

  def detections(self, name: str, number: int) -> list[Mapping[str, Any]]:
    """Objects of a picture, whose id in the truth is `number`, then those that have joints alone."""
    return [*self._of("instances", name, number), *self._of("keypoints", name, number)]

  def caption(self, name: str, number: int) -> str:
    """The sentence of a picture."""
    found = self._of("captions", name, number)
    if len(found) != 1:
      raise UserError(f"--pred: {self.place}: {len(found)} captions of '{name}'; one is needed")
    return str(found[0].get("caption", ""))

  def _of(self, kind: str, name: str, number: int) -> Sequence[Mapping[str, Any]]:
    return self.entries.get(kind, {}).get(number if self.looked_at is None else name, ())


def class_values(ids: np.ndarray, classes: int | None) -> np.ndarray:
  """Class maps (H, W) from 0 as files have them -> from 1 with 0 = void; 255 is a class where there are so many."""
  wide = classes is not None and classes > VOID
  return np.where((ids == WIDE_VOID) | ((ids == VOID) & (not wide)), 0, ids + 1)


def read(pred: pathlib.Path, kind: str) -> Predictions:
  """Predictions of one kind, see `truth_files.read`.

  Raises:
    UserError: no such folder, nothing of this kind in it, JSON that is none.
  """
  root = epath.Path(pred)
  if not root.exists():
    raise UserError(f"--pred: there is no folder or file '{pred}'")
  if root.is_file():
    if kind not in LISTS:
      raise UserError(f"--pred: '{pred}' is a file; a folder of {kind} maps is needed")
    return Predictions(str(pred), kind, entries={kind: _grouped(_list(root), root, None)})
  index = _index(root / INDEX)
  names, numbers = (None, None) if index is None else (index["names"], index["numbers"])
  if index is not None and not names:
    raise UserError(f"--pred: {root / INDEX}: no picture was predicted; run tools.predict again")
  if kind in LISTS:
    entries = {name: _grouped(_list(root / f"{name}.json"), root / f"{name}.json", numbers)
               for name in LISTS[kind] if (root / f"{name}.json").exists()}
    if kind not in entries:
      raise UserError(f"--pred: there is no {kind}.json in '{pred}'")
    looked_at = None if numbers is None else frozenset(numbers.values())
    return Predictions(str(pred), kind, entries=entries, looked_at=looked_at)
  found = _maps(root / kind if (root / kind).is_dir() else root, names)
  if not found:
    raise UserError(f"--pred: no {kind}/ with files ({', '.join(SUFFIXES)}) in '{pred}'")
  if kind == "panoptic":
    table, stems = _segments(root / "panoptic.json")
    listed = {(names or {}).get(stem, stem): segments for stem, segments in stems.items()}
    return Predictions(str(pred), kind, found, listed, table.get("categories", ()))
  return Predictions(str(pred), kind, found, classes=index["classes"] if index else None)


def _segments(path: epath.Path) -> tuple[Mapping[str, Any], dict[str, Sequence[Mapping]]]:
  """(the table, stem of each PNG -> its segments) of a COCO panoptic file."""
  table = _json(path)
  try:
    return table, {pathlib.PurePath(entry["file_name"]).stem: [
        {"id": int(s["id"]), "category_id": int(s["category_id"])} for s in entry["segments_info"]]
        for entry in table["annotations"]}
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"--pred: {path} is no COCO panoptic file ({type(error).__name__}: {error})") from error


def _maps(folder: epath.Path, names: Mapping[str, str] | None) -> dict[str, epath.Path]:
  """Name of the picture -> its file, arrays before pictures; UserError for several samples of one.

  With the names of an index, other files are left out: an earlier command wrote them into the same folder.
  """
  found: dict[str, epath.Path] = {}
  for path in sorted(folder.iterdir(), key=lambda p: p.name):
    suffix, result = path.suffix.lower(), path.name if path.is_dir() else path.stem
    if names is not None and result not in names:
      continue
    name = names[result] if names is not None else result
    if suffix in SUFFIXES and not path.name.startswith("."):
      if name not in found or SUFFIXES.index(suffix) < SUFFIXES.index(found[name].suffix.lower()):
        found[name] = path
    elif path.is_dir() and (path / "sample1.png").exists():
      raise UserError(f"--pred: {path} has several samples of a picture; predict again with --samples=1")
  return found


def _index(path: epath.Path) -> dict[str, Any] | None:
  """{"names": result's name -> picture's, "numbers": id -> picture's name, "classes"}; None without such a file."""
  if not path.exists():
    return None
  try:
    table = _json(path)
    done = [entry for entry in table["pictures"] if "error" not in entry]
    stems = Counter(pathlib.PurePath(entry["file"]).stem for entry in done)
    names = {entry["name"]: pathlib.PurePath(entry["file"]).stem for entry in done}
    names = {name: stem if stems[stem] == 1 else name for name, stem in names.items()}
    semantic = (table.get("classes") or {}).get("semantic")
    return {"names": names, "numbers": {int(entry["id"]): names[entry["name"]] for entry in done},
            "classes": len(semantic["categories"]) if semantic else None}
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(f"--pred: {path} is not a list of predictions ({type(error).__name__}: {error})") from error


def _json(path: epath.Path) -> Any:
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(f"--pred: {path} is missing") from None
  except (ValueError, OSError, RecursionError) as error:
    raise UserError(f"--pred: {path} is not JSON: {error}") from error


def _list(path: epath.Path) -> list[Mapping[str, Any]]:
  """COCO's results: a list of objects; or the "annotations" of a table."""
  entries = _json(path)
  entries = entries.get("annotations") if isinstance(entries, dict) else entries
  if not isinstance(entries, list) or not all(isinstance(e, dict) and "image_id" in e for e in entries):
    raise UserError(f"--pred: {path} is no list of results with 'image_id'")
  return entries


def _grouped(entries: Sequence[Mapping[str, Any]], path: epath.Path, numbers: Mapping[int, str] | None) -> Grouped:
  """Entries by picture: its name, or its id where there is no index."""
  found: dict[Any, list] = {}
  for entry in entries:
    if numbers is not None and entry["image_id"] not in numbers:
      raise UserError(f"--pred: {path}: image_id {entry['image_id']!r:.50} is not in {INDEX}")
    found.setdefault(entry["image_id"] if numbers is None else numbers[entry["image_id"]], []).append(entry)
  return found
