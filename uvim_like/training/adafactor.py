"""Adafactor as scaled-up ViT training uses it: factored second moments with a capped decay, bfloat16 momentum.

Zhai et al. 2021, "Scaling Vision Transformers", section 3.4, after Shazeer & Stern 2018; the UViM fact sheet fixes
the details (no update clipping, no parameter scaling, momentum emitted before it is rounded).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Tree = Any


class FactoredState(NamedTuple):
  """Second moments; a leaf is present in `v_row` and `v_col`, or in `v`.

  Attributes:
    count: () int32, updates so far.
    v_row: mean of g² over the largest axis, which is kept with size 1: the rank stays that of the parameter, so
      that one sharding rule serves both.
    v_col: the same over the second largest axis.
    v: of g², unfactored.
  """
  count: jax.Array
  v_row: Tree
  v_col: Tree
  v: Tree


class MomentumState(NamedTuple):
  """`ema`: running mean of the updates, in the storage dtype."""
  ema: Tree


def factored_axes(shape: tuple[int, ...], min_dim_size_to_factor: int) -> tuple[int, int] | None:
  """(second largest axis, largest axis), or None when the second largest is too small to be worth factoring."""
  if len(shape) < 2:
    return None
  second, largest = (int(axis) for axis in np.argsort(shape)[-2:])
  return (second, largest) if shape[second] >= min_dim_size_to_factor else None


def _init_leaf(param, min_size: int) -> tuple:
  axes = factored_axes(param.shape, min_size)
  if axes is None:
    return optax.MaskedNode(), optax.MaskedNode(), jnp.zeros_like(param)
  second, largest = axes
  row, col = list(param.shape), list(param.shape)
  row[largest], col[second] = 1, 1
  return jnp.zeros(row, param.dtype), jnp.zeros(col, param.dtype), optax.MaskedNode()


def _update_leaf(grad, v_row, v_col, v, beta2, *, min_size: int, eps: float) -> tuple:
  """(update, v_row, v_col, v) of one leaf."""
  grad_sqr = jnp.square(grad) + eps
  axes = factored_axes(grad.shape, min_size)
  if axes is None:
    v = (beta2 * v + (1.0 - beta2) * grad_sqr).astype(v.dtype)
    return grad * v ** -0.5, v_row, v_col, v
  second, largest = axes
  v_row = (beta2 * v_row + (1.0 - beta2) * grad_sqr.mean(largest, keepdims=True)).astype(v_row.dtype)
  v_col = (beta2 * v_col + (1.0 - beta2) * grad_sqr.mean(second, keepdims=True)).astype(v_col.dtype)
  row_factor = (v_row / v_row.mean(second, keepdims=True)) ** -0.5
  return grad * row_factor * v_col ** -0.5, v_row, v_col, v


def scale_by_factored_moments(*, min_dim_size_to_factor: int, decay_rate: float, decay_offset: int, beta2_cap: float,
                              eps: float) -> optax.GradientTransformation:
  """u = g / sqrt(second moment), with beta2_t = min(cap, 1 - (t+1)^-decay_rate)."""

  def split(results, like, n):
    outer = jax.tree.structure(like)
    leaves = outer.flatten_up_to(results)
    return [outer.unflatten([leaf[i] for leaf in leaves]) for i in range(n)]

  def init(params):
    moments = jax.tree.map(lambda p: _init_leaf(p, min_dim_size_to_factor), params)
    return FactoredState(jnp.zeros([], jnp.int32), *split(moments, params, 3))

  def update(grads, state, params=None):
    del params
    step = (state.count - decay_offset).astype(jnp.float32)
    beta2 = jnp.minimum(beta2_cap, 1.0 - (step + 1.0) ** -decay_rate)
    results = jax.tree.map(
        lambda g, row, col, v: _update_leaf(g, row, col, v, beta2, min_size=min_dim_size_to_factor, eps=eps),
        grads, state.v_row, state.v_col, state.v)
    updates, *moments = split(results, grads, 4)
    return updates, FactoredState(optax.safe_increment(state.count), *moments)

  return optax.GradientTransformation(init, update)


def momentum_average(decay: float, dtype) -> optax.GradientTransformation:
  """m = decay·m + (1-decay)·u, not debiased; emitted as computed, stored in `dtype`.

  The first `decay` is rounded to `dtype` (0.9 becomes 0.8984375 in bfloat16) while the product is not: that is what
  the compiled reference computes, and the stored updates agree to the last bit only so.
  """

  def init(params):
    return MomentumState(jax.tree.map(lambda p: jnp.zeros(p.shape, dtype or p.dtype), params))

  def update(updates, state, params=None):
    del params
    average = jax.tree.map(
        lambda u, m: (1.0 - decay) * u + jnp.asarray(decay, m.dtype).astype(u.dtype) * m.astype(u.dtype),
        updates, state.ema)
    return average, MomentumState(jax.tree.map(lambda a, m: a.astype(m.dtype), average, state.ema))

  return optax.GradientTransformation(init, update)


def scale_by_adafactor(min_dim_size_to_factor: int = 32, decay_rate: float = 0.8, decay_offset: int = 0,
                       beta2_cap: float = 0.999, clipping_threshold: float | None = None,
                       momentum: float | None = 0.9, dtype_momentum: str = "bfloat16",
                       eps: float = 1e-30) -> optax.GradientTransformation:
  """The whole of it, without learning rate and weight decay.

  Args:
    min_dim_size_to_factor: factor when the second largest axis has at least this size.
    decay_rate: exponent of beta2_t.
    decay_offset: subtracted from the step in beta2_t.
    beta2_cap: largest beta2_t (released UViM configs: 0.95).
    clipping_threshold: largest root mean square of a leaf's update, None for no limit.
    momentum: decay of the running mean of updates, None for none.
    dtype_momentum: storage dtype of the momentum.
    eps: added to g².
  """
  parts = [scale_by_factored_moments(min_dim_size_to_factor=min_dim_size_to_factor, decay_rate=decay_rate,
                                     decay_offset=decay_offset, beta2_cap=beta2_cap, eps=eps)]
  if clipping_threshold is not None:
    parts.append(optax.clip_by_block_rms(clipping_threshold))
  if momentum:
    parts.append(momentum_average(momentum, jnp.dtype(dtype_momentum)))
  return optax.chain(*parts)
