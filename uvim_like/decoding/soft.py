"""Soft tokens (AiT, arXiv 2301.02229, section 3.3): in place of one chosen word, the mean over all of them."""

import jax
import jax.numpy as jnp

Array = jax.Array


def mixture(logits: Array, factor: float = 1.0) -> Array:
  """Probabilities (..., K) of logits (..., K) times `factor` (the paper's tau: larger is harder, 0 mixes all
  equally)."""
  return jax.nn.softmax(factor * logits.astype(jnp.float32), axis=-1)


def one_hot_of(tokens: Array, size: int) -> Array:
  """The mixture that a hard token is: (..., K) with a single 1; the two forms then share one code path."""
  return jax.nn.one_hot(tokens, size)


def expected(logits: Array, table: Array, factor: float = 1.0) -> Array:
  """(..., C): the rows of table (K, C), weighted by the mixture of logits (..., K)."""
  return mixture(logits, factor) @ table
