"""Ops on pictures (H, W, C): decoding, geometry, colour. Values are those of tf.image, uint8 truncation included."""

import io
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from pp_ops.registry import Features, Op, features_op, key_op
from uvim_like.pictures import MAX_PIXELS, header_size

OPS: dict[str, Op] = {}


def sample_box(shape: tf.Tensor, seed: tf.Tensor, *, area: Sequence[float], aspect: Sequence[float]) -> tf.Tensor:
  """Random box in an image of `shape` (3,): float32 (2, 2) = ((y, x) begin, (h, w) size), relative to the sides.

  `area`: share of the image; `aspect`: width / height in pixels. The size is drawn before the place.
  """
  _, _, corners = tf.image.stateless_sample_distorted_bounding_box(
      shape, tf.zeros([1, 0, 4]), seed, min_object_covered=0.0, aspect_ratio_range=tuple(aspect),
      area_range=tuple(area), use_image_if_no_bounding_boxes=True)
  begin, end = corners[0, 0, :2], corners[0, 0, 2:]
  return tf.stack([begin, end - begin])


@key_op(OPS, decodes=True)
def decode(x: tf.Tensor, channels: int = 3) -> tf.Tensor:
  """JPEG, PNG, GIF (first frame) or BMP bytes -> uint8 (H, W, channels); decoded uint8 images pass through."""
  if x.dtype != tf.string:
    if x.dtype != tf.uint8 or x.shape.rank != 3:
      raise ValueError(f"decode needs encoded bytes or uint8 (H, W, C), not {x.dtype.name} {x.shape}")
    return x
  image = tf.io.decode_image(bounded(x), channels=channels, expand_animations=False)
  return tf.ensure_shape(image, [None, None, channels])


def bounded(x: tf.Tensor) -> tf.Tensor:
  """The encoded bytes themselves; an error when their header claims more than MAX_PIXELS, before anything is decoded."""
  pixels = tf.cond(tf.io.is_jpeg(x), lambda: _jpeg_pixels(x), lambda: _header_pixels(x))
  message = f"an image of more than MAX_PIXELS = {MAX_PIXELS:,} pixels by its header:"
  with tf.control_dependencies([tf.debugging.Assert(pixels <= MAX_PIXELS, [message, pixels])]):
    return tf.identity(x)


def _jpeg_pixels(x: tf.Tensor) -> tf.Tensor:
  return tf.reduce_prod(tf.cast(tf.image.extract_jpeg_shape(x), tf.int64)[:2])


def _header_pixels(x: tf.Tensor) -> tf.Tensor:
  """Of a PNG, GIF or BMP; 0 of anything else, which the decoder refuses."""
  head = tf.cast(tf.io.decode_raw(tf.strings.substr(x, 0, 26), tf.uint8), tf.int64)
  head = tf.pad(head, [[0, 26 - tf.shape(head)[0]]])

  def number(place: int, count: int, *, big: bool = False) -> tf.Tensor:
    order = range(count - 1, -1, -1) if big else range(count)
    return tf.reduce_sum(head[place:place + count] * tf.constant([256 ** i for i in order], tf.int64))

  def signed(value: tf.Tensor) -> tf.Tensor:   # the rows of a BMP may run upwards: a negative height
    return tf.abs(tf.where(value >= 2 ** 31, value - 2 ** 32, value))

  most = tf.constant(2 ** 31 - 1, tf.int64)  # of a side: the product must not overflow
  png = tf.minimum(number(20, 4, big=True), most) * tf.minimum(number(16, 4, big=True), most)
  bmp = signed(number(22, 4)) * signed(number(18, 4))
  plain = tf.where(head[0] == 0x89, png, tf.where(head[0] == ord("B"), bmp, tf.zeros_like(png)))
  return tf.cond(head[0] == ord("G"), lambda: _gif_pixels(x), lambda: plain)


def _gif_pixels(x: tf.Tensor) -> tf.Tensor:
  """The sizes of a GIF's frames are spread over the file: Python walks through it."""
  def walk(data) -> np.int64:
    size = header_size(io.BytesIO(np.asarray(data, object).item()))  # bytes in graphs, an array of one outside
    return np.int64(size.pixels if size else 0)
  return tf.ensure_shape(tf.numpy_function(walk, [x], tf.int64, stateful=False), [])


@key_op(OPS)
def resize(x: tf.Tensor, size: int | Sequence[int], method: str = "bilinear", antialias: bool = False) -> tf.Tensor:
  """(H, W, C) -> (*size, C), half-pixel centres; integers are clipped to their type's range and truncated."""
  size = (size, size) if isinstance(size, int) else tuple(size)
  if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size) or size[0] * size[1] > MAX_PIXELS:
    raise ValueError(f"size must be (height, width), whole numbers above 0, at most {MAX_PIXELS:,} pixels, not {size}")
  out = tf.image.resize(x, size, method, antialias=antialias)
  if x.dtype.is_integer and out.dtype != x.dtype:
    out = tf.clip_by_value(out, x.dtype.min, x.dtype.max)
  return tf.cast(out, x.dtype)


