"""Flip, cut, scale and pad a whole example: the image, its label maps and everything that describes its objects."""

import tensorflow as tf

from pp_ops.ops_instances import GROUP
from pp_ops.registry import Features
from uvim_like.joints import MIRROR

PICTURES = ("image", "image_ctx")   # interpolated
MAPS = ("labels", "ground_truth", "depth", "semantic", "normals", "semantics", "instances")   # values only picked
CAPTIONS = "captions/text"
# What stands in padded pixels: nothing measured, nothing labelled.
FILL = {"semantic": 255}
VOID_FILL = 0


def flip(features: Features, flag: tf.Tensor, *, words: bool) -> Features:
  """Mirrors left and right where `flag` () bool holds.

  Besides pixels and boxes: the x of a normal changes its sign, left joints become right ones, and with `words` the
  words "left" and "right" of the captions change places. ValueError for labels that may be normals: their name does
  not say so, as that of `normals` does.
  """
  out = dict(features)
  for key in ("labels", "ground_truth"):
    if key in out and out[key].dtype.is_floating and out[key].shape[-1] == 3:
      raise ValueError(f"'{key}' of three floats may be normals, whose x changes its sign; mirror before normal_labels "
                       "(and colours before value_range)")
  for key in (*PICTURES, *MAPS):
    if key in out:
      turn = mirror_normals if key == "normals" else _reverse
      out[key] = _choose(flag, turn, out[key])
  for key in ("masks", "box_masks"):
    if key in out:
      out[key] = _choose(flag, _reverse_last, out[key])
  for key, turn in (("boxes", mirror_boxes), ("keypoints", mirror_keypoints)):
    if key in out:
      out[key] = _choose(flag, turn, out[key])
  if words and CAPTIONS in out:
    out[CAPTIONS] = _choose(flag, swap_sides, out[CAPTIONS])
  return out


def _choose(flag, function, x):
  return tf.ensure_shape(tf.cond(flag, lambda: function(x), lambda: x), x.shape)


def _reverse(x: tf.Tensor) -> tf.Tensor:
  return tf.reverse(x, [1])


def _reverse_last(x: tf.Tensor) -> tf.Tensor:
  return tf.reverse(x, [2])


def mirror_normals(x: tf.Tensor) -> tf.Tensor:
  """(H, W, 3) mirrored, with -n_x: of uint8 codes 255 - r where there is a normal, of floats the sign."""
  x = tf.reverse(x, [1])
  red = x[..., :1]
  if x.dtype == tf.uint8:
    valid = tf.reduce_any(x > 0, -1, keepdims=True)
    red = tf.where(valid, tf.cast(255, tf.uint8) - red, red)
  else:
    red = -red
  return tf.concat([red, x[..., 1:]], -1)


def mirror_boxes(boxes: tf.Tensor) -> tf.Tensor:
  """(n, 4) fractions -> of the mirrored image."""
  y0, x0, y1, x1 = tf.unstack(boxes, axis=-1)
  return tf.stack([y0, 1 - x1, y1, 1 - x0], -1)


def mirror_keypoints(points: tf.Tensor) -> tf.Tensor:
  """(n, 17, 3) fractions -> of the mirrored image, left joints in the places of right ones; ValueError for other J."""
  if points.shape[1] != len(MIRROR):
    raise ValueError(f"a mirror needs the {len(MIRROR)} joints of COCO to swap left and right, not {points.shape[1]}")
  points = tf.gather(points, MIRROR, axis=1)
  y, x, seen = tf.unstack(points, axis=-1)
  return tf.stack([y, tf.where(seen > 0, 1 - x, x), seen], -1)


def swap_sides(text: tf.Tensor) -> tf.Tensor:
  """Texts (...,) with the words left and right exchanged, lower case ones alone as all captions are tokenised."""
  for old, new in ((r"\bleft\b", "\x01"), (r"\bright\b", "left"), ("\x01", "right")):
    text = tf.strings.regex_replace(text, old, new)
  return text


# --- scale --------------------------------------------------------------------------------------------------------

