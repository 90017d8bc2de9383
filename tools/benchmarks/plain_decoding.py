"""Stage II's decoder as one writes it down first: flax's own cached attention, a copy of the encoded image a sample.

It takes the parameters of `uvim_like.models.seq_decoder.SequenceDecoder` as they are, so that both forms write the same words
and only their time differs.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.models.layers import LayerNorm, MlpBlock
from uvim_like.models.uvim_lm import Model
from uvim_like.ops import sampling

Array = jax.Array


class PlainBlock(nn.Module):
  """One decoder block, one position at a time: x (N, 1, E), encoded (N, M, E)."""
  num_heads: int
  mlp_dim: int

  @nn.compact
  def __call__(self, x: Array, encoded: Array) -> Array:
    """(N, 1, E); keys and values of earlier positions are in the collection `cache`."""
    attention = functools.partial(nn.MultiHeadDotProductAttention, self.num_heads, use_bias=False)
    x = x + attention(decode=True, name="SelfAttn")(LayerNorm(name="LayerNorm1")(x))
    x = x + attention(name="CrossAttn")(LayerNorm(name="LayerNorm2")(x), encoded)
    return x + MlpBlock(self.mlp_dim, name="MLP")(LayerNorm(name="LayerNorm3")(x))


class PlainDecoder(nn.Module):
  """Tokens (N, 1), their position embeddings (1, 1, E) and encoded (N, M, E) to logits (N, 1, V)."""
  vocab_size: int
  emb_dim: int
  num_layers: int
  num_heads: int
  mlp_dim: int

  @nn.compact
  def __call__(self, tokens: Array, positions: Array, encoded: Array) -> Array:
    """Logits of the next token."""
    x = nn.Embed(self.vocab_size, self.emb_dim, name="EmbedTargets")(tokens) + positions
    for i in range(self.num_layers):
      x = PlainBlock(self.num_heads, self.mlp_dim, name=f"EncDecBlock{i}")(x, encoded)
    return nn.Dense(self.vocab_size, name="LogitsDense")(LayerNorm(name="LayerNorm")(x))


def plain_sequences(params: Mapping[str, Any], image: Array, key: Array, *, model: Model, num_samples: int = 1,
                    temperature: float = 0.0) -> Array:
  """Words (B, num_samples, L) of images (B, H, W, 3) under `model` with learned positions; 0 is never chosen."""
  decoder = PlainDecoder(model.vocab_size, model.emb_dim, model.num_layers, model.num_heads, model.mlp_dim)
  encoded = jnp.repeat(model.apply({"params": params}, image, method="encode"), num_samples, axis=0)
  places = params["pos_embedding_decoder"]
  count, length = len(encoded), model.seq_len
  whole = jax.eval_shape(decoder.init, key, jnp.zeros((count, length), jnp.int32), places, encoded)
  cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), whole["cache"])

  def advance(i: Array, now: tuple) -> tuple:
    words, last, cache, key = now
    choose_key, key = jax.random.split(key)
    logits, state = decoder.apply({"params": params["decoder"], "cache": cache}, last,
                                  jax.lax.dynamic_slice_in_dim(places, i, 1, axis=1), encoded, mutable="cache")
    word = sampling.choose(choose_key, sampling.hide_tokens(logits, (0,)), temperature=temperature)
    return jax.lax.dynamic_update_slice(words, word, (0, i)), word, state["cache"], key

  start = (jnp.zeros((count, length), jnp.int32), jnp.zeros((count, 1), jnp.int32), cache, key)
  return jax.lax.fori_loop(0, length, advance, start)[0].reshape(-1, num_samples, length)
