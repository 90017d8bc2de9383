"""Normalisation with running statistics, and stochastic depth: what the convolutional and window backbones share."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
Dtype = Any


class BatchNorm(nn.Module):
  """Batch normalisation (arXiv 1502.03167); parameters "scale" and "bias", running "mean" and "var" in "state".

  Under jit with a global mesh the batch is the global one by construction: no axis name, no psum. The running variance
  is the biased one, as in flax and in TensorFlow's synchronised form.

  Attributes:
    momentum: share of the old running value that a training step keeps (PyTorch's momentum is 1 - this).
    epsilon: added to the variance.
    use_scale: learn a factor.
    use_bias: learn an offset.
    scale_init: of the factor; zeros make a residual branch start as nothing.
    frozen: always use the running statistics and never change them, with no gradient to scale and bias either
      (detectron2's FrozenBatchNorm). A config that decays weights must leave these parameters out.
    axis: the feature axis, or several; () is one scalar statistic of the whole array.
    dtype: of the result; None is that of x. The arithmetic is float32 whatever it is.
  """
  momentum: float = 0.99
  epsilon: float = 1e-3
  use_scale: bool = True
  use_bias: bool = True
  scale_init: Callable = nn.initializers.ones
  frozen: bool = False
  axis: int | tuple[int, ...] = -1
  dtype: Dtype | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """x normalised over all axes but `axis`.

    Args:
      x: at least one axis.
      train: use the statistics of this batch, and move the running ones towards them.
    """
    axes = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)
    features = sorted(a % x.ndim for a in axes)
    reduced = tuple(a for a in range(x.ndim) if a not in features)
    shape = tuple(x.shape[a] for a in features)
    wide = tuple(x.shape[a] if a in features else 1 for a in range(x.ndim))
    mean = self.variable("state", "mean", jnp.zeros, shape, jnp.float32)
    var = self.variable("state", "var", jnp.ones, shape, jnp.float32)
    scale = self.param("scale", self.scale_init, shape, jnp.float32) if self.use_scale else jnp.ones(shape)
    bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32) if self.use_bias else jnp.zeros(shape)
    out_dtype = self.dtype or x.dtype
    x = x.astype(jnp.float32)
    if train and not self.frozen:
      use_mean, use_var = moments(x, reduced, jax.lax.stop_gradient(mean.value).reshape(wide))
      if not self.is_initializing():
        mean.value = self.momentum * mean.value + (1 - self.momentum) * use_mean
        var.value = self.momentum * var.value + (1 - self.momentum) * use_var
    else:
      use_mean, use_var = mean.value, var.value
    if self.frozen:
      scale, bias = jax.lax.stop_gradient((scale, bias))
    factor = scale * jax.lax.rsqrt(use_var + self.epsilon)
    # (x - mean) first: x * factor + (bias - mean * factor) would cancel digits where |mean| is large.
    return ((x - use_mean.reshape(wide)) * factor.reshape(wide) + bias.reshape(wide)).astype(out_dtype)


def moments(x: Array, axes: tuple[int, ...], about: Array) -> tuple[Array, Array]:
  """Mean and biased variance of x over `axes`, in one pass over x.

  Args:
    x: float32.
    axes: what is averaged.
    about: broadcastable guess of the mean (the running one); the nearer, the less the difference of squares cancels.
  """
  off = x - about
  mean_off = jnp.mean(off, axes)
  var = jnp.maximum(jnp.mean(jnp.square(off), axes) - jnp.square(mean_off), 0.0)
  return mean_off + about.reshape(mean_off.shape), var


class DropPath(nn.Module):
  """Stochastic depth (arXiv 1603.09382): drops a residual branch for whole examples; rng "dropout".

  Attributes:
    rate: probability of dropping; what is kept is scaled by 1 / (1 - rate).
  """
  rate: float = 0.0

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """x (B, ...) with some examples zeroed when training, else x itself."""
    if not train or self.rate == 0.0:
      return x
    keep = 1.0 - self.rate
    mask = jax.random.bernoulli(self.make_rng("dropout"), keep, (x.shape[0], *[1] * (x.ndim - 1)))
    return jnp.where(mask, x / keep, jnp.zeros((), x.dtype)).astype(x.dtype)


def drop_rates(depths: tuple[int, ...], last: float) -> list[list[float]]:
  """Drop rates a stage and block, rising linearly from 0 at the first block of all to `last` at the last one."""
  total = sum(depths)
  rates = [last * i / max(total - 1, 1) for i in range(total)]
  starts = [sum(depths[:i]) for i in range(len(depths))]
  return [rates[start:start + depth] for start, depth in zip(starts, depths)]
