"""Losses of AiT's solver (arXiv 2301.02229, section 3.3; released code): weighted tokens, SILog, dice and squared
error."""

import jax
import jax.numpy as jnp

from uvim_like.ops.losses import softmax_cross_entropy

Array = jax.Array
FOCUS = 0.5       # of the scale-invariant log error
MIN_DEPTH = 1e-3  # metres; predictions below count as this
_TINY = 1e-12     # under the root, whose gradient at 0 is infinite


def token_losses(logits: Array, targets: Array, weights: Array) -> Array:
  """(B, L) weighted cross entropy over all V tokens, 0 where the target is negative."""
  return softmax_cross_entropy(logits, targets) * weights


def silog(depth: Array, truth: Array, valid: Array) -> Array:
  """() root of mean(d²) - 0.5 mean(d)², d = log(truth) - log(depth), over all valid pixels pooled; 0 without any.

  Args:
    depth: predicted metres.
    truth: metres, the same shape.
    valid: bool, the same shape.
  """
  weight = valid.astype(jnp.float32)
  count = jnp.maximum(jnp.sum(weight), 1.0)
  safe = jnp.where(valid, truth, 1.0)
  d = jnp.where(valid, jnp.log(safe) - jnp.log(jnp.maximum(jnp.where(valid, depth, 1.0), MIN_DEPTH)), 0.0)
  spread = jnp.sum(jnp.square(d)) / count - FOCUS * jnp.square(jnp.sum(d) / count)
  return jnp.where(spread > 0, jnp.sqrt(jnp.where(spread > 0, spread, 1.0) + _TINY), 0.0)


def dice(masks: Array, truth: Array) -> Array:
  """(…) 1 - (2 Σ p t + 1) / (Σ p + Σ t + 1) of masks (…, S, S), p clipped to [0, 1]."""
  p = jnp.clip(masks, 0.0, 1.0)
  both, total = jnp.sum(p * truth, axis=(-2, -1)), jnp.sum(p, axis=(-2, -1)) + jnp.sum(truth, axis=(-2, -1))
  return 1 - (2 * both + 1) / (total + 1)


def mask_error(masks: Array, truth: Array, real: Array) -> Array:
  """(B,) dice plus squared error, each a mean over an image's real objects, of masks (B, Q, S, S); 0 without
  objects."""
  error = dice(masks, truth) + jnp.mean(jnp.square(masks - truth), axis=(-2, -1))
  weight = real.astype(jnp.float32)
  return jnp.sum(error * weight, axis=-1) / jnp.maximum(jnp.sum(weight, axis=-1), 1.0)
