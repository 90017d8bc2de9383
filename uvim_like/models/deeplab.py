"""DeepLabv3+ (arXiv 1802.02611): the per-pixel baseline of PolyMaX, and kMaX's auxiliary semantic branch.

The baseline has ReLU throughout, the branch kMaX's GELU.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.models import backbones
from uvim_like.models.conv_layers import ConvBn, Norm, SeparableConvBn, gelu
from uvim_like.models.norms import BatchNorm
from uvim_like.ops.resize_align import resize_bilinear

Array = jax.Array
Dtype = Any
RATES = (6, 12, 18)     # of the atrous convolutions at output stride 16; half of them at 32
DROPOUT = 0.1
# What a backbone's weights were trained on: [-1, 1], as all of kMaX's, or ImageNet's mean and standard deviation.
IMAGE_STATS = {"symmetric": None, "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


class Aspp(nn.Module):
  """Atrous spatial pyramid pooling: 1x1, three atrous 3x3 and the image's mean, joined and projected.

  Attributes:
    features: channels of every branch and of the result.
    rates: dilations of the three 3x3 convolutions.
    activation: after every norm.
    norm: makes the batch norms.
    dtype: compute type.
  """
  features: int = 256
  rates: Sequence[int] = RATES
  activation: Callable = nn.relu
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """x (B, h, w, C) -> (B, h, w, features); rng "dropout" when training."""
    conv = functools.partial(ConvBn, self.features, activation=self.activation, norm=self.norm, dtype=self.dtype)
    branches = [conv(name="conv_bn_act")(x, train)]
    branches += [conv(size=3, dilation=rate, name=f"aspp_conv{i}")(x, train) for i, rate in enumerate(self.rates, 1)]
    pooled = conv(name="aspp_pool")(jnp.mean(x, axis=(1, 2), keepdims=True), train)
    branches.append(jnp.broadcast_to(pooled, branches[0].shape))
    x = conv(name="proj_conv_bn_act")(jnp.concatenate(branches, axis=-1), train)
    return nn.Dropout(DROPOUT)(x, deterministic=not train)


class DeepLabV3Plus(nn.Module):
  """The decoder: ASPP on the coarsest features, upsampled, joined with those of stride 4, two separable convolutions.

  Attributes:
    outputs: channels of the result.
    features: channels of the decoder.
    aspp_features: channels of the ASPP.
    low_features: channels to which the stride-4 features are projected.
    rates: see `Aspp`.
    norm: makes the batch norms.
    dtype: compute type.
  """
  outputs: int
  features: int = 256
  aspp_features: int = 256
  low_features: int = 48
  rates: Sequence[int] = RATES
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, high: Array, low: Array, train: bool = False) -> Array:
    """high (B, h, w, C) and low (B, H, W, C'), both activated -> (B, H, W, outputs) float32."""
    settings = dict(norm=self.norm, dtype=self.dtype)
    x = Aspp(self.aspp_features, self.rates, **settings, name="aspp")(high, train)
    x = resize_bilinear(x, low.shape[1:3])
    low = ConvBn(self.low_features, activation=nn.relu, **settings, name="project_conv_bn_act")(low, train)
    x = jnp.concatenate([x, low], axis=-1)
    for i in (1, 2):
      x = SeparableConvBn(self.features, 3, nn.relu, **settings, name=f"fuse_conv{i}")(x, train)
    # float32 from here on: these are logits, metres or normals.
    return nn.Dense(self.outputs, kernel_init=nn.initializers.truncated_normal(0.01), dtype=jnp.float32,
                    name="final_conv")(x)


class SemanticBranch(nn.Module):
  """kMaX's auxiliary semantic segmentation from the backbone alone, in training only (fact sheet, section 5.1).

  Attributes:
    num_classes: C.
    features: channels.
    low_features: channels to which the features of stride 8 and 4 are projected.
    rates: see `Aspp`.
    norm: makes the batch norms.
    dtype: compute type.
  """
  num_classes: int
  features: int = 256
  low_features: Sequence[int] = (64, 32)
  rates: Sequence[int] = RATES
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, high: Array, lows: Sequence[Array], train: bool = False) -> Array:
    """Logits (B, H, W, num_classes) float32 at stride 4.

    Args:
      high: (B, h, w, C) at stride 32, un-activated.
      lows: at strides 8 and 4, activated.
      train: batch statistics and dropout.
    """
    settings = dict(norm=self.norm, dtype=self.dtype)
    x = Aspp(self.features, self.rates, gelu, **settings, name="aspp")(high, train)
    for i, (low, width) in enumerate(zip(lows, self.low_features, strict=True), 1):
      low = ConvBn(width, activation=gelu, **settings, name=f"low_level_conv{i}")(low, train)
      x = jnp.concatenate([resize_bilinear(x, low.shape[1:3]), low], axis=-1)
      x = SeparableConvBn(self.features, 5, gelu, **settings, name=f"fusion_conv{i}")(x, train)
    x = SeparableConvBn(self.features, 5, gelu, **settings, name="head")(x, train)
    return nn.Dense(self.num_classes, kernel_init=nn.initializers.truncated_normal(0.01), dtype=jnp.float32,
                    name="final_conv")(x)


def activated(backbone: nn.Module, x: Array) -> Array:
  """A backbone's feature map after the backbone's own activation, where it leaves that to its user."""
  return backbone.activation(x) if hasattr(backbone, "activation") else x


def normalised(image: Array, stats: str) -> Array:
  """An image in [-1, 1] as a backbone of these `IMAGE_STATS` wants it."""
  if IMAGE_STATS[stats] is None:
    return image
  mean, deviation = map(jnp.array, IMAGE_STATS[stats])
  return ((image + 1) / 2 - mean) / deviation


class Model(nn.Module):
  """The baseline: backbone and DeepLabv3+ decoder, one vector a pixel at stride 4.

  Attributes:
    backbone: {"name": of `backbones.PRESETS`, and fields that differ}.
    outputs: channels: classes, 1 for depth, 3 for normals.
    image_stats: of the backbone's weights, in `IMAGE_STATS`.
    features, aspp_features, low_features, rates: see `DeepLabV3Plus`. The default rates are those for the output stride
      32 that all backbones here have (half of the usual ones for 16).
    momentum, epsilon, frozen: of all batch norms but the backbone's.
    dtype: compute type.
    remat: of the backbone.
    scan_layers: must be False: no two layers are alike.
  """
  backbone: Mapping[str, Any]
  outputs: int
  image_stats: str = "symmetric"
  features: int = 256
  aspp_features: int = 256
  low_features: int = 48
  rates: Sequence[int] = tuple(rate // 2 for rate in RATES)
  momentum: float = 0.99
  epsilon: float = 1e-3
  frozen: bool = False
  dtype: Dtype = jnp.float32
  remat: str = "none"
  scan_layers: bool = False

  def setup(self):
    norm = functools.partial(BatchNorm, self.momentum, self.epsilon, frozen=self.frozen, dtype=self.dtype)
    self.encoder = backbones.make_backbone(self.backbone, where="config.model.backbone", dtype=self.dtype,
                                           remat=self.remat)
    self.decoder = DeepLabV3Plus(self.outputs, self.features, self.aspp_features, self.low_features, self.rates, norm,
                                 self.dtype)

  def __call__(self, image: Array, train: bool = False) -> Array:
    """image (B, H, W, 3) in [-1, 1] -> (B, h, w, outputs) float32 at stride 4."""
    levels = self.encoder(normalised(image, self.image_stats), train=train)
    low, high = (activated(self.encoder, levels[i]) for i in (-4, -1))
    return self.decoder(high, low, train)
