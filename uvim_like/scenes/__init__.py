"""`scenes`: a small, fully annotated dataset of rendered rooms, on which every task of this project trains.

Nothing is stored: `example(split, index)` makes an example from its name alone, the same on every call and process.
"""

import zlib
from typing import NamedTuple

import numpy as np

from uvim_like.errors import unknown
from uvim_like.scenes import annotate, captions, render, sensors
from uvim_like.scenes import world as worlds
from uvim_like.scenes.classes import LABELS

VERSION = "1.0.0"
SPLITS = ("train", "validation", "test")
BAND_SHARE = 0.2  # images with an unlabelled line between segments
_MAX_VIEWS = 200  # nearly all views are good, so this many bad ones in a row mean a mistake in the sampler


class Config(NamedTuple):
  """A ready-made size of the dataset.

  Attributes:
    size: pixels, square.
    splits: {"train" | "validation" | "test": number of examples}.
  """
  size: int
  splits: dict[str, int]


CONFIGS = {
    "full": Config(128, {"train": 4000, "validation": 400, "test": 400}),
    "mini": Config(64, {"train": 12000, "validation": 400, "test": 400}),
    "tiny": Config(128, {"train": 64, "validation": 16, "test": 16}),
}
DEFAULT_CONFIG = "full"


def parse_name(name: str) -> Config:
  """The config of a dataset name: "scenes" (= "scenes/full") or "scenes/mini"; UserError with the nearest otherwise."""
  base, _, config = name.partition("/")
  names = ["scenes", *(f"scenes/{c}" for c in CONFIGS)]
  if base != "scenes" or (config or DEFAULT_CONFIG) not in CONFIGS or name.endswith("/"):
    raise unknown("dataset", name, names)
  return CONFIGS[config or DEFAULT_CONFIG]


def image_id(split: str, index: int) -> int:
  """A number that is unique over splits: a million for each split, then the index."""
  if split not in SPLITS:
    raise unknown("split", split, SPLITS, where="scenes")
  return (1 + SPLITS.index(split)) * 10 ** 6 + index


def file_name(split: str, index: int) -> str:
  """Name of the example's PNG files, twelve digits as in COCO."""
  return f"{image_id(split, index):012d}.png"


def sample_world(rng: np.random.RandomState) -> worlds.World:
  """The first room from this stream whose view shows something and is not filled by one thing."""
  for _ in range(_MAX_VIEWS):
    world = worlds.sample(rng)
    if annotate.is_good_view(world):
      return world
  raise RuntimeError(f"no acceptable view among {_MAX_VIEWS}: the sampler is at fault")


def example(split: str, index: int, *, size: int | tuple[int, int] = 128) -> dict:
  """One example with the features of the TFDS dataset `scenes`, decoded.

  The world is drawn before anything that depends on `size`, so the same index shows the same scene at every size;
  in a non-square image the width keeps the camera's field of view.

  Args:
    split: "train", "validation" or "test".
    index: any number ≥ 0; the configs only say how many are used.
    size: pixels, one number or (H, W).

  Returns:
    "image" uint8 (H, W, 3); "image/id" int64; "image/filename" str; "depth" float16 (H, W) metres, 0 = no reading;
    "normals" uint8 (H, W, 3), (n + 1)/2·255 with x right, y up, z towards the camera, (0, 0, 0) where there is no
    depth; "semantic" uint8 (H, W, 1), 255 = void; "panoptic_image" uint8 (H, W, 3), id = R + 256 G + 65536 B,
    0 = void; "panoptic_image/filename"; "panoptic_objects" {id, area, bbox, label, is_crowd}; "objects" (the things)
    the same with keypoints (n, 17, 3) and num_keypoints; "captions" {id, text} five each;
    "camera" {tan_half_fov}: half the image's width at 1 m.
  """
  size = (int(size), int(size)) if np.ndim(size) == 0 else tuple(map(int, size))
  number = image_id(split, index)
  rng = np.random.RandomState(zlib.crc32(f"scenes/{VERSION}/{split}/{index}".encode()))
  world = sample_world(rng)
  ids, band = annotate.draw_ids(world, rng), rng.uniform() < BAND_SHARE
  picture = render.render(world, size)
  panoptic, segments = annotate.segment(world, picture, ids, band=band)
  texts = captions.describe(world.things, segments, rng)
  glass = (picture.owner < 0) & (picture.label == LABELS["window"])
  image = sensors.photograph(picture.color, rng)  # from here on the draws depend on the size
  depth = sensors.measure_depth(picture.depth, picture.cosine, glass, rng)
  axes = np.stack([world.camera.right, world.camera.up, -world.camera.forward], 1)
  return {
      "image": image,
      "image/id": np.int64(number),
      "image/filename": file_name(split, index),
      "depth": depth,
      "normals": sensors.encode_normals(picture.normal @ axes, depth > 0),
      "semantic": annotate.semantic_map(panoptic, segments),
      "panoptic_image": annotate.encode_ids(panoptic),
      "panoptic_image/filename": file_name(split, index),
      "panoptic_objects": annotate.panoptic_objects(segments),
      "objects": annotate.thing_objects(world, segments, picture),
      "captions": {"id": np.arange(len(texts), dtype=np.int64) + number * len(texts),
                   "text": np.array(texts, object)},
      "camera": {"tan_half_fov": np.float32(world.camera.tan_half_fov)},
  }
