"""Ops that move, keep, join and scale features of any kind."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from pp_ops.registry import Features, Keys, Op, features_op, key_op

OPS: dict[str, Op] = {}


def _kept(keys: Keys, arguments: Mapping) -> Keys:
  return tuple(k for k in keys if k not in arguments["keys"] and not k.startswith("_"))


@features_op(OPS, reads=lambda a: a["keys"], removes=_kept)
def keep(features: Features, *keys: str) -> Features:
  """Keeps the named features only (and the private ones, whose names begin with "_")."""
  return {k: v for k, v in features.items() if k in keys or k.startswith("_")}


@features_op(OPS, reads=lambda a: a["keys"], removes=lambda _, a: a["keys"])
def drop(features: Features, *keys: str) -> Features:
  """Removes the named features."""
  return {k: v for k, v in features.items() if k not in keys}


@features_op(OPS, reads=lambda a: (a["inkey"],), writes=lambda a: (a["outkey"],))
def copy(features: Features, inkey: str, outkey: str) -> Features:
  """Gives the feature `inkey` a second name."""
  return {**features, outkey: features[inkey]}


@features_op(OPS, reads=lambda a: tuple(a["inkeys"]), writes=lambda a: (a["outkey"] or a["inkeys"][0],))
def concat(features: Features, inkeys: Sequence[str], outkey: str | None = None, axis: int = -1) -> Features:
  """Joins features along an axis into `outkey` (default: the first of them)."""
  return {**features, outkey or inkeys[0]: tf.concat([features[k] for k in inkeys], axis)}


@key_op(OPS)
def value_range(x: tf.Tensor, vmin: float = -1, vmax: float = 1, in_min: float = 0, in_max: float = 255,
                clip_values: bool = False) -> tf.Tensor:
  """float32, [in_min, in_max] mapped linearly to [vmin, vmax]; values outside go outside unless clipped."""
  unit = (tf.cast(x, tf.float32) - tf.constant(in_min, tf.float32)) / tf.constant(in_max - in_min, tf.float32)
  out = vmin + unit * (vmax - vmin)
  return tf.clip_by_value(out, vmin, vmax) if clip_values else out


@features_op(OPS, writes=lambda a: (a["key"],), random=True)
def randu(features: Features, seed: tf.Tensor, key: str) -> Features:
  """A new feature: one float32 number, uniform in [0, 1)."""
  return {**features, key: tf.random.stateless_uniform([], seed)}


@key_op(OPS, default="labels")
def check_range(x: tf.Tensor, vmin: float | Sequence[float], vmax: float | Sequence[float],
                ignore: Sequence[float] = ()) -> tf.Tensor:
  """Passes x (..., C) through if all values lie in [vmin, vmax]; else the pipeline names the example.

  The ends may be lists, one entry a channel, e.g. `check_range(0, [133, 256])` for (semantics, instances).
  Values in `ignore` (255 for void, say) are exempt.
  """
  values = tf.cast(x, tf.float64)
  fine = (values >= tf.constant(vmin, tf.float64)) & (values <= tf.constant(vmax, tf.float64))
  for value in ignore:
    fine |= values == float(value)
  bad = tf.boolean_mask(values, ~fine)
  message = f"labels outside the model's range [{vmin}, {vmax}], the first of them"
  with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(fine), [message, bad[:1]])]):
    return tf.identity(x)


@key_op(OPS)
def cast(x: tf.Tensor, dtype: str) -> tf.Tensor:
  """Another number type, by its name: cast('int32', key='labels')."""
  return tf.cast(x, dtype)
