"""What Swin and SwinV2 share: window partition, cyclic shift, relative position tables, patch merging, the stages."""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uvim_like.models.backbone_parts import PatchEmbed, layer_norm, pad_to_multiple, recomputed, weight_init
from uvim_like.models.norms import drop_rates

Array = jax.Array
Dtype = Any
HIDDEN = -100.0  # added to the logits of pairs that the cyclic shift brought together (arXiv 2103.14030, code)


def partition(x: Array, window: int) -> Array:
  """(B, H, W, C), sides multiples of `window`, to (B, n, window * window, C) windows in row-major order."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // window, window, w // window, window, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, window * window, c)


def unpartition(x: Array, window: int, size: tuple[int, int]) -> Array:
  """The inverse of `partition`: (B, n, window * window, C) to (B, H, W, C)."""
  h, w = size
  x = x.reshape(x.shape[0], h // window, w // window, window, window, x.shape[-1])
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], h, w, -1)


def shift_regions(size: tuple[int, int], window: int, shift: int) -> np.ndarray:
  """(n, window * window) number of the part of the image that each token of a shifted map comes from.

  A window at the lower or right edge holds tokens from opposite sides of the image; they may not see each other.

  Args:
    size: (H, W) of the map, multiples of `window`.
    window: side of a window.
    shift: by how much the map was rolled up and left.
  """
  def along(length):
    position = np.arange(length)
    return (position >= length - window).astype(np.int32) + (position >= length - shift)

  regions = 3 * along(size[0])[:, None] + along(size[1])[None]
  return np.asarray(regions.reshape(size[0] // window, window, size[1] // window, window)
                    .transpose(0, 2, 1, 3).reshape(-1, window * window))


def in_windows(attention: Callable[[Array, np.ndarray | None], Array], x: Array, *, window: int, shift: int) -> Array:
  """Attention inside windows of a map, cyclically shifted; padded with zeros (not masked) up to whole windows.

  Args:
    attention: (windows (B, n, T, C), regions (n, T) or None) -> (B, n, T, C).
    x: (B, H, W, C).
    window: side of a window.
    shift: 0 for none.
  """
  h, w = x.shape[1:3]
  x = pad_to_multiple(x, window)
  size = x.shape[1:3]
  if shift:
    x = jnp.roll(x, (-shift, -shift), (1, 2))
  x = attention(partition(x, window), shift_regions(size, window, shift) if shift else None)
  x = unpartition(x, window, size)
  if shift:
    x = jnp.roll(x, (shift, shift), (1, 2))
  return x[:, :h, :w]


def attend(query: Array, key: Array, value: Array, *, scale: Array | float, bias: Array,
           regions: np.ndarray | None) -> Array:
  """softmax(scale * q k + bias) v inside each window; logits and softmax are float32.

  Args:
    query: (B, n, heads, T, d), as are key and value; see `split_heads`.
    scale: number, or (heads, 1, 1).
    bias: (heads, T, T).
    regions: (n, T), see `shift_regions`.

  Returns:
    (B, n, T, heads * d).
  """
  logits = jnp.einsum("bnhqd,bnhkd->bnhqk", query, key, preferred_element_type=jnp.float32) * scale + bias
  if regions is not None:
    part = jax.lax.optimization_barrier(jnp.asarray(regions))  # else the compiler writes out the (n, T, T) mask
    apart = part[:, :, None] != part[:, None, :]
    logits = logits + jnp.where(apart, HIDDEN, 0.0)[:, None]
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  out = jnp.einsum("bnhqk,bnhkd->bnhqd", weights, value).transpose(0, 1, 3, 2, 4)
  return out.reshape(*out.shape[:3], -1)


def split_heads(qkv: Array, num_heads: int) -> tuple[Array, Array, Array]:
  """(B, n, T, 3 C) to query, key and value (B, n, heads, T, d).

  Heads before tokens from the start: left to the compiler, attention takes twice the time on CPU (138 ms against 67 ms
  for 4 windows of 900 tokens and 4 heads).
  """
  b, n, t, _ = qkv.shape
  query, key, value = qkv.reshape(b, n, t, 3, num_heads, -1).transpose(3, 0, 1, 4, 2, 5)
  return query, key, value


def expand_table(table: Array) -> Array:
  """A table over offsets as a matrix over pairs: out[h, q, k] = table[h, qy - ky + w - 1, qx - kx + w - 1].

  A gather: on two CPU cores, for 16 heads and windows of 30, 67 ms against 170 ms for forms by slices or reshapes.

  Args:
    table: (heads, 2w - 1, 2w - 1), rows are vertical offsets (query minus key).

  Returns:
    (heads, w * w, w * w).
  """
  side = table.shape[1]
  w = (side + 1) // 2
  place = jax.lax.optimization_barrier(jnp.asarray((np.arange(w)[:, None] * side + np.arange(w)).reshape(-1)))
  index = place[:, None] - place + (w - 1) * (side + 1)
  return table.reshape(table.shape[0], -1).at[:, index].get(mode="promise_in_bounds")


class Merge(nn.Module):
  """Patch merging: 2x2 neighbours side by side, "reduction" to twice the width without bias, LayerNorm "norm".

  Attributes:
    norm_first: LayerNorm before the reduction (Swin) or after it (SwinV2).
    epsilon: of the norm.
  """
  norm_first: bool
  epsilon: float
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 2C); odd sides are padded with zeros."""
    x = pad_to_multiple(x, 2)
    b, h, w, c = x.shape
    # Channel order of the checkpoints: (even row, even column), (odd, even), (even, odd), (odd, odd).
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)
    norm = layer_norm(self.epsilon, self.dtype, "norm")
    dense = nn.Dense(2 * c, use_bias=False, kernel_init=weight_init, dtype=self.dtype, name="reduction")
    return dense(norm(x)) if self.norm_first else norm(dense(x))


