"""Choosing the next token from logits: greedy, temperature, top-k, nucleus; all on the device."""

import jax
import jax.numpy as jnp

Array = jax.Array
_HIDDEN = -1e30  # finite, so that a fully hidden row stays free of NaN


def hide_tokens(logits: Array, tokens: tuple[int, ...]) -> Array:
  """Logits (..., V) with the given tokens made impossible."""
  return logits.at[..., jnp.asarray(tokens, jnp.int32)].set(_HIDDEN) if tokens else logits


def keep_top_k(logits: Array, k: int) -> Array:
  """Logits (..., V) with all but the k largest made impossible (ties with the k-th stay)."""
  threshold = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
  return jnp.where(logits < threshold, _HIDDEN, logits)


def keep_top_p(logits: Array, p: float) -> Array:
  """Logits (..., V) reduced to the smallest set of likeliest tokens whose probabilities reach p (at least one)."""
  ordered = jnp.sort(logits, axis=-1, descending=True)
  before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
  last = jnp.sum(before < p, axis=-1, keepdims=True) - 1
  threshold = jnp.take_along_axis(ordered, last, axis=-1)
  return jnp.where(logits < threshold, _HIDDEN, logits)


def choose(key: Array, logits: Array, *, temperature: float | Array, top_k: int = 0, top_p: float = 0.0) -> Array:
  """(...,) int32 tokens from logits (..., V).

  Args:
    key: random key, unused when greedy.
    logits: (..., V).
    temperature: the Python number 0 means the most likely token; larger flattens.
    top_k: 0 means off.
    top_p: 0 means off; not together with top_k.
  """
  if isinstance(temperature, (int, float)) and temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = logits / temperature
  if top_k:
    logits = keep_top_k(logits, top_k)
  if top_p:
    logits = keep_top_p(logits, top_p)
  return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
