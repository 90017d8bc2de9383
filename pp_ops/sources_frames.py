"""Frames of indoor scans in files of their own, as published: NYU Depth V2 in its synchronised form, and Taskonomy."""

import csv
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from etils import epath

from pp_ops import annotated
from pp_ops.source import Source, Specs, count, locate, split_spans
from uvim_like.errors import UserError
from uvim_like.own_data.maps import read_colors, read_depth
from uvim_like.pictures import image_size, open_image, read_bytes

SPECS = {"depth": ((), tf.float32), "normals": ((3,), tf.uint8)}   # beyond height and width
Reader = Callable[[epath.Path], np.ndarray]


class Frame(NamedTuple):
  """One example: its name, and the file of each feature ("image" and keys of SPECS)."""
  name: str
  files: Mapping[str, epath.Path]


class FramesSource(Source):
  """Frames of named splits; `readers` make arrays of the files of each feature.

  All frames of a release have one size, that of the first: so they are batches without being resized.
  """

  def __init__(self, name: str, frames: Mapping[str, Sequence[Frame]], spans, readers: Mapping[str, Reader], *,
               skip_decode: Collection[str] = ()):
    self.name = name
    self._frames, self._spans, self._readers = frames, spans, readers
    self._encoded = "image" in skip_decode
    self._first = self._find(0).files["image"]
    self._size = image_size(self._first)
    image = tf.TensorSpec([], tf.string) if self._encoded else tf.TensorSpec([*self._size, 3], tf.uint8)
    self.features = {"image": image, "image/id": tf.TensorSpec([], tf.int64),
                     "image/filename": tf.TensorSpec([], tf.string)}
    self.features |= {key: tf.TensorSpec([*self._size, *SPECS[key][0]], SPECS[key][1]) for key in readers}

  def __len__(self) -> int:
    return count(self._spans)

  def _find(self, index: int) -> Frame:
    split, position = locate(index, self._spans)
    return self._frames[split][position]

  def example_id(self, index: int) -> str:
    return self._find(index).name

  def raw_specs(self, keys: Collection[str]) -> Specs:
    return {k: tf.TensorSpec([], tf.string) if k == "image" else self.features[k] for k in keys}

  def fetch(self, index: int, keys: Collection[str]) -> dict[str, Any]:
    frame = self._find(index)
    return {key: self._one(frame, index, key) for key in keys}

  def _one(self, frame: Frame, index: int, key: str) -> Any:
    if key == "image":
      self._check_size(image_size(frame.files["image"]), frame.files["image"])
      return read_bytes(frame.files["image"])
    if key == "image/id":
      return np.int64(index)
    if key == "image/filename":
      return frame.name.encode()
    array = self._readers[key](frame.files[key])
    self._check_size(array.shape[:2], frame.files[key])
    return array

  def _check_size(self, size: tuple[int, int], path: epath.Path) -> None:
    if tuple(size) != tuple(self._size):
      raise UserError(f"{path}: {size[0]}x{size[1]} pixels, but {self._first} has {self._size[0]}x{self._size[1]}, and "
                      "all frames of a release have one size; pictures of several sizes are dataset 'folder'")

  def parse(self, raw: Mapping[str, tf.Tensor], keys: Collection[str]) -> dict[str, tf.Tensor]:
    features = annotated.parse(raw, keys, encoded=self._encoded)
    if "image" in features and not self._encoded:
      features["image"] = tf.ensure_shape(features["image"], [*self._size, 3])
    return features


def _children(folder: epath.Path) -> list[epath.Path]:
  return sorted((p for p in folder.iterdir() if p.is_dir()), key=lambda p: p.name)


# --- NYU Depth V2, synchronised frames ----------------------------------------------------------------------------

OFFICIAL = "official_splits"
_RGB = re.compile(r"rgb_(\d+)\.(?:jpg|png)")


def open_nyu(root: epath.Path, split: str, *, skip_decode: Collection[str] = ()) -> FramesSource:
  """Pairs rgb_<n>.jpg and sync_depth_<n>.png (millimetres): 24,231 for training and 654 for testing as AiT reads them.

  "train" is every <scene>/ of the folder (or of its sync/), "test" and "validation" are official_splits/test,
  "labelled" is official_splits/train.
  """
  where = f"nyu '{root}'"
  inner = root / "sync" if (root / "sync").is_dir() else root
  folders = {"train": [p for p in _children(inner) if p.name != OFFICIAL],
             "labelled": _scenes(root / OFFICIAL / "train"), "test": _scenes(root / OFFICIAL / "test")}
  folders["validation"] = folders["test"]
  wanted = {part.split("[")[0].strip() for part in split.split("+")}
  frames = {name: _nyu_pairs(scenes, root) if name in wanted else () for name, scenes in folders.items() if scenes}
  spans = split_spans(split, {name: len(found) for name, found in frames.items()}, where=where)
  return FramesSource(f"{where} '{split}'", frames, spans, {"depth": read_depth}, skip_decode=skip_decode)


