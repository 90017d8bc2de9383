"""Random patches of a map set to zero: the mask augmentation of AiT's depth tokenizer (arXiv 2301.02229, section
3.1)."""

import math

import jax
import jax.numpy as jnp

Array = jax.Array


def hidden_patches(key: Array, batch: int, grid: tuple[int, int], ratio: float) -> Array:
  """(B, gh, gw) bool with exactly ceil(ratio * gh * gw) True in every example, all choices equally likely."""
  patches = grid[0] * grid[1]
  count = math.ceil(ratio * patches - 1e-9)  # 0.1 * 30 is a little above 3 in binary
  if not count:
    return jnp.zeros((batch, *grid), bool)
  chosen = jax.lax.top_k(jax.random.uniform(key, (batch, patches)), count)[1]
  hidden = jnp.zeros((batch, patches), bool).at[jnp.arange(batch)[:, None], chosen].set(True)
  return hidden.reshape(batch, *grid)


def zero_patches(key: Array, x: Array, *, patch: int, ratio: float) -> Array:
  """x (B, H, W, …) with ceil(ratio * patches) random square patches of each example set to 0.

  Args:
    key: random key.
    x: map; sides that are no multiple of the patch have a cut patch at their end.
    patch: pixels a side.
    ratio: share of the patches, 0..1; 0 returns x itself.
  """
  if not ratio:
    return x
  height, width = x.shape[1:3]
  grid = -(-height // patch), -(-width // patch)
  hidden = hidden_patches(key, x.shape[0], grid, ratio)
  hidden = jnp.repeat(jnp.repeat(hidden, patch, axis=1), patch, axis=2)[:, :height, :width]
  return jnp.where(hidden.reshape(*hidden.shape, *[1] * (x.ndim - 3)), jnp.zeros((), x.dtype), x)
