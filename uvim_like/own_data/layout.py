"""Where the files of somebody's folder are: splits, pictures, label maps, tables.

Four layouts, told apart by what is there:
  images/ semantic/ …                one set
  train/images/ train/semantic/ …    a sub-folder for each split
  images/train/ semantic/train/ …    the same the other way round
  annotations/<kind>_<split>.json    COCO: <split>/ or images/<split>/ or images/ with the pictures, panoptic_<split>/;
                                     other maps as semantic/<split>/, semantic_<split>/ or semantic/ of all splits
Of one set alone, or a single split for training, one picture in eight is held out, by a hash of its name.
"""

import hashlib
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from uvim_like import pictures
from uvim_like.errors import UserError
from uvim_like.own_data.maps import SUFFIXES

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif")
# Pictures of formats that are not read: left out silently they would be missed.
FOREIGN_SUFFIXES = (".webp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".exr", ".pgm", ".ppm", ".pbm",
                    ".pnm", ".dng")
TABLES = ("panoptic", "instances", "person_keypoints", "captions")
# What people call the two splits that a training needs.
TRAIN_NAMES = ("train", "training", "train2017", "train2014")
VALIDATION_NAMES = ("validation", "val", "valid", "val2017", "val2014", "dev", "test", "testing")
HELD_OUT = 8     # one picture in so many is for validation …
LEAST = 8        # … of a set with at least so many
ALL = "everything"   # "all" has a meaning of its own in split arithmetic


class Place(NamedTuple):
  """Where one split lies.

  Attributes:
    name: of the split, as its folder or table is called.
    images: folder of the pictures.
    maps: sort of label map -> its folder, those that hold a file of this sort.
    tables: sort of table -> JSON file, those that are there.
    root: of the whole dataset, which links must not leave; None where it is the folder above `images`.
    others: as `maps`, folders of these names that hold no such file.
    listed: whether the pictures are those that the tables list, and not all of the folder (COCO).
    part: of a set that is split by hash: "train" or "validation"; None for all of it.
  """
  name: str
  images: epath.Path
  maps: Mapping[str, epath.Path]
  tables: Mapping[str, epath.Path]
  root: epath.Path | None = None
  others: Mapping[str, epath.Path] = {}
  listed: bool = False
  part: str | None = None

  @property
  def home(self) -> epath.Path:
    """The folder that links must not leave."""
    return self.images.parent if self.root is None else self.root

  def is_shared(self, kind: str) -> bool:
    """Whether a folder of label maps may hold those of other splits."""
    own = (self.name, f"{kind}_{self.name}")
    return self.part is not None or self.listed and self.maps[kind].name not in own


def find(root: epath.Path) -> dict[str, Place]:
  """Split -> place; one set alone has "train", "everything", and "validation" from `LEAST` pictures on.

  Raises:
    UserError: none of the layouts.
  """
  places = _places(root)
  (name, place), *others = places.items()
  alone = not others and name in TRAIN_NAMES and not place.listed   # COCO's tables say themselves what a split is
  return _halves(place._replace(name="train")) if alone else places


