"""MAD's network (Masked AutoDecoder, CVPR 2024): a picture encoder and one decoder for the sequences of all tasks.

The decoder sees a whole sequence at once, or only what stands before each token (`causal`), so that the autoregressive
baseline is the same network. B images, S sequences an image, L tokens, M places of the feature map, D width, K layers.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.errors import unknown
from uvim_like.models import backbones
from uvim_like.models.mad_layers import DecoderLayer, EncoderLayer, KeysValues, fan_in_bias, layer_norm, sine_positions

Array = jax.Array
Rows = tuple[tuple[int, int], ...]
TEMPERATURE = 0.07  # 1 / the initial scale of the cosine logits
# Of ImageNet's pictures in 0..1, as the pretrained backbones of the paper saw them.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Picture(NamedTuple):
  """An encoded image as the decoder reads it.

  Attributes:
    keys: ((B, M, heads, D / heads) keys, values) of every decoder layer, made once for all tasks and stages.
    mask: (B, 1, 1, M) bool, False on padding.
  """
  keys: tuple[KeysValues, ...]
  mask: Array


class Stem(nn.Module):
  """A few strided convolutions: a backbone for small pictures and tests, no paper's.

  Attributes:
    widths: channels of each convolution; the stride is 2 for each.
    mix: further convolutions at the last size.
  """
  widths: tuple[int, ...] = (32, 64, 128)
  mix: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> tuple[Array, ...]:
    """(B, H, W, 3) to features (B, h, w, C), one for each stride."""
    del train
    x, stages = image, []
    for i, width in enumerate(self.widths):
      x = nn.Conv(width, (3, 3), 2, dtype=self.dtype, name=f"conv_{i}")(x)
      x = nn.gelu(nn.LayerNorm(dtype=self.dtype, name=f"norm_{i}")(x))
      stages.append(x)
    for i in range(self.mix):
      y = nn.Conv(self.widths[-1], (3, 3), dtype=self.dtype, name=f"mix_{i}")(x)
      x = x + nn.gelu(nn.LayerNorm(dtype=self.dtype, name=f"mix_norm_{i}")(y))
    return (*stages[:-1], x)


class Model(nn.Module):
  """Backbone, encoder, decoder and head; the fields are the config's `model` block
  but for the first two, which follow from the vocabulary.

  Attributes:
    vocab_size: rows of the token table.
    max_length: rows of the learned positions, of prompt and response together.
    backbone: fields of the backbone: {"name": …, …}; "stem" is `Stem`.
    width: D.
    num_heads: of all attention.
    mlp_dim: of the feed-forward layers.
    encoder_layers, decoder_layers: their numbers.
    dropout: of attention weights and feed-forward layers.
    head: "cosine" (tied to the token table, learned scale; the code's) or "linear" (tied, with a bias).
  """
  vocab_size: int
  max_length: int
  backbone: Mapping[str, Any]
  width: int = 256
  num_heads: int = 8
  mlp_dim: int = 2048
  encoder_layers: int = 6
  decoder_layers: int = 6
  dropout: float = 0.1
  head: str = "cosine"
  dtype: Any = jnp.float32
  remat: str = "none"
  scan_layers: bool = False

  def setup(self):
    layer = dict(num_heads=self.num_heads, mlp_dim=self.mlp_dim, dropout=self.dropout, dtype=self.dtype)
    encoder, decoder = EncoderLayer, DecoderLayer
    if self.remat != "none":
      policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.remat == "dots" else None
      encoder = nn.remat(EncoderLayer, policy=policy, static_argnums=(4,))
      decoder = nn.remat(DecoderLayer, policy=policy, static_argnums=(5, 6))
    self.features = make_backbone(self.backbone, self.dtype, self.remat)
    self.encoder = [encoder(**layer) for _ in range(self.encoder_layers)]
    self.decoder = [decoder(**layer) for _ in range(self.decoder_layers)]
    self.decoder_norm = layer_norm(self.dtype)
    self.tokens = self.param("token_embedding", nn.initializers.normal(1.0), (self.vocab_size, self.width))
    self.positions = self.param("position_embedding", nn.initializers.normal(1.0), (self.max_length, self.width))
    dense = dict(bias_init=fan_in_bias(self.width), dtype=self.dtype, kernel_init=nn.initializers.variance_scaling(
        1 / 3, "fan_in", "uniform"))  # uniform in ±1/√fan_in
    self.input_proj = nn.Dense(self.width, dtype=self.dtype, kernel_init=dense["kernel_init"])
    self.head_0, self.head_1 = nn.Dense(self.width, **dense), nn.Dense(self.width, **dense)
    if self.head == "cosine":
      self.logit_scale = self.param("logit_scale", nn.initializers.constant(math.log(1 / TEMPERATURE)), ())
    else:
      self.bias = self.param("logit_bias", nn.initializers.zeros, (self.vocab_size,))

  def __call__(self, image: Array, valid_size: Array, tokens: Array) -> Array:
    """Everything once, for initialisation: last-layer logits (B, S, L, V) over the whole table."""
    picture = self.encode(image, valid_size)
    return self.logits(self.decode(tokens, picture)[-1], ((0, self.vocab_size),))

  def encode(self, image: Array, valid_size: Array, *, train: bool = False) -> Picture:
    """An image to what the decoder reads.

    Args:
      image: (B, H, W, 3) in [-1, 1].
      valid_size: (B, 2) int rows and columns that hold the picture; the rest is padding, whatever it holds.
      train: dropout, and batch statistics of the backbone.
    """
    valid = inside(valid_size, image.shape[1:3])
    image = ((image + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(DEVIATION)
    image = jnp.where(valid[..., None], image, 0).astype(self.dtype)
    features = self.features(image, train=train)[-1]
    return self.encode_features(features, shrink_mask(valid, features.shape[1:3]), train=train)

  def encode_features(self, features: Array, valid: Array, *, train: bool = False) -> Picture:
    """A feature map (B, h, w, C) with valid (B, h, w) bool to what the decoder reads."""
    memory, places, mask = self.memory(features, valid, train=train)
    return Picture(tuple(layer.picture_keys(memory, places) for layer in self.decoder), mask)

  def memory(self, features: Array, valid: Array, *, train: bool = False) -> tuple[Array, Array, Array]:
    """(encoded (B, M, D), its positions (B, M, D), mask (B, 1, 1, M))."""
    batch, height, width, _ = features.shape
    places = sine_positions(valid, self.width).reshape(batch, height * width, -1).astype(self.dtype)
    mask = valid.reshape(batch, 1, 1, -1)
    x = self.input_proj(features).reshape(batch, height * width, -1)
    for layer in self.encoder:
      x = layer(x, places, mask, train)
    return x, places, mask

  def decode(self, tokens: Array, picture: Picture, *, causal: bool = False, train: bool = False) -> list[Array]:
    """Output (B, S, L, D) of every layer after the shared norm, for tokens (B, S, L) of the table."""
    x = self.tokens[tokens].astype(self.dtype)
    positions = self.positions[None, :tokens.shape[-1]].astype(self.dtype)
    outputs = []
    for layer, keys in zip(self.decoder, picture.keys):
      x = layer(x, positions, keys, picture.mask, causal, train)
      outputs.append(self.decoder_norm(x))
    return outputs

  def logits(self, x: Array, rows: Rows) -> Array:
    """Float32 logits (..., V) of the given rows of the table alone, for decoder outputs (..., D).

    Args:
      x: (..., D).
      rows: (start, stop) ranges of the table; slicing them equals hiding all other tokens, at a fraction of the work.
    """
    table = jnp.concatenate([self.tokens[start:stop] for start, stop in rows])
    x = self.head_1(nn.relu(self.head_0(x)))
    if self.head == "cosine":
      x, table = unit(x) * jnp.exp(self.logit_scale), unit(table)
    logits = jnp.einsum("...d,vd->...v", x.astype(self.dtype), table.astype(self.dtype),
                        preferred_element_type=jnp.float32)
    if self.head == "cosine":
      return logits
    return logits + jnp.concatenate([self.bias[start:stop] for start, stop in rows])

  def start(self, batch: int, sequences: int, length: int) -> tuple[KeysValues, ...]:
    """Empty keys and values of every layer for writing up to `length` tokens, the prompt among them, step by step."""
    shape = (batch * sequences, self.num_heads, length, self.width // self.num_heads)
    empty = jnp.zeros(shape, self.dtype)
    return ((empty, empty),) * self.decoder_layers

  def step(self, tokens: Array, start: Array, caches: tuple[KeysValues, ...], picture: Picture,
           rows: Rows) -> tuple[Array, tuple[KeysValues, ...]]:
    """Logits (B, S, V) after the next n tokens (B, S, n) of the table, which stand behind `start` others."""
    x = self.tokens[tokens].astype(self.dtype)
    positions = jax.lax.dynamic_slice_in_dim(self.positions, start, tokens.shape[-1])[None].astype(self.dtype)
    updated = []
    for layer, own, keys in zip(self.decoder, caches, picture.keys):
      x, own = layer.step(x, positions, start, own, keys, picture.mask)
      updated.append(own)
    return self.logits(self.decoder_norm(x[:, :, -1]), rows), tuple(updated)


def make_backbone(fields: Mapping[str, Any], dtype: Any, remat: str, *,
                  where: str = "config.model.backbone") -> nn.Module:
  """The backbone of a `backbone` block: `Stem`, or one of `backbones.PRESETS`.

  Raises:
    UserError: an unknown name or field, with the nearest.
  """
  if fields.get("name") != "stem":
    return backbones.make_backbone(fields, where=where, dtype=dtype, remat=remat)
  known = {"widths", "mix"}
  for key in fields:
    if key not in known | {"name"}:
      raise unknown("field", key, known, where=f"{where} (stem)")
  widths = tuple(fields.get("widths", Stem.widths))
  return Stem(widths=widths, mix=fields.get("mix", Stem.mix), dtype=dtype)


def unit(x: Array) -> Array:
  """x (..., D) at length 1 in float32; no epsilon, as in MAD's code, but a zero stays zero."""
  x = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


def inside(valid_size: Array, size: tuple[int, int]) -> Array:
  """(B, H, W) bool, True on the valid_size (B, 2) rows and columns of the upper left."""
  rows = jnp.arange(size[0]) < valid_size[:, :1]
  columns = jnp.arange(size[1]) < valid_size[:, 1:]
  return rows[:, :, None] & columns[:, None, :]


def shrink_mask(valid: Array, size: tuple[int, int]) -> Array:
  """(B, H, W) to (B, h, w) by the nearest pixel up and to the left, as torch's nearest resizing."""
  rows = (jnp.arange(size[0]) * valid.shape[1]) // size[0]
  columns = (jnp.arange(size[1]) * valid.shape[2]) // size[1]
  return valid[:, rows][:, :, columns]
