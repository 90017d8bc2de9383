"""Masks inside boxes: RoIAlign of whole maps as two matrix products (the way back is `evaluators/paste.py`).

Bilinear sampling on a regular grid is separable, so a box is one matrix of row weights and one of column weights. Boxes
are (x0, y0, x1, y1) in pixels of the map. B batch, N boxes, H W of a map, S side of a crop.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def axis_weights(low: Array, high: Array, *, bins: int, size: int, max_samples: int) -> Array:
  """(N, bins, size): what each pixel along one axis adds to each bin of boxes low..high (N,).

  A bin is the mean over ceil(length / bins) evenly spaced samples (at most `max_samples`), at half-pixel centres;
  samples more than a pixel outside the map are 0, others are clamped to it. A box without length is all zero.
  """
  length = high - low
  count = jnp.clip(jnp.ceil(length / bins), 0, max_samples)
  step = length / bins
  pixel = jnp.arange(size)

  def add(total, i):
    offset = (i + 0.5) / jnp.maximum(count, 1) * step
    at = low[:, None] - 0.5 + jnp.arange(bins) * step[:, None] + offset[:, None]  # (N, bins)
    inside = (at >= -1) & (at <= size) & (i < count)[:, None]
    weight = jnp.maximum(0.0, 1 - jnp.abs(jnp.clip(at, 0, size - 1)[..., None] - pixel))
    return total + jnp.where(inside[..., None], weight, 0.0), None

  start = jnp.zeros((*low.shape, bins, size))
  total, _ = jax.lax.scan(add, start, jnp.arange(max_samples))
  return total / jnp.maximum(count, 1)[:, None, None]


def roi_align(maps: Array, boxes: Array, *, side: int) -> Array:
  """(N, S, S) crops of maps (N, H, W) inside boxes (N, 4), resampled: RoIAlign with aligned corners, adaptive samples.

  The number of samples of a bin follows the box, up to one more than a box of the whole map needs.
  """
  height, width = maps.shape[-2:]
  x0, y0, x1, y1 = jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)
  rows = axis_weights(y0, y1, bins=side, size=height, max_samples=-(-height // side) + 1)
  columns = axis_weights(x0, x1, bins=side, size=width, max_samples=-(-width // side) + 1)
  return jnp.einsum("nsh,nhw,ntw->nst", rows, maps.astype(jnp.float32), columns)


def roi_masks(maps: Array, boxes: Array, *, side: int) -> Array:
  """`roi_align` of bitmaps, made binary again at one half: (N, S, S) float32 0 or 1."""
  return (roi_align(maps, boxes, side=side) >= 0.5).astype(jnp.float32)
