"""Blocks shared by all transformers: attention, MLP, and the pre-norm encoder of UViM (ViT, arXiv 2010.11929)."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.ops import loops
from uvim_like.ops.constraint import constrain_batch

Array = jax.Array
Dtype = Any

LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6)
REMAT = ("none", "dots", "full")
POSITIONS = ("learn", "sincos2d")


class Attention(nn.Module):
  """Multi-head attention whose projections can be used apart, so that decoding can keep keys and values.

  Attributes:
    num_heads: heads; the width must divide.
    use_bias: on all four projections.
    kernel_init: of all four projections, fans taken on the flattened 2-D kernel.
    dtype: compute type; softmax is float32 whatever it is.
  """
  num_heads: int
  use_bias: bool = True
  kernel_init: Callable = nn.initializers.xavier_uniform()
  dtype: Dtype = jnp.float32

  def _projection(self, name: str, width: int) -> nn.DenseGeneral:
    return nn.DenseGeneral((self.num_heads, width // self.num_heads), axis=-1, use_bias=self.use_bias,
                           kernel_init=self.kernel_init, dtype=self.dtype, name=name)

  @nn.compact
  def __call__(self, x: Array, kv: Array | None = None, *, cached: tuple[Array, Array] | None = None,
               mask: Array | None = None, causal: bool = False, only_kv: bool = False):
    """Attends from x to kv (x itself by default).

    Args:
      x: (B, L, D) queries.
      kv: (B, M, D) what is attended to; not needed with `cached`.
      cached: keys and values (B, heads, M, D / heads) made before; then nothing is projected from `kv`.
      mask: bool, broadcastable to (B, heads, L, M); False is hidden.
      causal: each query sees no later position.
      only_kv: return the (keys, values) of `kv`, or of x, and stop.

    Returns:
      (B, L, D), or the pair of keys and values.
    """
    width = x.shape[-1]
    if cached is None:
      source = x if kv is None else kv
      key, value = self._projection("key", width)(source), self._projection("value", width)(source)
      if only_kv:
        return key, value
    query = self._projection("query", width)(x)
    out = (jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal) if cached is None else
           attend_cached(query, *cached, mask=mask))
    return nn.DenseGeneral(width, axis=(-2, -1), use_bias=self.use_bias, kernel_init=self.kernel_init,
                           dtype=self.dtype, name="out")(out)


def attend_cached(query: Array, key: Array, value: Array, *, mask: Array | None = None) -> Array:
  """Attention of queries (B, L, heads, d) over cached keys and values (B, heads, M, d); mask as in `Attention`."""
  scores = jnp.einsum("blhd,bhmd->bhlm", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
  shares = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("bhlm,bhmd->blhd", shares, value)


class MlpBlock(nn.Module):
  """Dense, GELU (tanh form), Dense. `mlp_dim` None means four times the width."""
  mlp_dim: int | None = None
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, deterministic: bool = True) -> Array:
    dense = functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(),
                              bias_init=nn.initializers.normal(1e-6), dtype=self.dtype)
    width = x.shape[-1]
    x = nn.gelu(dense(self.mlp_dim or 4 * width, name="Dense_0")(x), approximate=True)
    x = nn.Dropout(self.dropout)(x, deterministic)
    return dense(width, name="Dense_1")(x)


class EncoderBlock(nn.Module):
  """x += attention(norm x); x += mlp(norm x)."""
  mlp_dim: int | None = None
  num_heads: int = 12
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, deterministic: bool = True) -> Array:
    y = LayerNorm(dtype=self.dtype, name="LayerNorm_0")(x)
    y = Attention(self.num_heads, dtype=self.dtype, name="MultiHeadDotProductAttention_0")(y)
    x = x + nn.Dropout(self.dropout)(y, deterministic)
    y = LayerNorm(dtype=self.dtype, name="LayerNorm_1")(x)
    y = MlpBlock(self.mlp_dim, self.dropout, self.dtype, name="MlpBlock_0")(y, deterministic)
    return constrain_batch(x + nn.Dropout(self.dropout)(y, deterministic))


class Encoder(nn.Module):
  """A stack of `EncoderBlock`s with a final norm.

  Attributes:
    depth: number of blocks.
    remat: what the backward pass computes again: "none", "dots" (all but matrix products) or "full".
    scan: run the layers as a loop: compiles once for all, at the price of stacking their weights every step.
  """
  depth: int
  mlp_dim: int | None = None
  num_heads: int = 12
  dropout: float = 0.0
  dtype: Dtype = jnp.float32
  remat: str = "none"
  scan: bool = False

  @nn.compact
  def __call__(self, x: Array, deterministic: bool = True) -> Array:
    make = functools.partial(EncoderBlock, self.mlp_dim, self.num_heads, self.dropout, self.dtype)
    x = apply_layers(self, make, "encoderblock_{}", self.depth, x, (deterministic,), remat=self.remat, scan=self.scan,
                     dropout=self.dropout > 0 and not deterministic)
    return LayerNorm(dtype=self.dtype, name="encoder_norm")(x)


def apply_layers(parent: nn.Module, make: Callable[..., nn.Module], name: str, depth: int, x: Array, static: tuple = (),
                 arrays: tuple = (), *, remat: str = "none", scan: bool = False, dropout: bool = False) -> Array:
  """Runs `depth` equal blocks one after the other, each with parameters of its own under `parent`.

  The parameters are a subtree a layer whatever `remat` and `scan` say, so that checkpoints, optimizer state and
  regexes see the same names.

  Args:
    parent: the module under whose scope the parameters live (called inside its compact method).
    make: a block's constructor, which takes `name=`; a block is called as block(x, *arrays, *static).
    name: its name with a place for the layer's number.
    depth: how many.
    x: what flows through.
    static: further arguments that are no arrays.
    arrays: further arguments that are arrays, the same for every layer.
    remat: see `Encoder`.
    scan: see `Encoder`.
    dropout: whether the blocks draw dropout keys.
  """
  if parent.is_initializing():
    for i in range(depth):
      x = make(name=name.format(i))(x, *arrays, *static)
    return x
  params = [parent.get_variable("params", name.format(i)) for i in range(depth)]
  if any(layer is None for layer in params):
    missing = name.format(params.index(None))
    raise KeyError(f"no parameters for '{'/'.join((*parent.path, missing))}'")
  keys = list(jax.random.split(parent.make_rng("dropout"), depth)) if dropout else [None] * depth
  block = make(parent=None)

  def run(x, layer, key, arrays):
    return block.apply({"params": layer}, x, *arrays, *static, rngs={} if key is None else {"dropout": key})

  run = rematerialize(run, remat, scan)
  if scan and depth > 1:
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    stacked_keys = jnp.stack(keys) if dropout else None
    return loops.scan(lambda x, layer: (run(x, *layer, arrays), None), x, (stacked, stacked_keys))[0]
  for layer, key in zip(params, keys):
    x = run(x, layer, key, arrays)
  return x


def rematerialize(function: Callable, remat: str, scan: bool) -> Callable:
  """`function` with the chosen part of its forward pass computed again in the backward pass (names in `REMAT`)."""
  if remat == "none":
    return function
  policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
  # Inside a scan the loop itself keeps the compiler from merging the two passes.
  return jax.checkpoint(function, policy=policy, prevent_cse=not scan)


def sincos_2d(grid: tuple[int, int], width: int, max_period: float = 10_000.0) -> Array:
  """(1, gh * gw, D) fixed position embedding: [sin x, cos x, sin y, cos y] with D / 4 frequencies each."""
  frequency = max_period ** (-jnp.arange(width // 4) / (width // 4 - 1))
  y, x = jnp.mgrid[:grid[0], :grid[1]]
  x, y = (axis.reshape(-1, 1) * frequency for axis in (x, y))
  return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=-1)[None]


def position_embedding(module: nn.Module, name: str, grid: tuple[int, int], width: int, kind: str) -> Array:
  """(1, N, D) position embedding: learned under `name` of the calling compact module, or fixed ("sincos2d")."""
  if kind == "sincos2d":
    return sincos_2d(grid, width)
  return module.param(name, nn.initializers.normal(width ** -0.5), (1, grid[0] * grid[1], width))
