"""Resizing pictures as tf.image does, in jnp: exported models see the pixels that the training's input pipeline made.

The order of the sums and every rounding are TensorFlow's: a resized uint8 picture is cut off to whole levels, so that
one last bit can be a whole level. Sizes may be unknown until the call (the exporter's symbolic dimensions): a picture
then fills the upper left part of a larger array, and its sides are traced integers.

Legend: B batch, H W pixels of an array, h w pixels of the picture in it, C channels, n new positions along a side.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Side = int | Array   # pixels of a picture along an axis: a number, or a traced int32


class Axis(NamedTuple):
  """One axis of a resize.

  Attributes:
    old: pixels of the picture before.
    new: and after.
    length: of the new array, `new` or more; positions behind `new` hold nothing of use.
  """
  old: Side
  new: Side
  length: int


def side(x: Array, axis: int) -> Side:
  """Length of an axis as a number, or as a traced integer where the exporter leaves it open."""
  return x.shape[axis] if isinstance(x.shape[axis], int) else jnp.asarray(x.shape[axis], jnp.int32)


def rounded(x: Array) -> Array:
  """x itself, kept apart from a sum that follows: compilers fuse a * b + c, which then has one rounding less."""
  return jnp.minimum(x, jnp.finfo(jnp.float32).max) if isinstance(x, jax.Array) else x


def divide(a: Side | float, b: Side | float) -> Any:
  """float32 a / b, rounded once; compilers make a product of a division by a constant, which rounds twice."""
  if _known(a, b):
    return np.float32(a) / np.float32(b)
  a, b = (jnp.asarray(x).astype(jnp.float32) for x in (a, b))
  return a / jnp.where(a > 0, b, 1.0)


def _known(*sides: Any) -> bool:
  return not any(isinstance(x, jax.Array) for x in sides)


def _library(*sides: Any) -> Any:
  """numpy where everything is known, so that positions and weights are constants of the compiled program."""
  return np if _known(*sides) else jnp


def _pick(x: Array, index: Any, axis: int) -> Array:
  return jnp.take(x, jnp.asarray(index, jnp.int32), axis=axis, mode="clip")


def _along(values: Any, axis: int) -> Array:
  """(n,) as factors of an axis of (B, H, W, C)."""
  return jnp.asarray(values).reshape([-1 if i == axis else 1 for i in range(4)])


def _to_float(x: Array) -> Array:
  return x.astype(jnp.float32)


# --- nearest, bilinear ------------------------------------------------------------------------------------------------


def nearest(x: Array, rows: Axis, columns: Axis) -> Array:
  """x (B, H, W, C) -> (B, rows.length, columns.length, C): pixel i shows floor((i + 1/2) old / new)."""
  for axis, a in ((1, rows), (2, columns)):
    xp = _library(a.old, a.new)
    place = (xp.arange(a.length, dtype=np.float32) + np.float32(0.5)) * divide(a.old, a.new)
    x = _pick(x, xp.minimum(xp.floor(place).astype(np.int32), a.old - 1), axis)
  return x


def bilinear(x: Array, rows: Axis, columns: Axis) -> Array:
  """x (B, H, W, C) -> float32 (B, rows.length, columns.length, C), half-pixel centres, no antialiasing."""
  above, below, down = _neighbours(rows)
  left, right, across = _neighbours(columns)
  across, down = _along(across, 2), _along(down, 1)

  def blend(row):
    first, second = (_to_float(_pick(row, index, 2)) for index in (left, right))
    return first + rounded((second - first) * across)

  top, bottom = (blend(_pick(x, index, 1)) for index in (above, below))
  return top + rounded((bottom - top) * down)


def _neighbours(axis: Axis) -> tuple[Any, Any, Any]:
  """(n,) each: positions of the two neighbours and the share of the second."""
  xp = _library(axis.old, axis.new)
  centre = (xp.arange(axis.length, dtype=np.float32) + np.float32(0.5)) * divide(axis.old, axis.new)
  place = rounded(centre) - np.float32(0.5)
  floor = xp.floor(place)
  last = axis.old - 1
  high = xp.minimum(xp.ceil(place).astype(np.int32), last)
  low = xp.minimum(xp.maximum(floor.astype(np.int32), 0), high)
  return low, high, (place - floor).astype(np.float32)


# --- sums over several neighbours -------------------------------------------------------------------------------------

Weight = Callable[[Any], tuple[Array, Array]]  # number of a neighbour -> (positions (n,), weights (n,))


def _summed(x: Array, axis: int, taps: Side, weight: Weight, length: int) -> Array:
  """Sum over the first `taps` neighbours along an axis, one after the other, as the loops of TensorFlow's kernels."""
  shape = [length if i == axis else size for i, size in enumerate(x.shape)]

  def add(tap, total):
    index, factor = weight(tap)
    return total + rounded(_to_float(_pick(x, index, axis)) * _along(factor, axis))

  return jax.lax.fori_loop(0, taps, add, jnp.zeros(shape, jnp.float32))


