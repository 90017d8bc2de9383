"""NYU Depth V2's 1449 labelled frames, from the one HDF5 file that is published."""

from collections.abc import Collection
from typing import Any

import h5py
import numpy as np
import tensorflow as tf
from etils import epath

from pp_ops import sources_frames
from pp_ops.source import Source, Specs, count, locate, split_spans
from uvim_like.errors import UserError
from uvim_like.own_data.maps import read_colors
from uvim_like.tasks import nyu40

LABELLED = "nyu_depth_v2_labeled.mat"
SPLITS, MAPPING, NORMALS = "splits.mat", "classMapping40.mat", "normals"
EVERY = "frames"   # the split of all frames; "all" has a meaning of its own in split arithmetic


def open_split(root: epath.Path, split: str, *, skip_decode: Collection[str] = ()) -> Source:
  """The labelled frames where nyu_depth_v2_labeled.mat is, else the synchronised ones of `sources_frames.open_nyu`.

  Beside the file lie splits.mat (splits "train", 795, and "test" = "validation", 654; without it "frames", all of
  them, alone), classMapping40.mat (for "semantic") and normals/<0001..1449>.png (for "normals").
  """
  if not root.is_dir():
    raise UserError(f"nyu '{root}': there is no such folder")
  if not (root / LABELLED).exists():
    return sources_frames.open_nyu(root, split, skip_decode=skip_decode)
  return LabelledFrames(root, split)


class LabelledFrames(Source):
  """Frames of the HDF5 file: MATLAB's order of axes, columns before rows, is undone.

  Features: image (H, W, 3), depth (H, W) float32 metres with 0 where the sensor saw nothing, depth_filled without such
  holes, labels_raw (H, W, 1) int32 names 0..894, semantic (H, W, 1) uint8 train ids 0..39 and 255, normals (H, W, 3).
  """

  def __init__(self, root: epath.Path, split: str):
    where = f"nyu '{root}'"
    self.name = f"{where} '{split}'"
    self._path, self._normals = root / LABELLED, root / NORMALS
    with h5py.File(self._path, "r") as file:
      missing = {"images", "depths", "labels"} - set(file)
      if missing:
        raise UserError(f"{self._path}: no array '{min(missing)}'")
      total, channels, width, height = file["images"].shape
      self._raw = "rawDepths" in file
    self._frames = {EVERY: np.arange(total)} | _splits(root / SPLITS, total)
    self._spans = split_spans(split, {name: len(found) for name, found in self._frames.items()}, where=where)
    plane = tf.TensorSpec([height, width], tf.float32)
    self.features = {"image": tf.TensorSpec([height, width, channels], tf.uint8),
                     "image/id": tf.TensorSpec([], tf.int64), "image/filename": tf.TensorSpec([], tf.string),
                     "depth": plane, "depth_filled": plane, "labels_raw": tf.TensorSpec([height, width, 1], tf.int32)}
    self._mapping = nyu40.read_mapping(root / MAPPING) if (root / MAPPING).exists() else None
    if self._mapping is not None:
      self.features["semantic"] = tf.TensorSpec([height, width, 1], tf.uint8)
    if self._normals.is_dir():
      self.features["normals"] = tf.TensorSpec([height, width, 3], tf.uint8)

  def __len__(self) -> int:
    return count(self._spans)

  def _frame(self, index: int) -> int:
    split, position = locate(index, self._spans)
    return int(self._frames[split][position])

  def example_id(self, index: int) -> str:
    return f"{self._frame(index) + 1:04d}"

  def raw_specs(self, keys: Collection[str]) -> Specs:
    return {k: self.features[k] for k in keys}

  def fetch(self, index: int, keys: Collection[str]) -> dict[str, Any]:
    frame = self._frame(index)
    with h5py.File(self._path, "r") as file:
      return {key: self._one(file, frame, key) for key in keys}

  def _one(self, file: h5py.File, frame: int, key: str) -> Any:
    if key == "image":
      return file["images"][frame].transpose(2, 1, 0)
    if key == "image/id":
      return np.int64(frame + 1)
    if key == "image/filename":
      return f"{frame + 1:04d}".encode()
    if key in ("depth", "depth_filled"):
      array = file["rawDepths" if key == "depth" and self._raw else "depths"]
      return array[frame].T.astype(np.float32)
    if key == "normals":
      return self._read_normals(frame)
    names = file["labels"][frame].T.astype(np.int32)[..., None]
    return names if key == "labels_raw" else nyu40.to_train_ids(nyu40.to_classes(names, self._mapping))

  def _read_normals(self, frame: int) -> np.ndarray:
    path = self._normals / f"{frame + 1:04d}.png"
    normals = read_colors(path)
    if normals.shape[:2] != tuple(self.features["image"].shape[:2]):
      raise UserError(f"{path}: {normals.shape[0]}x{normals.shape[1]} pixels, the frames have "
                      f"{'x'.join(map(str, self.features['image'].shape[:2]))}")
    return normals


def _splits(path: epath.Path, total: int) -> dict[str, np.ndarray]:
  if not path.exists():
    return {}
  frames = nyu40.read_splits(path)
  for name, found in frames.items():
    if found.size and not 0 <= found.min() <= found.max() < total:
      raise UserError(f"{path}: frames {found.min() + 1}..{found.max() + 1} of '{name}', but there are {total}")
  return frames | {"validation": frames["test"]}