class WindowBackbone(nn.Module):
  """Patch embedding and stages of window-attention blocks; a subclass names its block and where merging normalises.

  Attributes:
    block_class: a block; takes the fields that `make_block` gives it.
    norm_first: see `Merge`.
    width: channels of the first stage; each further one has twice as many.
    depths: blocks a stage.
    num_heads: heads a stage.
    window_size: side of the windows a stage; one number is for all.
    use_shift: whether odd blocks shift their windows, a stage; one value is for all.
    mlp_ratio: hidden width of the MLPs over their width.
    patch: side of a patch.
    epsilon: of all LayerNorms.
    out_norms: stages whose feature map passes a LayerNorm "norm<stage>" on its way out.
    drop_path: rate at the last block, rising linearly from 0 at the first.
    remat: "none", "dots" or "full".
  """
  block_class: ClassVar[type[nn.Module]]
  norm_first: ClassVar[bool]

  width: int = 128
  depths: tuple[int, ...] = (2, 2, 18, 2)
  num_heads: tuple[int, ...] = (4, 8, 16, 32)
  window_size: int | tuple[int, ...] = 12
  use_shift: bool | tuple[bool, ...] = True
  mlp_ratio: float = 4.0
  patch: int = 4
  epsilon: float = 1e-5
  out_norms: tuple[int, ...] = (3,)
  drop_path: float = 0.0
  dtype: Dtype = jnp.float32
  remat: str = "none"

  @property
  def strides(self) -> tuple[int, ...]:
    """Of each feature map."""
    return tuple(self.patch * 2 ** i for i in range(len(self.depths)))

  def a_stage(self, value: Any, stage: int) -> Any:
    """The value of a field that is given for each stage or once for all."""
    return value[stage] if isinstance(value, tuple) else value

  def own_fields(self, stage: int) -> dict[str, Any]:
    """Fields of a stage's blocks beyond those that every block has; none by default."""
    del stage
    return {}

  def make_block(self, block: type[nn.Module], stage: int, index: int, rate: float, name: str) -> nn.Module:
    """One block of a stage; `block` is `block_class` or its recomputed form."""
    window = self.a_stage(self.window_size, stage)
    shift = window // 2 if index % 2 and self.a_stage(self.use_shift, stage) else 0
    return block(num_heads=self.num_heads[stage], window=window, shift=shift,
                 hidden=int(self.mlp_ratio * self.width * 2 ** stage), epsilon=self.epsilon, drop_rate=rate,
                 dtype=self.dtype, name=name, **self.own_fields(stage))

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> tuple[Array, ...]:
    """(B, H, W, 3) normalised image, of any size, to one map (B, h, w, C) a stage."""
    block = recomputed(self.block_class, self.remat)
    x = PatchEmbed(self.width, self.patch, self.epsilon, self.dtype, name="patch_embed")(image)
    features = []
    for s, rates in enumerate(drop_rates(self.depths, self.drop_path)):
      if s:
        x = Merge(self.norm_first, self.epsilon, self.dtype, name=f"merge{s}")(x)
      for b, rate in enumerate(rates):
        x = self.make_block(block, s, b, rate, f"stage{s}_block{b}")(x, train)
      features.append(layer_norm(self.epsilon, self.dtype, f"norm{s}")(x) if s in self.out_norms else x)
    return tuple(features)
