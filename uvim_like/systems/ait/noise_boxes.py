"""The objects of a training sequence (AiT, released code, after Pix2Seq, arXiv 2109.10852): real ones, then noise.

A sequence has Q slots. The real objects come first in random order; jittered copies of them and boxes of nothing fill
it up, all with the noise class, so that the decoder learns to tell them apart. Boxes are (x0, y0, x1, y1) in pixels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
JITTER = 0.05  # of the box's sides, times a standard normal cut at 2: at most a tenth
ABSENT = -1


class Slots(NamedTuple):
  """What stands in the Q slots of one image.

  Attributes:
    boxes: (Q, 4) pixels, inside the image.
    classes: (Q,) int32 label 1..C, 0 for noise.
    source: (Q,) int32 the object whose mask lies under the box; ABSENT for boxes of nothing.
    real: (Q,) bool.
  """
  boxes: Array
  classes: Array
  source: Array
  real: Array


def shuffle_valid(key: Array, valid: Array) -> Array:
  """(M,) permutation that puts the valid entries first, in random order."""
  # The library's top-k compiles and runs faster than XLA's sort on CPU.
  return jax.lax.top_k(jnp.where(valid, jax.random.uniform(key, valid.shape), -1.0), valid.shape[0])[1]


def normal(key: Array, shape: tuple[int, ...]) -> Array:
  """Standard normal, cut at two deviations."""
  return jax.random.truncated_normal(key, -2.0, 2.0, shape)


def jitter(key: Array, boxes: Array) -> Array:
  """Boxes (M, 4) whose every coordinate moves by up to a tenth of the side along its axis."""
  sides = boxes[:, 2:] - boxes[:, :2]
  return boxes + jnp.tile(sides, (1, 2)) * normal(key, boxes.shape) * JITTER


def random_boxes(key: Array, count: int, size: Array) -> Array:
  """(count, 4): centres uniform in the image of size (h, w), half sides |t| / 4 of its sides, t as in `normal`."""
  centre_key, side_key = jax.random.split(key)
  sides = size[::-1]  # (w, h)
  centre = jax.random.uniform(centre_key, (count, 2)) * sides
  half = jnp.abs(normal(side_key, (count, 2))) / 4 * sides
  return jnp.concatenate([centre - half, centre + half], axis=-1)


def moved(key: Array, boxes: Array, size: Array) -> Array:
  """Boxes (M, 4) of the same sides with centres uniform in the image."""
  half = (boxes[:, 2:] - boxes[:, :2]) / 2
  centre = jax.random.uniform(key, half.shape) * size[::-1]
  return jnp.concatenate([centre - half, centre + half], axis=-1)


def fill(key: Array, boxes: Array, labels: Array, size: Array, *, slots: int) -> Slots:
  """The slots of one image.

  Of the Q - n free slots a uniform number holds jittered copies (none when there is no object), picked without
  repetition from the objects laid out often enough; the others hold boxes of nothing, picked from as many random boxes
  and as many objects at other places.

  Args:
    key: random key.
    boxes: (N, 4) pixels.
    labels: (N,) int32, 0 = empty; more than Q objects are cut to Q.
    size: (2,) rows and columns of the image inside its canvas.
    slots: Q.
  """
  keys = iter(jax.random.split(key, 9))
  order = shuffle_valid(next(keys), labels > 0)[jnp.arange(slots) % len(labels)]  # GT in random order, then anything
  count = jnp.minimum(jnp.sum(labels > 0), slots)
  free = slots - count
  copies = jnp.where(count > 0, jax.random.randint(next(keys), (), 0, free + 1), 0)
  fakes = free - copies

  index = jnp.arange(slots)
  tiles = (free // jnp.maximum(count, 1) + 1) * count  # at most Q
  pick = lambda key: order[shuffle_valid(key, index < tiles) % jnp.maximum(count, 1)]  # noqa: E731
  copied, shifted = pick(next(keys)), pick(next(keys))

  pool = jnp.concatenate([random_boxes(next(keys), slots, size), moved(next(keys), boxes[shifted], size)])
  wanted = jnp.concatenate([index < fakes, (index < fakes) & (index < tiles)])
  fake = pool[shuffle_valid(next(keys), wanted)[:slots]]

  noise_boxes = jnp.concatenate([jitter(next(keys), boxes[copied]), fake])
  noise_source = jnp.concatenate([copied, jnp.full((slots,), ABSENT)])
  mixed = shuffle_valid(next(keys), jnp.concatenate([index < copies, index < fakes]))[:slots]
  at = jnp.clip(index - count, 0, slots - 1)  # slot count + i holds the i-th noise box
  real = index < count
  limit = jnp.tile(size[::-1], 2).astype(jnp.float32)
  chosen = jnp.where(real[:, None], boxes[order], noise_boxes[mixed][at])
  return Slots(boxes=jnp.clip(chosen, 0.0, limit), classes=jnp.where(real, labels[order], 0).astype(jnp.int32),
               source=jnp.where(real, order, noise_source[mixed][at]).astype(jnp.int32), real=real)


def corrupt_classes(key: Array, slots: int, *, num_classes: int) -> Array:
  """(Q,) classes that the decoder reads in place of the true ones: half of them noise (0), half any of 1..C."""
  choose_key, class_key = jax.random.split(key)
  classes = jax.random.randint(class_key, (slots,), 1, num_classes + 1)
  return jnp.where(jax.random.bernoulli(choose_key, 0.5, (slots,)), classes, 0)
