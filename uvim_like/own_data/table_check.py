"""All that is wrong with COCO's JSON tables (panoptic, instances, keypoints, captions)."""

import json
import math
import operator
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from uvim_like import pictures as files
from uvim_like.errors import UserError
from uvim_like.own_data.problems import Problem
from uvim_like.own_data.tables import draw

Paths = Mapping[str, epath.Path]
# What a value of a wrong kind raises where a number, a list or a dict is due.
ENTRY_ERRORS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError)
SLACK = 1.0  # pixels that a box or a point may be outside: COCO's own are rounded
SHOWN = 5  # ids in a line


def check(path: epath.Path, images: Paths, masks: Paths | None, name: str, *, kind: str) -> list[Problem]:
  """All that is wrong with one table.

  Args:
    path: of the table.
    images: stem -> image file.
    masks: stem -> panoptic PNG, for a panoptic table.
    name: of the split.
    kind: of `layout.TABLES`, whatever the file is called: annotations of "panoptic" have `segments_info`, "captions" no
      categories.
  """
  panoptic = kind == "panoptic"
  where = f"{name}/{path.name}"
  try:
    table = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as error:
    return [Problem(where, "table cannot be read", str(error)[:200])]
  lists = {}
  for key in ("images", "annotations", "categories"):
    lists[key] = table.get(key) if isinstance(table, dict) else None
    if key == "categories" and kind == "captions":
      lists[key] = []
    if not isinstance(lists[key], list):
      return [Problem(where, "table cannot be read", f"no list '{key}'")]
  sizes, stems, problems = check_images(lists["images"], images, name)
  problems += check_categories(lists["categories"], where, least=1 if panoptic else None)
  known = {entry["id"] for entry in lists["categories"] if isinstance(entry, dict)
           and isinstance(entry.get("id"), int)}
  one = panoptic_entry if panoptic else instance_entry
  taken: dict[Any, str] = {}
  for position, entry in enumerate(lists["annotations"]):
    example = f"{where}[{position}]"
    try:
      image = operator.index(entry["image_id"])
      if image in stems:
        example = f"{name}/{stems[image]}"
        found = list(one(entry, sizes[image], known, masks or {}))
      else:
        found = [("annotation without image", f"image_id {image} in {path.name}")]
      key = entry["file_name"] if panoptic else entry["id"]
      if key in taken:
        found.append(("duplicate id", f"annotation {key!r:.60} is also of {taken[key]}"))
      taken[key] = example
    except ENTRY_ERRORS as error:
      found = [("malformed annotation", f"{path.name}: {type(error).__name__}: {error}")]
    problems += [Problem(example, *words) for words in found]
  return problems


def check_images(entries: list, images: Paths, name: str) -> tuple[dict, dict, list[Problem]]:
  """({id: (H, W)}, {id: stem}, problems) of a table's list of images."""
  sizes: dict[int, tuple[int, int]] = {}
  stems: dict[int, str] = {}
  names: set[str] = set()
  problems = []
  for position, entry in enumerate(entries):
    example = f"{name}/images[{position}]"
    try:
      file_name = files.plain_name(entry["file_name"], where="a table")
      stem = pathlib.PurePath(file_name).stem
      example = f"{name}/{stem}"
      number, size = operator.index(entry["id"]), (operator.index(entry["height"]), operator.index(entry["width"]))
    except UserError as error:
      problems.append(Problem(example, "path out of the folder", str(error)))
      continue
    except ENTRY_ERRORS as error:
      problems.append(Problem(example, "malformed entry", f"{type(error).__name__}: {error}"))
      continue
    if number in sizes:
      problems.append(Problem(example, "duplicate id", f"image id {number} is also {stems[number]}"))
    if file_name in names:
      problems.append(Problem(example, "duplicate id", f"{file_name} stands twice in 'images'"))
    sizes[number], stems[number] = size, stem
    names.add(file_name)
    problems += [Problem(example, *words) for words in _file_problems(file_name, stem, size, images)]
  return sizes, stems, problems


def _file_problems(file_name: str, stem: str, size: tuple[int, int], images: Paths) -> Iterator[tuple[str, str]]:
  if stem not in images or images[stem].name != file_name:
    yield "annotation without image", f"no file {file_name}"
    return
  try:
    real = files.upright_size(images[stem])
  except UserError:
    return  # told where the pictures themselves are looked at
  if real != size:
    yield "size mismatch", f"{size[0]}x{size[1]} in the table, {real[0]}x{real[1]} in {file_name}"