@key_op(OPS, reads=lambda a: (a["randkey"],))
def det_fliplr(x: tf.Tensor, randkey: str = "fliplr", *, features: Features) -> tf.Tensor:
  """Mirrors left-right if the number under `randkey` is above 0.5: the same draw serves image and labels."""
  return tf.cond(features[randkey] > 0.5, lambda: tf.reverse(x, [1]), lambda: x)


@key_op(OPS, random=True)
def flip_lr(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Mirrors left-right with probability one half."""
  return tf.cond(tf.random.stateless_uniform([], seed) < 0.5, lambda: tf.reverse(x, [1]), lambda: x)


@features_op(OPS, reads=lambda a: (a["inkey"],), writes=lambda a: (a["outkey"],), random=True)
def inception_box(features: Features, seed: tf.Tensor, *, area: Sequence[float] = (0.05, 1.0),
                  aspect: Sequence[float] = (0.75, 1.33), inkey: str = "image", outkey: str = "box") -> Features:
  """A random box of the image, for `crop_box`: `sample_box` under the key "box". Defaults: UViM's configs."""
  box = sample_box(tf.shape(features[inkey]), seed, area=area, aspect=aspect)
  return {**features, outkey: box}


@key_op(OPS, reads=lambda a: (a["boxkey"],))
def crop_box(x: tf.Tensor, boxkey: str = "box", *, features: Features) -> tf.Tensor:
  """Cuts the box out of (H, W, C): begin and size in pixels are truncated, per tensor.

  A box that truncates to nothing keeps one pixel: the definition leaves an empty image there, which cannot be resized.
  """
  shape = tf.cast(tf.shape(x)[:2], tf.float32)
  begin = tf.cast(features[boxkey][0] * shape, tf.int32)
  size = tf.maximum(tf.cast(features[boxkey][1] * shape, tf.int32), 1)
  crop = tf.slice(x, tf.concat([begin, [0]], 0), tf.concat([size, [-1]], 0))
  return tf.ensure_shape(crop, [None, None, x.shape[-1]])


@key_op(OPS, decodes=True, random=True)
def decode_jpeg_and_inception_crop(x: tf.Tensor, seed: tf.Tensor, size: int | None = None, area_min: float = 5,
                                   area_max: float = 100, ratio_min: float = 0.75, ratio_max: float = 1.33,
                                   method: str = "bilinear", antialias: bool = False) -> tf.Tensor:
  """Random box of area_min..area_max percent, decoded and resized to (size, size, 3); JPEGs decode only the box."""
  box = dict(area=(area_min / 100, area_max / 100), aspect=(ratio_min, ratio_max))
  if x.dtype == tf.string:
    x = bounded(x)
    crop = tf.cond(tf.io.is_jpeg(x), lambda: _decode_jpeg_box(x, seed, **box),
                   lambda: _pixels_box(decode(x), seed, **box))
  else:
    crop = _pixels_box(x, seed, **box)
  crop = tf.ensure_shape(crop, [None, None, 3])
  return crop if size is None else resize(crop, size, method, antialias)


def _pixel_box(shape: tf.Tensor, seed: tf.Tensor, **box: Sequence[float]) -> tuple[tf.Tensor, tf.Tensor]:
  """`sample_box` in pixels: begin (2,), size (2,); rounding undoes the division by the sides exactly."""
  pixels = tf.round(sample_box(shape, seed, **box) * tf.cast(shape[:2], tf.float32))
  return tf.unstack(tf.cast(pixels, tf.int32))


def _decode_jpeg_box(x: tf.Tensor, seed: tf.Tensor, **box: Sequence[float]) -> tf.Tensor:
  begin, size = _pixel_box(tf.image.extract_jpeg_shape(x), seed, **box)
  return tf.image.decode_and_crop_jpeg(x, tf.concat([begin, size], 0), channels=3)


def _pixels_box(image: tf.Tensor, seed: tf.Tensor, **box: Sequence[float]) -> tf.Tensor:
  begin, size = _pixel_box(tf.shape(image), seed, **box)
  return tf.slice(image, tf.concat([begin, [0]], 0), tf.concat([size, [-1]], 0))


@key_op(OPS)
def rgb_to_grayscale_to_rgb(x: tf.Tensor) -> tf.Tensor:
  """Luma (.2989, .587, .114) in all three channels; integers are truncated as tf.image does."""
  return tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(x))


@key_op(OPS)
def square_area_resize(x: tf.Tensor, size: int) -> tf.Tensor:
  """Centre square of the shorter side, area resize, rounded: int32 (size, size, C). ColTran's FID-5k protocol.

  `value_range(-1, 1, 0, 256)` afterwards is its x / 128 - 1.
  """
  side = tf.minimum(tf.shape(x)[0], tf.shape(x)[1])
  square = tf.image.resize_with_crop_or_pad(x, side, side)
  return tf.cast(tf.round(tf.image.resize(square, (size, size), "area")), tf.int32)
