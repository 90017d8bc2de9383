"""UViM's stage I network (arXiv 2205.10337, section 3): restricted oracle, codebook, base model.

Parameter names and shapes are those of the published checkpoints. B batch, N patches, P pixels in a patch, C classes or
channels of an output, D width, L code length, K dictionary size.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.models.layers import Encoder, position_embedding
from uvim_like.ops import quantize
from uvim_like.ops.embed import embed_labels
from uvim_like.ops.patches import grid_of
from uvim_like.ops.planes import Planes

Array = jax.Array


class Code(NamedTuple):
  """What the oracle writes.

  Attributes:
    bottleneck: (B, L, C) vectors before quantisation.
    quantized: (B, L, C) with the gradient passed straight through to `bottleneck`.
    code: (B, L) int32 words.
  """
  bottleneck: Array
  quantized: Array
  code: Array


class Model(nn.Module):
  """Oracle, codebook and base model; the fields are the config's `model` block.

  Attributes:
    inputs: {name: (C, P)} label planes that the oracle reads.
    outputs: {name: (C, P)} planes that the base model predicts.
    input_size: (H, W) pixels.
    patch_size: (ph, pw) pixels.
    code_len: L.
    width: D.
    oracle_depth: blocks of the oracle (its encoder).
    base_model_depth: blocks of the base model (the decoder).
    mlp_dim: None means 4 D.
    num_heads: attention heads.
    posemb: "learn" or "sincos2d".
    quantizer: "vq" (moving-average dictionary) or "fsq" (fixed grid of `fsq_levels`).
    dict_size: K; with "fsq" the product of the levels (checked).
    codeword_dim: C of a word; None means D; with "fsq" the number of levels.
    dict_momentum: of the dictionary's discounted sums.
    dict_min_count: a word used less is given half of the most used one.
    with_encoder_ctx: the oracle sees the image.
    with_decoder_ctx: the base model sees the image.
    code_dropout: "none", "random" or "ordered".
    bottleneck_resize: resample the token grid to L tokens instead of learned mixing matrices.
    zero_decoder_seq: the base model alone, its code replaced by zeros; the oracle is not run at all.
    dropout: of the oracle's blocks.
    head_bias: initial bias of every head.
  """
  inputs: Mapping[str, tuple[int, int]]
  outputs: Mapping[str, tuple[int, int]]
  input_size: tuple[int, int] = (256, 256)
  patch_size: tuple[int, int] = (8, 8)
  code_len: int = 256
  width: int = 768
  oracle_depth: int = 6
  base_model_depth: int = 6
  mlp_dim: int | None = None
  num_heads: int = 12
  posemb: str = "learn"
  quantizer: str = "vq"
  fsq_levels: tuple[int, ...] = ()
  dict_size: int = 512
  codeword_dim: int | None = None
  dict_momentum: float = 0.995
  dict_min_count: float = 0.1
  with_encoder_ctx: bool = False
  with_decoder_ctx: bool = False
  code_dropout: str = "none"
  bottleneck_resize: bool = False
  zero_decoder_seq: bool = False
  dropout: float = 0.0
  head_bias: float = 0.0
  dtype: Any = jnp.float32
  remat: str = "none"
  scan_layers: bool = False

  @property
  def grid(self) -> tuple[int, int]:
    """(gh, gw) patches."""
    return grid_of(self.input_size, self.patch_size)

  @property
  def word_dim(self) -> int:
    """C of a code word."""
    return len(self.fsq_levels) if self.quantizer == "fsq" else self.codeword_dim or self.width

  def setup(self):
    dense = lambda features, name: nn.Dense(features, dtype=self.dtype, name=name)  # noqa: E731
    if not self.zero_decoder_seq:
      self.encoder = self._transformer(self.oracle_depth, self.dropout)
      self.encoder_head = dense(self.word_dim, "encoder_head")
      self.embeddings = {k: LabelEmbedding(classes, pixels, self.width, self.dtype, name=f"embedding_{k}")
                         for k, (classes, pixels) in self.inputs.items()}
      if self.with_encoder_ctx:
        self.ctx_enc_embedding = self._patch_embedding("ctx_enc_embedding")
    if self.quantizer == "vq" and not self.zero_decoder_seq:
      init = nn.initializers.normal(self.dict_size ** -0.5)
      self.dictionary = self.variable(
          "state", "dictionary", lambda: init(self.make_rng("state"), (self.dict_size, self.word_dim)))
      self.counts = self.variable("state", "counts", lambda: jnp.ones((self.dict_size,)))
    self.decoder = self._transformer(self.base_model_depth, 0.0)
    self.decoder_stem = dense(self.width, "decoder_stem")
    self.heads = {k: Head(classes, pixels, self.head_bias, self.dtype, name=f"head_{k}")
                  for k, (classes, pixels) in self.outputs.items()}
    if self.with_decoder_ctx:
      self.ctx_dec_embedding = self._patch_embedding("ctx_dec_embedding")
    positions = math.prod(self.grid)
    if not self.bottleneck_resize:
      mix = nn.initializers.xavier_uniform()
      if not self.zero_decoder_seq:
        self.bottleneck_downsample = self.param("bottleneck_downsample", mix, (positions, self.code_len))
      self.bottleneck_upsample = self.param("bottleneck_upsample", mix, (self.code_len, positions))
    if not self.zero_decoder_seq:
      self.pos_embedding_encoder = position_embedding(self, "pos_embedding_encoder", self.grid, self.width, self.posemb)
    self.pos_embedding_decoder = position_embedding(self, "pos_embedding_decoder", self.grid, self.width, self.posemb)

  def _transformer(self, depth: int, dropout: float) -> Encoder:
    return Encoder(depth, self.mlp_dim, self.num_heads, dropout, self.dtype, self.remat, self.scan_layers)

  def _patch_embedding(self, name: str) -> nn.Conv:
    return nn.Conv(self.width, self.patch_size, self.patch_size, "VALID", dtype=self.dtype, name=name)

  @property
  def code_side(self) -> int:
    """Side of the square code grid of the resized bottleneck."""
    return round(math.sqrt(self.code_len))

  def words(self) -> Array:
    """(K, C) code words."""
    if self.quantizer == "fsq":
      return quantize.fsq_lookup(jnp.arange(self.dict_size), self.fsq_levels)
    return quantize.codewords(self.dictionary.value, self.counts.value)

  def encode(self, planes: Mapping[str, Array], ctx: Array | None, *, train: bool = False) -> Code:
    """The oracle: labels (and image) to a code.

    Args:
      planes: {name: (B, N, P) int labels or (B, N, C, P) float channels}.
      ctx: (B, H, W, 3) image, read with `with_encoder_ctx`.
      train: draw dropout.
    """
    x = sum(self.embeddings[k](plane) for k, plane in sorted(planes.items()))
    if self.with_encoder_ctx:
      x += flatten_grid(self.ctx_enc_embedding(ctx))
    x = self.encoder(x + self.pos_embedding_encoder.astype(x.dtype), not train)
    x = self._downsample(x)
    x = self.encoder_head(x).astype(jnp.float32)
    if self.quantizer == "fsq":
      return Code(x, *quantize.fsq_quantize(x, self.fsq_levels))
    x = quantize.standardize(x)
    words = self.words()
    code = quantize.nearest(jax.lax.stop_gradient(x), words)
    return Code(x, quantize.straight_through(x, quantize.lookup(words, code)), code)

  def decode(self, code: Array | None, ctx: Array | None, *, train: bool = False) -> dict[str, Planes]:
    """The base model: a code (and image) to planes of logits, each (B, N, C, P) once computed.

    Args:
      code: (B, L) int words (-1 is the last one), (B, L, C) vectors, or None for no code at all.
      ctx: (B, H, W, 3) image, read with `with_decoder_ctx`; with several codes an image, (B / S, H, W, 3): the image
        is embedded once for its S codes, which stand next to each other.
      train: draw code dropout.
    """
    if code is None or self.zero_decoder_seq:
      batch = ctx.shape[0] if code is None else code.shape[0]
      vectors = jnp.zeros((batch, self.code_len, self.word_dim))
    elif jnp.issubdtype(code.dtype, jnp.integer):
      vectors = quantize.lookup(self.words(), code)
    else:
      vectors = code
    if train and self.code_dropout != "none":
      keep = quantize.keep_mask(self.make_rng("dropout"), *vectors.shape[:2], self.code_dropout)
      vectors = jnp.where(keep[..., None], vectors, 0.0)
    x = self._upsample(self.decoder_stem(vectors))
    if self.with_decoder_ctx:
      image = flatten_grid(self.ctx_dec_embedding(ctx))
      x += jnp.repeat(image, x.shape[0] // image.shape[0], axis=0)
    x = self.decoder(x + self.pos_embedding_decoder.astype(x.dtype))
    return {k: head(x) for k, head in self.heads.items()}

  def __call__(self, planes: Mapping[str, Array], ctx: Array | None, *,
               train: bool = False) -> tuple[dict[str, Planes], Code | None]:
    """Both halves: (planes of logits, code); the code is None with `zero_decoder_seq`."""
    code = None if self.zero_decoder_seq else self.encode(planes, ctx, train=train)
    return self.decode(None if code is None else code.quantized, ctx, train=train), code

  def _downsample(self, x: Array) -> Array:
    """(B, N, D) tokens to (B, L, D)."""
    if not self.bottleneck_resize:
      return jnp.einsum("btc,tn->bnc", x, self.bottleneck_downsample.astype(x.dtype))
    batch, _, width = x.shape
    x = jax.image.resize(x.reshape(batch, *self.grid, width), (batch, self.code_side, self.code_side, width), "linear")
    return x.reshape(batch, -1, width)

  def _upsample(self, x: Array) -> Array:
    """(B, L, D) code tokens to (B, N, D)."""
    if not self.bottleneck_resize:
      return jnp.einsum("bnc,nt->btc", x, self.bottleneck_upsample.astype(x.dtype))
    batch, _, width = x.shape
    x = jax.image.resize(x.reshape(batch, self.code_side, self.code_side, width), (batch, *self.grid, width), "linear")
    return x.reshape(batch, -1, width)


class LabelEmbedding(nn.Module):
  """Linear map of a patch's labels, (B, N, P) int or (B, N, C, P) float, to (B, N, D)."""
  classes: int
  pixels: int
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, plane: Array) -> Array:
    init = nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
    kernel = self.param("kernel", init, (self.classes, self.pixels, self.width))
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    if jnp.issubdtype(plane.dtype, jnp.integer):
      return (embed_labels(plane, kernel) + bias).astype(self.dtype)
    x = jnp.einsum("bncp,cpd->bnd", plane.astype(self.dtype), kernel.astype(self.dtype))
    return x + bias.astype(self.dtype)


class Head(nn.Module):
  """Linear map (B, N, D) to the `Planes` of one output, which are not computed here; starts at zero."""
  classes: int
  pixels: int
  bias: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Planes:
    kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], self.classes, self.pixels))
    bias = self.param("bias", nn.initializers.constant(self.bias), (self.classes, self.pixels))
    return Planes(x.astype(self.dtype), kernel, bias)


def flatten_grid(x: Array) -> Array:
  """(B, gh, gw, D) to (B, N, D)."""
  return x.reshape(x.shape[0], -1, x.shape[-1])
