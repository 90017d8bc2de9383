"""Ops that move image, label maps and objects together, and ops on the colours alone.

The first kind reads "image" and alters whatever else is there of `geometry.PICTURES`, `geometry.MAPS` and
`ops_instances.GROUP`. Sizes are in pixels, one number or (height, width).
"""

import functools
from collections.abc import Sequence

import tensorflow as tf

from pp_ops import geometry
from pp_ops.registry import Features, Op, features_op, key_op

OPS: dict[str, Op] = {}

Size = int | Sequence[int]
# DETR's training resolutions (MAD, section 7 of the recipe as released): short edge, and the longest allowed long edge.
DETR_SHORT, DETR_LONG = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800), 1333
DETR_FIRST, DETR_CROP = (400, 500, 600), (384, 600)


def _pair(size: Size) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else tuple(size)


def _draws(seed: tf.Tensor, count: int) -> list[tf.Tensor]:
  """`count` numbers, uniform in [0, 1)."""
  return tf.unstack(tf.random.stateless_uniform([count], seed))


def _place(draw: tf.Tensor, room: tf.Tensor) -> tf.Tensor:
  """A whole number 0..room, each as likely."""
  return tf.minimum(tf.cast(draw * tf.cast(room + 1, tf.float32), tf.int32), room)


def _shape(features: Features) -> tuple[tf.Tensor, tf.Tensor]:
  return tuple(tf.unstack(tf.shape(features["image"])[:2]))


# --- geometry -----------------------------------------------------------------------------------------------------

@features_op(OPS, reads=("image",), writes=("image",), random=True)
def random_flip(features: Features, seed: tf.Tensor, p: float = 0.5, *, words: bool = True) -> Features:
  """Mirrors the whole example with probability p; `words` exchanges left and right in untokenised captions too."""
  return geometry.flip(features, tf.random.stateless_uniform([], seed) < p, words=words)


@features_op(OPS, reads=("image",), writes=("image",))
def fit(features: Features, size: Size, *, antialias: bool = False) -> Features:
  """Scales the example so that it just fits into `size`, sides in their ratio."""
  return _scaled(features, _fit_factor(features, _pair(size)), antialias)


@features_op(OPS, reads=("image",), writes=("image",))
def resize_all(features: Features, size: Size, *, antialias: bool = False) -> Features:
  """Scales the example to exactly `size`; sides do not keep their ratio."""
  height, width = _pair(size)
  out = geometry.resize(features, tf.constant(height), tf.constant(width), antialias=antialias)
  shapes = {**{k: (height, width) for k in (*geometry.PICTURES, *geometry.MAPS)}, "masks": (None, height, width)}
  return {k: tf.ensure_shape(v, [*shapes[k], *v.shape[len(shapes[k]):]]) if k in shapes else v for k, v in out.items()}


@features_op(OPS, reads=("image",), writes=("image",), random=True)
def jitter_scale(features: Features, seed: tf.Tensor, size: Size, low: float = 0.1, high: float = 3.0, *,
                 antialias: bool = False) -> Features:
  """Large-scale jitter: scaled as `fit` to `size` times a number uniform in [low, high].

  MAD with ViT: 0.3 to 2.0 of 1024; AiT: 0.1 to 3.0 of 640; Pix2Seq: 0.3 to 2.0. Then `random_crop` and `canvas`.
  """
  ratio = low + (high - low) * tf.random.stateless_uniform([], seed)
  return _scaled(features, ratio * _fit_factor(features, _pair(size)), antialias)


@features_op(OPS, reads=("image",), writes=("image",), random=True)
def random_scale(features: Features, seed: tf.Tensor, low: float = 0.5, high: float = 2.0, step: float = 0.1, *,
                 divide_depth: bool = False, antialias: bool = False) -> Features:
  """Scales by one of low, low + step, …, high (step 0: any number between), relative to the size as it is.

  `divide_depth` divides depth by the factor, since what looks twice as large is half as far (deeplab2).
  """
  draw = tf.random.stateless_uniform([], seed)
  if step:
    count = round((high - low) / step) + 1
    factor = low + step * tf.cast(_place(draw, tf.constant(count - 1)), tf.float32)
  else:
    factor = low + (high - low) * draw
  out = _scaled(features, factor, antialias)
  if divide_depth:
    return {**out, "depth": out["depth"] / tf.cast(factor, out["depth"].dtype)} if "depth" in out else out
  return out