def check_categories(entries: list, where: str, *, least: int | None = None) -> list[Problem]:
  """Categories without a whole number as id, or with one that is taken, or below `least`: 0 of a panoptic map is void."""
  problems, seen = [], set()
  for position, entry in enumerate(entries):
    number = entry.get("id") if isinstance(entry, dict) else None
    example = f"{where}: categories[{position}]"
    if not isinstance(number, int) or number in seen:
      kind = "duplicate id" if isinstance(number, int) else "malformed category"
      problems.append(Problem(example, kind, f"{number!r}"))
    elif least is not None and number < least:
      problems.append(Problem(example, "id of a category too small", f"{number}: ids of panoptic categories begin with "
                              f"{least}; add {least - number} to all of them, in 'segments_info' too"))
      seen.add(number)
    else:
      seen.add(number)
  return problems


def instance_entry(entry: Mapping, size: tuple[int, int], known: Collection[int],
                   _: Paths) -> Iterator[tuple[str, str]]:
  """(kind, detail) of one annotation of an instances, keypoints or captions table."""
  about = f"annotation {entry.get('id')!r:.30}"
  if "bbox" in entry or "category_id" in entry:
    yield from common_problems(entry, size, known, about)
  segmentation = entry.get("segmentation") or []   # null is none, as where it is read
  if isinstance(segmentation, dict):
    if tuple(segmentation["size"]) != size:
      yield "size mismatch", f"{about}: mask {tuple(segmentation['size'])}, its image {size}"
    elif min(size) > 0 and size[0] * size[1] <= files.MAX_PIXELS:   # what is larger is no picture's size, which is told
      yield from _run_lengths(segmentation, size, about)
  else:
    points = [xy for polygon in segmentation for xy in zip(polygon[0::2], polygon[1::2], strict=True)]
    yield from _outside(points, size, f"{about}: polygon")
  numbers = entry.get("keypoints") or []
  marked = [(x, y) for x, y, v in zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=True) if v]
  yield from _outside(marked, size, f"{about}: keypoint")


def _run_lengths(segmentation: Mapping, size: tuple[int, int], about: str) -> Iterator[tuple[str, str]]:
  try:
    draw(segmentation, size)
  except UserError as error:
    yield "malformed annotation", f"{about}: {error}"


def _outside(points: list, size: tuple[int, int], what: str) -> Iterator[tuple[str, str]]:
  h, w = size
  bad = [(x, y) for x, y in points if not (-SLACK <= x <= w + SLACK and -SLACK <= y <= h + SLACK)]
  if bad:
    yield "annotation outside its image", f"{what} ({bad[0][0]:g}, {bad[0][1]:g}) of {len(bad)} in {w}x{h}"


def panoptic_entry(entry: Mapping, size: tuple[int, int], known: Collection[int],
                   masks: Paths) -> Iterator[tuple[str, str]]:
  """(kind, detail) of one annotation of a panoptic table: its segments against the picture of their ids."""
  numbers = [operator.index(segment["id"]) for segment in entry["segments_info"]]
  for segment in entry["segments_info"]:
    yield from common_problems(segment, size, known, f"segment {segment['id']}")
  if twice := {n for n in numbers if numbers.count(n) > 1}:
    yield "duplicate id", f"segments {sorted(twice)[:SHOWN]}"
  stem = pathlib.PurePath(files.plain_name(entry["file_name"], where="a table")).stem
  if stem not in masks:
    yield "annotation without mask", f"no file {entry['file_name']}"
    return
  try:
    pixels = np.asarray(files.open_image(masks[stem]).convert("RGB"))
  except UserError:
    return  # told where the pictures themselves are looked at
  drawn = set(np.unique(pixels.astype(np.int64) @ [1, 256, 65536]).tolist()) - {0}
  for what, ids in (("segment without pixels", set(numbers) - drawn), ("pixels of no segment", drawn - set(numbers))):
    if ids:
      yield what, f"{sorted(ids)[:SHOWN]}" + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")


def common_problems(entry: Mapping, size: tuple[int, int], known: Collection[int],
                    about: str) -> Iterator[tuple[str, str]]:
  """(kind, detail) of category and box [x, y, width, height] in pixels."""
  if entry.get("category_id") not in known:
    yield "unknown category", f"{about}: category_id {entry.get('category_id')!r:.30}"
  if "bbox" in entry:
    x, y, dx, dy = map(float, entry["bbox"])
    inside = -SLACK <= x and -SLACK <= y and x + dx <= size[1] + SLACK and y + dy <= size[0] + SLACK
    if not (all(map(math.isfinite, (x, y, dx, dy))) and inside and dx >= 0 and dy >= 0):
      yield "annotation outside its image", f"{about}: box {[x, y, dx, dy]} in {size[1]}x{size[0]}"
