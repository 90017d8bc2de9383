"""ResNet (arXiv 1512.03385, v1.5) in the usual form and in that of kMaX-DeepLab: one module, told apart by fields."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.models.backbone_parts import recomputed
from uvim_like.models.norms import BatchNorm, DropPath, drop_rates
from uvim_like.ops.constraint import constrain_batch

Array = jax.Array
Dtype = Any
EXPANSION = 4  # of a bottleneck: its output over its inner width


class ConvNorm(nn.Module):
  """Convolution "conv" without bias, then BatchNorm "norm"; padded so that stride 1 keeps the size."""
  width: int
  kernel: int
  stride: int
  norm: functools.partial
  zero_scale: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    pad = self.kernel // 2
    x = nn.Conv(self.width, (self.kernel,) * 2, (self.stride,) * 2, ((pad, pad), (pad, pad)), use_bias=False,
                kernel_init=nn.initializers.he_normal(), dtype=self.dtype, name="conv")(x)
    scale_init = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
    return self.norm(scale_init=scale_init, name="norm")(x, train)


class Block(nn.Module):
  """A residual block that takes and gives maps before their activation.

  Activating the input instead of the output is the same network, and leaves the un-activated maps that kMaX wants.

  Attributes:
    width: channels of the output.
    stride: of the block.
    bottleneck: 1x1, 3x3, 1x1 at a quarter of the width; else two 3x3.
    stride_in_3x3: of a bottleneck: v1.5; else in the first 1x1, as in the paper.
    zero_last_scale: the last norm's scale starts at 0, so the block starts as its shortcut.
    norm: `BatchNorm` with its settings.
    drop_rate: see `DropPath`.
  """
  width: int
  stride: int
  bottleneck: bool
  stride_in_3x3: bool
  zero_last_scale: bool
  norm: functools.partial
  drop_rate: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    conv = functools.partial(ConvNorm, norm=self.norm, dtype=self.dtype)
    x = shortcut = nn.relu(x)
    if x.shape[-1] != self.width or self.stride != 1:
      shortcut = conv(self.width, 1, self.stride, name="shortcut")(x, train)
    if self.bottleneck:
      inner = self.width // EXPANSION
      strides = (1, self.stride) if self.stride_in_3x3 else (self.stride, 1)
      plan = ((inner, 1, strides[0]), (inner, 3, strides[1]), (self.width, 1, 1))
    else:
      plan = ((self.width, 3, self.stride), (self.width, 3, 1))
    for i, (width, kernel, stride) in enumerate(plan):
      last = i == len(plan) - 1
      x = conv(width, kernel, stride, zero_scale=last and self.zero_last_scale, name=f"conv{i}")(x, train)
      x = x if last else nn.relu(x)
    return constrain_batch(shortcut + DropPath(self.drop_rate)(x, train))


class ResNet(nn.Module):
  """Convolutional stem and residual stages.

  The usual form is the default. kMaX-DeepLab's (arXiv 2207.04044): max_pool=False, first_stride=2, activate=False,
  with_stem=True, zero_last_scale=True, momentum=0.99, epsilon=1e-3.

  Attributes:
    depths: blocks a stage.
    widths: channels of each stage's output.
    stem_width: channels of the 7x7 stem.
    bottleneck: see `Block`.
    stride_in_3x3: see `Block`.
    max_pool: 3x3 max-pool of stride 2 after the stem.
    first_stride: of the first stage.
    activate: give the stages after their ReLU; else before it, for the user to apply `activation`.
    with_stem: give the stem's map, before any max-pool, as the first of the features.
    zero_last_scale: see `Block`.
    frozen: BatchNorm never changes, see `BatchNorm.frozen`.
    freeze_at: how much at the start is left as it is: 0 nothing, 1 the stem, 2 the stem and the first stage …; no
      gradient goes there, and its norms use their running statistics. (Detectron2's FREEZE_AT.)
    momentum: of BatchNorm.
    epsilon: of BatchNorm.
    drop_path: rate at the last block, rising linearly from 0 at the first.
    remat: "none", "dots" or "full".
  """
  depths: tuple[int, ...] = (3, 4, 6, 3)
  widths: tuple[int, ...] = (256, 512, 1024, 2048)
  stem_width: int = 64
  bottleneck: bool = True
  stride_in_3x3: bool = True
  max_pool: bool = True
  first_stride: int = 1
  activate: bool = True
  with_stem: bool = False
  zero_last_scale: bool = False
  frozen: bool = False
  freeze_at: int = 0
  momentum: float = 0.9
  epsilon: float = 1e-5
  drop_path: float = 0.0
  dtype: Dtype = jnp.float32
  remat: str = "none"

  activation = staticmethod(nn.relu)

  @property
  def strides(self) -> tuple[int, ...]:
    """Of each feature map."""
    first = 2 * (2 if self.max_pool else 1) * self.first_stride
    stages = tuple(first * 2 ** i for i in range(len(self.depths)))
    return ((2,) if self.with_stem else ()) + stages

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> tuple[Array, ...]:
    """(B, H, W, 3) normalised image to maps (B, h, w, C) of the stem, if asked for, and of each stage."""
    norm = functools.partial(BatchNorm, self.momentum, self.epsilon, frozen=self.frozen, dtype=self.dtype)
    block = recomputed(Block, self.remat)
    x = ConvNorm(self.stem_width, 7, 2, norm, dtype=self.dtype, name="stem")(
        image.astype(self.dtype), train and self.freeze_at < 1)
    x = jax.lax.stop_gradient(x) if self.freeze_at >= 1 else x
    features = [x] if self.with_stem else []
    if self.max_pool:
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for s, (rates, width) in enumerate(zip(drop_rates(self.depths, self.drop_path), self.widths)):
      live = self.freeze_at < s + 2
      for b, rate in enumerate(rates):
        stride = 1 if b else 2 if s else self.first_stride
        x = block(width, stride, self.bottleneck, self.stride_in_3x3, self.zero_last_scale, norm, rate, self.dtype,
                  name=f"stage{s}_block{b}")(x, train and live)
      x = x if live else jax.lax.stop_gradient(x)
      features.append(x)
    return tuple(self.activation(x) if self.activate else x for x in features)
