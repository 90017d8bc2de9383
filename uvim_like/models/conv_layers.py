"""Convolution, batch norm and activation as one unit: what kMaX-DeepLab and DeepLabv3+ are built of."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.models.backbone_parts import DepthwiseConv
from uvim_like.models.norms import BatchNorm

Array = jax.Array
Dtype = Any
Norm = Callable[..., nn.Module]

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


def gelu(x: Array) -> Array:
  """GELU in its exact form (erf), as kMaX uses it everywhere."""
  return nn.gelu(x, approximate=False)


class ConvBn(nn.Module):
  """Convolution without bias ("conv"), batch norm ("batch_norm"), activation.

  A 1x1 convolution is a matrix product with a kernel (C_in, C_out), so that x may have any number of axes.

  Attributes:
    features: output channels; for a depthwise convolution those of x.
    size: side of the kernel.
    dilation: distance between its taps; not of depthwise ones.
    depthwise: one filter a channel.
    activation: after the norm, or None.
    scale_init: of the norm's factor.
    kernel_init: of the kernel.
    norm: makes the batch norm.
    dtype: compute type.
  """
  features: int
  size: int = 1
  dilation: int = 1
  depthwise: bool = False
  activation: Callable | None = None
  scale_init: Callable = nn.initializers.ones
  kernel_init: Callable = he_normal
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """x (B, …, C) -> (B, …, features), same height and width."""
    if self.depthwise:
      x = DepthwiseConv(self.size, use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype, name="conv")(x)
    elif self.size == 1:
      x = nn.Dense(self.features, use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype, name="conv")(x)
    else:
      x = nn.Conv(self.features, (self.size, self.size), kernel_dilation=self.dilation, use_bias=False,
                  kernel_init=self.kernel_init, dtype=self.dtype, name="conv")(x)
    x = self.norm(scale_init=self.scale_init, name="batch_norm")(x, train)
    return x if self.activation is None else self.activation(x)


class SeparableConvBn(nn.Module):
  """Depthwise convolution, norm, activation, then 1x1 convolution, norm, activation.

  Attributes:
    features: output channels.
    size: side of the depthwise kernel.
    activation: after both norms.
    norm: makes the batch norms.
    dtype: compute type.
  """
  features: int
  size: int
  activation: Callable
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """x (B, H, W, C) -> (B, H, W, features)."""
    x = ConvBn(x.shape[-1], self.size, depthwise=True, activation=self.activation, norm=self.norm, dtype=self.dtype,
               kernel_init=depthwise_glorot, name="depthwise")(x, train)
    return ConvBn(self.features, activation=self.activation, norm=self.norm, dtype=self.dtype,
                  name="pointwise")(x, train)


def depthwise_glorot(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
  """Glorot-uniform of a depthwise kernel (h, w, 1, C) with the fans of TensorFlow's layout (h, w, C, 1)."""
  taps = shape[0] * shape[1]
  limit = (6.0 / (taps * shape[3] + taps)) ** 0.5
  return jax.random.uniform(key, shape, dtype, -limit, limit)


def l2_normalize(x: Array, *, epsilon: float = 1e-12) -> Array:
  """x over its last axis's norm, float32; the squared norm is at least `epsilon`, so zero stays zero with a gradient."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), epsilon))
