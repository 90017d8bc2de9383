"""Discrete codes: nearest word with a moving-average dictionary (VQ) and finite scalar quantisation (FSQ).

UViM, section 3 and appendix; the dictionary stores discounted sums, so a word is sum / count, scaled to unit norm.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class CodebookStats(NamedTuple):
  """Sums over a batch from which the dictionary learns; batches add up.

  Attributes:
    counts: (K,) times each word was chosen.
    sums: (K, C) sum of the vectors that chose it.
  """
  counts: Array
  sums: Array


def standardize(x: Array, eps: float = 1e-5) -> Array:
  """Zero mean and unit variance over the last axis, without learned scale: the bottleneck before quantisation."""
  mean = jnp.mean(x, axis=-1, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(jnp.var(x, axis=-1, keepdims=True) + eps)


def codewords(dictionary: Array, counts: Array) -> Array:
  """(K, C) unit-norm words of a dictionary of discounted sums (K, C) with counts (K,)."""
  words = dictionary / counts[:, None]
  return words / jnp.linalg.norm(words, axis=-1, keepdims=True)


def nearest(x: Array, words: Array) -> Array:
  """(..., ) index of the word nearest to each vector of x (..., C) in squared distance, the first on a tie."""
  distance = jnp.sum(x * x, -1, keepdims=True) - 2 * x @ words.T + jnp.sum(words * words, -1)
  return jnp.argmin(distance, axis=-1)


def lookup(words: Array, code: Array) -> Array:
  """Words (K, C) of a code (...): -1 selects the last word, as in the published model (its token 0)."""
  return jnp.take(words, code, axis=0, mode="wrap")


def straight_through(x: Array, quantized: Array) -> Array:
  """The value of `quantized` with the gradient of x."""
  return x + jax.lax.stop_gradient(quantized - x)


def code_stats(x: Array, code: Array, size: int) -> CodebookStats:
  """Counts and sums of one batch: x (B, L, C) gradient-stopped here, code (B, L), `size` = K."""
  vectors = jax.lax.stop_gradient(x).reshape(-1, x.shape[-1])
  flat = code.reshape(-1)
  return CodebookStats(counts=jnp.zeros((size,), jnp.float32).at[flat].add(1.0),
                       sums=jnp.zeros((size, x.shape[-1]), jnp.float32).at[flat].add(vectors))


def ema_update(dictionary: Array, counts: Array, stats: CodebookStats, *, momentum: float) -> tuple[Array, Array]:
  """Discounted sums: old * momentum + new, without a (1 - momentum) factor, for dictionary (K, C) and counts (K,)."""
  return momentum * dictionary + stats.sums, momentum * counts + stats.counts


def split_unused(dictionary: Array, counts: Array, key: Array, *, min_count: float = 0.1,
                 perturb: float = 1e-3) -> tuple[Array, Array, Array]:
  """Gives every word whose count fell below `min_count` half of the most used word, until none is left.

  With momentum 0.995 a word falls below 0.1 after some 500 batches without use. Should every count be below
  `min_count` there is nothing to share and the dictionary is returned as it is.

  Args:
    dictionary: (K, C) discounted sums.
    counts: (K,) discounted counts.
    key: random key of the perturbation that tells the two halves apart.
    min_count: threshold of use.
    perturb: the copy is scaled per coordinate by U(1 - perturb, 1 + perturb).

  Returns:
    (dictionary, counts, key) after the splits.
  """
  def unfinished(carry):
    _, counts, _ = carry
    return jnp.any(counts < min_count) & (jnp.max(counts) >= min_count)

  def split_one(carry):
    dictionary, counts, key = carry
    most, least = jnp.argmax(counts), jnp.argmin(counts)
    key, noise_key = jax.random.split(key)
    half = dictionary[most] / 2
    noise = jax.random.uniform(noise_key, half.shape, half.dtype, 1 - perturb, 1 + perturb)
    dictionary = dictionary.at[least].set(half * noise).at[most].set(half)
    half_count = counts[most] / 2
    counts = counts.at[least].set(half_count).at[most].set(half_count)
    return dictionary, counts, key

  return jax.lax.while_loop(unfinished, split_one, (dictionary, counts, key))


def keep_mask(key: Array, batch: int, length: int, mode: str) -> Array:
  """(B, L) bool: which words of a code survive code dropout; the number kept is about uniform on 0..L.

  Args:
    key: random key.
    batch: B.
    length: L.
    mode: "ordered" keeps a prefix; "random" keeps random positions, as many.
  """
  threshold_key, order_key = jax.random.split(key)
  threshold = jax.random.uniform(threshold_key, (batch, 1))
  keep = dropout_importance(length) > threshold
  if mode == "random":
    keep = jax.random.permutation(order_key, keep, axis=1, independent=True)
  return keep


def dropout_importance(length: int) -> Array:
  """(L,) falling from 1 to 0 without the ends: a position is kept while it exceeds the example's threshold."""
  return jnp.linspace(1.0, 0.0, length + 2)[1:-1]


# ---- finite scalar quantisation (arXiv 2309.15505): a fixed grid, nothing to learn, split or collapse ----


def fsq_size(levels: tuple[int, ...]) -> int:
  """Number of words of the grid: the product of the levels."""
  return math.prod(levels)


def fsq_quantize(x: Array, levels: tuple[int, ...]) -> tuple[Array, Array]:
  """Bounds each coordinate, rounds it to its level and passes the gradient straight through.

  Args:
    x: (..., d) unbounded, one coordinate a level count.
    levels: d numbers of levels, each at least 2 (5 or more recommended by the paper, section 4.1).

  Returns:
    quantised vectors (..., d) in [-1, 1] and their codes (...) int32, mixed radix with the first level fastest.
  """
  count = jnp.asarray(levels, jnp.float32)
  half = (count - 1) * (1 + 1e-3) / 2  # a little wider than the grid, so that its ends are reachable
  offset = jnp.where(count % 2 == 0, 0.5, 0.0)  # an even grid has no level at zero
  shift = jnp.arctanh(offset / half)
  bounded = jnp.tanh(x.astype(jnp.float32) + shift) * half - offset
  grid = straight_through(bounded, jnp.round(bounded))
  width = jnp.floor(count / 2)
  place = jnp.asarray([math.prod(levels[:i]) for i in range(len(levels))], jnp.int32)
  digits = jax.lax.stop_gradient(grid + width).astype(jnp.int32)
  return grid / width, jnp.sum(digits * place, axis=-1)


def fsq_lookup(code: Array, levels: tuple[int, ...]) -> Array:
  """Grid vectors (..., d) of codes (...): the inverse of `fsq_quantize`; -1 selects the last word."""
  code = code % fsq_size(levels)
  count = jnp.asarray(levels, jnp.int32)
  place = jnp.asarray([math.prod(levels[:i]) for i in range(len(levels))], jnp.int32)
  digits = (code[..., None] // place) % count
  width = count // 2
  return (digits - width) / width.astype(jnp.float32)
