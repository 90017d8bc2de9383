"""Vision transformer (arXiv 2010.11929) as image backbone, with ViTDet's windows and pyramid (arXiv 2203.16527)."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.cubic import cubic_matrix
from uvim_like.models.backbone_parts import Mlp, PatchEmbed, layer_norm, recomputed, weight_init
from uvim_like.models.layers import Attention
from uvim_like.models.norms import DropPath, drop_rates
from uvim_like.models.window import in_windows
from uvim_like.ops.constraint import constrain_batch

Array = jax.Array
Dtype = Any


def resize_positions(table: Array, grid: tuple[int, int], new: tuple[int, int]) -> Array:
  """(1, gh * gw, D) position embedding of one grid as that of another, by `cubic_matrix`."""
  if tuple(grid) == tuple(new):
    return table
  square = table.reshape(*grid, table.shape[-1])
  out = jnp.einsum("yh,xw,hwd->yxd", cubic_matrix(grid[0], new[0]), cubic_matrix(grid[1], new[1]), square,
                   precision=jax.lax.Precision.HIGHEST)
  return out.reshape(1, new[0] * new[1], -1)


class Block(nn.Module):
  """x += attention(norm x); x += mlp(norm x).

  Attributes:
    grid: (gh, gw) of the patches among the tokens.
    window: side of the windows that attention is confined to; 0 for all tokens.
  """
  grid: tuple[int, int]
  num_heads: int
  hidden: int
  window: int
  epsilon: float
  drop_rate: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    b, tokens, c = x.shape
    attention = Attention(self.num_heads, kernel_init=weight_init, dtype=self.dtype, name="attn")
    y = layer_norm(self.epsilon, self.dtype, "norm1")(x)
    if self.window:
      y = in_windows(lambda windows, _: attention(windows.reshape(-1, *windows.shape[2:])).reshape(windows.shape),
                     y.reshape(b, *self.grid, c), window=self.window, shift=0).reshape(b, tokens, c)
    else:
      y = attention(y)
    x = x + DropPath(self.drop_rate, name="drop1")(y, train)
    y = Mlp(self.hidden, self.dtype, name="mlp")(layer_norm(self.epsilon, self.dtype, "norm2")(x))
    return constrain_batch(x + DropPath(self.drop_rate, name="drop2")(y, train))


class PyramidLevel(nn.Module):
  """One map of ViTDet's simple pyramid: resampled, then 1x1 and 3x3 convolutions "conv1", "conv2", each with LayerNorm.

  Attributes:
    width: channels of the output.
    zoom: log2 of the output's size over the input's: -1 is a 2x2 max-pool, 1 and 2 are so many transposed 2x2
      convolutions "up1", "up2", with LayerNorm and GELU between them.
  """
  width: int
  zoom: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for i in range(self.zoom):
      if i:
        x = nn.gelu(layer_norm(1e-6, self.dtype, f"up_norm{i}")(x), approximate=False)
      x = nn.ConvTranspose(x.shape[-1] // 2, (2, 2), (2, 2), "VALID", dtype=self.dtype, name=f"up{i + 1}")(x)
    for _ in range(-self.zoom):
      x = nn.max_pool(x, (2, 2), (2, 2))
    conv = functools.partial(nn.Conv, self.width, use_bias=False, dtype=self.dtype)
    x = layer_norm(1e-6, self.dtype, "norm1")(conv((1, 1), name="conv1")(x))
    return layer_norm(1e-6, self.dtype, "norm2")(conv((3, 3), name="conv2")(x))


class ViT(nn.Module):
  """Plain ViT-B/16.

  Attributes:
    width: channels.
    depth: blocks.
    num_heads: heads.
    mlp_dim: hidden width of the MLPs; None is four times the width.
    patch: side of a patch.
    grid: (gh, gw) patches that the learned position embedding is for; for other images it is resampled.
    class_token: a learned token before the patches (not among the features).
    window: side of the attention windows; 0 for attention over all tokens everywhere.
    global_blocks: with windows, the blocks that attend to all tokens nevertheless.
    final_norm: LayerNorm after the last block.
    pyramid: strides of ViTDet's simple pyramid, some of patch / 4, patch / 2, patch, patch * 2; none for the plain map.
    pyramid_width: its channels.
    epsilon: of the LayerNorms.
    drop_path: rate at the last block, rising linearly from 0 at the first.
    remat: "none", "dots" or "full".
  """
  width: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_dim: int | None = None
  patch: int = 16
  grid: tuple[int, int] = (14, 14)
  class_token: bool = False
  window: int = 0
  global_blocks: tuple[int, ...] = ()
  final_norm: bool = True
  pyramid: tuple[int, ...] = ()
  pyramid_width: int = 256
  epsilon: float = 1e-6
  drop_path: float = 0.0
  dtype: Dtype = jnp.float32
  remat: str = "none"

  @property
  def strides(self) -> tuple[int, ...]:
    """Of each feature map."""
    return tuple(self.pyramid) or (self.patch,)

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> tuple[Array, ...]:
    """(B, H, W, 3) normalised image to one map (B, h, w, C) of the patches, or the levels of the pyramid."""
    x = PatchEmbed(self.width, self.patch, dtype=self.dtype, name="patch_embed")(image)
    b, *size, _ = x.shape
    x = x.reshape(b, -1, self.width)
    extra = int(self.class_token)
    positions = self.param("position_embedding", weight_init, (1, extra + math.prod(self.grid), self.width),
                           jnp.float32)
    x = x + resize_positions(positions[:, extra:], self.grid, tuple(size)).astype(x.dtype)
    if self.class_token:
      token = self.param("class_token", weight_init, (1, 1, self.width), jnp.float32) + positions[:, :1]
      x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (b, 1, self.width)), x], axis=1)
    block = recomputed(Block, self.remat)
    for i, rate in enumerate(drop_rates((self.depth,), self.drop_path)[0]):
      window = 0 if i in self.global_blocks else self.window
      x = block(tuple(size), self.num_heads, self.mlp_dim or 4 * self.width, window, self.epsilon, rate, self.dtype,
                name=f"block{i}")(x, train)
    if self.final_norm:
      x = layer_norm(self.epsilon, self.dtype, "norm")(x)
    x = x[:, extra:].reshape(b, *size, self.width)
    zooms = [round(math.log2(self.patch / stride)) for stride in self.pyramid]
    return tuple(PyramidLevel(self.pyramid_width, zoom, self.dtype, name=f"pyramid{stride}")(x)
                 for stride, zoom in zip(self.pyramid, zooms)) or (x,)
