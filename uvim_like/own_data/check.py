"""All that is wrong with the files of somebody's folder, and what they hold, in one pass over them."""

import functools
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
from etils import epath

from uvim_like import pictures
from uvim_like.errors import UserError
from uvim_like.own_data import layout, table_check, tables
from uvim_like.own_data.layout import FOREIGN_SUFFIXES, IMAGE_SUFFIXES, TABLES, Place
from uvim_like.own_data.maps import READERS, SUFFIXES
from uvim_like.own_data.problems import Problem, watched

Paths = dict[str, epath.Path]
CLASS_MAPS = ("labels", "semantic")


class Rules(NamedTuple):
  """What is checked beside the files themselves.

  Attributes:
    classes: number of classes in each channel of class maps; () when unknown.
    ignore: values beside these.
    maps: sorts of label maps that are decoded; None for all.
    tables: sorts of tables that are read; None for all.
  """
  classes: tuple[int, ...] = ()
  ignore: frozenset[int] = frozenset({255})
  maps: Collection[str] | None = None
  tables: Collection[str] | None = None


class Seen(NamedTuple):
  """What one picture and its label maps hold.

  Attributes:
    name: of the picture, without suffix.
    size: (H, W), None where it does not decode.
    classes: the values of its class map.
    depth: the largest depth in metres, 0 without any.
    problems: (kind, detail) of each.
  """
  name: str
  size: tuple[int, int] | None
  classes: frozenset[int]
  depth: float
  problems: tuple[tuple[str, str], ...]


def check_place(place: Place, rules: Rules, *, progress: bool = True) -> tuple[list[Seen], list[Problem]]:
  """(what every picture of a split holds, all problems in the order of the files)."""
  name = place.name
  images, problems = listed(place.images, IMAGE_SUFFIXES, name)
  listing = _listed(place)
  own = layout.members(images if listing is None else listing & set(images), place.part)
  images = {stem: path for stem, path in images.items() if stem in own}
  problems += foreign(place.images, name)
  maps: dict[str, Paths] = {}
  for kind, folder in place.maps.items():
    found, wrong = listed(folder, SUFFIXES[kind], name)
    maps[kind] = {stem: path for stem, path in found.items() if stem in own or not place.part}
    problems += wrong + unpaired(images, maps[kind], kind, name)
  if not place.part:
    problems += tables_problems(place, images, maps, rules)
  jobs = [(stem, images[stem], {kind: paths[stem] for kind, paths in maps.items()
                                if stem in paths and (rules.maps is None or kind in rules.maps)}) for stem in images]
  with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    seen = pool.map(functools.partial(look, rules=rules), *zip(*jobs)) if jobs else ()
    seen = list(watched(seen, total=len(jobs), name=f"checking {name}") if progress else seen)
  problems += [Problem(f"{name}/{one.name}", *words) for one in seen for words in one.problems]
  return seen, problems


def _listed(place: Place) -> frozenset[str] | None:
  """Names of the pictures that the tables of a split list, where these say which belong to it; None for all."""
  if not place.listed:
    return None
  names = set()
  for path in place.tables.values():
    try:
      names |= set(tables.ids_of(tables.read_table(path, ("images",))["images"], path))
    except UserError:
      return None   # told where the table itself is looked at
  return frozenset(names)


def tables_problems(place: Place, images: Paths, maps: Mapping[str, Paths], rules: Rules) -> list[Problem]:
  """Of the split's JSON files."""
  problems = []
  for kind in TABLES:
    path = place.tables.get(kind)
    if path is None and kind == "panoptic" and "panoptic" in maps:
      path = place.images.parent / "panoptic.json"   # missing, which is told
    if path is not None and (rules.tables is None or kind in rules.tables):
      problems += table_check.check(path, images, maps.get("panoptic"), place.name, panoptic=kind == "panoptic")
  return problems