@features_op(OPS, reads=("image",), writes=("image",), random=True)
def resize_short(features: Features, seed: tf.Tensor, size: Size = DETR_SHORT, longest: int = DETR_LONG, *,
                 antialias: bool = True) -> Features:
  """Scales the short edge to `size`, or to one of several, each as likely; the long edge never passes `longest`."""
  return _shortened(features, tf.random.stateless_uniform([], seed), size, longest, antialias)


def _shortened(features, draw, size, longest, antialias):
  sizes = tf.constant((size,) if isinstance(size, int) else tuple(size), tf.int32)
  target = tf.cast(sizes[_place(draw, tf.size(sizes) - 1)], tf.float32)
  height, width = _shape(features)
  short, long = tf.cast(tf.minimum(height, width), tf.float32), tf.cast(tf.maximum(height, width), tf.float32)
  return _scaled(features, tf.minimum(target / short, longest / long), antialias)


@features_op(OPS, reads=("image",), writes=("image",), random=True)
def random_crop(features: Features, seed: tf.Tensor, size: Size, largest: Size | None = None, *, boxes: str = "masks",
                min_side: float = 0.01, tries: int = 1) -> Features:
  """Cuts a window of `size` at a random place; all of a side that is shorter. Objects outside of it are dropped.

  Args:
    features: the example.
    seed: of the place.
    size: of the window.
    largest: each side is drawn between `size` and this (DETR), both cut to the image.
    boxes: "masks", tight around what is left of the masks (MAD); "clipped", the clipped boxes (AiT).
    min_side: pixels that both sides of a box must exceed; 0.01 is AiT's.
    tries: places drawn until an object is left, if there was one; the last counts in any case. AiT draws another
      sample instead, which no pipeline with a fixed order can.
  """
  height, width = _shape(features)
  draws = _draws(seed, 2 + 2 * tries)
  low, high = _pair(size), _pair(size if largest is None else largest)
  sides = []
  for draw, least, most, side in zip(draws, low, high, (height, width)):
    least, most = tf.minimum(least, side), tf.minimum(most, side)
    sides.append(least + _place(draw, most - least))
  places = [tf.stack([_place(draw, side - cut) for draw, side, cut in zip(pair, (height, width), sides)])
            for pair in zip(draws[2::2], draws[3::2])]
  top, left = tf.unstack(_first_with_object(features, places, tf.stack(sides), min_side))
  return geometry.drop_empty(geometry.crop(features, top, left, *sides), boxes=boxes, min_side=min_side)


@features_op(OPS, reads=("image",), writes=("image",))
def crop_window(features: Features, top: int, bottom: int, left: int, right: int) -> Features:
  """Cuts rows top..bottom and columns left..right out, the ends not included; objects outside of them are dropped."""
  message = f"the window of rows {top}:{bottom} and columns {left}:{right} is not inside the image of"
  height, width = features["image"].shape[:2]
  if not 0 <= top < bottom or not 0 <= left < right or (height or bottom) < bottom or (width or right) < right:
    raise ValueError(f"{message} {height}x{width} pixels")
  size = tf.shape(features["image"])[:2]
  fits = tf.debugging.Assert(tf.reduce_all(size >= [bottom, right]), [message, size])
  with tf.control_dependencies([] if fits is None else [fits]):
    image = tf.identity(features["image"])
  cut = geometry.crop({**features, "image": image}, top, left, bottom - top, right - left)
  return geometry.drop_empty(cut, boxes="clipped", min_side=0.01)


