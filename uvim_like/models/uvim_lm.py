"""UViM's stage II network (arXiv 2205.10337, section 3.2): an image in, the words of its guiding code out.

Parameter names and shapes are those of the published checkpoints. B images, S sequences an image, L code length, V
vocabulary (dictionary + 1: token 0 starts a sequence), N patches, E width.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.models.layers import Encoder, position_embedding
from uvim_like.models.seq_decoder import LayerCache, SequenceDecoder
from uvim_like.ops.patches import grid_of

Array = jax.Array


class Model(nn.Module):
  """Image encoder and code decoder; the fields are the config's `model` block.

  Attributes:
    vocab_size: V.
    seq_len: L.
    input_size: (H, W) pixels of the image.
    patches: {"size": (ph, pw)}.
    num_layers: of the encoder and of the decoder.
    num_heads, mlp_dim, emb_dim: of both.
    posemb_type: "learn" or "sincos2d", of both.
    zero_decoder_seq: hide the tokens decoded so far.
    parallel: the same, with a learned vector in their place (AiT's parallel token, arXiv 2301.02229, section 3.4): no
      input depends on an output, so that all words come from one pass.
    target_emb_scale: initial standard deviation of the token embedding.
    dropout: of the encoder.
    masked: the decoder sees the whole code with some words hidden (token 0), and learns to name those; else it writes
      word after word.
  """
  vocab_size: int
  seq_len: int
  input_size: tuple[int, int] = (512, 512)
  patches: Mapping[str, tuple[int, int]] | None = None
  num_layers: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  emb_dim: int = 768
  posemb_type: str = "sincos2d"
  zero_decoder_seq: bool = False
  parallel: bool = False
  target_emb_scale: float = 1.0
  dropout: float = 0.0
  dtype: Any = jnp.float32
  remat: str = "none"
  scan_layers: bool = False
  masked: bool = False

  @property
  def patch_size(self) -> tuple[int, int]:
    """(ph, pw) pixels."""
    return tuple((self.patches or {"size": (16, 16)})["size"])

  def setup(self):
    grid = grid_of(self.input_size, self.patch_size)
    self.EmbedPatches = nn.Conv(self.emb_dim, self.patch_size, self.patch_size, "VALID", dtype=self.dtype)
    self.encoder = Encoder(self.num_layers, self.mlp_dim, self.num_heads, self.dropout, self.dtype, self.remat,
                           self.scan_layers)
    self.decoder = SequenceDecoder(self.vocab_size, self.emb_dim, self.num_layers, self.num_heads, self.mlp_dim,
                                   self.target_emb_scale, self.zero_decoder_seq or self.parallel, self.dtype, self.remat,
                                   self.scan_layers, causal=not self.masked)
    self.encoder_positions = position_embedding(self, "pos_embedding_encoder", grid, self.emb_dim, self.posemb_type)
    self.decoder_positions = position_embedding(self, "pos_embedding_decoder", (1, self.seq_len), self.emb_dim,
                                                self.posemb_type)
    if self.parallel:  # the first position starts the code; the token stands at all others
      token = self.param("mask_embed", nn.initializers.normal(0.02), (1, 1, self.emb_dim))
      self.decoder_positions = self.decoder_positions + token * (jnp.arange(self.seq_len) > 0)[:, None]

  def encode(self, image: Array, *, train: bool = False) -> Array:
    """(B, H, W, 3) to (B, N, E)."""
    x = self.EmbedPatches(image)
    x = x.reshape(x.shape[0], -1, self.emb_dim)
    return self.encoder(x + self.encoder_positions.astype(x.dtype), not train)

  def decode(self, targets: Array, encoded: Array) -> Array:
    """Teacher-forced logits (B, L, V) of every token of targets (B, L), each from those before it."""
    shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    return self.decoder(shifted, self.decoder_positions[:, :targets.shape[1]], encoded)

  def fill(self, tokens: Array, encoded: Array) -> Array:
    """Logits (B, L, V) of the token at each position itself, from tokens (B, L) of which 0 are hidden (`masked`)."""
    return self.decoder(tokens, self.decoder_positions[:, :tokens.shape[1]], encoded)

  def __call__(self, image: Array, targets: Array, *, train: bool = False) -> Array:
    """Both: logits (B, L, V)."""
    return self.decode(targets, self.encode(image, train=train))

  def start(self, encoded: Array, sequences: int) -> tuple[LayerCache, ...]:
    """Empty caches for `sequences` codes of every image."""
    return self.decoder.start(encoded, sequences, self.seq_len)

  def step(self, tokens: Array, position: Array,
           caches: tuple[LayerCache, ...]) -> tuple[Array, tuple[LayerCache, ...]]:
    """Logits (B, S, V) after tokens (B, S) at position (), and the next caches."""
    return self.decoder.step(tokens, position, self.decoder_positions, caches)
