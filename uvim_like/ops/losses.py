"""Losses over integer labels and masked reductions; labels never become one-hot arrays."""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnames=("axis",))
def softmax_cross_entropy(logits: Array, labels: Array, axis: int = -1) -> Array:
  """Cross entropy of integer labels; a label outside 0..C-1 gives exactly 0 loss and no gradient.

  Its own backward pass keeps only the logits and their log-sum-exp: automatic differentiation would keep the
  log-probabilities too, another array of the logits' size.

  Args:
    logits: (..., C, ...) with classes on `axis`.
    labels: int, the logits' shape without `axis`.
    axis: negative.

  Returns:
    float32, the labels' shape.
  """
  return _cross_entropy_forward(logits, labels, axis)[0]


def _cross_entropy_forward(logits, labels, axis):
  normalizer = jax.nn.logsumexp(logits.astype(jnp.float32), axis=axis)
  valid = (labels >= 0) & (labels < logits.shape[axis])
  index = jnp.expand_dims(jnp.where(valid, labels, 0), axis)
  picked = jnp.take_along_axis(logits, index, axis=axis).squeeze(axis).astype(jnp.float32)
  return jnp.where(valid, normalizer - picked, 0.0), (logits, labels, normalizer)


def _cross_entropy_backward(axis, residuals, cotangent):
  logits, labels, normalizer = residuals
  valid = (labels >= 0) & (labels < logits.shape[axis])
  weight = jnp.expand_dims(jnp.where(valid, cotangent, 0.0), axis)
  classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim + axis)
  hit = classes == jnp.expand_dims(labels, axis)
  softmax = jnp.exp(logits.astype(jnp.float32) - jnp.expand_dims(normalizer, axis))
  return ((softmax - hit) * weight).astype(logits.dtype), None


softmax_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def example_mean(x: Array) -> Array:
  """(B, …) -> (B,) mean over everything but the batch."""
  return jnp.mean(x.reshape(x.shape[0], -1), axis=-1)