def area(x: Array, rows: Axis, columns: Axis) -> Array:
  """x (B, H, W, C) -> float32 (B, rows.length, columns.length, C): means over the area that each new pixel covers."""
  scales = [divide(a.old, a.new) for a in (rows, columns)]
  for axis, a, scale in ((2, columns, scales[1]), (1, rows, scales[0])):
    taps = _ceil(scale) + 1
    x = _summed(x, axis, taps, _area_weight(a, scale), a.length)
  return x * divide(1, scales[0] * scales[1])


def _area_weight(axis: Axis, scale: Any) -> Weight:
  """Share of each old pixel in the interval [i, i + 1) · scale of a new one."""
  number = jnp.arange(axis.length, dtype=jnp.float32)
  begin, end = rounded(number * scale), rounded((number + 1) * scale)

  def weight(tap):
    pixel = jnp.floor(begin) + tap
    inside = jnp.where(pixel + 1 > end, end - pixel, 1.0)
    share = jnp.where(pixel < begin, jnp.where(pixel + 1 > end, scale, pixel + 1 - begin), inside)
    return jnp.clip(pixel.astype(jnp.int32), 0, axis.old - 1), jnp.where(pixel < jnp.ceil(end), share, 0.0)
  return weight


def _ceil(x: Any) -> Side:
  return math.ceil(x) if _known(x) else jnp.ceil(x).astype(jnp.int32)


def _triangle(x: Array) -> Array:
  return jnp.maximum(1.0 - x, 0.0)


def _keys_cubic(x: Array) -> Array:
  near = rounded(rounded(rounded(1.5 * x) - 2.5) * x) * x + 1.0
  far = rounded(rounded(rounded(rounded(rounded(-0.5 * x) + 2.5) * x) - 4.0) * x) + 2.0
  return jnp.where(x >= 2, 0.0, jnp.where(x >= 1, far, near))


def _lanczos(x: Array, radius: float) -> Array:
  safe = jnp.where(x > 1e-3, x, 1.0)
  value = radius * jnp.sin(jnp.pi * safe) * jnp.sin(jnp.pi * safe / radius) / (jnp.pi * jnp.pi * safe * safe)
  return jnp.where(x > radius, 0.0, jnp.where(x <= 1e-3, 1.0, value))


KERNELS: dict[str, tuple[float, Callable[[Array], Array]]] = {   # method -> (radius, weight of a distance >= 0)
    "bilinear": (1.0, _triangle), "bicubic": (2.0, _keys_cubic),
    "lanczos3": (3.0, lambda x: _lanczos(x, 3.0)), "lanczos5": (5.0, lambda x: _lanczos(x, 5.0))}


def filtered(x: Array, rows: Axis, columns: Axis, *, method: str, antialias: bool) -> Array:
  """x (B, H, W, C) -> float32 (B, rows.length, columns.length, C), neighbours weighted by a kernel of `KERNELS`.

  With `antialias` the kernel widens where the picture shrinks, so that every old pixel counts.
  """
  radius, kernel = KERNELS[method]
  for axis, a in ((1, rows), (2, columns)):
    inverse = divide(1, divide(a.new, a.old))
    widened = _library(inverse).maximum(inverse, np.float32(1)) if antialias else np.float32(1)
    reach = radius * widened
    sample = (jnp.arange(a.length, dtype=jnp.float32) + 0.5) * inverse
    first = jnp.clip(jnp.ceil(sample - reach - 0.5), 0, a.old - 1)
    last = jnp.clip(jnp.floor(sample + reach - 0.5), 0, a.old - 1)
    taps, narrow = 2 * _ceil(reach) + 1, divide(1, widened)

    def raw(tap, first=first, last=last, sample=sample, narrow=narrow):
      pixel = first + tap
      return pixel, jnp.where(pixel <= last, kernel(jnp.abs((pixel + 0.5 - sample) * narrow)), 0.0)

    total = jax.lax.fori_loop(0, taps, lambda tap, total, raw=raw: total + raw(tap)[1], jnp.zeros(a.length))
    share = 1.0 / jnp.where(total == 0, 1.0, total)

    def weight(tap, raw=raw, share=share):
      pixel, value = raw(tap)
      return pixel.astype(jnp.int32), value * share

    x = _summed(x, axis, taps, weight, a.length)
  return x
