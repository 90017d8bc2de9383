"""What the image backbones share: the GELU MLP, patches, depthwise convolution, padding, recomputation of blocks."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.ops.depthwise import depthwise_conv

Array = jax.Array
Dtype = Any

# PyTorch's trunc_normal_(std=0.02) cuts at the absolute values -2 and 2, that is, nowhere.
weight_init = nn.initializers.normal(0.02)


def layer_norm(epsilon: float, dtype: Dtype, name: str) -> nn.LayerNorm:
  """LayerNorm over channels with float32 statistics in two passes; the result has the compute type."""
  return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


class Mlp(nn.Module):
  """Dense "fc1", GELU (exact form), Dense "fc2" back to the width of the input."""
  hidden: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = functools.partial(nn.Dense, kernel_init=weight_init, dtype=self.dtype)
    y = nn.gelu(dense(self.hidden, name="fc1")(x), approximate=False)
    return dense(x.shape[-1], name="fc2")(y)


class PatchEmbed(nn.Module):
  """Non-overlapping patches to tokens: convolution "proj", then, with an epsilon, LayerNorm "norm".

  Images that are no whole number of patches are padded with zeros at the bottom and the right.
  """
  width: int
  patch: int
  norm_epsilon: float | None = None
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """(B, H, W, 3) to (B, ceil(H / patch), ceil(W / patch), D)."""
    image = pad_to_multiple(image.astype(self.dtype), self.patch)
    x = nn.Conv(self.width, (self.patch,) * 2, (self.patch,) * 2, "VALID", kernel_init=weight_init, dtype=self.dtype,
                name="proj")(image)
    return x if self.norm_epsilon is None else layer_norm(self.norm_epsilon, self.dtype, "norm")(x)


class DepthwiseConv(nn.Module):
  """Each channel with a kernel of its own, stride 1; "kernel" (k, k, 1, C) and "bias", as in a grouped `nn.Conv`.

  Attributes:
    size: k, odd.
    use_bias: whether there is a bias.
    kernel_init: of the kernel.
    dtype: compute type.
  """
  size: int
  use_bias: bool = True
  kernel_init: Callable = weight_init
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x (B, H, W, C) -> the same shape."""
    kernel = self.param("kernel", self.kernel_init, (self.size, self.size, 1, x.shape[-1]), jnp.float32)
    y = depthwise_conv(x.astype(self.dtype), kernel.astype(self.dtype))
    if not self.use_bias:
      return y
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
    return y + bias.astype(self.dtype)


def pad_to_multiple(x: Array, step: int) -> Array:
  """(B, H, W, C) with zeros added at the bottom and the right up to multiples of `step`; x itself if it is one."""
  below, right = -x.shape[1] % step, -x.shape[2] % step
  return jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0))) if below or right else x


def recomputed(block: type[nn.Module], remat: str) -> type[nn.Module]:
  """`block`, called as block(x, train), with part of its forward pass computed again in the backward pass.

  Args:
    block: a module class.
    remat: "none", "dots" (all but matrix products) or "full", as in `layers.rematerialize`.
  """
  if remat == "none":
    return block
  policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
  return nn.remat(block, policy=policy, static_argnums=(2,))
