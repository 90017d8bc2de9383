"""Boxes as arrays: their forms, and coordinates as whole bins of the picture.

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
