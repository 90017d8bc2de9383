"""Swin transformer (arXiv 2103.14030): shifted windows, a learned table of relative positions, pre-norm blocks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uvim_like.models.backbone_parts import Mlp, layer_norm, weight_init
from uvim_like.models.norms import DropPath
from uvim_like.models.window import WindowBackbone, attend, expand_table, in_windows, split_heads
from uvim_like.ops.constraint import constrain_batch

Array = jax.Array
Dtype = Any


class WindowAttention(nn.Module):
  """Multi-head attention inside windows with an additive "position_bias" table (2w - 1, 2w - 1, heads).

  Attributes:
    table_window: w of the table; windows may be smaller, then its middle is used.
  """
  num_heads: int
  table_window: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, window: int, regions: np.ndarray | None) -> Array:
    """(B, n, window * window, C) to the same shape; regions as in `attend`."""
    c = x.shape[-1]
    side = 2 * self.table_window - 1
    table = self.param("position_bias", weight_init, (side, side, self.num_heads), jnp.float32)
    cut = self.table_window - window
    bias = expand_table(table[cut:side - cut, cut:side - cut].transpose(2, 0, 1))
    qkv = nn.Dense(3 * c, kernel_init=weight_init, dtype=self.dtype, name="qkv")(x)
    query, key, value = split_heads(qkv, self.num_heads)
    out = attend(query, key, value, scale=query.shape[-1] ** -0.5, bias=bias, regions=regions)
    return nn.Dense(c, kernel_init=weight_init, dtype=self.dtype, name="proj")(out)


class Block(nn.Module):
  """x += attention(norm x) in windows; x += mlp(norm x).

  Attributes:
    shift: by how much the windows are shifted.
    shrink: a map whose smaller side is no longer than the window gets windows of that side and no shift; else it is
      padded to one window like any other, and shifted.
    drop_rate: see `DropPath`.
  """
  num_heads: int
  window: int
  shift: int
  hidden: int
  shrink: bool
  epsilon: float
  drop_rate: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    window, shift = self.window, self.shift
    if self.shrink and min(x.shape[1:3]) <= window:
      window, shift = min(x.shape[1:3]), 0
    attention = WindowAttention(self.num_heads, self.window, self.dtype, name="attn")
    y = layer_norm(self.epsilon, self.dtype, "norm1")(x)
    y = in_windows(lambda windows, regions: attention(windows, window, regions), y, window=window, shift=shift)
    x = x + DropPath(self.drop_rate, name="drop1")(y, train)
    y = Mlp(self.hidden, self.dtype, name="mlp")(layer_norm(self.epsilon, self.dtype, "norm2")(x))
    return constrain_batch(x + DropPath(self.drop_rate, name="drop2")(y, train))


class Swin(WindowBackbone):
  """Swin-B with windows of 12 by default, as MAD uses it.

  Attributes:
    shrink: see `Block`; how the hub's models treat small maps (detectron2's pads them).
  """
  shrink: bool = False

  block_class = Block
  norm_first = True

  def own_fields(self, stage: int) -> dict[str, Any]:
    """See `WindowBackbone`."""
    del stage
    return {"shrink": self.shrink}