def _places(root: epath.Path) -> dict[str, Place]:
  """The splits as folders or tables have them; one set alone is "train"."""
  if coco := _coco(root):
    return coco
  if (root / "images").is_dir():
    inner = sorted(p.name for p in (root / "images").iterdir() if p.is_dir() and not p.name.startswith("."))
    own = [p for p in (root / "images").iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
    if inner and not own:
      return {name: _place(name, root / "images" / name, root, inner=name) for name in inner}
    return {"train": _place("train", root / "images", root)}
  folders = sorted(p.name for p in root.iterdir() if (p / "images").is_dir()) if root.is_dir() else []
  if not folders:
    raise UserError(f"folder '{root}': there is neither images/ nor <split>/images/ in it")
  return {name: _place(name, root / name / "images", root / name)._replace(root=root) for name in folders}


def _place(name: str, images: epath.Path, home: epath.Path, *, inner: str = "") -> Place:
  """A place whose maps and tables lie under `home`, maps in `inner` of their folders."""
  maps, others = _told_apart({kind: home / kind / inner if inner else home / kind for kind in SUFFIXES})
  tables = {}
  for kind in TABLES:
    for path in (home / f"{kind}_{inner}.json", home / kind / f"{inner}.json") if inner else (home / f"{kind}.json",):
      if path.exists():
        tables[kind] = path
  return Place(name, images, maps, tables, home, others)


def _told_apart(folders: Mapping[str, epath.Path]) -> tuple[dict[str, epath.Path], dict[str, epath.Path]]:
  """Those that hold a label map of their kind, and those that hold none, as the texts of YOLO's labels/."""
  there = {kind: path for kind, path in folders.items() if path.is_dir()}
  maps = {kind: path for kind, path in there.items() if holds(path, SUFFIXES[kind])}
  return maps, {kind: path for kind, path in there.items() if kind not in maps}


def holds(folder: epath.Path, suffixes: Sequence[str]) -> bool:
  """Whether a folder has a file with one of the suffixes."""
  return any(p.suffix.lower() in suffixes and not p.name.startswith(".") for p in folder.iterdir())


def _halves(whole: Place) -> dict[str, Place]:
  files = whole.images.iterdir() if whole.images.is_dir() else ()   # of tables alone nothing can be trained
  names = [p.stem for p in files if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
  if len(names) < LEAST:
    return {"train": whole, ALL: whole._replace(name=ALL)}
  halves = {part: whole._replace(name=part, part=part) for part in ("train", "validation")}
  return halves | {ALL: whole._replace(name=ALL)}


def _coco(root: epath.Path) -> dict[str, Place]:
  """The splits of COCO's layout, {} where there is no table of one."""
  notes = root / "annotations"
  found: dict[str, dict[str, epath.Path]] = {}
  for path in sorted(notes.iterdir(), key=lambda p: p.name) if notes.is_dir() else ():
    kind = next((kind for kind in TABLES if path.name.startswith(f"{kind}_") and path.suffix == ".json"), None)
    if kind and kind != "captions":   # captions alone say nothing about the pictures' sizes
      found.setdefault(path.stem.removeprefix(f"{kind}_"), {})[kind] = path
  places = {}
  for name, tables in found.items():
    captions = notes / f"captions_{name}.json"
    tables |= {"captions": captions} if captions.exists() else {}
    homes = [folder for folder in (root / name, root / "images" / name, root / "images") if folder.is_dir()]
    maps, others = _told_apart({kind: _coco_maps(root, kind, name) for kind in SUFFIXES})
    places[name] = Place(name, homes[0] if homes else root / name, maps, tables, root, others, listed=True)
  return places


def _coco_maps(root: epath.Path, kind: str, split: str) -> epath.Path:
  """The folder of a split's label maps; the last of those where it may be when there is none."""
  choices = (root / f"{kind}_{split}", root / "annotations" / f"{kind}_{split}", root / kind / split, root / kind)
  return next((path for path in choices if path.is_dir()), choices[-1])


def place_of_name(name: str) -> float:
  """Where the name of a picture (without suffix) lies in [0, 1), for good."""
  digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
  return int.from_bytes(digest[:6], "big") / 2 ** 48


def members(names: Collection[str], part: str | None) -> set[str]:
  """The pictures of a part, see `Place`.

  Those whose place lies below 1 / `HELD_OUT` are for validation, whatever else is in the set; where chance made these
  less than half of what is due, those with the next places as well.
  """
  if part is None:
    return set(names)
  ordered = sorted(names, key=place_of_name)
  count = max(sum(place_of_name(name) < 1 / HELD_OUT for name in ordered), len(ordered) // (2 * HELD_OUT), 1)
  return set(ordered[:count] if part == "validation" else ordered[count:])


def training_splits(names: Sequence[str], *, where: str) -> tuple[str, str]:
  """(train, validation) of the names that a folder has; without a second one, training pictures are evaluated.

  Raises:
    UserError: none is called after training.
  """
  train = next((name for name in TRAIN_NAMES if name in names), None)
  if train is None:
    raise UserError(f"{where}: none of its splits ({', '.join(sorted(names))}) is called "
                    f"{' or '.join(TRAIN_NAMES[:2])}")
  return train, next((name for name in VALIDATION_NAMES if name in names), train)


def list_files(folder: epath.Path, suffixes: Sequence[str], *, root: epath.Path | None = None
               ) -> dict[str, epath.Path]:
  """Stem -> file of the named suffixes, sorted.

  Args:
    folder: where they are.
    suffixes: with a dot, lower case.
    root: of the dataset, which links must not leave; None for the folder above.

  Raises:
    UserError: two files differ in the suffix alone; a link leads out of the dataset.
  """
  pictures.check_links(folder, folder.parent if root is None else root)
  files: dict[str, epath.Path] = {}
  for path in sorted(folder.iterdir(), key=lambda p: p.name):
    if path.suffix.lower() in suffixes and not path.name.startswith("."):
      if path.stem in files:
        raise UserError(f"{folder}: both {files[path.stem].name} and {path.name}; a name must occur once")
      files[path.stem] = path
  return files


def image_ids(stems: Sequence[str], known: Mapping[str, int] | None = None) -> dict[str, int]:
  """Stem -> "image/id": what the tables say; else the number that it is, where all are different; else its position."""
  if known and all(stem in known for stem in stems):
    return {stem: known[stem] for stem in stems}
  numbers = [int(stem) for stem in stems if stem.isdecimal() and len(stem) < 19]
  return dict(zip(stems, numbers if len(set(numbers)) == len(stems) else range(len(stems))))


def stem_of(file_name: str) -> str:
  """The name without suffix by which files are paired."""
  return pathlib.PurePath(file_name).stem
