"""kMaX-DeepLab's pixel decoder: axial attention at strides 32 and 16, bottlenecks at 8 and 4 (arXiv 2207.04044).

Features between blocks are un-activated: whoever reads them applies GELU first. Names of modules follow the released
checkpoints' variables.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.errors import UserError
from uvim_like.models.conv_layers import ConvBn, Norm, gelu
from uvim_like.models.norms import BatchNorm
from uvim_like.ops.resize_align import resize_bilinear

Array = jax.Array
Dtype = Any
HEADS = 8
EXPANSION = 4       # output channels of a block over its filters
MAX_LENGTH = 255    # longest axis that the relative tables cover
BLOCKS = ("axial", "bottleneck")

LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6)


class AxialAttention(nn.Module):
  """Attention along one axis with relative tables for queries, keys and values (Axial-DeepLab, kMaX's norms).

  Logits are norm(q·k) + norm(q·r_q) + norm(k·r_k) without 1/sqrt(d); the output is norm(Σ w v) + norm(Σ w r_v). The
  tables are the only thing in the network that knows positions, and do not depend on the image's size.

  Attributes:
    key_dim: channels of all heads' keys.
    value_dim: channels of all heads' values.
    norm: makes the batch norms.
    dtype: compute type; logits, norms and softmax are float32.
  """
  key_dim: int
  value_dim: int
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """x (B, L, C) -> (B, L, value_dim), every row of B attended on its own."""
    batch, length, width = x.shape
    if length > MAX_LENGTH:
      raise UserError(f"axial attention: an axis of {length} positions; the relative tables cover {MAX_LENGTH}")
    qkv = nn.Dense(2 * self.key_dim + self.value_dim, use_bias=False, dtype=self.dtype, name="qkv",
                   kernel_init=nn.initializers.truncated_normal(width ** -0.5))(x)
    qkv = self.norm(name="batch_norm_qkv")(qkv, train)
    q, k, v = (part.reshape(batch, length, HEADS, -1)
               for part in jnp.split(qkv, (self.key_dim, 2 * self.key_dim), axis=-1))
    r_q, r_k, r_v = (self._relative(name, length, dim // HEADS)
                     for name, dim in (("query", self.key_dim), ("key", self.key_dim), ("value", self.value_dim)))
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    logits = jnp.stack([einsum("blhd,bmhd->bhlm", q, k), einsum("blhd,lmd->bhlm", q, r_q),
                        einsum("bmhd,lmd->bhlm", k, r_k)])
    logits = self.norm(axis=(0, 2), dtype=jnp.float32, name="batch_norm_similarity")(logits, train)  # (3, B, heads, L, L)
    weights = nn.softmax(jnp.sum(logits, axis=0), axis=-1).astype(self.dtype)
    out = jnp.stack([einsum("bhlm,bmhd->bhld", weights, v), einsum("bhlm,lmd->bhld", weights, r_v)])
    out = self.norm(axis=(0, 2, 4), name="batch_norm_retrieved_output")(out, train)  # (2, B, heads, L, d)
    return jnp.swapaxes(jnp.sum(out, axis=0), 1, 2).reshape(batch, length, self.value_dim).astype(self.dtype)

  def _relative(self, name: str, length: int, dim: int) -> Array:
    """(L, L, d) rows [l, m] of the table at the distance m - l; one table for all heads."""
    table = self.param(f"{name}_rpe", nn.initializers.truncated_normal(1.0), (2 * MAX_LENGTH - 1, dim))
    position = jnp.arange(length)
    return table.astype(self.dtype)[position[None, :] - position[:, None] + MAX_LENGTH - 1]


class AxialAttention2D(nn.Module):
  """Attention along the height, then along the width, with weights of their own.

  Attributes:
    filters: of the block; keys have as many channels, values twice as many.
    norm: makes the batch norms.
    dtype: compute type.
  """
  filters: int
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """x (B, H, W, C) -> (B, H, W, 2 · filters)."""
    make = functools.partial(AxialAttention, self.filters, 2 * self.filters, norm=self.norm, dtype=self.dtype)
    for axis, name in ((1, "height_axis"), (2, "width_axis")):
      rows = jnp.swapaxes(x, 1, 2) if axis == 1 else x  # (B, other axis, this axis, C)
      shape = rows.shape[:3]
      rows = make(name=name)(rows.reshape(shape[0] * shape[1], shape[2], -1), train).reshape(*shape, -1)
      x = jnp.swapaxes(rows, 1, 2) if axis == 1 else rows
    return x


class Block(nn.Module):
  """Residual block, un-activated in and out: 1x1, axial attention or a 3x3 convolution, 1x1.

  Attributes:
    kind: "axial" or "bottleneck".
    filters: f; the output has 4 f channels.
    dilation: of the bottleneck's 3x3.
    norm: makes the batch norms.
    dtype: compute type.
  """
  kind: str
  filters: int
  dilation: int = 1
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """x (B, H, W, C) -> (B, H, W, 4 · filters)."""
    conv = functools.partial(ConvBn, norm=self.norm, dtype=self.dtype)
    x = gelu(x)
    features = EXPANSION * self.filters
    shortcut = x if x.shape[-1] == features else conv(features, name="shortcut")(x, train)
    if self.kind == "axial":
      x = conv(2 * self.filters, activation=gelu, name="conv1_bn_act")(x, train)
      x = gelu(AxialAttention2D(self.filters, self.norm, self.dtype, name="attention")(x, train))
    else:
      x = conv(self.filters, activation=gelu, name="conv1_bn_act")(x, train)
      x = conv(self.filters, 3, self.dilation, activation=gelu, name="conv2_bn_act")(x, train)
    return shortcut + conv(features, scale_init=nn.initializers.zeros, name="conv3_bn")(x, train)


class Fuse(nn.Module):
  """Adds a coarse map to a finer one: both projected where their channels differ, the first resized corner-aligned.

  Attributes:
    features: channels of the sum, which is un-activated.
    norm: makes the batch norms.
    dtype: compute type.
  """
  features: int
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, coarse: Array, fine: Array, train: bool = False) -> Array:
    """coarse (B, h, w, C), fine (B, H, W, C') -> (B, H, W, features)."""
    total = 0.0
    for i, x in enumerate((coarse, fine), start=1):
      if x.shape[-1] != self.features:
        x = ConvBn(self.features, norm=self.norm, dtype=self.dtype, name=f"resized_conv_bn{i}")(gelu(x), train)
      total = total + resize_bilinear(x, fine.shape[1:3])
    return total


class PixelDecoder(nn.Module):
  """From a backbone's four levels to the features that queries read.

  Attributes:
    dims: filters at strides 32, 16, 8, 4.
    blocks: number of blocks at each.
    kinds: "axial" or "bottleneck" at each.
    dilation: of the bottlenecks' 3x3: 2 in the authors' code, whose blocks think they run at half the stride; the PyTorch
      port uses 1.
    norm: makes the batch norms.
    dtype: compute type.
  """
  dims: Sequence[int] = (512, 256, 128, 64)
  blocks: Sequence[int] = (1, 5, 1, 1)
  kinds: Sequence[str] = ("axial", "axial", "bottleneck", "bottleneck")
  dilation: int = 2
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, levels: Sequence[Array], train: bool = False) -> tuple[Array, ...]:
    """Un-activated features.

    Args:
      levels: (B, h, w, C) un-activated backbone features at strides 4, 8, 16, 32.
      train: batch statistics.

    Returns:
      (B, h, w, 4 · dims) at strides 32, 16, 8 for the transformer decoder, and at stride 4 for the masks.
    """
    levels = tuple(reversed(levels))
    made = []
    for i, (filters, count, kind) in enumerate(zip(self.dims, self.blocks, self.kinds, strict=True)):
      skip = LayerNorm(dtype=self.dtype, name=f"norm_{i}")(levels[i])
      fuse = Fuse(filters, self.norm, self.dtype, name=f"fuse_{i - 1}") if i else None
      x = skip if fuse is None else fuse(made[-1], skip, train)
      for j in range(count):
        x = Block(kind, filters, self.dilation, self.norm, self.dtype, name=f"stage_{i}_block{j + 1}")(x, train)
      made.append(x)
    return tuple(made)
