"""The validation pass over a folder of images and labels, or COCO's layout; see `check_data`."""

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
from etils import epath

from pp_ops import files
from pp_ops.sources_folder import IMAGE_SUFFIXES, KINDS, READERS
from tools import check_tables
from tools.check_arrays import label_problems
from tools.check_data import Options, Problem, watched
from uvim_like.errors import UserError, unknown

Paths = dict[str, epath.Path]
TABLES = ("panoptic", "instances", "person_keypoints", "captions")


def check(root: str, *, coco: bool, options: Options) -> tuple[int, list[Problem]]:
  """(number of images, problems) of all splits, or of `options.split`; UserError when there are none."""
  folder = epath.Path(root)
  splits = coco_splits(folder) if coco else folder_splits(folder)
  if not splits:
    wanted = "annotations/panoptic_<split>.json" if coco else "images/ or <split>/images/"
    raise UserError(f"--data_dir: there is no {wanted} in '{root}'")
  if options.split is not None and options.split not in splits:
    raise unknown("split", options.split, splits, where="--split")
  total, problems = 0, []
  for name in [options.split] if options.split else sorted(splits):
    count, found = check_coco(folder, name, options) if coco else check_folder(splits[name], name, options)
    total, problems = total + count, problems + found
  return total, problems


def folder_splits(root: epath.Path) -> Paths:
  """Name -> folder with images/; one folder alone is "train"."""
  if (root / "images").is_dir():
    return {"train": root}
  return {p.name: p for p in root.iterdir() if (p / "images").is_dir()} if root.is_dir() else {}


def coco_splits(root: epath.Path) -> Paths:
  """Name -> its first table, of any kind."""
  found: Paths = {}
  for path in sorted((root / "annotations").glob("*.json")) if (root / "annotations").is_dir() else ():
    for table in TABLES:
      if path.stem.startswith(f"{table}_"):
        found.setdefault(path.stem.removeprefix(f"{table}_"), path)
  return found


def listed(folder: epath.Path, suffixes: tuple[str, ...], name: str) -> tuple[Paths, list[Problem]]:
  """Stem -> file of a folder, and what is wrong with its names; a folder that does not exist is empty."""
  found, problems = {}, []
  for path in sorted(folder.iterdir(), key=lambda p: p.name) if folder.is_dir() else ():
    if path.suffix.lower() not in suffixes or path.name.startswith("."):
      continue
    example = f"{name}/{path.stem}"
    if path.stem in found:
      problems.append(Problem(example, "duplicate id", f"{folder.name}/{found[path.stem].name} and {path.name}"))
    elif files.is_local(path) and pathlib.Path(path).is_symlink() and files.escapes(path, folder.parent) \
        and files.escapes(path, folder):
      problems.append(Problem(example, "link out of the dataset", f"{folder.name}/{path.name}"))
    else:
      found[path.stem] = path
  return found, problems


def check_folder(root: epath.Path, name: str, options: Options) -> tuple[int, list[Problem]]:
  """(number of images, problems) of one folder with images/, label maps and tables beside it."""
  images, problems = listed(root / "images", IMAGE_SUFFIXES, name)
  labels: dict[str, Paths] = {}
  for kind, about in KINDS.items():
    if (root / kind).is_dir():
      labels[kind], found = listed(root / kind, about.suffixes, name)
      problems += found + unpaired(images, labels[kind], kind, name)
  for table in TABLES:
    path = root / f"{table}.json"
    if path.exists() or (table == "panoptic" and "panoptic" in labels):
      problems += check_tables.check(path, images, labels.get("panoptic"), name, panoptic=table == "panoptic")
  for stem in watched(images, total=len(images), name=name):
    maps = {kind: paths[stem] for kind, paths in labels.items() if stem in paths}
    problems += [Problem(f"{name}/{stem}", *found) for found in picture_problems(images[stem], maps, options)]
  return len(images), problems


def check_coco(root: epath.Path, name: str, options: Options) -> tuple[int, list[Problem]]:
  """(number of images, problems) of one split in COCO's layout."""
  images, problems = listed(root / name, IMAGE_SUFFIXES, name)
  maps: Paths = {}
  for table in TABLES:
    path = root / "annotations" / f"{table}_{name}.json"
    if not path.exists():
      continue
    if table == "panoptic":
      folder = root / f"panoptic_{name}"
      maps, found = listed(folder if folder.is_dir() else root / "annotations" / folder.name, (".png",), name)
      problems += found + unpaired(images, maps, "panoptic", name)
    problems += check_tables.check(path, images, maps, name, panoptic=table == "panoptic")
  for stem in watched(images, total=len(images), name=name):
    own = {"panoptic": maps[stem]} if stem in maps else {}
    problems += [Problem(f"{name}/{stem}", *found) for found in picture_problems(images[stem], own, options)]
  return len(images), problems


def unpaired(images: Paths, labels: Paths, kind: str, name: str) -> list[Problem]:
  """Files without their partner."""
  return ([Problem(f"{name}/{stem}", "image without mask", f"none in {kind}/")
           for stem in sorted(set(images) - set(labels))]
          + [Problem(f"{name}/{stem}", "mask without image", f"{kind}/{labels[stem].name}")
             for stem in sorted(set(labels) - set(images))])


def picture_problems(image: epath.Path, maps: Mapping[str, epath.Path], options: Options) -> Iterator[tuple[str, str]]:
  """(kind, detail) of all that is wrong with an image and the label maps of its name."""
  size = None
  try:
    size = files.open_image(image).size[::-1]
  except UserError as error:
    yield "image does not decode", str(error)
  for kind, path in maps.items():
    try:
      values = READERS[kind](path)
    except UserError as error:
      yield "mask does not decode", str(error)
      continue
    if size is not None and values.shape[:2] != size:
      yield "size mismatch", f"{kind} {values.shape[0]}x{values.shape[1]}, its image {size[0]}x{size[1]}"
    if kind == "depth":
      yield from depth_problems(values)
    if kind in ("labels", "semantic"):
      yield from label_problems(values, options)


def depth_problems(depth: np.ndarray) -> Iterator[tuple[str, str]]:
  """Depth (H, W) in metres that is no number, or below zero."""
  if not np.isfinite(depth).all():
    yield "not finite", f"{(~np.isfinite(depth)).sum()} pixels of depth"
  if (depth < 0).any():
    yield "negative depth", f"{(depth < 0).sum()} pixels"