def _scenes(folder: epath.Path) -> list[epath.Path]:
  return _children(folder) if folder.is_dir() else []


def _nyu_pairs(scenes: Iterable[epath.Path], root: epath.Path) -> tuple[Frame, ...]:
  frames = []
  for scene in scenes:
    names = {p.name for p in scene.iterdir()}
    for name in sorted(names):
      match = _RGB.fullmatch(name)
      if match:
        depth = f"sync_depth_{match[1]}.png"
        if depth not in names:
          raise UserError(f"{scene / name}: there is no {depth} beside it")
        stem = str(pathlib.PurePath(str(scene / name)).relative_to(str(root)))
        frames.append(Frame(stem, {"image": scene / name, "depth": scene / depth}))
  return tuple(frames)


# --- Taskonomy ----------------------------------------------------------------------------------------------------

# Domain of the release -> feature. Depth is 16 bits, 1/512 m; 65535 stands for nothing seen.
DOMAINS = {"rgb": "image", "depth_zbuffer": "depth", "normal": "normals"}
_DEPTH_UNIT, _DEPTH_NONE = 1 / 512, 65535
_FRAME = re.compile(r"(point_\d+_view_\d+)_domain_(\w+)\.png")


def open_taskonomy(root: epath.Path, split: str, *, skip_decode: Collection[str] = ()) -> FramesSource:
  """root/<domain>/<building>/point_<p>_view_<v>_domain_<domain>.png with domains rgb, depth_zbuffer and normal.

  The official table of buildings, root/train_val_test_*.csv (columns id, train, val, test), gives the splits "train",
  "validation" and "test"; without it all buildings are "train". Points of a building without all three files are left
  out, as the release has some.
  """
  where = f"taskonomy '{root}'"
  domains = {domain: key for domain, key in DOMAINS.items() if (root / domain).is_dir()}
  if "rgb" not in domains or len(domains) < 2:
    raise UserError(f"{where}: there is no rgb/ with depth_zbuffer/ or normal/ beside it")
  buildings = [p.name for p in _children(root / "rgb")]
  listed = _building_splits(root, buildings)
  wanted = {part.split("[")[0].strip() for part in split.split("+")}
  frames = {name: tuple(f for b in of for f in _building_frames(root, b, domains)) if name in wanted else ()
            for name, of in listed.items()}
  spans = split_spans(split, {name: len(found) for name, found in frames.items()}, where=where)
  readers = {"depth": taskonomy_depth, "normals": read_colors}
  return FramesSource(f"{where} '{split}'", frames, spans,
                      {key: readers[key] for domain, key in domains.items() if key in readers}, skip_decode=skip_decode)


def _building_splits(root: epath.Path, buildings: Sequence[str]) -> dict[str, list[str]]:
  tables = sorted(p for p in root.iterdir() if p.name.startswith("train_val_test") and p.suffix == ".csv")
  if not tables:
    return {"train": list(buildings)}
  rows = list(csv.DictReader(tables[0].read_text().splitlines()))
  if not rows or not {"id", "train", "val", "test"} <= set(rows[0]):
    raise UserError(f"{tables[0]}: columns id, train, val and test are needed")
  names = {"train": "train", "validation": "val", "test": "test"}
  return {split: [b for b in buildings if any(r["id"] == b and r[column].strip() == "1" for r in rows)]
          for split, column in names.items()}


def _building_frames(root: epath.Path, building: str, domains: Mapping[str, str]) -> list[Frame]:
  found: dict[str, dict[str, epath.Path]] = {}
  for domain, key in domains.items():
    folder = root / domain / building
    for path in folder.iterdir() if folder.is_dir() else ():
      match = _FRAME.fullmatch(path.name)
      if match and match[2] == domain:
        found.setdefault(match[1], {})[key] = path
  return [Frame(f"{building}/{name}", files) for name, files in sorted(found.items()) if len(files) == len(domains)]


def taskonomy_depth(path: epath.Path) -> np.ndarray:
  """float32 (H, W) metres of a 16-bit PNG in units of 1/512 m; 0 where nothing was seen."""
  image = open_image(path)
  if image.mode not in ("I", "I;16"):
    raise UserError(f"{path}: depth needs a 16-bit PNG, not {image.mode}")
  levels = np.asarray(image)
  return np.where(levels == _DEPTH_NONE, 0, levels * _DEPTH_UNIT).astype(np.float32)
