"""Bilinear resize with aligned corners: the first and last samples of old and new grid coincide (kMaX, PolyMaX).

`jax.image.resize` places samples at half-pixel centres instead, which shifts every map of a 32k + 1 pyramid.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def resize_bilinear(x: Array, size: tuple[int, int]) -> Array:
  """x (B, h, w, C) -> (B, *size, C), corners aligned; computed in float32, returned in x's type.

  Whole-number factors (every level of a 32k + 1 pyramid) are plain blends of neighbours, other sizes two small matrix
  products; neither needs a gather.
  """
  if x.shape[1:3] == tuple(size):
    return x
  out = x.astype(jnp.float32)
  # The axis that grows least first: less work for the other.
  for axis in sorted((1, 2), key=lambda axis: size[axis - 1] / x.shape[axis]):
    out = _resize_axis(out, axis, size[axis - 1])
  return out.astype(x.dtype)


def _resize_axis(x: Array, axis: int, new: int) -> Array:
  """One axis of x (B, h, w, C) to `new` samples."""
  old = x.shape[axis]
  if old == new:
    return x
  if old == 1:
    return jnp.repeat(x, new, axis=axis)
  if new > 1 and (new - 1) % (old - 1) == 0:
    return _blend(x, axis, (new - 1) // (old - 1))
  subscripts = "oi,biwc->bowc" if axis == 1 else "oi,bhic->bhoc"
  return jnp.einsum(subscripts, align_weights(old, new), x, precision=jax.lax.Precision.HIGHEST)


def _blend(x: Array, axis: int, factor: int) -> Array:
  """old -> factor * (old - 1) + 1 samples: each pair of neighbours and the steps between them."""
  first = jax.lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)
  second = jax.lax.slice_in_dim(x, 1, None, axis=axis)
  steps = [first + (second - first) * (i / factor) for i in range(factor)]
  between = jnp.stack(steps, axis=axis + 1)
  shape = list(x.shape)
  shape[axis] = factor * (x.shape[axis] - 1)
  last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)
  return jnp.concatenate([between.reshape(shape), last], axis=axis)


def align_weights(old: int, new: int) -> np.ndarray:
  """(new, old) float32 rows of at most two weights that sum to 1; a single new sample takes the first old one."""
  position = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
  low = np.minimum(np.floor(position).astype(int), max(old - 2, 0))
  part = position - low
  weights = np.zeros((new, old))
  rows = np.arange(new)
  weights[rows, low] += 1 - part
  weights[rows, np.minimum(low + 1, old - 1)] += part
  return weights.astype(np.float32)
