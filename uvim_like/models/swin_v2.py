"""SwinV2 (arXiv 2111.09883) as in AiT and in the hub: cosine attention, position bias from a 2-layer MLP, post-norm."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uvim_like.models.backbone_parts import Mlp, layer_norm, weight_init
from uvim_like.models.norms import DropPath
from uvim_like.models.window import WindowBackbone, attend, expand_table, in_windows, split_heads
from uvim_like.ops.constraint import constrain_batch

Array = jax.Array
Dtype = Any
MAX_SCALE = math.log(100.0)  # of the log of the factor on cosines
BIAS_RANGE = 16.0  # position biases lie between 0 and this


def log_offsets(window: int, pretrain_window: int) -> np.ndarray:
  """(2w - 1, 2w - 1, 2) offsets (dy, dx) on the logarithmic scale of the paper's eq. 4, 8 the largest in pre-training.

  Args:
    window: w.
    pretrain_window: what offsets are relative to; 0 for `window` itself.
  """
  steps = np.arange(1 - window, window, dtype=np.float64)
  scaled = 8 * steps / max((pretrain_window or window) - 1, 1)
  logs = np.sign(scaled) * np.log2(np.abs(scaled) + 1) / np.log2(8)
  return np.stack(np.meshgrid(logs, logs, indexing="ij"), -1).astype(np.float32)


def normalize(x: Array, epsilon: float, *, add: bool) -> Array:
  """x over its last axis' length, in float32; epsilon is added to the length (AiT) or is its least value (the hub)."""
  x = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x), -1, keepdims=True)
  # A zero vector (padding) must give zero and a zero gradient: the root's own gradient there is infinite.
  length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
  return x / (length + epsilon if add else jnp.maximum(length, epsilon))


class PositionBias(nn.Module):
  """Bias of each pair of tokens in a window from their offset: 16 sigmoid(fc2(relu(fc1(log offset)))); float32."""
  num_heads: int
  window: int
  pretrain_window: int
  hidden: int = 512

  @nn.compact
  def __call__(self) -> Array:
    """(heads, window * window, window * window); a function of the parameters alone."""
    x = nn.relu(nn.Dense(self.hidden, kernel_init=weight_init, name="fc1")(
        log_offsets(self.window, self.pretrain_window)))
    x = nn.Dense(self.num_heads, use_bias=False, kernel_init=weight_init, name="fc2")(x)
    return expand_table(BIAS_RANGE * jax.nn.sigmoid(x.transpose(2, 0, 1)))


class CosineAttention(nn.Module):
  """Cosine attention inside windows; queries and values have a bias ("q_bias", "v_bias"), keys have none.

  Attributes:
    norm_epsilon: of `normalize`.
    norm_add: of `normalize`.
  """
  num_heads: int
  window: int
  pretrain_window: int
  position_hidden: int
  norm_epsilon: float
  norm_add: bool
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, regions: np.ndarray | None) -> Array:
    """(B, n, T, C) to the same shape; regions as in `attend`."""
    c = x.shape[-1]
    q_bias, v_bias = (self.param(name, nn.initializers.zeros, (c,), jnp.float32) for name in ("q_bias", "v_bias"))
    qkv = nn.Dense(3 * c, use_bias=False, kernel_init=weight_init, dtype=self.dtype, name="qkv")(x)
    qkv = qkv + jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias]).astype(self.dtype)
    query, key, value = split_heads(qkv, self.num_heads)
    query, key = (normalize(a, self.norm_epsilon, add=self.norm_add).astype(self.dtype) for a in (query, key))
    log_scale = self.param("logit_scale", nn.initializers.constant(math.log(10.0)), (self.num_heads,), jnp.float32)
    scale = jnp.exp(jnp.minimum(log_scale, MAX_SCALE))[:, None, None]
    bias = PositionBias(self.num_heads, self.window, self.pretrain_window, self.position_hidden, name="position")()
    out = attend(query, key, value, scale=scale, bias=bias, regions=regions)
    return nn.Dense(c, kernel_init=weight_init, dtype=self.dtype, name="proj")(out)


class Block(nn.Module):
  """x += norm(attention(x)) in windows; x += norm(mlp(x))."""
  num_heads: int
  window: int
  shift: int
  hidden: int
  pretrain_window: int
  position_hidden: int
  norm_epsilon: float
  norm_add: bool
  epsilon: float
  drop_rate: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    attention = CosineAttention(self.num_heads, self.window, self.pretrain_window, self.position_hidden,
                                self.norm_epsilon, self.norm_add, self.dtype, name="attn")
    y = in_windows(attention, x, window=self.window, shift=self.shift)
    x = x + DropPath(self.drop_rate, name="drop1")(layer_norm(self.epsilon, self.dtype, "norm1")(y), train)
    y = layer_norm(self.epsilon, self.dtype, "norm2")(Mlp(self.hidden, self.dtype, name="mlp")(x))
    return constrain_batch(x + DropPath(self.drop_rate, name="drop2")(y, train))


class SwinV2(WindowBackbone):
  """SwinV2-B as AiT's depth solver has it by default: windows 30, 30, 30, 15, shifted in the first two stages.

  Attributes:
    pretrain_window: window a stage in pre-training, see `log_offsets`; one number is for all, 0 is the window itself.
    position_hidden: hidden width of the position MLP.
    norm_epsilon: of the length of queries and keys.
    norm_add: that epsilon is added to the length (AiT); else it is the least length (the hub's models, 1e-12).
  """
  window_size: int | tuple[int, ...] = (30, 30, 30, 15)
  use_shift: bool | tuple[bool, ...] = (True, True, False, False)
  epsilon: float = 1e-6
  pretrain_window: int | tuple[int, ...] = (12, 12, 12, 6)
  position_hidden: int = 512
  norm_epsilon: float = 5e-5
  norm_add: bool = True

  block_class = Block
  norm_first = False

  def own_fields(self, stage: int) -> dict[str, Any]:
    """See `WindowBackbone`."""
    return {"pretrain_window": self.a_stage(self.pretrain_window, stage), "position_hidden": self.position_hidden,
            "norm_epsilon": self.norm_epsilon, "norm_add": self.norm_add}
