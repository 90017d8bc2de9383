"""A transformer decoder over discrete tokens that attends to an encoded image: teacher-forced and step by step.

B images, S sequences an image, L positions, M encoded tokens, E width, V vocabulary. Several sequences of one image
share its keys and values: they are queries of the same attention, never copies of the image.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.models.layers import Attention, LayerNorm, MlpBlock, apply_layers
from uvim_like.ops.constraint import constrain_batch

Array = jax.Array


class LayerCache(NamedTuple):
  """What one decoder block keeps between steps.

  Attributes:
    key, value: (B * S, heads, L, E / heads) of the positions decoded so far, zeros after them.
    cross_key, cross_value: (B, heads, M, E / heads) of the encoded image, made once.
  """
  key: Array
  value: Array
  cross_key: Array
  cross_value: Array


class DecoderBlock(nn.Module):
  """x += self(norm x); x += cross(norm x, encoded); x += mlp(norm x). Attention has no biases.

  Attributes:
    causal: each position sees no later one; False for masked decoding, where all are seen.
  """
  mlp_dim: int
  num_heads: int
  dtype: Any = jnp.float32
  causal: bool = True

  def setup(self):
    attention = lambda name: Attention(self.num_heads, use_bias=False, dtype=self.dtype, name=name,  # noqa: E731
                                       kernel_init=nn.initializers.lecun_normal())
    self.norm_self = LayerNorm(dtype=self.dtype, name="LayerNorm1")
    self.norm_cross = LayerNorm(dtype=self.dtype, name="LayerNorm2")
    self.norm_mlp = LayerNorm(dtype=self.dtype, name="LayerNorm3")
    self.attend_self = attention("SelfAttn")
    self.attend_cross = attention("CrossAttn")
    self.mlp = MlpBlock(self.mlp_dim, dtype=self.dtype, name="MLP")

  def __call__(self, x: Array, encoded: Array) -> Array:
    """All positions at once: x (B, L, E), encoded (B, M, E)."""
    x = x + self.attend_self(self.norm_self(x), causal=self.causal)
    x = x + self.attend_cross(self.norm_cross(x), encoded)
    return constrain_batch(x + self.mlp(self.norm_mlp(x)))

  def start(self, encoded: Array, sequences: int, length: int) -> LayerCache:
    """An empty cache for `sequences` sequences of up to `length` tokens for each image of encoded (B, M, E)."""
    # Heads outside: a step then reads the cache as it lies, instead of moving all of it each time.
    cross_key, cross_value = (x.swapaxes(1, 2) for x in self.attend_cross(encoded, only_kv=True))
    batch, heads, _, head_dim = cross_key.shape
    empty = jnp.zeros((batch * sequences, heads, length, head_dim), cross_key.dtype)
    return LayerCache(empty, empty, cross_key, cross_value)

  def step(self, x: Array, position: Array, cache: LayerCache) -> tuple[Array, LayerCache]:
    """One position of every sequence: x (B, S, E), position () int32 from 0."""
    batch, sequences, width = x.shape
    y = self.norm_self(x).reshape(batch * sequences, 1, width)
    key, value = (part.swapaxes(1, 2) for part in self.attend_self(y, only_kv=True))
    cache = cache._replace(key=jax.lax.dynamic_update_slice_in_dim(cache.key, key, position, axis=2),
                           value=jax.lax.dynamic_update_slice_in_dim(cache.value, value, position, axis=2))
    seen = (jnp.arange(cache.key.shape[2]) <= position)[None, None, None]
    y = self.attend_self(y, cached=(cache.key, cache.value), mask=seen)
    x = x + y.reshape(batch, sequences, width)
    x = x + self.attend_cross(self.norm_cross(x), cached=(cache.cross_key, cache.cross_value))
    return x + self.mlp(self.norm_mlp(x)), cache


class SequenceDecoder(nn.Module):
  """Token embedding, decoder blocks and an untied output layer.

  Attributes:
    emb_scale: standard deviation of the token embedding at the start (1.0 in the published model; a small one trains
      faster at small sizes).
    causal: see `DecoderBlock`.
  """
  vocab_size: int
  emb_dim: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  emb_scale: float = 1.0
  zero_decoder_seq: bool = False
  dtype: Any = jnp.float32
  remat: str = "none"
  scan: bool = False
  causal: bool = True

  def setup(self):
    self.embed = nn.Embed(self.vocab_size, self.emb_dim, embedding_init=nn.initializers.normal(self.emb_scale),
                          dtype=self.dtype, name="EmbedTargets")
    self.norm = LayerNorm(dtype=self.dtype, name="LayerNorm")
    # Rounded to bfloat16, large logits would tie and lose what tells words apart.
    self.logits = nn.Dense(self.vocab_size, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="LogitsDense",
                           dot_general=functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32))
    # A list in setup would rename the blocks; they are made where they are called, under names of their own.

  def _make_block(self, name: str | None = None, parent: Any = "scope") -> DecoderBlock:
    keyword = {"parent": None} if parent is None else {"name": name}
    return DecoderBlock(self.mlp_dim, self.num_heads, self.dtype, self.causal, **keyword)

  def _embed(self, tokens: Array, positions: Array) -> Array:
    x = self.embed(tokens)
    if self.zero_decoder_seq:
      x = jnp.zeros_like(x)
    return x + positions.astype(x.dtype)

  def _logits(self, x: Array) -> Array:
    return self.logits(self.norm(x)).astype(jnp.float32)

  @nn.compact
  def __call__(self, tokens: Array, positions: Array, encoded: Array) -> Array:
    """Logits (B, L, V) of the token after each position.

    Args:
      tokens: (B, L) int, the start token 0 first.
      positions: (1, L, E) position embedding.
      encoded: (B, M, E).
    """
    x = apply_layers(self, self._make_block, "EncDecBlock{}", self.num_layers, self._embed(tokens, positions),
                     arrays=(encoded,), remat=self.remat, scan=self.scan)
    return self._logits(x)

  def _layer(self, i: int) -> tuple[DecoderBlock, dict]:
    return self._make_block(parent=None), {"params": self.get_variable("params", f"EncDecBlock{i}")}

  def start(self, encoded: Array, sequences: int, length: int) -> tuple[LayerCache, ...]:
    """Caches of all layers; the layers are unrolled whatever `scan` says, so that nothing is copied in the loop."""
    layers = map(self._layer, range(self.num_layers))
    return tuple(block.apply(params, encoded, sequences, length, method="start") for block, params in layers)

  def step(self, tokens: Array, position: Array, positions: Array,
           caches: tuple[LayerCache, ...]) -> tuple[Array, tuple[LayerCache, ...]]:
    """Logits (B, S, V) after one more token of every sequence, and the next caches.

    Args:
      tokens: (B, S) int.
      position: () int32.
      positions: (1, L, E) position embedding, all of it.
      caches: as `start` or the last step gave them.
    """
    x = self._embed(tokens, jax.lax.dynamic_slice_in_dim(positions, position, 1, axis=1))
    updated = []
    for i, cache in enumerate(caches):
      block, params = self._layer(i)
      x, cache = block.apply(params, x, position, cache, method="step")
      updated.append(cache)
    return self._logits(x), tuple(updated)
