"""What the ops of evaluation strings do to a picture, in jnp: the same names and arguments as in `pp_ops`.

`uvim_like.ops.inputs` reads the strings. Random ops are not here: an evaluation has none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uvim_like.errors import UserError, suggest
from uvim_like.ops import resize as resizing
from uvim_like.ops.resize import Axis, Side

Array = jax.Array
DECODED = "image"   # the key under which the pixels come in
WHERE = "preprocessing"
NYU_SIZE, NYU_ROWS, NYU_COLUMNS = (480, 640), (54, 480), (41, 601)   # UViM's window, see pp_ops/uvim
LUMA = (0.2989, 0.5870, 0.1140)   # of tf.image.rgb_to_grayscale


class Picture(NamedTuple):
  """Pixels of a batch of pictures of one size.

  Attributes:
    pixels: (B, H, W, C).
    height: rows that the pictures fill of it, from the top; None: all.
    width: columns, from the left; None: all.
  """
  pixels: Array
  height: Side | None = None
  width: Side | None = None

  def side(self, axis: int) -> Side:
    """Height (0) or width (1) of the pictures."""
    given = (self.height, self.width)[axis]
    return resizing.side(self.pixels, axis + 1) if given is None else given


class State(NamedTuple):
  """What an op reads and returns.

  Attributes:
    pictures: {key: Picture} of everything that was made from the pixels.
    valid: (height, width) that the picture fills of a canvas; None before there is one.
  """
  pictures: Mapping[str, Picture]
  valid: tuple[Side, Side] | None = None



def pair(size: int | Sequence[int]) -> tuple[int, int]:
  """(height, width) of one number or two."""
  return (size, size) if isinstance(size, int) else tuple(size)


def with_picture(state: State, key: str, picture: Picture) -> State:
  """The state with one picture more, or another one."""
  return state._replace(pictures={**state.pictures, key: picture})


def _each(state: State, change: Callable[[Picture], Picture]) -> State:
  """Ops on whole examples move the pictures alike."""
  return state._replace(pictures={key: change(picture) for key, picture in state.pictures.items()})


def decode(x: Picture, channels: int = 3) -> Picture:
  """Pixels come decoded."""
  if channels != 3:
    raise UserError(f"{WHERE}: decode(channels={channels}): pictures of three channels are exported")
  return x


def resize(x: Picture, size: int | Sequence[int], method: str = "bilinear", antialias: bool = False) -> Picture:
  """To exactly `size`; whole levels are clipped and cut off, as `pp_ops` has it."""
  height, width = pair(size)
  if method == "bicubic" and not antialias:
    raise UserError(f"{WHERE}: resize(method='bicubic') is known with antialias=True only")
  return Picture(_cut_off(_resampled(x, (height, width), (height, width), method, antialias), x.pixels.dtype))


def _resampled(x: Picture, new: tuple[Side, Side], lengths: tuple[int, int], method: str, antialias: bool) -> Array:
  rows, columns = (Axis(x.side(i), new[i], lengths[i]) for i in range(2))
  if method == "nearest":
    return resizing.nearest(x.pixels, rows, columns)
  if method == "bilinear" and not antialias:
    return resizing.bilinear(x.pixels, rows, columns)
  if method == "area":
    return resizing.area(x.pixels, rows, columns)
  if method in resizing.KERNELS:
    return resizing.filtered(x.pixels, rows, columns, method=method, antialias=antialias)
  known = ("nearest", "area", *resizing.KERNELS)
  raise UserError(f"{WHERE}: resize(method='{method}') is not known to export; {suggest(method, known)}")


def _cut_off(values: Array, dtype: Any) -> Array:
  """Back to the pictures' type; whole numbers are clipped to its range and cut off."""
  if not jnp.issubdtype(dtype, jnp.integer) or values.dtype == dtype:
    return values.astype(dtype)
  info = jnp.iinfo(dtype)
  return jnp.clip(values, info.min, info.max).astype(dtype)


