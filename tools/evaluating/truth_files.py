"""The truth of a task from a folder, for predictions that were saved; see `evaluate_files`."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from uvim_like.errors import UserError, unknown
from uvim_like.own_data import class_list, features, layout, tables
from uvim_like.own_data.layout import Place
from uvim_like.own_data.maps import SUFFIXES
from uvim_like.own_data.tables import Picture, Table

FOLDERS = {"depth": ("depth",), "semantic": ("semantic", "labels"), "normals": ("normals",), "panoptic": ("panoptic",)}
TABLE_KINDS = ("instances", "captions")   # whose truth is a table alone
_OBJECTS = ("id", "area", "bbox", "label", "is_crowd")


class Truth(NamedTuple):
  """What is known of the pictures.

  Attributes:
    place: where it was found, for messages.
    names: of the pictures, without suffix, in the order in which trainings read them.
    folder: sort of the label maps, key of `maps.READERS`.
    maps: name -> file.
    classes: number of classes, where a list says so.
    objects: name -> segments, as `tables.list_objects` gives them.
    categories: of panoptic maps, [{"id", "name", "isthing"}], things first.
    table: of instances or captions.
    pictures: name -> its entry there.
  """
  place: str
  names: tuple[str, ...]
  folder: str = ""
  maps: Mapping[str, epath.Path] = {}
  classes: int | None = None
  objects: Mapping[str, Any] = {}
  categories: Sequence[Mapping[str, Any]] = ()
  table: Table | None = None
  pictures: Mapping[str, Picture] = {}

  @property
  def ids(self) -> dict[str, int]:
    """Name -> id of the picture."""
    return {name: picture.id for name, picture in self.pictures.items()}

  @property
  def person(self) -> int | None:
    """The class from 1 whose objects have joints."""
    posed = (thing.label + 1 for things in (self.table.things or {}).values() for thing in things
             if thing.points is not None and thing.points[:, 2].any())
    return next(posed, None)

  @property
  def kinds(self) -> tuple[str, ...]:
    """"boxes", "masks", "keypoints": what is annotated of the objects."""
    things = [thing for own in (self.table.things or {}).values() for thing in own]
    has = {"boxes": True, "masks": any(thing.shape for thing in things), "keypoints": self.table.joints > 0}
    return tuple(kind for kind, there in has.items() if there)

  def annotations(self, name: str, *, masks: bool) -> dict[str, Any]:
    """The features of a picture's objects, as the dataset has them."""
    keys = ["image/id", "image/size", *(f"objects/{key}" for key in _OBJECTS)]
    keys += ["objects/masks"] if masks else []
    keys += ["objects/keypoints", "objects/num_keypoints"] if self.table.joints else []
    return {key: features.feature(self.table, self.pictures[name], key) for key in keys}

  def sentences(self, name: str) -> list[str]:
    """The captions of a picture."""
    return [sentence for _, sentence in self.table.captions.get(self.pictures[name].id, ())]


def read(gt: pathlib.Path, kind: str, *, split: str | None) -> Truth:
  """The truth of one kind: "depth", "semantic", "normals", "panoptic", "instances", "captions".

  Args:
    gt: a folder as trainings read it; without images/, one that holds the maps or tables themselves; or one JSON file,
      of panoptic maps with their PNGs in the folder of the same name beside it.
    kind: see above.
    split: of the folder; None for all.

  Raises:
    UserError: no such folder or split, nothing of this kind in it, files that cannot be read.
  """
  root = epath.Path(gt)
  if not root.exists():
    raise UserError(f"--gt: there is no folder or file '{gt}'")
  if root.is_file():
    if split is not None:
      raise UserError(f"--split: '{gt}' is one file, which has no splits; leave it out")
    return _of_file(root, kind)
  chosen = _chosen(_places(root), split)
  if kind in TABLE_KINDS:
    return _tables(str(gt), kind, chosen)
  return _maps(root, kind, chosen)


def _of_file(path: epath.Path, kind: str) -> Truth:
  """The truth of one JSON file."""
  if kind in TABLE_KINDS:
    return _tables(str(path), kind, [Place("", path.parent, {}, {kind: path})])
  if kind != "panoptic":
    wanted = " or ".join(f"{name}/" for name in FOLDERS[kind])
    raise UserError(f"--gt: '{path}' is a file; a folder of {wanted} with label maps is needed. One file may hold "
                    f"{', '.join(TABLE_KINDS)} or list panoptic maps")
  folder = path.with_suffix("")
  if path.suffix != ".json" or not folder.is_dir():
    raise UserError(f"--gt: '{path}' lists panoptic PNGs, which are looked for in {folder}/; there is no such folder")
  return _maps(path, kind, [Place("", folder, {kind: folder}, {kind: path}, listed=True)])