def listed(folder: epath.Path, suffixes: Sequence[str], name: str) -> tuple[Paths, list[Problem]]:
  """Stem -> file of a folder, and what is wrong with its names; a folder that does not exist is empty."""
  found, problems = {}, []
  for path in sorted(folder.iterdir(), key=lambda p: p.name) if folder.is_dir() else ():
    if path.suffix.lower() not in suffixes or path.name.startswith("."):
      continue
    example = f"{name}/{path.stem}"
    if path.stem in found:
      problems.append(Problem(example, "duplicate id", f"{folder.name}/{found[path.stem].name} and {path.name}"))
    elif pictures.is_local(path) and pathlib.Path(path).is_symlink() and pictures.escapes(path, folder.parent) \
        and pictures.escapes(path, folder):
      problems.append(Problem(example, "link out of the dataset", f"{folder.name}/{path.name}"))
    else:
      found[path.stem] = path
  return found, problems


def foreign(folder: epath.Path, name: str) -> list[Problem]:
  """Pictures that nothing here reads."""
  found = sorted(p for p in folder.iterdir() if p.suffix.lower() in FOREIGN_SUFFIXES) if folder.is_dir() else ()
  return [Problem(f"{name}/{p.stem}", "format that is not read", f"{folder.name}/{p.name}: convert it to PNG or JPEG")
          for p in found]


def unpaired(images: Paths, labels: Paths, kind: str, name: str) -> list[Problem]:
  """Files without their partner."""
  return ([Problem(f"{name}/{stem}", "image without mask", f"{images[stem].name} has no file in {kind}/")
           for stem in sorted(set(images) - set(labels))]
          + [Problem(f"{name}/{stem}", "mask without image", f"{kind}/{labels[stem].name}")
             for stem in sorted(set(labels) - set(images))])


def look(name: str, image: epath.Path, maps: Mapping[str, epath.Path], *, rules: Rules) -> Seen:
  """Decodes a picture and the label maps of its name."""
  size, classes, depth, problems = None, frozenset(), 0.0, []
  try:
    size = pictures.read_rgb(image).shape[:2]
  except UserError as error:
    problems.append(("image does not decode", str(error)))
  for kind, path in maps.items():
    try:
      values = READERS[kind](path)
    except UserError as error:
      problems.append(("mask does not decode", str(error)))
      continue
    if size is not None and values.shape[:2] != size:
      problems.append(("size mismatch", f"{kind}/{path.name} has {values.shape[0]}x{values.shape[1]} pixels, its image "
                       f"{image.name} {size[0]}x{size[1]}{_turned(image, values.shape[:2])}"))
    if kind == "depth":
      problems += depth_problems(values)
      depth = float(values[np.isfinite(values)].max(initial=0))
    if kind in CLASS_MAPS:
      classes |= frozenset(np.flatnonzero(np.bincount(values.reshape(-1))).tolist())
      problems += [(kind_of, f"{detail}, in {kind}/{path.name}") for kind_of, detail in label_problems(values, rules)]
  return Seen(name, size, classes, depth, tuple(problems))


def _turned(image: epath.Path, shape: tuple[int, int]) -> str:
  """A hint where a label map fits the picture as stored, and not as its EXIF says that it is looked at."""
  stored = pictures.image_size(image)
  return "; its EXIF turns the image, which the map does not follow" if stored == shape else ""


def label_problems(labels: np.ndarray, rules: Rules) -> Iterator[tuple[str, str]]:
  """(kind, detail) for each channel of integer labels (H, W, C) that has values beyond its classes."""
  for channel, classes in enumerate(rules.classes[:labels.shape[-1]]):
    values, counts = np.unique(labels[..., channel], return_counts=True)
    wrong = [(int(v), int(n)) for v, n in zip(values, counts) if not 0 <= v < classes and v not in rules.ignore]
    if wrong:
      shown = ", ".join(f"{value} ({count} pixels)" for value, count in wrong[:5])
      yield "label out of range", f"{shown} in channel {channel}, which has {classes} classes"


def depth_problems(depth: np.ndarray) -> Iterator[tuple[str, str]]:
  """Depth (H, W) in metres that is no number, or below zero."""
  if not np.isfinite(depth).all():
    yield "not finite", f"{(~np.isfinite(depth)).sum()} pixels of depth"
  if (depth < 0).any():
    yield "negative depth", f"{(depth < 0).sum()} pixels"
