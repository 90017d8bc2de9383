"""COCO panoptic annotations in their official layout, with the features of TFDS's coco/2017_panoptic."""

import functools
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from pp_ops.source import split_spans
from pp_ops.sources_folder import FileSource
from uvim_like.errors import UserError
from uvim_like.own_data.files import Files, Objects, check_pairs
from uvim_like.own_data.layout import list_files
from uvim_like.own_data.tables import entry_errors, list_objects, read_json
from uvim_like.pictures import check_links, plain_name

# So that configs written for TFDS run on the unpacked archives.
ALIASES = {"train": "train2017", "validation": "val2017"}


def open_split(root: epath.Path, split: str, *, skip_decode: Collection[str] = ()) -> FileSource:
  """A split of root/annotations/panoptic_<name>.json, root/panoptic_<name>/*.png and root/<name>/*.jpg.

  The PNGs may also lie in annotations/panoptic_<name>/, where the archives put them. "train" and "validation" mean
  train2017 and val2017 where these exist. Examples come in the order of the JSON's list of images.
  """
  annotations = root / "annotations"
  found = {p.stem.removeprefix("panoptic_"): p for p in annotations.iterdir()
           if p.name.startswith("panoptic_") and p.suffix == ".json"} if annotations.is_dir() else {}
  if not found:
    raise UserError(f"coco_json '{root}': there is no annotations/panoptic_<split>.json")
  names = {name: name for name in found} | {a: n for a, n in ALIASES.items() if n in found and a not in found}
  wanted = {part.split("[")[0].strip() for part in split.split("+")} & set(names)
  files = {name: scan(root, names[name], found[names[name]]) for name in sorted(wanted)}
  lengths = {name: len(files[name].stems) if name in files else 0 for name in names}
  spans = split_spans(split, lengths, where=f"coco_json '{root}'")
  return FileSource(f"coco_json '{root}' '{split}'", files, spans, skip_decode=skip_decode)


def scan(root: epath.Path, name: str, annotation: epath.Path) -> Files:
  """The files of one split, each checked to be there."""
  about = annotation.stat()
  names, numbers, objects = _table(str(annotation), (about.mtime, about.length))
  stems = tuple(pathlib.PurePath(file_name).stem for file_name in names)
  pictures = {s: root / name / file_name for s, file_name in zip(stems, names)}
  if len(pictures) < len(names):
    raise UserError(f"{annotation}: {len(names) - len(pictures)} names in 'images' occur twice")
  _check_present(pictures, root / name)
  maps = root / f"panoptic_{name}"
  if not maps.is_dir():
    maps = root / "annotations" / f"panoptic_{name}"
  if not maps.is_dir():
    raise UserError(f"coco_json '{root}': there is no panoptic_{name}/")
  labels = list_files(maps, (".png",))
  check_pairs(stems, labels, maps)
  check_pairs(stems, objects, annotation)
  return Files(stems, pictures, {"panoptic": labels}, objects, dict(zip(stems, numbers)))


@functools.lru_cache(maxsize=4)   # a training opens its splits several times, and COCO's table takes seconds to parse
def _table(path: str, stamp: tuple[int, int]) -> tuple[list[str], list[int], Objects]:
  """(image files, their ids, stem -> objects) of a table as it was at a time, with a length; see `Files`."""
  del stamp
  annotation = epath.Path(path)
  table = read_json(annotation)
  names = image_names(table, annotation)
  objects = list_objects(table, annotation)
  return names, [image["id"] for image in table["images"]], objects   # integers, as `list_objects` has seen


def image_names(table: Mapping[str, Any], annotation: epath.Path) -> list[str]:
  """The image files of a table, in its order; UserError for a missing name or one that leads to another folder."""
  names = []
  for position, image in enumerate(table["images"]):
    with entry_errors(annotation, "images", position):
      names.append(plain_name(image["file_name"], where=f"{annotation}: images[{position}]"))
  return names


def _check_present(pictures: dict[str, epath.Path], folder: epath.Path) -> None:
  """Lists the folder once instead of asking for every file; links must not lead out of the dataset."""
  if folder.is_dir():
    check_links(folder, folder.parent)
  there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
  missing = [p.name for p in pictures.values() if p.name not in there]
  if missing:
    raise UserError(f"{folder}: {len(missing)} images of the annotations are missing ({', '.join(missing[:5])}, …)")
