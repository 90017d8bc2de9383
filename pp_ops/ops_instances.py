"""Ops on the objects of an image: from a dataset's annotations to boxes, masks and keypoints in N slots.

Between `instances` and `pad_instances` an example holds n objects, n from the data:
  boxes       (n, 4) float32    [y0, x0, y1, x1] as fractions of the image as it is now
  box_labels  (n,) int32        class 1..C; 0 is an empty slot
  masks       (n, H, W) uint8   1 on the object
  box_masks   (n, S, S) uint8   the mask rasterised inside its own box
  keypoints   (n, J, 3) float32 (y, x, visibility 0, 1, 2), fractions of the image; zeros where not labelled
`ops_augment` moves them together with the image.
"""

from collections.abc import Mapping

import tensorflow as tf

from pp_ops.ops_labels import segment_ids
from pp_ops.registry import Features, Keys, Op, features_op

OPS: dict[str, Op] = {}
GROUP = ("boxes", "box_labels", "masks", "box_masks", "keypoints")
_MIN_SIDE = 0.1   # pixels; a thinner box is rasterised as if it had this side, so that nothing is divided by 0


@features_op(OPS, reads=("panoptic_image", "objects/id"), writes=("objects/masks",))
def panoptic_masks(features: Features) -> Features:
  """Adds `objects/masks` uint8 (n, H, W): where `panoptic_image` has the object's id."""
  ids = segment_ids(features["panoptic_image"])
  numbers = tf.cast(features["objects/id"], tf.int32)
  return {**features, "objects/masks": tf.cast(ids[None] == numbers[:, None, None], tf.uint8)}


def _instance_reads(arguments: Mapping) -> Keys:
  parts = [f"objects/{name}" for name in ("masks", "keypoints") if arguments[name]]
  return ("image", "objects/bbox", "objects/label", "objects/is_crowd", *parts)


def _instance_writes(arguments: Mapping) -> Keys:
  return ("boxes", "box_labels", *(name for name in ("masks", "keypoints") if arguments[name]))


@features_op(OPS, reads=_instance_reads, writes=_instance_writes)
def instances(features: Features, *, masks: bool = True, keypoints: bool = True, crowd: bool = False) -> Features:
  """The dataset's `objects/*` as `boxes`, `box_labels` (label + 1) and, where wanted, `masks` and `keypoints`.

  Args:
    features: the decoded `image` and `objects/*`: bbox (n, 4) fractions, label (n,) from 0, is_crowd (n,), masks
      (n, H, W), keypoints (n, J, 3) = (x, y, visibility) in pixels, where pixel i covers [i, i + 1).
    masks: take masks along.
    keypoints: take keypoints along.
    crowd: keep piles that one annotation stands for; no paper trains on them.

  Boxes without area are dropped.
  """
  boxes = tf.clip_by_value(tf.cast(features["objects/bbox"], tf.float32), 0., 1.)
  kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
  if not crowd:
    kept &= ~tf.cast(features["objects/is_crowd"], tf.bool)
  out = {"boxes": boxes, "box_labels": tf.cast(features["objects/label"], tf.int32) + 1}
  if masks:
    out["masks"] = tf.cast(features["objects/masks"], tf.uint8)
  if keypoints:
    out["keypoints"] = _fractions(features["objects/keypoints"], tf.shape(features["image"]))
  return {**features, **{key: tf.boolean_mask(value, kept) for key, value in out.items()}}


def _fractions(points: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
  """(n, J, 3) of (x, y, v) in pixels -> (y, x, v) as fractions, zeros where v is 0."""
  x, y, seen = tf.unstack(tf.cast(points, tf.float32), axis=-1)
  size = tf.cast(shape, tf.float32)
  out = tf.stack([y / size[0], x / size[1], seen], -1)
  return tf.where(seen[..., None] > 0, out, 0.)


@features_op(OPS, reads=("boxes", "masks"), writes=("box_masks",))
def box_masks(features: Features, size: int = 16) -> Features:
  """Adds `box_masks` uint8 (n, size, size): cells of a grid over the box that the mask covers by half or more.

  The cover is exact for any position of the box between pixels. MAD rasterises polygons at this size instead; the two
  differ in cells that the outline halves.
  """
  masks = tf.cast(features["masks"], tf.float32)
  rows = coverage(features["boxes"][:, 0], features["boxes"][:, 2], size, tf.shape(masks)[1])
  columns = coverage(features["boxes"][:, 1], features["boxes"][:, 3], size, tf.shape(masks)[2])
  share = tf.matmul(tf.matmul(rows, masks), columns, transpose_b=True)
  out = tf.cast(share >= 0.5 - 1e-4, tf.uint8)   # exact halves must not depend on rounding
  return {**features, "box_masks": tf.ensure_shape(out, [None, size, size])}


def coverage(begin: tf.Tensor, end: tf.Tensor, cells: int, pixels: tf.Tensor) -> tf.Tensor:
  """(n, cells, pixels) float32: the share of each cell of [begin, end] that each pixel covers.

  Args:
    begin: (n,) fractions of the image.
    end: (n,) fractions.
    cells: number of equal parts of each interval.
    pixels: number of pixels along the axis.
  """
  length = tf.cast(pixels, tf.float32)
  begin = begin * length
  side = tf.maximum(end * length - begin, _MIN_SIDE)
  edges = begin[:, None] + side[:, None] * (tf.range(cells + 1, dtype=tf.float32) / cells)
  pixel = tf.range(length)
  overlap = (tf.minimum(edges[:, 1:, None], pixel + 1) - tf.maximum(edges[:, :-1, None], pixel))
  return tf.maximum(overlap, 0.) * (cells / side)[:, None, None]


@features_op(OPS, reads=("masks",), writes=("masks",))
def downscale_masks(features: Features, divisor: int) -> Features:
  """`masks` (n, H, W) -> (n, H / divisor, W / divisor): 1 where half of a cell or more is covered."""
  masks = tf.cast(features["masks"], tf.float32)
  small = tf.nn.avg_pool2d(masks[..., None], divisor, divisor, "VALID")[..., 0]
  h, w = masks.shape[1:]
  for side in (h, w):
    if side is not None and side % divisor:
      raise ValueError(f"masks of {h}x{w} pixels do not divide by {divisor}")
  return {**features, "masks": tf.cast(small >= 0.5, tf.uint8)}


@features_op(OPS, reads=("boxes",), writes=("boxes",))
def pad_instances(features: Features, slots: int) -> Features:
  """Everything that describes objects, in exactly `slots` slots: zeros behind the n objects, the rest cut off."""
  out = {key: _pad(features[key], slots) for key in GROUP if key in features}
  return {**features, **out}


def _pad(x: tf.Tensor, slots: int) -> tf.Tensor:
  x = x[:slots]
  padded = tf.pad(x, [[0, slots - tf.shape(x)[0]]] + [[0, 0]] * (x.shape.rank - 1))
  return tf.ensure_shape(padded, [slots, *x.shape[1:]])
