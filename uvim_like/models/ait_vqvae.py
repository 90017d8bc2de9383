"""AiT's tokenizer (arXiv 2301.02229, section 3.1): a small convolutional VQ-VAE of one map, without image context.

Strided 4x4 convolutions halve the map log2(ratio) times and double the width, residual blocks follow, a 1x1 convolution
leads to the codewords; the decoder mirrors this. Names beside those of the released checkpoints are in
`systems/ait/pretrained.py`. B batch, H W pixels, h w = H W / ratio, C codeword width, K words.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like.ops import quantize

Array = jax.Array
NHWC = ("NHWC", "HWIO", "NHWC")  # axes of maps, kernels, maps


class Code(NamedTuple):
  """What the encoder writes.

  Attributes:
    z: (B, h, w, C) vectors before quantisation.
    quantized: (B, h, w, C) words, with the gradient passed straight through to z.
    code: (B, h, w) int32 words.
  """
  z: Array
  quantized: Array
  code: Array


def uniform_fan_in(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, *, fan_in: int) -> Array:
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what the released tokenizers' weights and biases started from."""
  bound = fan_in ** -0.5
  return jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
  """Convolution with symmetric padding and the release's initial values, bias included."""
  features: int
  kernel_size: int
  stride: int = 1
  padding: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    fan_in = x.shape[-1] * self.kernel_size ** 2
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    init = functools.partial(uniform_fan_in, fan_in=fan_in)
    kernel, bias = self.param("kernel", init, shape), self.param("bias", init, shape[-1:])
    x, kernel, bias = (array.astype(self.dtype) for array in (x, kernel, bias))
    if shape[:3] == (4, 4, 1) and (self.stride, self.padding) == (2, 1):
      return halve_one_channel(x, kernel) + bias
    return jax.lax.conv_general_dilated(x, kernel, (self.stride,) * 2, [(self.padding,) * 2] * 2,
                                        dimension_numbers=NHWC) + bias