def resize(features: Features, height: tf.Tensor, width: tf.Tensor, *, antialias: bool) -> Features:
  """All pixels at another size: pictures bilinear (integers rounded), maps and masks nearest; fractions stay."""
  out = dict(features)
  for key in PICTURES:
    if key in out:
      out[key] = _resize_picture(out[key], height, width, antialias)
  for key in MAPS:
    if key in out:
      out[key] = pick(out[key], height, width, axis=0)
  if "masks" in out:
    out["masks"] = pick(out["masks"], height, width, axis=1)
  return out


def _resize_picture(x, height, width, antialias):
  new = tf.image.resize(x, tf.stack([height, width]), "bilinear", antialias=antialias)
  if x.dtype.is_integer:
    new = tf.clip_by_value(tf.round(new), x.dtype.min, x.dtype.max)
  return tf.ensure_shape(tf.cast(new, x.dtype), [None, None, x.shape[-1]])


def pick(x: tf.Tensor, height: tf.Tensor, width: tf.Tensor, *, axis: int) -> tf.Tensor:
  """Nearest resize of the axes `axis` and `axis` + 1: pixel i shows floor((i + 1/2) old / new). Any number of objects.

  `tf.image.resize` wants four axes and at least one object.
  """
  for offset, size in enumerate((height, width)):
    old = tf.shape(x)[axis + offset]
    place = (tf.cast(tf.range(size), tf.float32) + 0.5) * (tf.cast(old, tf.float32) / tf.cast(size, tf.float32))
    x = tf.gather(x, tf.minimum(tf.cast(place, tf.int32), old - 1), axis=axis + offset)
  return x


# --- cut ----------------------------------------------------------------------------------------------------------