def elsewhere(gt: pathlib.Path, kind: str, truth: Truth) -> frozenset[str]:
  """Names of the pictures that the folder has beside those of a truth that was read from one of its splits."""
  root = epath.Path(gt)
  places = _places(root).values() if root.is_dir() else ()
  folders = [folder for place in places for folder in (
      place.images, *(place.maps[name] for name in FOLDERS.get(kind, ()) if name in place.maps))]
  names = {path.stem for folder in dict.fromkeys(folders) if folder.is_dir() for path in folder.iterdir()}
  return frozenset(names - set(truth.names))


def _places(root: epath.Path) -> dict[str, Place]:
  """The splits of a folder as trainings read it; one without images/ is a place of its own."""
  try:
    return layout.find(root)
  except UserError:
    return {"": Place("", root / "images", {name: root / name for name in SUFFIXES if (root / name).is_dir()},
                      {name: root / f"{name}.json" for name in layout.TABLES if (root / f"{name}.json").exists()})}


def _chosen(places: Mapping[str, Place], split: str | None) -> list[Place]:
  if split is not None:
    if split not in places:
      raise unknown("split", split, [name for name in places if name], where="--split")
    return [places[split]]
  return [places[layout.ALL]] if layout.ALL in places else list(places.values())


def _maps(root: epath.Path, kind: str, places: Sequence[Place]) -> Truth:
  """Label maps of some splits; the folder itself where it holds nothing but maps."""
  folder = next((name for name in FOLDERS[kind] for place in places if name in place.maps), None)
  homes = [(place.maps[folder], place) for place in places if folder in place.maps] or [(root, places[0])]
  folder = folder or FOLDERS[kind][0]
  found: dict[str, epath.Path] = {}
  for home, place in homes:
    shared = place.listed and folder in place.maps and place.is_shared(folder)
    listed = tables.names_in(place.tables.values()) if shared else None
    for name, path in layout.list_files(home, SUFFIXES[folder], root=place.root).items():
      if listed is not None and name not in listed:
        continue
      if name in found:
        raise UserError(f"--gt: '{name}' is in two splits, {found[name].parent} and {home}; choose one with --split")
      found[name] = path
    chosen = layout.members(found, place.part)
    found = {name: path for name, path in found.items() if name in chosen}
  if not found:
    raise UserError(f"--gt: no {' or '.join(f'{name}/' for name in FOLDERS[kind])} with label maps in '{root}'")
  listing = class_list.find(root) if kind == "semantic" else None
  truth = Truth(str(root), tuple(found), folder, found, listing.count if listing else None)
  return _with_segments(truth, homes) if kind == "panoptic" else truth


def _with_segments(truth: Truth, homes: Sequence[tuple[epath.Path, Place]]) -> Truth:
  """The truth with the lists of its segments, in the order of their tables where these list the pictures."""
  objects, categories, names = {}, [], []
  for home, place in homes:
    beside = (home.parent / "panoptic.json", home.with_name(f"{home.name}.json"))
    path = place.tables.get("panoptic") or next((p for p in beside if p.exists()), beside[0])
    table = tables.things_first(tables.read_json(path))
    objects |= tables.list_objects(table, path)
    categories = [dict(id=int(c["id"]), name=str(c.get("name", c["id"])), isthing=int(bool(c.get("isthing", 1))))
                  for c in table["categories"]]
    listed = list(tables.ids_of(table["images"], path)) if place.listed else []
    names += [name for name in listed if name in truth.maps]
  if missing := sorted(set(truth.names) - set(objects)):
    raise UserError(f"--gt: {len(missing)} panoptic maps are not listed in panoptic.json: {', '.join(missing[:5])}")
  return truth._replace(objects=objects, categories=categories, names=tuple(names) if names else truth.names)


def _tables(where: str, kind: str, places: Sequence[Place]) -> Truth:
  """Objects or captions of one split, whose ids are different from those of others."""
  there = [place for place in places if kind in place.tables]
  if len(there) != 1:
    raise UserError(f"--gt: {'no' if not there else 'more than one'} {kind}.json in '{where}'"
                    + ("; choose a split with --split" if there else ""))
  wanted = ("instances", "person_keypoints") if kind == "instances" else ("captions",)
  table = tables.load(None, {name: path for name, path in there[0].tables.items() if name in wanted})
  pictures = {layout.stem_of(p.file): p for p in table.pictures}
  chosen = layout.members(pictures, there[0].part)
  pictures = {name: picture for name, picture in pictures.items() if name in chosen}
  names = tuple(pictures) if there[0].listed else tuple(sorted(pictures))
  return Truth(where, names, table=table, pictures=pictures)
