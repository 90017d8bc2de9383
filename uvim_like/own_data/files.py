"""The paired files of one split of a folder: pictures, label maps, segments, objects and captions."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from uvim_like.errors import UserError
from uvim_like.own_data import layout, tables
from uvim_like.own_data.layout import IMAGE_SUFFIXES, Place, list_files
from uvim_like.own_data.maps import SUFFIXES
from uvim_like.own_data.tables import Picture, Table

Objects = Mapping[str, np.ndarray]


class Files(NamedTuple):
  """One named split of paired files.

  Attributes:
    stems: names of the examples, in their order.
    images: stem -> image file.
    labels: sort of label map -> stem -> file.
    objects: stem -> {"id" (n,), "label" (n,), …} as in coco/2017_panoptic; None without panoptic labels.
    ids: stem -> "image/id".
    table: of objects and captions; None where there are no such.
    pictures: stem -> its entry in that table.
    lacks: sort of label map or table -> why it cannot be read for all examples, which matters where it is wanted.
  """
  stems: Sequence[str]
  images: Mapping[str, epath.Path]
  labels: Mapping[str, Mapping[str, epath.Path]]
  objects: Mapping[str, Objects] | None
  ids: Mapping[str, int]
  table: Table | None = None
  pictures: Mapping[str, Picture] = {}
  lacks: Mapping[str, str] = {}


def check_pairs(images: Collection[str], labels: Collection[str], folder: epath.Path) -> None:
  """UserError that names the files without partner."""
  if reason := pairs_lacking(images, labels, folder):
    raise UserError(reason)


def pairs_lacking(images: Collection[str], labels: Collection[str], folder: epath.Path) -> str:
  """Which files have no partner, in one line; "" when there are none."""
  missing, spare = sorted(set(images) - set(labels)), sorted(set(labels) - set(images))
  parts = [f"{len(names)} {what} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
           for names, what in ((missing, "images without a file there"), (spare, "files without an image")) if names]
  return f"{folder}: {' and '.join(parts)}; files are paired by name without suffix" if parts else ""


def read_place(place: Place) -> Files:
  """The paired files of one split, in the order of their names, or of the table that lists them.

  What nobody may want stops nothing: see `Files.lacks`.
  """
  images = list_files(place.images, IMAGE_SUFFIXES, root=place.home) if place.images.is_dir() or not place.listed else {}
  everything = set(images)
  table = (tables.load(place.images, place.tables, root=place.root) if {"instances", "captions"} & set(place.tables)
           else None)
  pictures = {layout.stem_of(picture.file): picture for picture in table.pictures} if table else {}
  ids, objects, lacks = {stem: picture.id for stem, picture in pictures.items()}, None, {}
  path = place.tables.get("panoptic", place.images.parent / "panoptic.json")
  if path.exists():
    document = tables.things_first(tables.read_json(path))
    objects, ids = tables.list_objects(document, path), tables.ids_of(document["images"], path) | ids
  elif "panoptic" in place.maps:
    lacks["panoptic"] = f"{path} is missing: panoptic labels need their list of segments"
  if place.listed:
    check_present(ids, images, place)
    images = {stem: images[stem] for stem in ids}
  labels = {}
  for name, folder in place.maps.items():
    try:
      found = list_files(folder, SUFFIXES[name], root=place.home)
    except UserError as error:
      labels[name], lacks[name] = {}, str(error)
      continue
    others = everything - set(images) if place.is_shared(name) else set()
    labels[name] = {stem: path for stem, path in found.items() if stem not in others}
    if reason := pairs_lacking(images, labels[name], folder):
      lacks[name] = reason
  if objects is not None and (reason := pairs_lacking(images, objects, path)):
    lacks["panoptic"] = reason
  first = place.tables.get("instances") or place.tables.get("captions")
  if table and (reason := pairs_lacking(images, pictures, first)):
    lacks |= {"instances": reason, "captions": reason}
  chosen = layout.members(images, place.part)
  stems = tuple(stem for stem in images if stem in chosen)
  return Files(stems, images, labels, objects, layout.image_ids(tuple(images), ids), table, pictures, lacks)


def check_present(listed: Collection[str], images: Mapping[str, epath.Path], place: Place) -> None:
  """UserError when pictures that a table lists are missing."""
  missing = sorted(set(listed) - set(images))
  if missing:
    raise UserError(f"{place.images}: {len(missing)} images of the annotations are missing "
                    f"({', '.join(missing[:5])}, …)")
