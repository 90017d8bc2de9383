"""Mask predictor of kMaX-DeepLab: probability of every query at every pixel, and what a query stands for.

The same for the final prediction and for those after each layer of the transformer decoder, with weights of its own
(arXiv 2207.04044; PolyMaX, arXiv 2311.05770, section 3).
"""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from uvim_like.models.conv_layers import ConvBn, Norm, SeparableConvBn, gelu, l2_normalize
from uvim_like.models.norms import BatchNorm

Array = jax.Array
Dtype = Any
VOID_PRIOR = 0.9         # probability of "no object" that a fresh class head gives
LOGIT_SCALE_INIT = 0.1   # first factor of the one norm over all mask logits


class Prediction(flax.struct.PyTreeNode):
  """What one predictor says.

  Attributes:
    logits: (B, h, w, K) float32; a softmax over K makes the probability maps.
    features: (B, h, w, D) float32 unit vectors of the pixels.
    classes: (B, K, C + 1) float32 logits, the last for "no object"; None without a class head.
    values: (B, K, D_T) float32 raw outputs of the queries' own head; None without.
  """
  logits: Array
  features: Array
  classes: Array | None = None
  values: Array | None = None


class MaskPredictor(nn.Module):
  """Logits <pixel feature, query> under one scalar batch norm, which stands in for a hand-tuned temperature.

  Attributes:
    hidden_dim: channels of the pixel side.
    mask_dim: channels of the product (the D of PolyMaX's equation 2).
    num_classes: C of the class head, without "no object"; 0 for no class head.
    value_dim: D_T of the queries' output head: 1 for depth, 3 for normals (PolyMaX, table 1); 0 for none.
    norm: makes the batch norms.
    dtype: compute type.
  """
  hidden_dim: int = 256
  mask_dim: int = 128
  num_classes: int = 0
  value_dim: int = 0
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, pixel: Array, mask_embedding: Array, class_embedding: Array | None = None,
               train: bool = False) -> Prediction:
    """pixel (B, h, w, C), embeddings (B, K, D), the second for the heads -> Prediction at (h, w)."""
    small = nn.initializers.truncated_normal(0.01)
    x = SeparableConvBn(self.hidden_dim, 5, gelu, self.norm, self.dtype, name="pixel_space_head")(pixel, train)
    x = nn.Dense(self.mask_dim, kernel_init=small, dtype=self.dtype, name="pixel_space_final_conv")(x)
    features = l2_normalize(self.norm(name="pixel_space_feature_batch_norm")(x, train))
    queries = ConvBn(self.mask_dim, norm=self.norm, dtype=self.dtype,
                     name="transformer_mask_head")(mask_embedding, train)
    logits = jnp.einsum("bhwd,bkd->bhwk", features.astype(self.dtype), queries, preferred_element_type=jnp.float32)
    logits = self.norm(axis=(), scale_init=nn.initializers.constant(LOGIT_SCALE_INIT), dtype=jnp.float32,
                       name="pixel_space_mask_batch_norm")(logits, train)
    classes = values = None
    if self.num_classes:
      head = nn.Dense(self.num_classes + 1, kernel_init=small, dtype=jnp.float32, name="transformer_class_head")
      classes = head(class_embedding) + void_offset(self.num_classes)
    if self.value_dim:
      # Unlike a class head, whose logits may start equal, centres that start equal would leave the maps no gradient.
      head = nn.Dense(self.value_dim, kernel_init=nn.initializers.truncated_normal(0.1), dtype=jnp.float32,
                      name="value_head")
      values = head(class_embedding)
    return Prediction(logits, features, classes, values)


def void_offset(num_classes: int) -> Array:
  """(C + 1,) constant logits that give "no object" the prior probability `VOID_PRIOR`."""
  odds = VOID_PRIOR / (1 - VOID_PRIOR)
  return jnp.zeros(num_classes + 1).at[-1].set(math.log(num_classes * odds))


