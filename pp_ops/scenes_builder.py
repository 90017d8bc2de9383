"""The generated dataset `scenes` as a TFDS builder: importing this file makes `tfds.load("scenes/mini")` work."""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from uvim_like import scenes
from uvim_like.scenes import people, stream
from uvim_like.scenes.classes import NAMES, THINGS

_DESCRIPTION = """Rendered rooms with depth, surface normals, panoptic segments, boxes, keypoints and captions. Every
example is a pure function of its split and index; nothing is downloaded."""


@dataclasses.dataclass
class ScenesConfig(tfds.core.BuilderConfig):
  """A size of the dataset.

  Attributes:
    size: (H, W) pixels.
    counts: {split: number of examples}.
  """
  size: tuple[int, int] = (128, 128)
  counts: dict[str, int] = dataclasses.field(default_factory=dict)


def _config(name: str, size: tuple[int, int], base: str) -> ScenesConfig:
  h, w = size
  return ScenesConfig(name=name, description=f"{h} × {w} pixels", size=size, counts=dict(scenes.CONFIGS[base].splits))


def builder(name: str, *, data_dir: str, size: tuple[int, int] | None = None, counts: dict[str, int] | None = None,
            workers: int = 1, file_format: str = "tfrecord") -> "Scenes":
  """A builder that is ready for `download_and_prepare`.

  A size of its own gets a config name of its own ("full_96x128"), since the features differ; other counts do not.

  Args:
    name: of a config in `scenes.CONFIGS`.
    size: (H, W) pixels; None = the config's.
    counts: {split: number of examples}; None = the config's.
    workers: processes that render; more than one needs a guarded `__main__` (see `scenes.stream`).
    file_format: "tfrecord" or "array_record".
  """
  side = scenes.CONFIGS[name].size
  own = size is not None and tuple(size) != (side, side)
  config = _config(f"{name}_{size[0]}x{size[1]}", tuple(size), name) if own else name
  return Scenes(config=config, data_dir=data_dir, counts=counts, workers=workers, file_format=file_format)


def features(size: tuple[int, int]) -> tfds.features.FeaturesDict:
  """The features at (H, W) pixels: panoptic ones as in coco/2017_panoptic, depth as in nyu_depth_v2.

  Deliberate differences: images are PNG, so that what is read equals what `scenes.example` gives; ten classes.
  """
  h, w = size
  segment = {"id": np.int64, "area": np.int64, "bbox": tfds.features.BBoxFeature()}
  joints = tfds.features.Tensor(shape=(len(people.JOINTS), 3), dtype=np.float32)
  return tfds.features.FeaturesDict({
      "image": tfds.features.Image(shape=(h, w, 3), encoding_format="png"),
      "image/filename": tfds.features.Text(),
      "image/id": np.int64,
      "depth": tfds.features.Tensor(shape=(h, w), dtype=np.float16, encoding=tfds.features.Encoding.ZLIB),
      "normals": tfds.features.Image(shape=(h, w, 3), encoding_format="png"),
      "semantic": tfds.features.Image(shape=(h, w, 1), encoding_format="png"),
      "panoptic_image": tfds.features.Image(encoding_format="png"),
      "panoptic_image/filename": tfds.features.Text(),
      "panoptic_objects": tfds.features.Sequence(
          {**segment, "label": tfds.features.ClassLabel(names=NAMES), "is_crowd": np.bool_}),
      "objects": tfds.features.Sequence(
          {**segment, "label": tfds.features.ClassLabel(names=THINGS), "is_crowd": np.bool_, "keypoints": joints,
           "num_keypoints": np.int64}),
      "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
      "camera": {"tan_half_fov": np.float32},
  })


class Scenes(tfds.core.GeneratorBasedBuilder):
  """TFDS dataset `scenes`; configs full (default), mini, tiny."""

  VERSION = tfds.core.Version(scenes.VERSION)
  RELEASE_NOTES = {scenes.VERSION: "First version."}
  BUILDER_CONFIGS = [_config(name, (c.size, c.size), name) for name, c in scenes.CONFIGS.items()]
  DEFAULT_BUILDER_CONFIG_NAME = scenes.DEFAULT_CONFIG

  def __init__(self, *, counts: dict[str, int] | None = None, workers: int = 1, **kwargs):
    self._counts, self._workers = counts, workers
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    # The order inside a shard is that of the indices: shuffling is the pipeline's, and seeded there.
    return tfds.core.DatasetInfo(builder=self, description=_DESCRIPTION, features=features(self.builder_config.size),
                                 disable_shuffling=True)

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to download
    counts = self._counts or self.builder_config.counts
    return {split: self._generate_examples(split, count) for split, count in counts.items()}

  def _generate_examples(self, split: str, count: int):
    rendered = stream.examples(split, count, size=self.builder_config.size, workers=self._workers)
    yield from enumerate(rendered)