def _first_with_object(features, places, extent, min_side) -> tf.Tensor:
  """The first of the places (2,) whose window leaves a clipped box, else the last."""
  if len(places) == 1 or "boxes" not in features:
    return places[-1]
  size = tf.cast(tf.shape(features["image"])[:2], tf.float32)
  sides = tf.cast(extent, tf.float32)
  chosen = places[-1]
  for place in reversed(places[:-1]):
    boxes = geometry.crop_boxes(features["boxes"], size, tf.cast(place, tf.float32), sides)
    chosen = tf.where(tf.reduce_any(geometry.survivors(boxes, extent, min_side)), place, chosen)
  return chosen


@features_op(OPS, reads=("image",), writes=("image",), random=True)
def detr_scale(features: Features, seed: tf.Tensor, size: Size = DETR_SHORT, longest: int = DETR_LONG, *,
               first: Size = DETR_FIRST, crop: Sequence[int] = DETR_CROP, p: float = 0.5, boxes: str = "masks",
               antialias: bool = True) -> Features:
  """DETR's multi-scale augmentation: with probability p first a short edge of `first` and a random window; then `size`.

  Args:
    features: the example.
    seed: of all draws.
    size: short edges at the end, one of them each as likely.
    longest: bound of the long edge.
    first: short edges before the window.
    crop: bounds of both sides of the window.
    p: how often there is a window.
    boxes: as in `random_crop`.
    antialias: of the pictures.
  """
  seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
  choose, edge, last = _draws(seeds[0], 3)

  def windowed(moved):
    scaled = _shortened({**features, **moved}, edge, first, 10 ** 9, antialias)
    cut = random_crop(scaled, seeds[1], crop[0], crop[1], boxes=boxes)
    return {key: tf.ensure_shape(cut[key], _loose(key, moved[key])) for key in moved}

  moved = {key: features[key] for key in _MOVED if key in features}
  moved = tf.cond(choose < p, lambda: windowed(moved),
                  lambda: {key: tf.identity(value) for key, value in moved.items()})
  return _shortened({**features, **moved}, last, size, longest, antialias)


_MOVED = (*geometry.PICTURES, *geometry.MAPS, "boxes", "box_labels", "masks", "keypoints")


def _loose(key: str, x: tf.Tensor) -> list:
  """The static shape of a tensor whose pixels and objects may become fewer."""
  free = {"boxes": 1, "box_labels": 1, "masks": 3, "keypoints": 1}.get(key, 2)
  return [None] * free + list(x.shape[free:])


@features_op(OPS, reads=("image",), writes=("image", "valid_size"))
def canvas(features: Features, size: Size, value: float | Sequence[float] = 0) -> Features:
  """Pads below and at the right to `size`, so that all examples have one shape; `valid_size` is what the image fills.

  Boxes and keypoints become fractions of the canvas. `value` fills pictures; maps get "nothing there".
  """
  height, width = _pair(size)
  valid = tf.shape(features["image"])[:2]
  return {**geometry.pad(features, height, width, tf.constant(value, tf.float32)), "valid_size": valid}


def _fit_factor(features: Features, size: tuple[int, int]) -> tf.Tensor:
  height, width = (tf.cast(side, tf.float32) for side in _shape(features))
  return tf.minimum(size[0] / height, size[1] / width)


def _scaled(features: Features, factor: tf.Tensor, antialias: bool) -> Features:
  """Scaled by a factor; sides are rounded, and are never below one pixel."""
  height, width = (tf.maximum(tf.cast(tf.cast(side, tf.float32) * factor + 0.5, tf.int32), 1)
                   for side in _shape(features))
  return geometry.resize(features, height, width, antialias=antialias)


# --- colours ------------------------------------------------------------------------------------------------------

