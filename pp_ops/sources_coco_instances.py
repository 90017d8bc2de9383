"""COCO's objects, joints and captions, joined by image from the JSON files as downloaded.

`objects/*` are those of coco/2017 in TFDS, and what TFDS leaves out: masks (n, H, W), keypoints (n, J, 3) = (x, y,
visibility) in pixels, captions. Joints lie in the middle of their pixels here, see `own_data.tables`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import tensorflow as tf
from etils import epath

from pp_ops import annotated
from pp_ops.source import Source, Specs, count, locate, split_spans
from pp_ops.sources_coco import ALIASES
from uvim_like.errors import UserError
from uvim_like.own_data import features, tables
from uvim_like.own_data.tables import Picture, Table
from uvim_like.pictures import read_bytes

ANNOTATED = "_annotated"   # "train2017_annotated": images with an object that is no crowd; what MAD and AiT train on
KINDS = ("instances", "person_keypoints", "captions")


def open_split(root: epath.Path, split: str, *, skip_decode: Collection[str] = ()) -> "CocoInstances":
  """A split of root/annotations/instances_<name>.json and root/<name>/*.jpg.

  person_keypoints_<name>.json and captions_<name>.json beside it are joined where they are. "train" and "validation"
  mean train2017 and val2017 where these exist; "<name>_annotated" has the images with objects only.
  """
  where, notes = f"coco_instances '{root}'", root / "annotations"
  found = {p.stem.removeprefix("instances_") for p in notes.iterdir()
           if p.name.startswith("instances_") and p.suffix == ".json"} if notes.is_dir() else set()
  if not found:
    raise UserError(f"{where}: there is no annotations/instances_<split>.json")
  names = {name: name for name in found} | {a: n for a, n in ALIASES.items() if n in found and a not in found}
  wanted = {part.split("[")[0].strip() for part in split.split("+")}
  loaded = {n: load(root, file) for n, file in names.items() if {n, n + ANNOTATED} & wanted}
  loaded |= {n + ANNOTATED: tables.annotated(loaded[n]) for n in tuple(loaded)}
  lengths = {n: len(loaded[n].pictures) if n in loaded else 0 for name in names for n in (name, name + ANNOTATED)}
  return CocoInstances(f"{where} '{split}'", loaded, split_spans(split, lengths, where=where), skip_decode=skip_decode)


def load(root: epath.Path, name: str) -> Table:
  """The joined annotations of a split."""
  paths = {kind: root / "annotations" / f"{kind}_{name}.json" for kind in KINDS}
  return tables.load(root / name, {kind: path for kind, path in paths.items() if path.exists()})


class CocoInstances(Source):
  """Pictures with their joined annotations; masks are drawn when they are asked for."""

  def __init__(self, name: str, loaded: Mapping[str, Table], spans, *, skip_decode: Collection[str] = ()):
    self.name = name
    self._tables, self._spans = loaded, spans
    used = [loaded[span.split] for span in spans]
    if len({(t.joints, t.captions is None) for t in used}) > 1:
      raise UserError(f"{name}: its parts do not all have person_keypoints and captions files")
    self._encoded = "image" in skip_decode
    self.features = {"image": annotated.image_spec(encoded=self._encoded), **annotated.specs(used[0])}

  def __len__(self) -> int:
    return count(self._spans)

  def _find(self, index: int) -> tuple[Table, Picture]:
    split, position = locate(index, self._spans)
    return self._tables[split], self._tables[split].pictures[position]

  def example_id(self, index: int) -> str:
    return self._find(index)[1].file

  def raw_specs(self, keys: Collection[str]) -> Specs:
    return {k: tf.TensorSpec([], tf.string) if k == "image" else self.features[k] for k in keys}

  def fetch(self, index: int, keys: Collection[str]) -> dict[str, Any]:
    table, picture = self._find(index)
    return {key: read_bytes(table.folder / picture.file) if key == "image" else features.feature(table, picture, key)
            for key in keys}

  def parse(self, raw: Mapping[str, tf.Tensor], keys: Collection[str]) -> dict[str, tf.Tensor]:
    return annotated.parse(raw, keys, encoded=self._encoded)
