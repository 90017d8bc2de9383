"""The random draws of masked training, apart from what is made of them.

Everything random in a training step is in these tuples, so that a step can be replayed from recorded draws. B images,
N object slots, Q queries, S sequences, L response tokens, R references.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.systems.mad.vocabulary import Vocabulary

Array = jax.Array
Ratio = float | tuple[float, float]


class BoxDraws(NamedTuple):
  """Noise objects and where the real ones stand among them.

  Attributes:
    corner, size: (B, Q, 2) uniform, of the noise boxes.
    label: (B, Q) int from 0 to classes - 1.
    order: (B, Q) uniform; objects take the slots of the lowest, in their order.
    masks: one (B, 1, L) uniform array a ratio.
  """
  corner: Array
  size: Array
  label: Array
  order: Array
  masks: tuple[Array, ...]


class MaskDraws(NamedTuple):
  """`order` (B, N) uniform chooses instances where there are too many; `masks` one (B, S, L) uniform array a ratio."""
  order: Array
  masks: tuple[Array, ...]


class KeypointDraws(NamedTuple):
  """`points` (B, N, J, 2) uniform places of hidden joints in their box; `masks` one (B, S, L) uniform array a ratio."""
  points: Array
  masks: tuple[Array, ...]


class CaptionDraws(NamedTuple):
  """Masks and the one wrong word of a caption.

  Attributes:
    masks: one uniform array a ratio: (B, 1, L) where everything is masked, else (B, R, L).
    noise_place: like `masks`; the word stands at the lowest among the places that show something.
    noise_word: like `masks` without L; int text pieces.
  """
  masks: tuple[Array, ...]
  noise_place: tuple[Array, ...]
  noise_word: tuple[Array, ...]


def sequences_of(ratio: Ratio, references: int) -> int:
  """Caption sequences of a ratio: a fully masked caption is the same for every reference, so there is one."""
  return 1 if ratio == 1.0 else references


def draw_boxes(key: Array, *, batch: int, vocabulary: Vocabulary, ratios: Sequence[Ratio]) -> BoxDraws:
  """Draws for the detection sequences of a batch."""
  keys = jax.random.split(key, 4 + len(ratios))
  shape = (batch, vocabulary.queries)
  return BoxDraws(jax.random.uniform(keys[0], (*shape, 2)), jax.random.uniform(keys[1], (*shape, 2)),
                  jax.random.randint(keys[2], shape, 0, vocabulary.classes), jax.random.uniform(keys[3], shape),
                  tuple(jax.random.uniform(k, (batch, 1, vocabulary.response("boxes"))) for k in keys[4:]))


def draw_masks(key: Array, *, batch: int, slots: int, instances: int, vocabulary: Vocabulary,
               ratios: Sequence[Ratio]) -> MaskDraws:
  """Draws for the bit masks of `instances` of `slots` objects."""
  keys = jax.random.split(key, 1 + len(ratios))
  shape = (batch, instances, vocabulary.response("masks"))
  return MaskDraws(jax.random.uniform(keys[0], (batch, slots)), tuple(jax.random.uniform(k, shape) for k in keys[1:]))


def draw_keypoints(key: Array, *, batch: int, slots: int, instances: int, vocabulary: Vocabulary,
                   ratios: Sequence[Ratio]) -> KeypointDraws:
  """Draws for the keypoints of `instances` of `slots` objects."""
  keys = jax.random.split(key, 1 + len(ratios))
  shape = (batch, instances, vocabulary.response("keypoints"))
  return KeypointDraws(jax.random.uniform(keys[0], (batch, slots, vocabulary.joints, 2)),
                       tuple(jax.random.uniform(k, shape) for k in keys[1:]))


def draw_captions(key: Array, *, batch: int, references: int, vocabulary: Vocabulary,
                  ratios: Sequence[Ratio]) -> CaptionDraws:
  """Draws for the captions of a batch."""
  keys = jax.random.split(key, 3)
  counts = [sequences_of(ratio, references) for ratio in ratios]
  each = [jax.random.split(k, len(ratios)) for k in keys]
  length = vocabulary.response("captions")
  return CaptionDraws(
      tuple(jax.random.uniform(k, (batch, n, length)) for k, n in zip(each[0], counts)),
      tuple(jax.random.uniform(k, (batch, n, length)) for k, n in zip(each[1], counts)),
      tuple(jax.random.randint(k, (batch, n), 0, vocabulary.text) for k, n in zip(each[2], counts)))


def masked_count(length: int, ratio: Ratio, key: Array | None = None) -> int | Array:
  """How many of `length` tokens are masked: int(length · ratio), of a ratio drawn from an interval where it is one."""
  if isinstance(ratio, tuple):
    drawn = jax.random.uniform(key, (), minval=ratio[0], maxval=ratio[1])
    return jnp.floor(length * drawn).astype(jnp.int32)
  return int(length * ratio)