@features_op(OPS, reads=("image", "depth"), writes=("image",), random=True)
def cut_depth(features: Features, seed: tf.Tensor, p: float = 0.25, width: float = 0.75, *, wrap: bool = True,
              max_depth: float = 10.0) -> Features:
  """Vertical CutDepth: a band of columns shows the depth in place of the colours (AiT's released recipe).

  Args:
    features: image uint8 (H, W, 3), depth (H, W) metres.
    seed: of choice and band.
    p: how often; AiT takes every fourth sample.
    width: the band begins at column int(a W) and is max(int((W - a W) b width), 1) wide, a and b uniform in [0, 1).
    wrap: millimetres modulo 256, as the released code has it by writing them into bytes; else depth / max_depth · 255.
    max_depth: metres, without `wrap`.
  """
  image, depth = features["image"], tf.cast(features["depth"], tf.float32)
  if image.dtype != tf.uint8:
    raise ValueError(f"cut_depth needs the image as uint8, not {image.dtype.name}")
  choose, a, b = _draws(seed, 3)
  columns = tf.cast(tf.shape(image)[1], tf.float32)
  begin = tf.cast(a * columns, tf.int32)
  end = begin + tf.cast(tf.maximum((columns - a * columns) * b * width, 1.), tf.int32)
  if wrap:
    grey = tf.cast(tf.cast(depth * 1000, tf.int32) % 256, tf.uint8)
  else:
    grey = tf.cast(tf.clip_by_value(depth / max_depth, 0., 1.) * 255, tf.uint8)
  column = tf.range(tf.shape(image)[1])
  band = (column >= begin) & (column < end) & (choose < p)
  return {**features, "image": tf.where(band[None, :, None], grey[..., None], image)}


