"""AiT's codebook: words that follow moving averages of the vectors assigned to them (arXiv 2301.02229; released code).

Unlike `quantize.ema_update` (UViM), counts are Laplace-smoothed and stored smoothed, and words are plain means.
"""

import jax
import jax.numpy as jnp

from uvim_like.ops.quantize import CodebookStats

Array = jax.Array
DECAY, EPSILON = 0.99, 1e-5  # of the released code


def masked_stats(x: Array, code: Array, size: int, keep: Array) -> CodebookStats:
  """Counts and sums of one batch, leaving out vectors that are no data.

  Args:
    x: (..., C) vectors; gradients stop here.
    code: (...) int words.
    size: K.
    keep: (...) bool, False where a vector is padding.
  """
  vectors = jax.lax.stop_gradient(x).reshape(-1, x.shape[-1]).astype(jnp.float32)
  rows = jnp.where(keep, code, size).reshape(-1)  # row K does not exist: dropped
  return CodebookStats(counts=jnp.zeros((size,), jnp.float32).at[rows].add(1.0, mode="drop"),
                       sums=jnp.zeros((size, x.shape[-1]), jnp.float32).at[rows].add(vectors, mode="drop"))


def update(sums: Array, counts: Array, stats: CodebookStats, *, decay: float = DECAY,
           epsilon: float = EPSILON) -> tuple[Array, Array]:
  """The next sums (K, C) and smoothed counts (K,); the next words are their quotient.

  Counts start at 0, so that after one step a word nobody chose lies some 1e5 from the origin; it sweeps back through
  the data within a thousand steps and gets a second chance there.
  """
  counts = decay * counts + (1 - decay) * stats.counts
  total = jnp.sum(counts)
  counts = (counts + epsilon) / (total + counts.shape[0] * epsilon) * total
  return decay * sums + (1 - decay) * stats.sums, counts
