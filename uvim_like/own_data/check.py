"""All that is wrong with the files of somebody's folder, and what they hold, in one pass over them."""

import functools
import math
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
    maps: sorts of label maps that are looked at, their names and what they hold; None for all.
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
    nearest: the smallest that is measured, inf without any.
    problems: (kind, detail) of each.
  """
  name: str
  size: tuple[int, int] | None
  classes: frozenset[int]
  depth: float
  nearest: float
  problems: tuple[tuple[str, str], ...]


def check_place(place: Place, rules: Rules, *, progress: bool = True) -> tuple[list[Seen], list[Problem]]:
  """(what every picture of a split holds, all problems in the order of the files)."""
  name = place.name
  everything, problems = listed(place.images, IMAGE_SUFFIXES, name, root=place.home)
  listing = tables.names_in(place.tables.values()) if place.listed else None
  own = layout.members(everything if listing is None else listing & set(everything), place.part)
  images = {stem: path for stem, path in everything.items() if stem in own}
  problems += foreign(place.images, name)
  maps: dict[str, Paths] = {}
  for kind, folder in place.maps.items():
    if rules.maps is None or kind in rules.maps:
      found, wrong = listed(folder, SUFFIXES[kind], name, root=place.home)
      others = set(everything) - own if place.is_shared(kind) else set()
      maps[kind] = {stem: path for stem, path in found.items() if stem not in others}
      problems += wrong + partners(images, maps[kind], kind, folder, name)
  for kind, folder in place.others.items() if rules.maps is None else ():
    problems += foreign_maps(images, {}, kind, folder, name)
  if not place.part:
    problems += tables_problems(place, images, maps, rules)
  jobs = [(stem, images[stem], {kind: paths[stem] for kind, paths in maps.items() if stem in paths}) for stem in images]
  with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    seen = pool.map(functools.partial(look, rules=rules), *zip(*jobs)) if jobs else ()
    seen = list(watched(seen, total=len(jobs), name=f"checking {name}") if progress else seen)
  problems += [Problem(f"{name}/{one.name}", *words) for one in seen for words in one.problems]
  return seen, problems


def tables_problems(place: Place, images: Paths, maps: Mapping[str, Paths], rules: Rules) -> list[Problem]:
  """Of the split's JSON files."""
  problems = []
  for kind in TABLES:
    path = place.tables.get(kind)
    if path is None and kind == "panoptic" and "panoptic" in maps:
      path = place.images.parent / "panoptic.json"   # missing, which is told
    if path is not None and (rules.tables is None or kind in rules.tables):
      problems += table_check.check(path, images, maps.get("panoptic"), place.name, kind=kind)
  return problems


def listed(folder: epath.Path, suffixes: Sequence[str], name: str, *, root: epath.Path
           ) -> tuple[Paths, list[Problem]]:
  """Stem -> file of a folder, and what is wrong with its names; a folder that does not exist is empty."""
  found, problems = {}, []
  for path in sorted(folder.iterdir(), key=lambda p: p.name) if folder.is_dir() else ():
    if path.suffix.lower() not in suffixes or path.name.startswith("."):
      continue
    example = f"{name}/{path.stem}"
    if path.stem in found:
      problems.append(Problem(example, "duplicate id", f"{folder.name}/{found[path.stem].name} and {path.name}"))
    elif pictures.is_local(path) and pathlib.Path(path).is_symlink() and pictures.escapes(path, root) \
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


# --- partners ---------------------------------------------------------------------------------------------------------

def partners(images: Paths, labels: Paths, kind: str, folder: epath.Path, name: str) -> list[Problem]:
  """Files without their partner; maps of a format that is not read, and names of another form, are told as such."""
  strange = foreign_maps(images, labels, kind, folder, name)
  wrong = {problem.example for problem in strange}
  missing = [stem for stem in sorted(set(images) - set(labels)) if f"{name}/{stem}" not in wrong]
  spare = sorted(set(labels) - set(images))
  same = alike(missing, spare)
  if same:
    one, other = min(same.items())
    strange.append(Problem(name, "names differ", f"{len(same)} files of {kind}/ seem to belong to pictures of other "
                           f"names, as {labels[other].name} to {images[one].name}; partners need the same name before "
                           f"the suffix: rename it to {one}{labels[other].suffix}, and the others alike"))
  taken = set(same.values())
  return strange + [Problem(f"{name}/{stem}", "image without mask", f"{images[stem].name} has no file in {kind}/")
                    for stem in missing if stem not in same] \
      + [Problem(f"{name}/{stem}", "mask without image", f"{kind}/{labels[stem].name}")
         for stem in spare if stem not in taken]


def foreign_maps(images: Paths, labels: Paths, kind: str, folder: epath.Path, name: str) -> list[Problem]:
  """Label maps of pictures in formats that cannot hold them, where there is no other."""
  suffixes = {*IMAGE_SUFFIXES, *FOREIGN_SUFFIXES} - set(SUFFIXES[kind])
  found = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
  return [Problem(f"{name}/{path.stem}", "format that is not read",
                  f"{kind}/{path.name}: label maps are {' or '.join(SUFFIXES[kind])}; convert it without loss")
          for path in found if path.stem in images and path.stem not in labels]


def alike(images: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
  """Name of a picture -> name of a label map that differs from it as all of them do: "street_1" -> "street_1_mask".

  What all names of a side end with, or begin and end with, is left out; {} where the rest pairs less than half of them.
  """
  found = []
  for begins in (False, True):
    one, other = (_cores(names, begins=begins) for names in (images, labels))
    found.append({one[key]: other[key] for key in one.keys() & other.keys()})
  pairs = max(found, key=len)
  return pairs if len(pairs) > 1 and 2 * len(pairs) >= max(len(images), len(labels)) else {}


def _cores(names: Sequence[str], *, begins: bool) -> dict[str, str]:
  """What is left of each name without the end (and the beginning) that all share -> the name."""
  begin = len(os.path.commonprefix(names)) if begins else 0
  rest = [name[begin:] for name in names]
  end = len(os.path.commonprefix([name[::-1] for name in rest]))
  return {part[:len(part) - end]: name for part, name in zip(rest, names)}


def look(name: str, image: epath.Path, maps: Mapping[str, epath.Path], *, rules: Rules) -> Seen:
  """Decodes a picture and the label maps of its name."""
  size, classes, depth, nearest, problems = None, frozenset(), 0.0, math.inf, []
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
      measured = values[np.isfinite(values) & (values > 0)]
      depth, nearest = float(measured.max(initial=0)), float(measured.min(initial=math.inf))
    if kind in CLASS_MAPS:
      classes |= frozenset(np.flatnonzero(np.bincount(values.reshape(-1))).tolist())
      problems += [(kind_of, f"{detail}, in {kind}/{path.name}") for kind_of, detail in label_problems(values, rules)]
  return Seen(name, size, classes, depth, nearest, tuple(problems))


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