def _lookup(image: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
  """uint8 image through a table of 256 levels, clipped and truncated."""
  if image.dtype != tf.uint8:
    raise ValueError(f"the image must be uint8, not {image.dtype.name}")
  return tf.gather(tf.cast(tf.clip_by_value(table, 0., 255.), tf.uint8), tf.cast(image, tf.int32))


@key_op(OPS, random=True)
def brightness_contrast(x: tf.Tensor, seed: tf.Tensor, brightness: float = 0.2, contrast: float = 0.2,
                        p: float = 0.5) -> tf.Tensor:
  """Levels times 1 ± contrast plus 255 · ± brightness, both uniform, with probability p (AiT: 0.2, 0.2)."""
  choose, shift, gain = _draws(seed, 3)
  levels = tf.range(256, dtype=tf.float32)
  table = levels * (1 + contrast * (2 * gain - 1)) + 255 * brightness * (2 * shift - 1)
  return _lookup(x, tf.where(choose < p, table, levels))


@key_op(OPS, random=True)
def random_gamma(x: tf.Tensor, seed: tf.Tensor, low: float = 80, high: float = 120, p: float = 0.5) -> tf.Tensor:
  """Levels to the power of low..high percent, with probability p (AiT: 80 to 120)."""
  choose, draw = _draws(seed, 2)
  levels = tf.range(256, dtype=tf.float32)
  table = tf.pow(levels / 255, (low + (high - low) * draw) / 100) * 255
  return _lookup(x, tf.where(choose < p, table + 1e-3, levels))   # 255.0 and not 254.99


@key_op(OPS, random=True)
def hue_saturation(x: tf.Tensor, seed: tf.Tensor, hue: float = 20, saturation: float = 30, value: float = 20,
                   p: float = 0.5) -> tf.Tensor:
  """Shifts of hue (of 180), saturation and value (of 255), uniform within ±, with probability p (AiT: 20, 30, 20)."""
  if x.dtype != tf.uint8:
    raise ValueError(f"the image must be uint8, not {x.dtype.name}")
  choose, *draws = _draws(seed, 4)
  h, s, v = ((2 * draw - 1) * size for draw, size in zip(draws, (hue / 180, saturation / 255, value / 255)))

  def shifted():
    hsv = tf.image.rgb_to_hsv(tf.cast(x, tf.float32) / 255)
    turned = tf.math.floormod(hsv[..., 0] + h, 1.)
    rest = tf.clip_by_value(hsv[..., 1:] + tf.stack([s, v]), 0., 1.)
    return tf.cast(tf.round(tf.image.hsv_to_rgb(tf.concat([turned[..., None], rest], -1)) * 255), tf.uint8)

  return tf.ensure_shape(tf.cond(choose < p, shifted, lambda: x), x.shape)


# kMaX-DeepLab's policy: one of these pairs, each of whose ops (name, level of ten) happens with its own probability.
KMAX_PAIRS = (
    (("sharpness", 7, 0.4), ("brightness", 10, 0.2)), (("equalize", 9, 0.0), ("contrast", 10, 0.2)),
    (("sharpness", 9, 0.2), ("color", 9, 0.2)), (("solarize", 7, 0.2), ("equalize", 9, 0.6)),
    (("sharpness", 1, 0.2), ("equalize", 7, 0.2)))


@key_op(OPS, random=True)
def kmax_colours(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """One of five pairs of colour changes, each as likely, on uint8 (kMaX-DeepLab's training, which PolyMaX follows)."""
  if x.dtype != tf.uint8:
    raise ValueError(f"the image must be uint8, not {x.dtype.name}")
  choose, *chances = _draws(seed, 3)

  def altered(pair) -> tf.Tensor:
    out = x
    for (name, level, p), chance in zip(pair, chances):
      out = tf.cond(chance < p, functools.partial(_COLOURS[name], out, level), functools.partial(tf.identity, out))
    return out

  place = _place(choose, tf.constant(len(KMAX_PAIRS) - 1))
  out = tf.switch_case(place, [functools.partial(altered, pair) for pair in KMAX_PAIRS])
  return tf.ensure_shape(out, x.shape)


def _blend(grey: tf.Tensor, x: tf.Tensor, level: int) -> tf.Tensor:
  """From a picture without the property (factor 0) over x (1) to beyond it; level 0..10 is a factor 0.1 to 1.9."""
  grey, x = tf.cast(grey, tf.float32), tf.cast(x, tf.float32)
  return tf.cast(tf.clip_by_value(grey + (1.8 * level / 10 + 0.1) * (x - grey), 0., 255.), tf.uint8)


def _color(x: tf.Tensor, level: int) -> tf.Tensor:
  return _blend(tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(x)), x, level)


def _brightness(x: tf.Tensor, level: int) -> tf.Tensor:
  return _blend(tf.zeros_like(x), x, level)


def _contrast(x: tf.Tensor, level: int) -> tf.Tensor:
  """The authors' grey is no mean but the number of pixels over 256, so white for all but the smallest pictures."""
  grey = tf.minimum(tf.floor(tf.cast(tf.size(x[..., 0]), tf.float32) / 256), 255.)
  return _blend(grey, x, level)


def _solarize(x: tf.Tensor, level: int) -> tf.Tensor:
  return tf.where(x < int(256 * level / 10), x, 255 - x)


def _sharpness(x: tf.Tensor, level: int) -> tf.Tensor:
  """Against a smooth picture, whose border stays as it is."""
  kernel = tf.tile(tf.constant([1., 1, 1, 1, 5, 1, 1, 1, 1], shape=[3, 3, 1, 1]) / 13, [1, 1, x.shape[-1], 1])
  smooth = tf.nn.depthwise_conv2d(tf.cast(x, tf.float32)[None], kernel, [1, 1, 1, 1], "VALID")[0]
  smooth = tf.pad(tf.floor(smooth), [[1, 1], [1, 1], [0, 0]], constant_values=-1)
  return _blend(tf.where(smooth < 0, tf.cast(x, tf.float32), smooth), x, level)


def _equalize(x: tf.Tensor, level: int) -> tf.Tensor:
  """Each channel's levels spread so that all occur alike."""
  del level
  return tf.stack([_spread(x[..., channel]) for channel in range(x.shape[-1])], -1)


def _spread(x: tf.Tensor) -> tf.Tensor:
  levels = tf.cast(x, tf.int32)
  counts = tf.math.bincount(tf.reshape(levels, [-1]), minlength=256, maxlength=256)
  step = (tf.size(levels) - counts[tf.reduce_max(levels)]) // 255
  table = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
  return tf.where(step > 0, tf.cast(tf.gather(tf.clip_by_value(table, 0, 255), levels), tf.uint8), x)


_COLOURS = {"brightness": _brightness, "color": _color, "contrast": _contrast, "equalize": _equalize,
            "sharpness": _sharpness, "solarize": _solarize}
