"""Losses of kMaX-DeepLab over masks: which query a pixel belongs to, overlap, class, and features of one mask alike.

B batch, P pixels, K queries, M ground-truth masks, C classes. Masks are given as one number a pixel, never as planes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.ops import matching
from uvim_like.ops.clusters import areas, assigned_sums
from uvim_like.ops.losses import softmax_cross_entropy

Array = jax.Array
VOID = -1
MIN_WEIGHT = 1e-5            # of a matched or unmatched slot in the PQ-style losses
POSITIVE, NEGATIVE = 0.75, 0.25
TEMPERATURE = 0.3            # of instance discrimination
AREA_EXPONENT = 1.5          # small masks are sampled more often


class Masks(NamedTuple):
  """Ground truth as masks.

  Attributes:
    index: (B, P) int32, the mask of each pixel, VOID for none.
    classes: (B, M) int32 class 0..C-1 of each mask, VOID where there is no such mask.
    slots: (B, M) int32 query that each mask is matched with, VOID for none.
  """
  index: Array
  classes: Array
  slots: Array


def identity_masks(labels: Array, num_classes: int) -> Masks:
  """Every class its own query: the fixed matching of K = C (PolyMaX, section 3).

  Args:
    labels: (B, P) int class 0..C-1; anything else is void.
    num_classes: C.
  """
  valid = (labels >= 0) & (labels < num_classes)
  index = jnp.where(valid, labels, VOID)
  present = areas(index, num_classes) > 0
  slots = jnp.where(present, jnp.arange(num_classes), VOID)
  return Masks(index, slots, slots)


class Overlaps(NamedTuple):
  """How queries lie on masks, probabilities on void left out.

  Attributes:
    inside: (B, M, K) probability of each query on each mask.
    queries: (B, K) probability of each query on all masks.
    masks: (B, M) pixels of each mask.
    void: (B, K) probability of each query on void.
  """
  inside: Array
  queries: Array
  masks: Array
  void: Array

  def dice(self, smooth: float = 0.0) -> Array:
    """(B, M, K) dice (2 Σ p y + smooth) / (Σ p + Σ y + smooth): smoothed by 1 in the loss, plain as a similarity."""
    total = self.queries[:, None] + self.masks[..., None] + smooth
    return (2 * self.inside + smooth) / jnp.maximum(total, 1e-9)


def overlaps(logits: Array, masks: Masks) -> Overlaps:
  """Overlaps of logits (B, P, K) with the masks."""
  probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
  count = masks.classes.shape[1]
  void = jnp.sum(jnp.where((masks.index == VOID)[..., None], probs, 0.0), axis=1)
  inside = assigned_sums(probs, masks.index, count)
  return Overlaps(inside, jnp.sum(inside, axis=1), areas(masks.index, count), void)


def of_matched(values: Array, masks: Masks) -> Array:
  """(B, M, K) -> (B, M) value of each mask with its query; 0 for masks that have none."""
  picked = jnp.take_along_axis(values, jnp.maximum(masks.slots, 0)[..., None], axis=2)[..., 0]
  return jnp.where(masks.slots == VOID, 0.0, picked)


def match(logits: Array, class_logits: Array, masks: Masks, *, solver: str = "device") -> Masks:
  """The same masks matched one to one with queries, so that the sum of dice · class probability is largest."""
  chance = jax.nn.softmax(class_logits.astype(jnp.float32), axis=-1)  # (B, K, C + 1)
  exists = masks.classes != VOID
  wanted = jnp.where(exists, masks.classes, 0)
  chance = jnp.take_along_axis(jnp.swapaxes(chance, 1, 2), wanted[..., None], axis=1)  # (B, M, K)
  similarity = jax.lax.stop_gradient(overlaps(logits, masks).dice() * chance)
  return masks._replace(slots=matching.assign(-jnp.swapaxes(similarity, 1, 2), exists, solver=solver))


def nonzero_mean(x: Array) -> Array:
  """(B, N) -> (B,) sum over the number of entries that are not zero."""
  return jnp.sum(x, axis=-1) / jnp.maximum(jnp.sum(x != 0, axis=-1), 1)


def mask_id_cross_entropy(logits: Array, masks: Masks) -> Array:
  """(B,) cross entropy of the query that each pixel belongs to, mean over the pixels that are not void."""
  slot = jnp.take_along_axis(masks.slots, jnp.maximum(masks.index, 0), axis=1)
  return nonzero_mean(softmax_cross_entropy(logits, jnp.where(masks.index == VOID, VOID, slot)))


def mask_dice(found: Overlaps, masks: Masks, weight: Array | float = 1.0) -> Array:
  """(B,) sum over the matched masks of weight · (1 - dice), the weight () or (B, M)."""
  dice = of_matched(found.dice(smooth=1.0), masks)
  return jnp.sum(jnp.where(masks.slots == VOID, 0.0, weight * (1 - dice)), axis=1)


def class_weight(class_logits: Array, masks: Masks) -> Array:
  """(B, M) probability that each mask's query gives to the mask's class: the weight of its dice; passes no gradient."""
  chance = jax.nn.softmax(class_logits.astype(jnp.float32), axis=-1)
  rows = jnp.take_along_axis(chance, jnp.maximum(masks.slots, 0)[..., None], axis=1)
  picked = jnp.take_along_axis(rows, jnp.maximum(masks.classes, 0)[..., None], axis=2)[..., 0]
  return jax.lax.stop_gradient(jnp.maximum(picked, MIN_WEIGHT))


def slot_weight(found: Overlaps, masks: Masks) -> Array:
  """(B, K) weight of each query's class loss; passes no gradient.

  Of a matched query its dice, of another one the share of its probability that lies on void.
  """
  owner = matching.invert(masks.slots, found.queries.shape[1])  # (B, K) mask of each query
  positive = jnp.take_along_axis(of_matched(found.dice(), masks), jnp.maximum(owner, 0), axis=1)
  on_void = found.void / jnp.maximum(found.queries + found.void, 1e-9)
  weight = jnp.maximum(jnp.where(owner != VOID, positive, on_void), MIN_WEIGHT)
  return jax.lax.stop_gradient(jnp.where(owner != VOID, POSITIVE, NEGATIVE) * weight)


def mask_class(class_logits: Array, masks: Masks, weight: Array) -> Array:
  """(B,) PQ-style class loss: queries with a mask learn its class, the rest "no object" (MaX-DeepLab, arXiv 2012.00759).

  Args:
    class_logits: (B, K, C + 1).
    masks: matched.
    weight: (B, K), see `slot_weight`.
  """
  owner = matching.invert(masks.slots, class_logits.shape[1])
  wanted = jnp.take_along_axis(masks.classes, jnp.maximum(owner, 0), axis=1)
  target = jnp.where(owner != VOID, wanted, class_logits.shape[2] - 1)
  return nonzero_mean(softmax_cross_entropy(class_logits, target) * weight)


def sample_pixels(key: Array, masks: Masks, count: int, *, exponent: float = AREA_EXPONENT) -> Array:
  """(B, min(count, P)) int32 pixels drawn without replacement, the probability falling with the mask's area.

  Gumbel top-k with logits exponent · log(1 / area); void pixels come last.
  """
  area = areas(masks.index, masks.classes.shape[1])
  own = jnp.take_along_axis(area, jnp.maximum(masks.index, 0), axis=1)
  score = jnp.where(masks.index == VOID, -jnp.inf, -exponent * jnp.log(jnp.maximum(own, 1.0)))
  noise = jax.random.gumbel(key, score.shape)
  return jax.lax.top_k(score + noise, min(count, score.shape[1]))[1].astype(jnp.int32)


def instance_discrimination(features: Array, masks: Masks, sample: Array, *, temperature: float = TEMPERATURE,
                            void_repels: bool = True) -> Array:
  """(B,) contrast between sampled pixels: those of one mask shall be alike.

  Cross entropy between the softmax of f·f' / temperature over the sample and the uniform distribution over the sampled
  pixels of the same mask; mean over the pixels that are not void.

  Args:
    features: (B, P, D) unit vectors.
    masks: of the pixels.
    sample: (B, S) int pixels.
    temperature: of the softmax.
    void_repels: a sampled void pixel adds no loss, but the gradient that pushes it away from all others. So it is in
      the authors' training: their cross entropy's gradient is softmax - target even where the target is all zeros.
  """
  picked = jnp.take_along_axis(features.astype(jnp.float32), sample[..., None], axis=1)
  index = jnp.take_along_axis(masks.index, sample, axis=1)
  logits = jnp.einsum("bsd,btd->bst", picked, picked) / temperature
  normalizer = jax.nn.logsumexp(logits, axis=-1)
  known = index != VOID
  same = (index[:, :, None] == index[:, None, :]) & known[:, :, None]
  count = jnp.maximum(jnp.sum(same, axis=-1), 1)
  loss = jnp.where(known, normalizer - jnp.sum(jnp.where(same, logits, 0.0), axis=-1) / count, 0.0)
  if void_repels:
    loss += jnp.where(known, 0.0, normalizer - jax.lax.stop_gradient(normalizer))
  return jnp.sum(loss, axis=-1) / jnp.maximum(jnp.sum(known, axis=-1), 1)
