"""Ops on label maps (H, W, C): panoptic ids to maps, canonical order of instances."""

import tensorflow as tf

from pp_ops.registry import Features, Op, features_op, key_op

OPS: dict[str, Op] = {}

_PANOPTIC = ("panoptic_image", "panoptic_objects/id", "panoptic_objects/label")


@features_op(OPS, reads=_PANOPTIC, writes=("semantics", "instances"))
def coco_panoptic(features: Features) -> Features:
  """Adds `semantics` (class + 1) and `instances` (position in the object list + 1), int32 (H, W, 1); 0 = no object.

  Stuff and crowd segments are instances like all others (UViM, appendix).
  """
  position = find_positions(segment_ids(features["panoptic_image"]), tf.cast(features["panoptic_objects/id"], tf.int32))
  classes = tf.concat([[-1], tf.cast(features["panoptic_objects/label"], tf.int32)], 0)
  instances = position + 1
  semantics = tf.gather(classes, instances) + 1
  return {**features, "semantics": semantics[..., None], "instances": instances[..., None]}


def segment_ids(image: tf.Tensor) -> tf.Tensor:
  """int32 (H, W) ids R + 256 G + 65536 B of a panoptic image uint8 (H, W, 3)."""
  red, green, blue = tf.unstack(tf.cast(image, tf.int32), axis=-1)
  return red + 256 * green + 65536 * blue


def find_positions(values: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
  """Position of every value (any shape, >= 0) in `table` (n,), -1 where it does not occur; n may be 0."""
  order = tf.argsort(table, stable=True)
  ordered = tf.concat([[-1], tf.gather(table, order)], 0)
  positions = tf.concat([[-1], order], 0)
  place = tf.searchsorted(ordered, tf.reshape(values, [-1]), side="right") - 1
  place = tf.reshape(place, tf.shape(values))
  return tf.where(tf.gather(ordered, place) == values, tf.gather(positions, place), -1)


@key_op(OPS, default="labels", random=True)
def make_canonical(x: tf.Tensor, seed: tf.Tensor, *, random: bool = False, main_axis: str = "y") -> tf.Tensor:
  """Renumbers the last channel: ids > 0 become 1..M by ascending centre of mass; 0 stays 0, negative becomes -1.

  Main axis "y": by cx + H cy (rows first); "x": by cy + W cx; `random`: any order. Sums of coordinates are exact
  integers, divided once in float64, so equal centres are equal; ties keep the order of first appearance.
  """
  if main_axis not in ("y", "x"):
    raise ValueError(f"main_axis must be 'y' or 'x', not {main_axis!r}")
  ids = x[..., -1]
  unique, slot = tf.unique(tf.reshape(ids, [-1]))                  # (M,), (H W,)
  slots = tf.shape(unique)[0]
  order = (tf.random.stateless_uniform([slots], seed, dtype=tf.float64) if random
           else _centre_keys(tf.shape(ids), slot, slots, main_axis))
  real = unique > 0
  order = tf.where(real, order, tf.constant(float("inf"), tf.float64))
  rank = tf.argsort(tf.argsort(order, stable=True)) + 1
  rest = tf.where(unique < 0, -1, 0)
  new = tf.cast(tf.where(real, rank, rest), x.dtype)
  canonical = tf.reshape(tf.gather(new, slot), tf.shape(ids))[..., None]
  return tf.ensure_shape(tf.concat([x[..., :-1], canonical], -1), x.shape)


@features_op(OPS, reads=lambda a: (a["inkey"],), writes=lambda a: (a["outkey"],))
def semantic_labels(features: Features, inkey: str = "semantic", outkey: str = "labels", ignore: int = 255) -> Features:
  """Class maps (H, W, 1) from 0 with `ignore` for void, as files have them -> int32 labels: 0 = void, class + 1."""
  classes = tf.cast(features[inkey], tf.int32)
  return {**features, outkey: tf.where(classes == ignore, 0, classes + 1)}


@features_op(OPS, reads=lambda a: (a["inkey"],), writes=lambda a: (a["outkey"],))
def normal_labels(features: Features, inkey: str = "normals", outkey: str = "labels") -> Features:
  """uint8 normals (H, W, 3) -> float32 unit vectors 2 u / 255 - 1, zeros where the triple is (0, 0, 0): no normal.

  The axes stay those of the dataset: x right, y up, z towards the camera in `scenes` and NYU.
  """
  levels = features[inkey]
  if levels.dtype != tf.uint8:
    raise ValueError(f"normal_labels needs uint8 normals, not {levels.dtype.name}")
  vectors = tf.cast(levels, tf.float32) * (2 / 255) - 1
  length = tf.sqrt(tf.reduce_sum(vectors ** 2, -1, keepdims=True))
  valid = tf.reduce_any(levels > 0, -1, keepdims=True)
  return {**features, outkey: tf.where(valid, vectors / tf.maximum(length, 1e-6), 0.)}


@features_op(OPS, reads=lambda a: (a["inkey"],), writes=lambda a: (a["outkey"],))
def depth_labels(features: Features, inkey: str = "depth", outkey: str = "labels") -> Features:
  """`depth` (H, W) in metres -> float32 labels (H, W, 1), 0 = no measurement."""
  depth = features[inkey]
  if depth.shape.rank != 2:
    raise ValueError(f"depth_labels needs depth (H, W), not {depth.shape}")
  return {**features, outkey: tf.cast(depth, tf.float32)[..., None]}


def _centre_keys(shape: tf.Tensor, slot: tf.Tensor, slots: tf.Tensor, main_axis: str) -> tf.Tensor:
  """Sorting key of every slot's centre of mass: float64 (M,)."""
  height, width = tf.unstack(tf.cast(shape, tf.int64))
  pixel = tf.range(height * width)
  y, x = pixel // width, pixel % width
  key = x + height * y if main_axis == "y" else y + width * x
  total = tf.math.unsorted_segment_sum(key, slot, slots)
  count = tf.math.unsorted_segment_sum(tf.ones_like(key), slot, slots)
  return tf.cast(total, tf.float64) / tf.cast(count, tf.float64)