def halve_one_channel(x: Array, kernel: Array) -> Array:
  """The strided convolution of (B, 2h, 2w, 1) with a kernel (4, 4, 1, out), padded by 1: (B, h, w, out).

  As one product of all 4x4 patches with the kernel: on CPU a third of the convolution's time (480 pixels, batch 4: 4.9
  ms of one core against 15.3), which would see one channel at a time.
  """
  batch, height, width, _ = x.shape
  cells = jnp.pad(x[..., 0], ((0, 0), (1, 1), (1, 1))).reshape(batch, height // 2 + 1, 2, width // 2 + 1, 2)
  cells = cells.swapaxes(2, 3).reshape(batch, height // 2 + 1, width // 2 + 1, 4)  # 2x2 pixels each
  patches = jnp.concatenate([cells[:, a:a + height // 2, b:b + width // 2] for a in (0, 1) for b in (0, 1)], axis=-1)
  matrix = kernel.reshape(2, 2, 2, 2, -1).swapaxes(1, 2).reshape(16, -1)  # cell y, cell x, pixel y, pixel x
  return patches @ matrix


class UpConv(nn.Module):
  """Transposed 4x4 convolution of stride 2 and padding 1: doubles both sides.

  `kernel` (4, 4, in, out) is that of a convolution over the input with zeros between its pixels, padded by 2 (a torch
  kernel with both spatial axes flipped). Each output parity uses a 2x2 part of it, so no zero is multiplied.
  """
  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, then: Callable[[Array], Array] = nn.relu) -> Array:
    """(B, h, w, in) to (B, 2h, 2w, features), or the channels of `then`, which acts on every pixel by itself."""
    shape, fan_in = (4, 4, x.shape[-1], self.features), self.features * 16  # fan_in as torch counts it here
    init = functools.partial(uniform_fan_in, fan_in=fan_in)
    kernel, bias = self.param("kernel", init, shape), self.param("bias", init, shape[-1:])
    x, kernel, bias = (array.astype(self.dtype) for array in (x, kernel, bias))
    return transposed_conv(x, kernel, lambda y: then(y + bias))


def transposed_conv(x: Array, kernel: Array, then: Callable[[Array], Array] = lambda y: y) -> Array:
  """(B, h, w, in) to (B, 2h, 2w, out); see `UpConv` for the kernel (4, 4, in, out).

  One 2x2 convolution for each parity of the output's row and column: on CPU five times as fast forward as one over the
  dilated input, and ten times backward (32 -> 16 channels at 32 pixels, batch 32: 36 ms against 366 ms for gradients).

  Args:
    x: the map.
    kernel: see `UpConv`.
    then: what is done to every pixel of the result by itself, here before the four parts are put together, which at
      full size takes as long as the convolutions if all channels are still there.
  """
  batch, height, width, _ = x.shape
  rows = [jnp.stack([then(jax.lax.conv_general_dilated(
      x, kernel[a::2, b::2], (1, 1), [(1 - a, a), (1 - b, b)], dimension_numbers=NHWC))
      for b in (0, 1)], axis=3) for a in (0, 1)]  # (B, h, w, parity x, out) for each parity of y
  return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


class ResBlock(nn.Module):
  """x + conv1(relu(conv3(relu(conv3(x))))), all of x's width; nothing after the sum."""
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = x.shape[-1]
    y = nn.relu(Conv(width, 3, padding=1, dtype=self.dtype, name="conv0")(x))
    y = nn.relu(Conv(width, 3, padding=1, dtype=self.dtype, name="conv1")(y))
    return x + Conv(width, 1, dtype=self.dtype, name="conv2")(y)


class Encoder(nn.Module):
  """(B, H, W, c) to (B, h, w, codeword_dim)."""
  widths: tuple[int, ...]
  num_res_blocks: int
  codeword_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for i, width in enumerate(self.widths):
      x = nn.relu(Conv(width, 4, stride=2, padding=1, dtype=self.dtype, name=f"down{i}")(x))
    for i in range(self.num_res_blocks):
      x = ResBlock(self.dtype, name=f"res{i}")(x)
    return Conv(self.codeword_dim, 1, dtype=self.dtype, name="to_code")(x)


class Decoder(nn.Module):
  """(B, h, w, codeword_dim) to (B, H, W, channels); the first transposed convolution keeps the width."""
  widths: tuple[int, ...]
  num_res_blocks: int
  channels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = nn.relu(Conv(self.widths[-1], 1, dtype=self.dtype, name="from_code")(x))
    for i in range(self.num_res_blocks):
      x = ResBlock(self.dtype, name=f"res{i}")(x)
    out = Conv(self.channels, 1, dtype=self.dtype, name="out")
    *widths, last = self.widths[::-1]
    for i, width in enumerate(widths):
      x = UpConv(width, self.dtype, name=f"up{i}")(x)
    return UpConv(last, self.dtype, name=f"up{len(widths)}")(x, lambda y: out(nn.relu(y)))


class Model(nn.Module):
  """Encoder, codebook, decoder; the fields are the config's `model` block.

  Attributes:
    input_size: (H, W) pixels in training; both multiples of `ratio`. Other sizes are encoded as well.
    ratio: pixels of a token's side, a power of two (depth 32, masks 16).
    first_width: channels after the first convolution; each further one doubles them.
    num_res_blocks: in the encoder and in the decoder.
    dict_size: K.
    codeword_dim: C.
    classes: 0 for a map of numbers; else labels 1..classes (0 is void) come in as integers, and logits go out.
    signed: the map is in [0, 1] and is handled as [-1, 1] inside (masks); raw numbers otherwise (metres).
    dict_decay: of the moving averages.
    dict_reset: a word whose smoothed count falls below this shares the most used word; 0, the release, never does.
    mask_ratio: share of the patches of the input hidden in training (depth 0.5).
    mask_patch: pixels a side of such a patch.
  """
  input_size: tuple[int, int]
  ratio: int = 32
  first_width: int = 16
  num_res_blocks: int = 2
  dict_size: int = 128
  codeword_dim: int = 512
  classes: int = 0
  signed: bool = False
  dict_decay: float = 0.99
  dict_reset: float = 0.0
  mask_ratio: float = 0.0
  mask_patch: int = 16
  dtype: Any = jnp.float32
  remat: str = "none"
  scan_layers: bool = False

  @property
  def widths(self) -> tuple[int, ...]:
    """Channels after each strided convolution."""
    return tuple(self.first_width * 2 ** i for i in range(int(math.log2(self.ratio))))

  @property
  def grid(self) -> tuple[int, int]:
    """(h, w) tokens of a map of `input_size`."""
    return self.input_size[0] // self.ratio, self.input_size[1] // self.ratio

  @property
  def code_len(self) -> int:
    """Tokens of a map of `input_size`."""
    return math.prod(self.grid)

  def setup(self):
    self.encoder = Encoder(self.widths, self.num_res_blocks, self.codeword_dim, self.dtype)
    self.decoder = Decoder(self.widths, self.num_res_blocks, self.classes or 1, self.dtype)
    if self.classes:
      self.embed = nn.Embed(self.classes + 1, self.first_width, dtype=self.dtype)
    shape = (self.dict_size, self.codeword_dim)
    self.dictionary = self.variable("state", "dictionary", lambda: jax.random.normal(self.make_rng("state"), shape))
    self.sums = self.variable("state", "sums", lambda: jax.random.normal(self.make_rng("state"), shape))
    self.counts = self.variable("state", "counts", lambda: jnp.zeros(shape[:1]))

  def encode(self, x: Array) -> Code:
    """A map (B, H, W, 1), numbers or integer labels, to its code."""
    if self.classes:
      x = self.embed(jnp.clip(x[..., 0], 0, self.classes))
    elif self.signed:
      x = 2 * x - 1
    z = self.encoder(x).astype(jnp.float32)
    code = quantize.nearest(jax.lax.stop_gradient(z), self.dictionary.value).astype(jnp.int32)
    return Code(z, quantize.straight_through(z, jnp.take(self.dictionary.value, code, axis=0)), code)

  def decode(self, code: Array) -> Array:
    """A code (B, h, w) int, or vectors (B, h, w, C), to (B, H, W, 1) in the map's own range, or logits (…, classes)."""
    if jnp.issubdtype(code.dtype, jnp.integer):
      code = jnp.take(self.dictionary.value, code, axis=0)
    y = self.decoder(code).astype(jnp.float32)
    return 0.5 * y + 0.5 if self.signed else y

  def decode_soft(self, logits: Array, temperature: float = 1.0) -> Array:
    """Logits (B, h, w, K) of a code to the map of their mixture of words: softmax(temperature * logits) @ dictionary.

    The name of the factor is the paper's tau: it multiplies, so that 0 mixes all words equally (0.8 for depth).
    """
    return self.decode(jax.nn.softmax(temperature * logits.astype(jnp.float32), axis=-1) @ self.dictionary.value)

  def __call__(self, x: Array) -> tuple[Array, Code]:
    """Both ways: (map of the quantised code, code)."""
    code = self.encode(x)
    return self.decode(code.quantized), code
