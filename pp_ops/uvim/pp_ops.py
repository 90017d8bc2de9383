"""Ops of UViM's tasks: panoptic labels and the NYU depth protocol."""

import tensorflow as tf

from pp_ops import ops_labels
from pp_ops.registry import Features, Op, features_op

# The listings name this module, not ops_labels, for their panoptic ops, and have their own name for depth's.
OPS: dict[str, Op] = {name: ops_labels.OPS[name] for name in ("coco_panoptic", "make_canonical")}
OPS["nyu_depth"] = ops_labels.OPS["depth_labels"]

# UViM's crop of NYU frames. Its rows begin nine lower than the usual 45:471; the published 0.463 RMSE has these.
NYU_SIZE = (480, 640)
NYU_ROWS = (54, 480)
NYU_COLUMNS = (41, 601)


@features_op(OPS, reads=("image", "labels"), writes=("image", "labels"))
def nyu_eval_crop(features: Features) -> Features:
  """Cuts the evaluated 426x560 pixels out of `image` and `labels` (480, 640, C); other sizes are an error."""
  return {**features, "image": _nyu_crop(features["image"]), "labels": _nyu_crop(features["labels"])}


def _nyu_crop(x: tf.Tensor) -> tf.Tensor:
  if not x.shape[:2].is_compatible_with(NYU_SIZE):
    raise ValueError(f"nyu_eval_crop needs 480x640 pixels, not {x.shape[0]}x{x.shape[1]}")
  check = tf.debugging.assert_equal(tf.shape(x)[:2], NYU_SIZE, "nyu_eval_crop needs 480x640 pixels")
  with tf.control_dependencies([] if check is None else [check]):
    return tf.ensure_shape(x[slice(*NYU_ROWS), slice(*NYU_COLUMNS)], [426, 560, x.shape[-1]])
