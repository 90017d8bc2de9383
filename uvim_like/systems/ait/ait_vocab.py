"""AiT's one vocabulary (arXiv 2301.02229, section 3.2; released code): which rows mean what, and boxes as rows.

In order: coordinate bins, classes, a reserved row, the noise class, codes of masks, depth and other maps. Task tokens
and the parallel token are parameters of their own, no rows. Joints are rows of coordinates, as boxes are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from uvim_like import joints

Array = jax.Array
BOX = 4  # tokens of a box: x0, y0, x1, y1
JOINTS = 2 * len(joints.NAMES)  # tokens of a person's joints: x, y of each
# Row of the task and position embeddings; the release has the first four, the last is our own task.
TASK_IDS = {"detection": 0, "instances": 1, "depth": 2, "semantics": 3, "keypoints": 4}
RELEASED_TASKS = 4


class Range(NamedTuple):
  """Rows start..start + size - 1."""
  start: int
  size: int


class Vocabulary(NamedTuple):
  """Sizes of the parts.

  Attributes:
    num_bins: coordinate bins; there is one more row, since both ends have one.
    num_classes: classes of objects.
    mask_codes, depth_codes, other_codes: words of the tokenizers; `other_codes` are those of semantics.
  """
  num_bins: int = 2000
  num_classes: int = 80
  mask_codes: int = 128
  depth_codes: int = 128
  other_codes: int = 0

  @property
  def coordinates(self) -> Range:
    """Bins 0..num_bins."""
    return Range(0, self.num_bins + 1)

  @property
  def classes(self) -> Range:
    """Class c of the labels, from 1, is row start + c - 1."""
    return Range(self.num_bins + 1, self.num_classes)

  @property
  def noise(self) -> int:
    """The class of what is no object; the row before it is reserved and never produced."""
    return self.classes.start + self.num_classes + 1

  @property
  def masks(self) -> Range:
    """Codes of instance masks."""
    return Range(self.noise + 1, self.mask_codes)

  @property
  def depth(self) -> Range:
    """Codes of depth maps."""
    return Range(self.masks.start + self.mask_codes, self.depth_codes)

  @property
  def semantics(self) -> Range:
    """Codes of other maps."""
    return Range(self.depth.start + self.depth_codes, self.other_codes)

  @property
  def size(self) -> int:
    """V: 2339 with 80 classes and two tokenizers of 128 words, 2467 with 128 others."""
    return self.semantics.start + self.other_codes


def box_tokens(boxes: Array, vocabulary: Vocabulary, norm: float) -> Array:
  """Pixels (…) to bins: round(pixels / norm * num_bins), clamped to the table; int32."""
  bins = jnp.round(boxes / norm * vocabulary.num_bins)
  return jnp.clip(bins, 0, vocabulary.num_bins).astype(jnp.int32)


def box_pixels(tokens: Array, vocabulary: Vocabulary, norm: float) -> Array:
  """Bins (…) to pixels."""
  return tokens * (norm / vocabulary.num_bins)


def to_pixels(points: Array, canvas: tuple[int, int]) -> Array:
  """Points (…, 2 n) [y0, x0, y1, x1, …] in fractions of a canvas (H, W) to [x0, y0, x1, y1, …] in its pixels."""
  pairs = points.reshape(*points.shape[:-1], -1, 2)[..., ::-1]
  return (pairs * jnp.asarray(canvas[::-1], jnp.float32)).reshape(points.shape)


def to_fractions(points: Array, canvas: tuple[int, int]) -> Array:
  """The inverse of `to_pixels`."""
  pairs = points.reshape(*points.shape[:-1], -1, 2) / jnp.asarray(canvas[::-1], jnp.float32)
  return pairs[..., ::-1].reshape(points.shape)
