"""Layers of MAD's encoder and decoder: norms after the sum, positions added to queries and keys at every layer.

B images, S sequences an image, L tokens of a sequence, M encoded places of the image, D width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uvim_like.models.layers import attend_cached
from uvim_like.ops.constraint import constrain_batch

Array = jax.Array
KeysValues = tuple[Array, Array]  # (B, M, heads, D / heads) each; those of a sequence that is being written (B, heads, L, …)


def fused_xavier(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
  """Xavier-uniform of a query, key or value matrix (D, heads, D / heads) taken as a third of a (D, 3 D) one."""
  fan_in, fan_out = shape[0], int(np.prod(shape[1:]))
  bound = (6 / (fan_in + 3 * fan_out)) ** 0.5
  return jax.random.uniform(key, shape, dtype, -bound, bound)


def fan_in_bias(fan_in: int):
  """Uniform in ±1/√fan_in, the biases of dense layers in the reference implementation."""
  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -fan_in ** -0.5, fan_in ** -0.5)
  return init


class Attention(nn.Module):
  """Multi-head attention whose queries and keys have positions added and whose values have none.

  Attributes:
    num_heads: heads; D must divide.
    dropout: of the attention weights.
    dtype: compute type; the softmax is float32.
  """
  num_heads: int
  dropout: float = 0.0
  dtype: Any = jnp.float32

  def _projection(self, name: str, width: int) -> nn.DenseGeneral:
    return nn.DenseGeneral((self.num_heads, width // self.num_heads), kernel_init=fused_xavier, dtype=self.dtype,
                           name=name)

  @nn.compact
  def __call__(self, x: Array, positions: Array, *, source: tuple[Array, Array] | None = None,
               cached: KeysValues | None = None, heads_first: bool = False, mask: Array | None = None,
               causal: bool = False, train: bool = False, only_kv: bool = False):
    """Attends from x to source (x itself by default).

    Args:
      x: (B, L, D).
      positions: (1 or B, L, D), of x.
      source: (content (B, M, D), positions), what is attended to.
      cached: keys and values made before; nothing is projected from `source` then.
      heads_first: they are (B, heads, M, D / heads), in no training and under no `causal`.
      mask: bool, broadcastable to (B, heads, L, M); False is hidden.
      causal: each query sees no later position.
      train: weights are dropped.
      only_kv: return the keys and values of `source` (or of x) and stop.
    """
    width = x.shape[-1]
    if cached is None:
      content, places = (x, positions) if source is None else source
      cached = self._projection("key", width)(content + places), self._projection("value", width)(content)
    if only_kv:
      return cached
    query = self._projection("query", width)(x + positions)
    if heads_first:
      out = attend_cached(query, *cached, mask=mask)
    elif train and self.dropout:
      out = self._attend_with_dropout(query, *cached, mask, causal)
    else:
      out = jax.nn.dot_product_attention(query, *cached, mask=mask, is_causal=causal)
    return nn.DenseGeneral(width, axis=(-2, -1), kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype,
                           name="out")(out)

  def _attend_with_dropout(self, query, key, value, mask, causal):
    scores = jnp.einsum("blhd,bmhd->bhlm", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if causal:
      seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
      mask = seen if mask is None else mask & seen
    if mask is not None:
      scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    weights = nn.Dropout(self.dropout)(jax.nn.softmax(scores), deterministic=False).astype(value.dtype)
    return jnp.einsum("bhlm,bmhd->blhd", weights, value)


class FeedForward(nn.Module):
  """Dense, ReLU, dropout, dense, dropout."""
  mlp_dim: int
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    width = x.shape[-1]
    x = nn.Dense(self.mlp_dim, kernel_init=nn.initializers.xavier_uniform(), bias_init=fan_in_bias(width),
                 dtype=self.dtype, name="dense_0")(x)
    x = nn.Dropout(self.dropout)(nn.relu(x), deterministic=not train)
    x = nn.Dense(width, kernel_init=nn.initializers.xavier_uniform(), bias_init=fan_in_bias(self.mlp_dim),
                 dtype=self.dtype, name="dense_1")(x)
    return nn.Dropout(self.dropout)(x, deterministic=not train)


def layer_norm(dtype: Any) -> nn.LayerNorm:
  """With the epsilon of the reference; flax computes it in float32."""
  return nn.LayerNorm(epsilon=1e-5, dtype=dtype)


class EncoderLayer(nn.Module):
  """x = norm(x + self attention); x = norm(x + feed forward)."""
  num_heads: int
  mlp_dim: int
  dropout: float = 0.0
  dtype: Any = jnp.float32

  def setup(self):
    self.attend = Attention(self.num_heads, self.dropout, self.dtype)
    self.feed_forward = FeedForward(self.mlp_dim, self.dropout, self.dtype)
    self.norm_0, self.norm_1 = layer_norm(self.dtype), layer_norm(self.dtype)

  def __call__(self, x: Array, positions: Array, mask: Array, train: bool) -> Array:
    """x (B, M, D); mask (B, 1, 1, M) bool, False where the picture is padding."""
    x = self.norm_0(x + self.attend(x, positions, mask=mask, train=train))
    return constrain_batch(self.norm_1(x + self.feed_forward(x, train)))


class DecoderLayer(nn.Module):
  """Self attention inside a sequence, attention to the picture, feed forward; a norm after each sum."""
  num_heads: int
  mlp_dim: int
  dropout: float = 0.0
  dtype: Any = jnp.float32

  def setup(self):
    self.attend_self = Attention(self.num_heads, self.dropout, self.dtype)
    self.attend_cross = Attention(self.num_heads, self.dropout, self.dtype)
    self.feed_forward = FeedForward(self.mlp_dim, self.dropout, self.dtype)
    self.norm_0, self.norm_1, self.norm_2 = (layer_norm(self.dtype) for _ in range(3))

  def picture_keys(self, memory: Array, places: Array) -> KeysValues:
    """Keys and values of the encoded picture, made once for all calls."""
    return self.attend_cross(memory, places, only_kv=True)

  def __call__(self, x: Array, positions: Array, picture: KeysValues, mask: Array, causal: bool,
               train: bool) -> Array:
    """All tokens at once: x (B, S, L, D), positions (1, L, D), mask (B, 1, 1, M)."""
    batch, sequences, length, width = x.shape
    y = self.attend_self(x.reshape(-1, length, width), positions, causal=causal, train=train)
    x = self.norm_0(x + y.reshape(x.shape)).reshape(batch, sequences * length, width)
    places = jnp.tile(positions, (1, sequences, 1))
    x = self.norm_1(x + self.attend_cross(x, places, cached=picture, mask=mask, train=train))
    x = self.norm_2(x + self.feed_forward(x, train))
    return constrain_batch(x.reshape(batch, sequences, length, width))

  def step(self, x: Array, positions: Array, start: Array, own: KeysValues, picture: KeysValues,
           mask: Array) -> tuple[Array, KeysValues]:
    """The next n tokens of every sequence under the causal mask.

    Args:
      x: (B, S, n, D).
      positions: (1, n, D).
      start: () int32, how many tokens stand before them.
      own: keys and values (B * S, heads, L, D / heads) of the tokens so far, anything after them. Heads first: a step
        then reads them as they lie.
      picture: of the encoded picture.
      mask: (B, 1, 1, M).

    Returns:
      The output and the keys and values with those of these tokens in their place.
    """
    batch, sequences, count, width = x.shape
    flat = x.reshape(-1, count, width)
    new = (part.swapaxes(1, 2) for part in self.attend_self(flat, positions, only_kv=True))
    own = tuple(jax.lax.dynamic_update_slice_in_dim(old, part, start, axis=2) for old, part in zip(own, new))
    seen = jnp.arange(own[0].shape[2]) <= start + jnp.arange(count)[:, None]
    y = self.attend_self(flat, positions, cached=own, heads_first=True, mask=seen[None, None])
    x = self.norm_0(x + y.reshape(x.shape)).reshape(batch, sequences * count, width)
    places = jnp.tile(positions, (1, sequences, 1))
    x = self.norm_1(x + self.attend_cross(x, places, cached=picture, mask=mask))
    x = self.norm_2(x + self.feed_forward(x, False))
    return x.reshape(batch, sequences, count, width), own


def sine_positions(valid: Array, width: int, *, temperature: float = 10_000.0) -> Array:
  """(B, h, w) bool, True where the picture is, to (B, h, w, D) fixed positions [y, x], sine and cosine interleaved.

  Rows and columns are counted over the picture alone and scaled to 2π at its end (DETR, arXiv 2005.12872).
  """
  half = width // 2
  present = valid.astype(jnp.float32)
  frequency = temperature ** (2 * (np.arange(half) // 2) / half)
  parts = []
  for axis in (1, 2):
    count = jnp.cumsum(present, axis=axis)
    last = jax.lax.slice_in_dim(count, count.shape[axis] - 1, None, axis=axis)
    angle = (count / (last + 1e-6) * (2 * np.pi))[..., None] / frequency.astype(np.float32)
    pairs = jnp.stack([jnp.sin(angle[..., 0::2]), jnp.cos(angle[..., 1::2])], axis=-1)
    parts.append(pairs.reshape(*valid.shape, half))
  return jnp.concatenate(parts, axis=-1)
