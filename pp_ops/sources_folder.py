"""A folder of images with label maps, objects and captions beside them, as a source."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from etils import epath

from pp_ops import annotated
from pp_ops.source import Source, Specs, count, locate, split_spans
from uvim_like import pictures
from uvim_like.errors import UserError
from uvim_like.own_data import features, layout, tables
from uvim_like.own_data.files import Files, read_place
from uvim_like.own_data.layout import IMAGE_SUFFIXES, Place, list_files
from uvim_like.own_data.maps import READERS


class Kind(NamedTuple):
  """One sort of label file: the folder's name gives the files, `feature` the key in an example."""
  feature: str
  shape: tuple[int | None, ...]
  dtype: tf.DType


KINDS = {
    "labels": Kind("labels", (None, None, 1), tf.int32),
    "depth": Kind("depth", (None, None), tf.float32),
    "semantic": Kind("semantic", (None, None, 1), tf.uint8),
    "normals": Kind("normals", (None, None, 3), tf.uint8),
    "panoptic": Kind("panoptic_image", (None, None, 3), tf.uint8),
}
# A feature, or the first part of its name -> the table that gives it.
_TABLE_OF = {"objects": "instances", "image/size": "instances", "captions": "captions", "panoptic_objects": "panoptic",
             "panoptic_image": "panoptic"}
_OBJECTS = {"area": ((None,), tf.int64), "bbox": ((None, 4), tf.float32), "id": ((None,), tf.int64),
            "is_crowd": ((None,), tf.bool), "label": ((None,), tf.int64)}


def open_split(root: epath.Path, split: str, *, skip_decode: Collection[str] = ()) -> "FileSource":
  """A split of somebody's folder in any of the layouts of `own_data.layout`."""
  del skip_decode   # pictures come decoded: turned as their EXIF says, in any mode
  places = layout.find(root)
  lengths = {name: _length(place) for name, place in places.items()}
  spans = split_spans(split, lengths, where=f"folder '{root}'")
  splits = {name: read_place(places[name]) for name in {s.split for s in spans}}
  return FileSource(f"folder '{root}' '{split}'", splits, spans, upright=True)


def _length(place: Place) -> int:
  """Number of pictures of a split."""
  if place.listed:
    first = next(iter(place.tables.values()))
    return len(layout.members(tables.ids_of(tables.read_table(first, ("images",))["images"], first), place.part))
  return len(layout.members(list_files(place.images, IMAGE_SUFFIXES, root=place.home), place.part))


# --- the source ---------------------------------------------------------------------------------------------------

class FileSource(Source):
  """Images and label maps in files, as bytes and decoded arrays."""

  def __init__(self, name: str, splits: Mapping[str, Files], spans, *, skip_decode: Collection[str] = (),
               upright: bool = False):
    """`upright`: images come decoded, turned as their EXIF says; else as bytes, or as the bytes decode."""
    self.name, self._upright = name, upright
    self._splits, self._spans = splits, spans
    kinds = dict.fromkeys(kind for files in splits.values() for kind in files.labels)
    self._encoded = "image" in skip_decode and not upright
    self.features = {"image": annotated.image_spec(encoded=self._encoded), "image/id": tf.TensorSpec([], tf.int64),
                     "image/filename": tf.TensorSpec([], tf.string)}
    self._kinds = {KINDS[k].feature: k for k in kinds}
    self.features |= {f: tf.TensorSpec(KINDS[k].shape, KINDS[k].dtype) for f, k in self._kinds.items()}
    if "panoptic_image" in self._kinds:
      self.features["panoptic_image/filename"] = tf.TensorSpec([], tf.string)
      self.features |= {f"panoptic_objects/{k}": tf.TensorSpec(*spec) for k, spec in _OBJECTS.items()}
    used = [files.table for files in splits.values()]
    if len({t and (t.joints, t.captions is None, t.things is None) for t in used}) > 1:
      raise UserError(f"{name}: the splits do not all have instances, keypoints and captions")
    if used[0] is not None:
      self.features |= annotated.specs(used[0], objects=used[0].things is not None)

  def check(self, keys: Collection[str]) -> None:
    sorts = {key: self._kinds.get(key) or _TABLE_OF.get(key) or _TABLE_OF.get(key.partition("/")[0]) for key in keys}
    for name, files in self._splits.items():
      for key, kind in sorts.items():
        if key in self._kinds and kind not in files.labels:
          raise UserError(f"{self.name}: the split '{name}' has no {kind}/")
        if kind in files.lacks:
          raise UserError(files.lacks[kind])

  def __len__(self) -> int:
    return count(self._spans)

  def _find(self, index: int) -> tuple[Files, str]:
    split, position = locate(index, self._spans)
    return self._splits[split], self._splits[split].stems[position]

  def example_id(self, index: int) -> str:
    return self._find(index)[1]

  def raw_specs(self, keys: Collection[str]) -> Specs:
    raw = {} if self._upright else {"image": tf.TensorSpec([], tf.string)}
    return {k: raw.get(k, self.features[k]) for k in keys}

  def fetch(self, index: int, keys: Collection[str]) -> dict[str, Any]:
    files, stem = self._find(index)
    try:
      raw = {k: self._fetch_one(files, stem, k) for k in keys}
    except KeyError:   # a file without its partner, of which only those are told who want it
      self.check(keys)
      raise
    maps = {k: raw[k].shape[:2] for k in keys if k in self._kinds}
    if maps:
      measure = pictures.upright_size if self._upright else pictures.image_size
      size = measure(files.images[stem])
      for key, shape in maps.items():
        if shape != size:
          path = files.labels[self._kinds[key]][stem]
          raise UserError(f"{path}: {shape[0]}x{shape[1]} pixels, its image has {size[0]}x{size[1]}")
    return raw

  def _fetch_one(self, files: Files, stem: str, key: str) -> Any:
    if key == "image":
      return (pictures.read_rgb if self._upright else pictures.read_bytes)(files.images[stem])
    if key == "image/id":
      return np.int64(files.ids[stem])
    if key == "image/filename":
      return files.images[stem].name.encode()
    if key == "panoptic_image/filename":
      return files.labels["panoptic"][stem].name.encode()
    if key.startswith("panoptic_objects/"):
      return files.objects[stem][key.partition("/")[2]]
    if key not in self._kinds:
      return features.feature(files.table, files.pictures[stem], key)
    return READERS[self._kinds[key]](files.labels[self._kinds[key]][stem])

  def parse(self, raw: Mapping[str, tf.Tensor], keys: Collection[str]) -> dict[str, tf.Tensor]:
    return annotated.parse(raw, keys, encoded=self._encoded or self._upright)