def crop(features: Features, top: tf.Tensor, left: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> Features:
  """The window [top, top + height) x [left, left + width) in pixels; objects outside of it keep an empty box."""
  size = tf.cast(tf.shape(features["image"])[:2], tf.float32)
  begin = tf.cast(tf.stack([top, left]), tf.float32)
  extent = tf.cast(tf.stack([height, width]), tf.float32)
  out = dict(features)
  for key in (*PICTURES, *MAPS):
    if key in out:
      out[key] = out[key][top:top + height, left:left + width]
  if "masks" in out:
    out["masks"] = out["masks"][:, top:top + height, left:left + width]
  if "boxes" in out:
    out["boxes"] = crop_boxes(out["boxes"], size, begin, extent)
  if "keypoints" in out:
    out["keypoints"] = _crop_keypoints(out["keypoints"], size, begin, extent)
  out.pop("box_masks", None)   # of boxes that are no more
  return out


def crop_boxes(boxes: tf.Tensor, size: tf.Tensor, begin: tf.Tensor, extent: tf.Tensor) -> tf.Tensor:
  """(n, 4) fractions of an image -> of a window of it, clipped to it.

  Args:
    boxes: (n, 4).
    size: (2,) pixels of the image.
    begin: (2,) where the window begins.
    extent: (2,) its sides.
  """
  scale, shift = tf.tile(size / extent, [2]), tf.tile(begin / extent, [2])
  return tf.clip_by_value(boxes * scale - shift, 0., 1.)


def _crop_keypoints(points, size, begin, extent):
  place = points[..., :2] * (size / extent) - begin / extent
  inside = tf.reduce_all((place >= 0) & (place <= 1), -1, keepdims=True) & (points[..., 2:] > 0)
  return tf.where(inside, tf.concat([place, points[..., 2:]], -1), 0.)


def tight_boxes(masks: tf.Tensor) -> tf.Tensor:
  """(n, 4) fractions around the pixels of masks (n, H, W); all zeros where a mask is empty."""
  ends = []
  for other in (2, 1):
    hit = tf.reduce_any(masks > 0, axis=other)                                         # (n, length)
    length = tf.shape(hit)[1]
    first = tf.argmax(hit, axis=1, output_type=tf.int32)
    last = length - tf.argmax(tf.reverse(hit, [1]), axis=1, output_type=tf.int32)
    empty = ~tf.reduce_any(hit, axis=1)
    ends.append([tf.where(empty, 0., tf.cast(end, tf.float32) / tf.cast(length, tf.float32)) for end in (first, last)])
  (y0, y1), (x0, x1) = ends
  return tf.stack([y0, x0, y1, x1], -1)


def drop_empty(features: Features, *, boxes: str, min_side: float) -> Features:
  """Objects that are still there after a cut.

  Args:
    features: after `crop`.
    boxes: "masks", boxes are tight around what is left of the masks (MAD); "clipped", they are the clipped ones (AiT).
    min_side: pixels that both sides of a box must exceed.

  Raises:
    ValueError: "masks" without masks, or another word.
  """
  if "boxes" not in features:
    return features
  if boxes not in ("masks", "clipped"):
    raise ValueError(f"boxes must be 'masks' or 'clipped', not {boxes!r}")
  if boxes == "masks" and "masks" not in features:
    raise ValueError("boxes='masks' needs masks: instances(masks=True), or boxes='clipped'")
  out = dict(features)
  if boxes == "masks":
    out["boxes"] = tight_boxes(features["masks"])
  kept = survivors(out["boxes"], tf.shape(features["image"]), min_side)
  return {**out, **{key: tf.boolean_mask(out[key], kept) for key in GROUP if key in out}}


def survivors(boxes: tf.Tensor, shape: tf.Tensor, min_side: float) -> tf.Tensor:
  """(n,) bool: boxes (n, 4) of an image of `shape` whose sides both exceed `min_side` pixels."""
  sides = (boxes[:, 2:] - boxes[:, :2]) * tf.cast(shape[:2], tf.float32)
  return tf.reduce_all(sides > min_side, -1)


# --- pad ----------------------------------------------------------------------------------------------------------

def pad(features: Features, height: int, width: int, value: tf.Tensor) -> Features:
  """Adds rows below and columns at the right up to (height, width); fractions become those of the canvas.

  Args:
    features: an example whose image is at most as large.
    height: of the canvas.
    width: of the canvas.
    value: () or (C,) of padded picture pixels.
  """
  shape, known = tf.shape(features["image"]), features["image"].shape[:2]
  message = f"the image does not fit into the canvas of {height}x{width} pixels:"
  if any(side is not None and side > most for side, most in zip(known, (height, width))):
    raise ValueError(f"{message} {known}")
  fits = tf.debugging.Assert(tf.reduce_all(shape[:2] <= [height, width]), [message, shape[:2]])
  with tf.control_dependencies([] if fits is None else [fits]):
    below, right = height - shape[0], width - shape[1]
  out = dict(features)
  for key in PICTURES:
    if key in out:
      fill = tf.cast(tf.broadcast_to(value, [out[key].shape[-1]]), out[key].dtype)
      shifted = _pad_plane(out[key] - fill, below, right, 0, axis=0)   # so that a colour may be padded
      out[key] = tf.ensure_shape(shifted + fill, [height, width, out[key].shape[-1]])
  for key in MAPS:
    if key in out:
      padded = _pad_plane(out[key], below, right, FILL.get(key, VOID_FILL), axis=0)
      out[key] = tf.ensure_shape(padded, [height, width, *out[key].shape[2:]])
  if "masks" in out:
    out["masks"] = tf.ensure_shape(_pad_plane(out["masks"], below, right, 0, axis=1), [None, height, width])
  share = tf.cast(shape[:2], tf.float32) / [height, width]
  if "boxes" in out:
    out["boxes"] = out["boxes"] * tf.tile(share, [2])
  if "keypoints" in out:
    out["keypoints"] = out["keypoints"] * tf.concat([share, [1.]], 0)
  return out


def _pad_plane(x, below, right, fill, *, axis):
  sides = [[0, 0]] * axis + [[0, below], [0, right]] + [[0, 0]] * (x.shape.rank - axis - 2)
  return tf.pad(x, sides, constant_values=tf.cast(fill, x.dtype))
