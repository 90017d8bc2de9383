"""Boxes as arrays: forms and overlaps, and coordinates as whole bins of the picture.

The last axis holds a box: yxyx is [y0, x0, y1, x1], xyxy is [x0, y0, x1, y1], cxcywh is the middle and the size. All
are fractions of some canvas unless a function says otherwise.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def swap_axes(boxes: Array) -> Array:
  """(..., 4) yxyx to xyxy and the reverse."""
  return boxes[..., jnp.array([1, 0, 3, 2])]


def to_centres(boxes: Array) -> Array:
  """(..., 4) xyxy to cxcywh (and yxyx to cycxhw)."""
  start, end = boxes[..., :2], boxes[..., 2:]
  return jnp.concatenate([(start + end) / 2, end - start], axis=-1)


def from_centres(boxes: Array) -> Array:
  """(..., 4) cxcywh to xyxy, the inverse of `to_centres`."""
  middle, size = boxes[..., :2], boxes[..., 2:]
  return jnp.concatenate([middle - size / 2, middle + size / 2], axis=-1)


def rescale(boxes: Array, factors: Array) -> Array:
  """(..., N, 4) boxes times (..., 2) factors of the first and the second axis: from one canvas to another."""
  return boxes * jnp.tile(factors, 2)[..., None, :]


def area(boxes: Array) -> Array:
  """(..., 4) to (...,); 0 where a side is negative."""
  return jnp.prod(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def iou(a: Array, b: Array) -> Array:
  """Intersection over union of all pairs: (..., N, 4), (..., M, 4) to (..., N, M); 0 for a union without area."""
  common, union = _intersection_and_union(a, b)
  return jnp.where(union > 0, common / jnp.where(union > 0, union, 1), 0)


def generalized_iou(a: Array, b: Array) -> Array:
  """`iou` minus the share of the enclosing box that neither covers (arXiv 1902.09630): (..., N, M) in [-1, 1]."""
  common, union = _intersection_and_union(a, b)
  start = jnp.minimum(a[..., :, None, :2], b[..., None, :, :2])
  end = jnp.maximum(a[..., :, None, 2:], b[..., None, :, 2:])
  hull = jnp.prod(jnp.maximum(end - start, 0), axis=-1)
  overlap = jnp.where(union > 0, common / jnp.where(union > 0, union, 1), 0)
  return overlap - jnp.where(hull > 0, (hull - union) / jnp.where(hull > 0, hull, 1), 0)


def _intersection_and_union(a: Array, b: Array) -> tuple[Array, Array]:
  start = jnp.maximum(a[..., :, None, :2], b[..., None, :, :2])
  end = jnp.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
  common = jnp.prod(jnp.maximum(end - start, 0), axis=-1)
  return common, area(a)[..., :, None] + area(b)[..., None, :] - common


def quantise(values: Array, bins: int) -> Array:
  """Fractions to int32 bins 0..bins inclusive: floor(value · bins) in single precision, so 1.0 has a bin of its own."""
  return jnp.clip(jnp.floor(values.astype(jnp.float32) * bins), 0, bins).astype(jnp.int32)


def dequantise(tokens: Array, bins: int, *, half_bin: bool = False) -> Array:
  """Bins 0..bins to float32 fractions, the lower edge of the bin.

  Read from a table: XLA may turn a division by a constant into a product, which is off by one unit in the last place.

  Args:
    tokens: int, clipped to 0..bins.
    bins: number of bins.
    half_bin: the middle of the bin, which has no bias of half a bin.
  """
  edges = np.arange(bins + 1, dtype=np.float32) + np.float32(0.5 if half_bin else 0)
  table = np.clip(edges / np.float32(bins), 0, 1).astype(np.float32)
  return jnp.asarray(table)[jnp.clip(tokens, 0, bins)]
