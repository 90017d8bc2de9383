"""Losses of depth and normal maps over valid pixels: one number an image, no NaN gradient whatever is invalid.

Invalid pixels are weighted by zero, and their values replaced before any logarithm or division: a `where` around a
logarithm alone would still let its infinite gradient through.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
MIN_NORM = 1e-6   # of a vector that is normalised
SCALES = 4        # of the gradient loss (MegaDepth, arXiv 1804.00607)
_TINY = 1e-12     # metres; what a logarithm of a prediction that is not positive takes instead


def masked_mean(x: Array, valid: Array) -> Array:
  """(B, …) -> (B,) mean over the valid entries, 0 where there are none; x must be finite everywhere."""
  axes = tuple(range(1, x.ndim))
  weight = valid.astype(jnp.float32)
  return jnp.sum(x * weight, axes) / jnp.maximum(jnp.sum(weight, axes), 1.0)


def safe_sqrt(x: Array) -> Array:
  """Square root with gradient 0 at 0."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def log_residual(pred: Array, target: Array, valid: Array) -> Array:
  """log(pred) - log(target), 0 where invalid."""
  pred = jnp.maximum(jnp.where(valid, pred, 1.0), _TINY)
  return jnp.log(pred) - jnp.log(jnp.where(valid, target, 1.0))


def silog(pred: Array, target: Array, valid: Array, *, focus: float = 1.0) -> Array:
  """Scale-invariant log error mean(g²) - focus · mean(g)², g the log residual: no root, no epsilon.

  Args:
    pred: (B, …) metres.
    target: (B, …) metres.
    valid: (B, …) bool.
    focus: λ. 1 in deeplab2 and PolyMaX, which makes the loss blind to a common factor; 0.5 in AiT, 0.85 in AdaBins.

  Returns:
    (B,) float32.
  """
  residual = log_residual(pred, target, valid)
  return masked_mean(jnp.square(residual), valid) - focus * jnp.square(masked_mean(residual, valid))


def relative_squared(pred: Array, target: Array, valid: Array) -> Array:
  """(B,) root of the mean of ((target - pred) / target)² (deeplab2's relative squared error)."""
  safe = jnp.where(valid, target, 1.0)
  error = jnp.where(valid, (safe - pred) / safe, 0.0)
  return safe_sqrt(masked_mean(jnp.square(error), valid))


def gradient_matching(pred: Array, target: Array, valid: Array, *, scales: int = SCALES, log: bool = True) -> Array:
  """Multi-scale gradient loss of MegaDepth: how far the edges of the residual stand out.

  At scale s every 2^s-th row and column counts; |∂x| and |∂y| of the residual are summed over neighbours that are both
  valid and divided by the number of valid pixels; the scales are added.

  Args:
    pred: (B, H, W) metres.
    target: (B, H, W) metres.
    valid: (B, H, W) bool.
    scales: how many.
    log: of the log residual; else of pred - target.

  Returns:
    (B,) float32.
  """
  residual = log_residual(pred, target, valid) if log else jnp.where(valid, pred - target, 0.0)
  total = jnp.zeros(pred.shape[0])
  for step in (2 ** s for s in range(scales)):
    r, v = residual[:, ::step, ::step], valid[:, ::step, ::step]
    steps = sum(jnp.sum(jnp.abs(jnp.diff(r, axis=axis)) * _both(v, axis), axis=(1, 2)) for axis in (1, 2))
    total += steps / jnp.maximum(jnp.sum(v, axis=(1, 2)), 1)
  return total


def _both(valid: Array, axis: int) -> Array:
  """Whether two neighbours along an axis are both valid."""
  size = valid.shape[axis]
  return (jax.lax.slice_in_dim(valid, 1, size, axis=axis) & jax.lax.slice_in_dim(valid, 0, max(size - 1, 0), axis=axis))


def charbonnier(pred: Array, target: Array, valid: Array, *, scale: float) -> Array:
  """(B,) mean of sqrt((e / scale)² + 1) - 1: the robust loss of Barron (arXiv 1701.03077) with α = 1.

  Near e = 0 a squared error, beyond `scale` metres an absolute one.
  """
  error = jnp.where(valid, pred - target, 0.0) / scale
  return masked_mean(jnp.sqrt(jnp.square(error) + 1.0) - 1.0, valid)


def unit(vectors: Array) -> Array:
  """(..., 3) over its length, which counts as `MIN_NORM` at least: opposite vectors that cancel give a finite gradient."""
  square = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
  return vectors * jax.lax.rsqrt(jnp.maximum(square, MIN_NORM ** 2))


def normals_l2(pred: Array, target: Array, valid: Array) -> Array:
  """(B,) mean of |pred - target|², which is 2 - 2 cos of the angle for unit vectors; both (B, H, W, 3)."""
  error = jnp.where(valid[..., None], pred - target, 0.0)
  return masked_mean(jnp.sum(jnp.square(error), axis=-1), valid)


def valid_depth(depth: Array, *, min_depth: float, max_depth: float) -> Array:
  """Which measurements count: strictly between the bounds; 0 is a missing one, and so is anything not finite."""
  return (depth > min_depth) & (depth < max_depth)


def valid_normals(normals: Array) -> Array:
  """(..., 3) -> (...) whether there is a direction: a length of at least one half (all zeros mean none)."""
  return jnp.sum(jnp.square(normals), axis=-1) >= 0.25
