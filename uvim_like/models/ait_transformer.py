"""AiT's solver head (arXiv 2301.02229, section 3.2): image features in, tokens of one vocabulary out, one head for all.

B batch, M encoded positions, L tokens, T tokens of one step, D width, V vocabulary. Which slice of the vocabulary is
legal where is for the caller to say: `logits` computes that slice only. Names of the release: `systems/ait/pretrained.py`.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.models.layers import Attention, apply_layers
from uvim_like.models.norms import DropPath
from uvim_like.ops.constraint import constrain_batch

Array = jax.Array
INIT_STD = 0.02
INIT = nn.initializers.normal(INIT_STD)  # the release says truncated, but cuts at 2, not at two deviations
LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5)


class LayerCache(NamedTuple):
  """What one decoder block keeps between steps.

  Attributes:
    key, value: (B, heads, L, D / heads) of the positions decoded so far, zeros after them.
    cross_key, cross_value: (B, heads, M, D / heads) of the memory, made once.
  """
  key: Array
  value: Array
  cross_key: Array
  cross_value: Array


class HeadsFirstAttention(Attention):
  """Attention whose keys and values have the heads before the positions, in the cache as well as in between.

  So no step of decoding has to transpose what is cached, and a whole sequence takes three quarters of the time on CPU
  (225 positions, 8 heads of 32, batch 4: 8.5 ms of one core against 12.0; causal 9.8 against 14.1).
  """

  @nn.compact
  def __call__(self, x: Array, kv: Array | None = None, *, cached: tuple[Array, Array] | None = None,
               mask: Array | None = None, causal: bool = False, only_kv: bool = False):
    """As `Attention`; keys and values, given or returned, are (B, heads, L, D / heads)."""
    width = x.shape[-1]
    if cached is None:
      source = x if kv is None else kv
      cached = tuple(self._projection(name, width)(source).swapaxes(1, 2) for name in ("key", "value"))
      if only_kv:
        return cached
    query = self._projection("query", width)(x).swapaxes(1, 2) * (width // self.num_heads) ** -0.5
    if causal:
      earlier = jnp.tril(jnp.ones((x.shape[1], cached[0].shape[2]), bool))
      mask = earlier if mask is None else mask & earlier
    out = attend(query, *cached, mask).swapaxes(1, 2)
    return nn.DenseGeneral(width, axis=(-2, -1), use_bias=self.use_bias, kernel_init=self.kernel_init, dtype=self.dtype,
                           name="out")(out)


def attend(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
  """(B, heads, T, d) of scaled queries (B, heads, T, d), keys and values (B, heads, L, d).

  The weights are divided by their sum after they have met the values: d numbers a query instead of L.

  Args:
    query: times 1 / sqrt(d) already.
    key: of what is attended to.
    value: of the same.
    mask: bool, broadcastable to (B, heads, T, L); False is hidden.
  """
  scores = jnp.einsum("bntd,bnld->bntl", query, key, preferred_element_type=jnp.float32)
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
  shares = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  mixed = jnp.einsum("bntl,bnld->bntd", shares.astype(value.dtype), value, preferred_element_type=jnp.float32)
  return (mixed / jnp.sum(shares, axis=-1, keepdims=True)).astype(value.dtype)


def gelu(x: Array) -> Array:
  """x times the normal distribution function of x, by erf as in the release (nn.gelu takes the slower erfc)."""
  return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


class Mlp(nn.Module):
  """Dense, exact GELU, dropout, Dense."""
  mlp_dim: int
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, deterministic: bool = True) -> Array:
    width = x.shape[-1]
    x = gelu(nn.Dense(self.mlp_dim, kernel_init=INIT, dtype=self.dtype, name="fc1")(x))
    x = nn.Dropout(self.dropout)(x, deterministic)
    return nn.Dense(width, kernel_init=INIT, dtype=self.dtype, name="fc2")(x)


class EncoderBlock(nn.Module):
  """x += self(norm x); x += mlp(norm x)."""
  num_heads: int
  mlp_dim: int
  dropout: float = 0.0
  drop_path: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, deterministic: bool = True) -> Array:
    drop = DropPath(self.drop_path)
    y = LayerNorm(dtype=self.dtype, name="norm1")(x)
    attention = HeadsFirstAttention(self.num_heads, kernel_init=INIT, dtype=self.dtype, name="attention")
    x = x + drop(attention(y), not deterministic)
    y = LayerNorm(dtype=self.dtype, name="norm2")(x)
    y = Mlp(self.mlp_dim, self.dropout, self.dtype, name="mlp")(y, deterministic)
    return constrain_batch(x + drop(y, not deterministic))


class DecoderBlock(nn.Module):
  """x += self(norm1 x); x += cross(norm2 x, norm2 memory); x += mlp(norm3 x): one norm for queries and memory.

  Attributes:
    causal: each position sees no later one; False for masked decoding, where all are seen.
  """
  num_heads: int
  mlp_dim: int
  dropout: float = 0.0
  drop_path: float = 0.0
  dtype: Any = jnp.float32
  causal: bool = True

  def setup(self):
    attention = functools.partial(HeadsFirstAttention, self.num_heads, kernel_init=INIT, dtype=self.dtype)
    self.norm1, self.norm2, self.norm3 = (LayerNorm(dtype=self.dtype) for _ in range(3))
    self.attention, self.cross = attention(), attention()
    self.mlp = Mlp(self.mlp_dim, self.dropout, self.dtype)
    self.drop = DropPath(self.drop_path)

  def __call__(self, x: Array, memory: Array, deterministic: bool = True) -> Array:
    """All positions at once: x (B, L, D), memory (B, M, D)."""
    x = x + self.drop(self.attention(self.norm1(x), causal=self.causal), not deterministic)
    x = x + self.drop(self.cross(self.norm2(x), self.norm2(memory)), not deterministic)
    return constrain_batch(x + self.drop(self.mlp(self.norm3(x), deterministic), not deterministic))

  def start(self, memory: Array, length: int) -> LayerCache:
    """An empty cache for up to `length` tokens for each memory (B, M, D)."""
    cross_key, cross_value = self.cross(self.norm2(memory), only_kv=True)
    batch, heads, _, head_dim = cross_key.shape
    empty = jnp.zeros((batch, heads, length, head_dim), cross_key.dtype)
    return LayerCache(empty, empty, cross_key, cross_value)

  def step(self, x: Array, position: Array, cache: LayerCache) -> tuple[Array, LayerCache]:
    """The next T positions, causal among themselves: x (B, T, D), the first at `position` () int32."""
    y = self.norm1(x)
    key, value = self.attention(y, only_kv=True)
    cache = cache._replace(key=jax.lax.dynamic_update_slice_in_dim(cache.key, key, position, axis=2),
                           value=jax.lax.dynamic_update_slice_in_dim(cache.value, value, position, axis=2))
    seen = jnp.arange(cache.key.shape[2]) <= position + jnp.arange(x.shape[1])[:, None]  # (T, L)
    x = x + self.attention(y, cached=(cache.key, cache.value), mask=seen[None, None])
    x = x + self.cross(self.norm2(x), cached=(cache.cross_key, cache.cross_value))
    return x + self.mlp(self.norm3(x)), cache


class Encoder(nn.Module):
  """Features of the backbone to the memory (B, M, D)."""
  width: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  dropout: float
  drop_path: float
  dtype: Any
  remat: str
  scan: bool

  @nn.compact
  def __call__(self, x: Array, deterministic: bool = True) -> Array:
    """x (B, M, D) with positions, as it enters the first block."""
    make = functools.partial(EncoderBlock, self.num_heads, self.mlp_dim, self.dropout, self.drop_path, self.dtype)
    return apply_layers(self, make, "block{}", self.num_layers, x, (deterministic,), remat=self.remat, scan=self.scan,
                        dropout=not deterministic and (self.dropout > 0 or self.drop_path > 0))


class Decoder(nn.Module):
  """The blocks of the decoder: all positions at once, or step by step."""
  num_layers: int
  num_heads: int
  mlp_dim: int
  dropout: float
  drop_path: float
  dtype: Any
  remat: str
  scan: bool
  causal: bool = True

  def _make_block(self, name: str | None = None, parent: Any = "scope") -> DecoderBlock:
    keyword = {"parent": None} if parent is None else {"name": name}
    return DecoderBlock(self.num_heads, self.mlp_dim, self.dropout, self.drop_path, self.dtype, self.causal, **keyword)

  @nn.compact
  def __call__(self, x: Array, memory: Array, deterministic: bool = True) -> Array:
    """(B, L, D) and (B, M, D) to (B, L, D)."""
    return apply_layers(self, self._make_block, "block{}", self.num_layers, x, (deterministic,), (memory,),
                        remat=self.remat, scan=self.scan,
                        dropout=not deterministic and (self.dropout > 0 or self.drop_path > 0))

  def _layer(self, i: int) -> tuple[DecoderBlock, dict]:
    return self._make_block(parent=None), {"params": self.get_variable("params", f"block{i}")}

  def start(self, memory: Array, length: int) -> tuple[LayerCache, ...]:
    """Caches of all layers; the layers are unrolled whatever `scan` says, so that nothing is copied in the loop."""
    layers = map(self._layer, range(self.num_layers))
    return tuple(block.apply(params, memory, length, method="start") for block, params in layers)

  def step(self, x: Array, position: Array, caches: tuple[LayerCache, ...]) -> tuple[Array, tuple[LayerCache, ...]]:
    """See `DecoderBlock.step`."""
    updated = []
    for i, cache in enumerate(caches):
      block, params = self._layer(i)
      x, cache = block.apply(params, x, position, cache, method="step")
      updated.append(cache)
    return x, tuple(updated)


class Transformer(nn.Module):
  """Encoder, decoder and the vocabulary that both ends of the decoder share.

  Attributes:
    vocab_size: V.
    width: D.
    num_encoder_layers, num_decoder_layers, num_heads, mlp_dim: sizes.
    num_tasks: rows of the task and position embeddings (0 detection, 1 instances, 2 depth, 3 semantics, 4
      keypoints, which the release does not have).
    max_len: positions of the decoder; 100 objects of 21 tokens.
    parallel: has the token that stands at every dense position (AiT-P).
    masked: every position sees the whole sequence, in which that token stands for what is hidden (`fill_in`).
    dropout: of the features and behind the MLPs' activations.
    drop_path: of every block, not ramped.
  """
  vocab_size: int
  width: int = 256
  num_encoder_layers: int = 6
  num_decoder_layers: int = 6
  num_heads: int = 8
  mlp_dim: int = 1024
  num_tasks: int = 4
  max_len: int = 2100
  parallel: bool = False
  masked: bool = False
  dropout: float = 0.1
  drop_path: float = 0.1
  dtype: Any = jnp.float32
  remat: str = "none"
  scan_layers: bool = False

  def setup(self):
    shared = (self.num_heads, self.mlp_dim, self.dropout, self.drop_path, self.dtype, self.remat, self.scan_layers)
    dense = functools.partial(nn.Dense, self.width, kernel_init=INIT, dtype=self.dtype)
    self.input_proj, self.proj = dense(), dense()
    norms = (LayerNorm(dtype=self.dtype) for _ in range(5))
    self.stem_ln, self.encout_ln, self.proj_ln, self.proj_mlp_ln, self.norm = norms
    self.proj_mlp = Mlp(self.mlp_dim, self.dropout, self.dtype)
    self.drop_features, self.drop = nn.Dropout(self.dropout), DropPath(self.drop_path)
    self.encoder = Encoder(self.width, self.num_encoder_layers, *shared)
    self.decoder = Decoder(self.num_decoder_layers, *shared, causal=not self.masked)
    self.det_embed = self.param("det_embed", INIT, (self.num_tasks, 1, self.width))
    self.dec_embed = self.param("dec_embed", INIT, (self.num_tasks, self.max_len, self.width))
    self.voc_embed = self.param("voc_embed", INIT, (self.vocab_size, self.width))
    self.outp_bias = self.param("outp_bias", INIT, (self.vocab_size,))
    if self.parallel or self.masked:
      self.mask_embed = self.param("mask_embed", INIT, (1, 1, self.width))

  def encode(self, features: Array, *, train: bool = False) -> Array:
    """Features (B, h, w, C) of the last stage to the memory (B, h w, D)."""
    batch, *grid, channels = features.shape
    positions = sine_positions(tuple(grid), self.width)
    x = self.drop_features(features.reshape(batch, -1, channels).astype(self.dtype), not train)
    x = self.encoder(self.stem_ln(self.input_proj(x)) + positions, not train)
    x = self.proj_ln(self.proj(self.encout_ln(x))) + positions
    return x + self.drop(self.proj_mlp(self.proj_mlp_ln(x), not train), train)

  def task_token(self, task: Array) -> Array:
    """(B, 1, D) embedding of the task that starts a sequence, from task ids (B,)."""
    return jnp.take(self.det_embed, task, axis=0)

  def embed(self, tokens: Array) -> Array:
    """Tokens (..., ) of the vocabulary to (..., D)."""
    return jnp.take(self.voc_embed, tokens, axis=0)

  def mix(self, probabilities: Array, start: int) -> Array:
    """A soft token: probabilities (..., K) of the tokens start..start + K - 1 to their mean embedding (..., D)."""
    return probabilities @ self.voc_embed[start:start + probabilities.shape[-1]]

  def fill(self, batch: int, count: int) -> Array:
    """(B, count, D): the parallel token, which asks for a dense position without naming the ones before."""
    return jnp.broadcast_to(self.mask_embed, (batch, count, self.width))

  def positions(self, task: Array, position: Array | int, count: int) -> Array:
    """(B, count, D) position embeddings of tasks (B,) from `position` on."""
    rows = jax.lax.dynamic_slice_in_dim(self.dec_embed, position, count, axis=1)
    return jnp.take(rows, task, axis=0)

  def inputs(self, tokens: Array, task: Array, hidden: Array | None = None) -> Array:
    """What the decoder reads in training: (B, L, D) from the tokens (B, L - 1) before each target.

    Args:
      tokens: teacher forcing, without the last target.
      task: (B,) ids.
      hidden: bool, broadcastable to tokens: the positions where the parallel token stands instead.
    """
    x = self.embed(tokens)
    if hidden is not None:
      x = jnp.where(hidden[..., None], self.mask_embed, x)
    x = jnp.concatenate([self.task_token(task), x], axis=1)
    return x + self.positions(task, 0, x.shape[1])

  def fill_in(self, tokens: Array, task: Array, hidden: Array) -> Array:
    """What a masked decoder reads: (B, L, D) of the tokens (B, L) themselves, some hidden (B, L); tasks (B,).

    The task's token is added everywhere, since no position is left for it.
    """
    x = jnp.where(hidden[..., None], self.mask_embed, self.embed(tokens))
    return x + self.task_token(task) + self.positions(task, 0, tokens.shape[1])

  def decode(self, x: Array, memory: Array, *, train: bool = False) -> Array:
    """Hidden states (B, L, D) of `inputs` (B, L, D) under the causal mask, or of `fill_in` without it, for `logits`."""
    return self.norm(self.decoder(x.astype(self.dtype), memory, not train))

  def logits(self, hidden: Array, start: int = 0, size: int | None = None) -> Array:
    """(..., size) float32 logits of the tokens from `start` on, all of them by default, from hidden states (..., D)."""
    rows = slice(start, None if size is None else start + size)
    out = jnp.einsum("...d,vd->...v", hidden, self.voc_embed[rows].astype(hidden.dtype))
    return out.astype(jnp.float32) + self.outp_bias[rows]

  def __call__(self, features: Array, tokens: Array, task: Array, *, hidden: Array | None = None,
               train: bool = False) -> Array:
    """Teacher-forced logits (B, L, V) of features (B, h, w, C) and the L - 1 tokens before the last one."""
    memory = self.encode(features, train=train)
    return self.logits(self.decode(self.inputs(tokens, task, hidden), memory, train=train))

  def start(self, memory: Array, length: int) -> tuple[LayerCache, ...]:
    """Empty caches for sequences of up to `length` tokens."""
    return self.decoder.start(memory, length)

  def step(self, x: Array, task: Array, position: Array,
           caches: tuple[LayerCache, ...]) -> tuple[Array, tuple[LayerCache, ...]]:
    """Hidden states (B, T, D) of the next T inputs x (B, T, D), position embeddings not yet added, and the next
    caches."""
    x = x + self.positions(task, position, x.shape[1])
    hidden, caches = self.decoder.step(x.astype(self.dtype), position, caches)
    return self.norm(hidden), caches


def sine_positions(grid: tuple[int, int], width: int) -> Array:
  """(h w, D): D / 2 numbers of the row, then of the column; sine and cosine interleaved, integer positions unscaled."""
  half = width // 2
  index = jnp.arange(half)
  frequency = 10_000.0 ** (-2 * (index // 2) / half)
  rows, columns = (jnp.where(index % 2 == 0, jnp.sin(angle), jnp.cos(angle))
                   for angle in (jnp.arange(side)[:, None] * frequency for side in grid))
  rows = jnp.broadcast_to(rows[:, None], (*grid, half))
  columns = jnp.broadcast_to(columns[None], (*grid, half))
  return jnp.concatenate([rows, columns], axis=-1).reshape(-1, width)