def value_range(x: Picture, vmin: float = -1, vmax: float = 1, in_min: float = 0, in_max: float = 255,
                clip_values: bool = False) -> Picture:
  """float32, [in_min, in_max] mapped linearly to [vmin, vmax]."""
  unit = (x.pixels.astype(jnp.float32) - in_min) / jnp.float32(in_max - in_min)
  out = vmin + unit * (vmax - vmin)
  return x._replace(pixels=jnp.clip(out, vmin, vmax) if clip_values else out)


def cast(x: Picture, dtype: str) -> Picture:
  """Another number type."""
  return x._replace(pixels=x.pixels.astype(dtype))


def check_range(x: Picture, vmin: float | Sequence[float], vmax: float | Sequence[float],
                ignore: Sequence[float] = ()) -> Picture:
  """A check of the data: nothing to do here."""
  del vmin, vmax, ignore
  return x


def rgb_to_grayscale_to_rgb(x: Picture) -> Picture:
  """Luma in all three channels; whole numbers go through [0, 1] and are cut off, as tf.image does."""
  values, dtype = x.pixels, x.pixels.dtype
  whole = jnp.issubdtype(dtype, jnp.integer)
  most = jnp.float32(jnp.iinfo(dtype).max) if whole else jnp.float32(1)
  unit = values.astype(jnp.float32) * (1 / most)
  first, second, third = (resizing.rounded(unit[..., i] * jnp.float32(LUMA[i])) for i in range(3))
  grey = (first + second) + third
  if whole:
    grey = _cut_off(grey * (most + jnp.float32(0.5)), dtype)
  return x._replace(pixels=jnp.repeat(grey[..., None], 3, axis=-1))


def square_area_resize(x: Picture, size: int) -> Picture:
  """Centre square of the shorter side, means over areas, rounded: int32 (size, size, 3)."""
  height, width = x.side(0), x.side(1)
  least = np.minimum if isinstance(height, int) and isinstance(width, int) else jnp.minimum
  square = least(height, width)
  square = int(square) if least is np.minimum else square
  for axis, side in ((1, height), (2, width)):
    moved = jnp.arange(x.pixels.shape[axis]) + (side - square) // 2
    x = x._replace(pixels=jnp.take(x.pixels, moved, axis=axis, mode="clip"))
  rows = Axis(square, size, size)
  return Picture(jnp.round(resizing.area(x.pixels, rows, rows)).astype(jnp.int32))


def nyu_eval_crop(state: State) -> State:
  """The evaluated 426x560 pixels of NYU's 480x640."""
  def cut(x):
    if x.pixels.shape[1:3] != NYU_SIZE or x.height is not None:
      raise UserError(f"{WHERE}: nyu_eval_crop needs {NYU_SIZE[0]}x{NYU_SIZE[1]} pixels, not "
                      f"{x.pixels.shape[1]}x{x.pixels.shape[2]}")
    return Picture(x.pixels[:, slice(*NYU_ROWS), slice(*NYU_COLUMNS)])
  return _each(state, cut)


def crop_window(state: State, top: int, bottom: int, left: int, right: int) -> State:
  """Rows top..bottom and columns left..right, the ends not included."""
  def cut(x):
    if x.height is not None or not all(isinstance(side, int) for side in x.pixels.shape[1:3]) or (
        x.pixels.shape[1] < bottom or x.pixels.shape[2] < right):
      raise UserError(f"{WHERE}: crop_window needs at least {bottom}x{right} pixels, and their number known, not "
                      f"{x.pixels.shape[1]}x{x.pixels.shape[2]}")
    return Picture(x.pixels[:, top:bottom, left:right])
  return _each(state, cut)


def resize_all(state: State, size: int | Sequence[int], *, antialias: bool = False) -> State:
  """The whole example to exactly `size`."""
  return _each(state, lambda x: _moved(x, pair(size), pair(size), antialias))


def fit(state: State, size: int | Sequence[int], *, antialias: bool = False) -> State:
  """Scaled so that it just fits into `size`, sides in their ratio."""
  height, width = pair(size)
  return _each(state, lambda x: _scaled(x, _smaller(resizing.divide(height, x.side(0)),
                                                    resizing.divide(width, x.side(1))), (height, width), antialias))


