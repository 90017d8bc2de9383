"""Which pictures a person means by some files and folders, and under which names their results go."""

import glob
import os
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from uvim_like.errors import UserError, suggest

LONGEST = 150   # bytes of a name: file systems allow 255, with what is put behind it (suffix, number)


class Source(NamedTuple):
  """A picture: its file, the name of its results (different for all pictures), and its number in COCO's files."""
  path: pathlib.Path
  name: str
  number: int


class Inputs(NamedTuple):
  """The pictures, and files in the folders that have no suffix of a picture."""
  sources: list[Source]
  skipped: list[pathlib.Path]


def gather(places: Sequence[str], *, suffixes: Collection[str], out: pathlib.Path) -> Inputs:
  """The pictures of files, folders (with all folders below) and patterns like "photos/*.jpg".

  Args:
    places: as a person wrote them. A file that is named is always tried, whatever its suffix.
    suffixes: lower-case, with the dot: what counts in a folder.
    out: where results go; not searched.

  Raises:
    UserError: a place that does not exist, or no picture at all.
  """
  files: list[tuple[pathlib.Path, str]] = []
  skipped: list[pathlib.Path] = []
  for place in places:
    for path in _paths(place):
      if not path.is_dir():
        files.append((path, path.stem))
        continue
      for found in _below(path, out):
        if found.suffix.lower() in suffixes:
          files.append((found, "_".join(found.relative_to(path).with_suffix("").parts)))
        else:
          skipped.append(found)
  first: dict[str, tuple[pathlib.Path, str]] = {}
  for path, name in files:
    first.setdefault(os.path.realpath(path), (path, name))
  unique = list(first.values())
  if not unique:
    raise UserError(f"--image: no picture in {', '.join(places)}")
  names = unique_names([(name, path.suffix) for path, name in unique])
  numbers = image_numbers(names)
  return Inputs([Source(path, name, number) for (path, _), name, number in zip(unique, names, numbers)], skipped)


def _paths(place: str) -> list[pathlib.Path]:
  """What a place stands for; UserError when there is nothing."""
  path = pathlib.Path(place).expanduser()
  if path.exists():
    return [path]
  found = sorted(glob.glob(str(path), recursive=True))
  if found:
    return [pathlib.Path(name) for name in found]
  near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
  hint = suggest(path.name, near) if path.parent.is_dir() and near else f"there is no folder {path.parent}"
  raise UserError(f"--image: no file or folder '{place}'; {hint}")


def _below(folder: pathlib.Path, out: pathlib.Path) -> list[pathlib.Path]:
  """The files of a folder and those below it, sorted; hidden ones and the results' own are left out."""
  home, found = os.path.realpath(out), []
  for root, folders, names in os.walk(folder):
    folders[:] = sorted(name for name in folders
                        if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) != home)
    found += [pathlib.Path(root, name) for name in names if not name.startswith(".")]
  return sorted(found)


# --- names ------------------------------------------------------------------------------------------------------------


def unique_names(wanted: Sequence[tuple[str, str]]) -> list[str]:
  """Names for results, all different even where capitals do not count.

  Args:
    wanted: (stem, suffix) of every picture. Pictures that share a stem get their suffixes behind it ("a_jpg", "a_png"),
      and a number where that does not suffice.
  """
  plain = [(_plain(stem), _cut(_clean(suffix.lstrip(".").lower()), LONGEST // 2)) for stem, suffix in wanted]
  shared = [stem.lower() for stem, _ in plain]
  counts = {stem: shared.count(stem) for stem in set(shared)}
  taken = {stem for stem, count in counts.items() if count == 1}
  names = []
  for stem, suffix in plain:
    name = stem
    if counts[stem.lower()] > 1:
      end, number = f"_{suffix}" if suffix else "", 1
      name = base = _cut(stem, LONGEST - len(end.encode())) + end
      while name.lower() in taken:
        number += 1
        name = f"{base}_{number}"
      taken.add(name.lower())
    names.append(name)
  return names


def _plain(stem: str) -> str:
  """A stem as the name of a file: no separators, control characters or leading dots, not too long."""
  return _cut(_clean(stem).lstrip(".").strip(), LONGEST) or "picture"


def _clean(text: str) -> str:
  """Text of valid characters without separators and control characters."""
  return re.sub(r"[\x00-\x1f\x7f/\\]", "_", os.fsencode(text).decode("utf-8", "replace"))


def _cut(name: str, most: int) -> str:
  """As many whole characters of a name as fit into so many bytes."""
  return name.encode()[:most].decode("utf-8", "ignore")


def image_numbers(names: Sequence[str]) -> list[int]:
  """Numbers as a folder of pictures has them: the names, where all are different numbers; else positions from 0."""
  numbers = [int(name) for name in names if name.isdecimal() and len(name) < 19]
  return numbers if len(set(numbers)) == len(names) else list(range(len(names)))
