"""kMaX-DeepLab's transformer decoder: queries are cluster centres, updated as in k-means (arXiv 2207.04044, section 3).

Every pixel goes to the one query that the layer's own predictor ranks first; the choice passes no gradient. So the
predictors of the layers learn from their own losses only (deep supervision): without them the assignment stays random.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.models.conv_layers import ConvBn, Norm, gelu
from uvim_like.models.kmax_predictor import MaskPredictor, Prediction
from uvim_like.models.norms import BatchNorm, DropPath
from uvim_like.ops.clusters import assigned_sums

Array = jax.Array
Dtype = Any
HEADS = 8
_zeros = nn.initializers.zeros


class QueryAttention(nn.Module):
  """Self-attention of the queries with norms on logits (a head) and result (a channel), without 1/sqrt(d).

  Attributes:
    key_dim: channels of all heads' keys.
    value_dim: channels of all heads' values.
    norm: makes the batch norms.
    dtype: compute type.
  """
  key_dim: int
  value_dim: int
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, qkv: Array, train: bool = False) -> Array:
    """qkv (B, K, 2 · key_dim + value_dim) -> (B, K, value_dim)."""
    batch, queries, _ = qkv.shape
    q, k, v = (part.reshape(batch, queries, HEADS, -1)
               for part in jnp.split(qkv, (self.key_dim, 2 * self.key_dim), axis=-1))
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    norm = self.norm(axis=1, dtype=jnp.float32, name="batch_norm_similarity")
    logits = norm(einsum("blhd,bmhd->bhlm", q, k), train)
    weights = nn.softmax(logits, axis=-1).astype(self.dtype)
    out = einsum("bhlm,bmhd->bhld", weights, v)
    out = self.norm(axis=(1, 3), name="batch_norm_retrieved_value")(out, train)
    return jnp.swapaxes(out, 1, 2).reshape(batch, queries, self.value_dim).astype(self.dtype)


class KMeansLayer(nn.Module):
  """One update of the queries by the pixels of one level.

  The self-attention reads the layer's input, beside the k-means update and not after it (the authors' code; their
  figure shows the other order).

  Attributes:
    width: D of the queries.
    key_dim: channels of the self-attention's keys; its values and the pixels' have twice as many.
    mlp_dim: hidden channels of the feed-forward part.
    drop_path: rate, each branch and example on its own.
    predictor: fields of the layer's `MaskPredictor`.
    norm: makes the batch norms.
    dtype: compute type.
  """
  width: int
  key_dim: int
  mlp_dim: int
  drop_path: float
  predictor: Any
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, queries: Array, pixels: Array, train: bool = False) -> tuple[Array, Prediction]:
    """Next queries and this layer's prediction.

    Args:
      queries: (B, K, D).
      pixels: (B, h, w, C), un-activated.
      train: batch statistics and drop path.
    """
    conv = functools.partial(ConvBn, norm=self.norm, dtype=self.dtype)
    value_dim = 2 * self.key_dim
    memory = conv(self.width, activation=gelu, name="memory_conv1_bn_act")(queries, train)
    pixels = conv(self.width, activation=gelu, name="pixel_conv1_bn_act")(gelu(pixels), train)
    qkv = conv(2 * self.key_dim + value_dim, kernel_init=nn.initializers.truncated_normal(self.width ** -0.5),
               name="memory_qkv_conv_bn")(memory, train)
    values = conv(value_dim, name="pixel_v_conv_bn")(pixels, train)
    prediction = MaskPredictor(**self.predictor, norm=self.norm, dtype=self.dtype,
                               name="predictor")(pixels, memory, memory, train)

    nearest = jax.lax.stop_gradient(jnp.argmax(prediction.logits, axis=-1))
    sums = assigned_sums(values, nearest, queries.shape[1]).astype(self.dtype)
    sums = self.norm(name="kmeans_memory_batch_norm_retrieved_value")(sums, train)
    sums = conv(self.width, scale_init=_zeros, name="kmeans_memory_conv3_bn")(sums, train)
    attended = QueryAttention(self.key_dim, value_dim, self.norm, self.dtype, name="memory_attention")(qkv, train)
    attended = conv(self.width, scale_init=_zeros, name="memory_conv3_bn")(gelu(attended), train)
    queries = gelu(queries + DropPath(self.drop_path)(sums, train) + DropPath(self.drop_path)(attended, train))
    update = conv(self.mlp_dim, activation=gelu, name="memory_ffn_conv1_bn_act")(queries, train)
    update = conv(self.width, scale_init=_zeros, name="memory_ffn_conv2_bn")(update, train)
    return gelu(queries + DropPath(self.drop_path)(update, train)), prediction


class KMeansDecoder(nn.Module):
  """Learned queries updated by the levels from coarse to fine; weights of every layer of its own.

  Attributes:
    num_queries: K.
    layers: number of layers at each level.
    width, key_dim, mlp_dim, drop_path: see `KMeansLayer`.
    predictor: fields of the layers' `MaskPredictor`s.
    norm: makes the batch norms.
    dtype: compute type.
  """
  num_queries: int
  layers: Sequence[int] = (2, 2, 2)
  width: int = 256
  key_dim: int = 128
  mlp_dim: int = 2048
  drop_path: float = 0.0
  predictor: Any = None
  norm: Norm = BatchNorm
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, levels: Sequence[Array], train: bool = False) -> tuple[Array | None, Array, tuple[Prediction, ...]]:
    """What the final predictor needs of the queries, and the layers' predictions.

    Args:
      levels: (B, h, w, C) un-activated, coarse to fine, as many as `layers`.
      train: batch statistics and drop path.

    Returns:
      Class embedding (None where the predictors have no head that reads it) and mask embedding, (B, K, D), and a
      Prediction a layer at the size of its level.
    """
    centers = self.param("cluster_centers", nn.initializers.truncated_normal(1.0), (1, self.num_queries, self.width))
    queries = jnp.broadcast_to(centers, (levels[0].shape[0], *centers.shape[1:])).astype(self.dtype)
    predictions = []
    for pixels in [level for level, count in zip(levels, self.layers, strict=True) for _ in range(count)]:
      layer = KMeansLayer(self.width, self.key_dim, self.mlp_dim, self.drop_path, self.predictor or {}, self.norm,
                          self.dtype, name=f"layer_{len(predictions)}")
      queries, prediction = layer(queries, pixels, train)
      predictions.append(prediction)
    project = functools.partial(ConvBn, self.width, activation=gelu, norm=self.norm, dtype=self.dtype)
    has_head = any((self.predictor or {}).get(name) for name in ("num_classes", "value_dim"))
    class_embedding = project(name="class_embedding_projection")(queries, train) if has_head else None
    return class_embedding, project(name="mask_embedding_projection")(queries, train), tuple(predictions)