def resize_short(state: State, size: int | Sequence[int], longest: int = 1333, *, antialias: bool = True) -> State:
  """The short edge to `size`, the long edge not above `longest`."""
  sizes = (size,) if isinstance(size, int) else tuple(size)
  if len(sizes) != 1:
    raise UserError(f"{WHERE}: resize_short({list(sizes)}) draws a size at random; an evaluation names one")

  def scale(x):
    height, width = x.side(0), x.side(1)
    larger = jnp.maximum if _traced(height, width) else max
    factor = _smaller(resizing.divide(sizes[0], _smaller(height, width)),
                      resizing.divide(longest, larger(height, width)))
    return _scaled(x, factor, (longest, longest), antialias)
  return _each(state, scale)


def _traced(*values: Any) -> bool:
  return any(isinstance(value, jax.Array) for value in values)


def _smaller(a: Any, b: Any) -> Any:
  return jnp.minimum(a, b) if _traced(a, b) else min(a, b)


def _scaled(x: Picture, factor: Any, most: tuple[int, int], antialias: bool) -> Picture:
  """By a factor that makes no side longer than `most`; sides are rounded, and are never below one pixel."""
  def grown(side):
    if _traced(side, factor):
      product = resizing.rounded(jnp.asarray(side).astype(jnp.float32) * factor)
      return jnp.maximum((product + 0.5).astype(jnp.int32), 1)
    return max(int(np.float32(side) * np.float32(factor) + np.float32(0.5)), 1)

  new = grown(x.side(0)), grown(x.side(1))
  return _moved(x, new, most if _traced(*new) else new, antialias)


def _moved(x: Picture, new: tuple[Side, Side], lengths: tuple[int, int], antialias: bool) -> Picture:
  """Resized as whole examples are: whole levels are rounded, not cut off."""
  values = _resampled(x, new, lengths, "bilinear", antialias)
  dtype = x.pixels.dtype
  values = _cut_off(jnp.round(values), dtype) if jnp.issubdtype(dtype, jnp.integer) else values.astype(dtype)
  return Picture(values, *new) if _traced(*new) else Picture(values)


def canvas(state: State, size: int | Sequence[int], value: float | Sequence[float] = 0) -> State:
  """Padded below and at the right to `size`; what the picture fills is kept."""
  height, width = pair(size)
  valid = tuple(state.pictures[DECODED].side(axis) for axis in range(2))
  if not _traced(*valid) and (valid[0] > height or valid[1] > width):
    raise UserError(f"{WHERE}: pictures of {valid[0]}x{valid[1]} pixels do not fit into canvas({height}, {width})")
  return _each(state, lambda x: _padded(x, (height, width), value))._replace(valid=valid)


def _padded(x: Picture, size: tuple[int, int], value: float | Sequence[float]) -> Picture:
  """On a canvas whose free pixels have `value`."""
  pixels = x.pixels
  for axis, length in ((1, size[0]), (2, size[1])):
    pixels = jnp.take(pixels, jnp.arange(length), axis=axis, mode="clip")
  inside = ((jnp.arange(size[0]) < x.side(0))[:, None] & (jnp.arange(size[1]) < x.side(1)))[..., None]
  fill = jnp.broadcast_to(jnp.asarray(value, jnp.float32), (pixels.shape[-1],)).astype(pixels.dtype)
  return Picture(jnp.where(inside, pixels, fill))


def copy(state: State, inkey: str, outkey: str) -> State:
  """A second name."""
  return with_picture(state, outkey, state.pictures[inkey]) if inkey in state.pictures else without(state, (outkey,))


def keep(state: State, *keys: str) -> State:
  """The named features only."""
  return without(state, [key for key in state.pictures if key not in keys])


def drop(state: State, *keys: str) -> State:
  """All but the named features."""
  return without(state, keys)


def without(state: State, keys: Sequence[str]) -> State:
  """The state less some of its pictures."""
  return state._replace(pictures={key: x for key, x in state.pictures.items() if key not in keys})


KEY_OPS = {f.__name__: f for f in (decode, resize, value_range, cast, check_range, rgb_to_grayscale_to_rgb,
                                   square_area_resize)}
STATE_OPS = {f.__name__: f for f in (nyu_eval_crop, crop_window, resize_all, fit, resize_short, canvas, copy, keep, drop)}
