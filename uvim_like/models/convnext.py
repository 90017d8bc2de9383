"""ConvNeXt (arXiv 2201.03545) in the usual form and, for inputs of 32k + 1 pixels a side, in that of kMaX-DeepLab."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.models.backbone_parts import DepthwiseConv, layer_norm, recomputed, weight_init
from uvim_like.models.norms import DropPath, drop_rates
from uvim_like.ops.constraint import constrain_batch

Array = jax.Array
Dtype = Any
EPSILON = 1e-6  # of all its LayerNorms
# What kMaX-DeepLab pads with zeros, (before, after) on both axes, so that sides of 32k + 1 become 8k + 1, 4k + 1 …
STEM_PAD, DOWN_PAD = (1, 2), (0, 1)


class Block(nn.Module):
  """x + drop_path(layer_scale * pwconv2(gelu(pwconv1(norm(dwconv(x)))))), with a 7x7 depthwise convolution.

  Attributes:
    scale_init: initial layer scale; 0 leaves layer scale out.
    drop_rate: see `DropPath`.
  """
  scale_init: float = 1e-6
  drop_rate: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    width = x.shape[-1]
    dense = functools.partial(nn.Dense, kernel_init=weight_init, dtype=self.dtype)
    y = layer_norm(EPSILON, self.dtype, "norm")(DepthwiseConv(7, dtype=self.dtype, name="dwconv")(x))
    y = nn.gelu(dense(4 * width, name="pwconv1")(y), approximate=False)
    y = dense(width, name="pwconv2")(y)
    if self.scale_init > 0:
      scale = self.param("layer_scale", nn.initializers.constant(self.scale_init), (width,), jnp.float32)
      y = y * scale.astype(self.dtype)
    return constrain_batch(x + DropPath(self.drop_rate)(y, train))


class Shrink(nn.Module):
  """Convolution "conv" whose kernel is its stride, with LayerNorm "norm" before it (stages) or after it (stem).

  Attributes:
    width: channels of the output.
    step: kernel and stride.
    norm_first: LayerNorm before the convolution.
    pad: zeros (before, after) on both axes; they are added before everything, so that behind a LayerNorm they are its
      bias, as in kMaX-DeepLab.
  """
  width: int
  step: int
  norm_first: bool
  pad: tuple[int, int] = (0, 0)
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if any(self.pad):
      x = jnp.pad(x, ((0, 0), self.pad, self.pad, (0, 0)))
    norm = layer_norm(EPSILON, self.dtype, "norm")
    conv = nn.Conv(self.width, (self.step,) * 2, (self.step,) * 2, "VALID", kernel_init=weight_init, dtype=self.dtype,
                   name="conv")
    return conv(norm(x)) if self.norm_first else norm(conv(x))


class ConvNeXt(nn.Module):
  """Stem and four stages; no norm after a stage.

  Attributes:
    depths: blocks a stage.
    widths: channels a stage.
    scale_init: see `Block`.
    patch: kernel and stride of the stem.
    drop_path: rate at the last block, rising linearly from 0 at the first.
    pad_odd: kMaX's zero padding for inputs of 32k + 1 pixels a side; else what is over is cut off.
    with_stem: give the stem's map as the first of the features (kMaX's stage1, of stride 4).
    remat: "none", "dots" or "full".
  """
  depths: tuple[int, ...] = (3, 3, 9, 3)
  widths: tuple[int, ...] = (96, 192, 384, 768)
  scale_init: float = 1e-6
  patch: int = 4
  drop_path: float = 0.0
  pad_odd: bool = False
  with_stem: bool = False
  dtype: Dtype = jnp.float32
  remat: str = "none"

  activation = staticmethod(functools.partial(nn.gelu, approximate=False))

  @property
  def strides(self) -> tuple[int, ...]:
    """Of each feature map."""
    return ((self.patch,) if self.with_stem else ()) + tuple(self.patch * 2 ** i for i in range(len(self.depths)))

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> tuple[Array, ...]:
    """(B, H, W, 3) normalised image to maps (B, h, w, C) of the stem, if asked for, and of each stage."""
    block = recomputed(Block, self.remat)
    pads = (STEM_PAD, DOWN_PAD) if self.pad_odd else ((0, 0), (0, 0))
    x = Shrink(self.widths[0], self.patch, False, pads[0], self.dtype, name="stem")(image.astype(self.dtype))
    features = [x] if self.with_stem else []
    for s, (rates, width) in enumerate(zip(drop_rates(self.depths, self.drop_path), self.widths)):
      if s:
        x = Shrink(width, 2, True, pads[1], self.dtype, name=f"downsample{s}")(x)
      for b, rate in enumerate(rates):
        x = block(self.scale_init, rate, self.dtype, name=f"stage{s}_block{b}")(x, train)
      features.append(x)
    return tuple(features)
