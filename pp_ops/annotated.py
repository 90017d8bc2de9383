"""Features of pictures with objects, joints and captions: what every source over COCO's tables gives."""

from collections.abc import Collection, Mapping

import tensorflow as tf

from pp_ops.source import Specs
from uvim_like.own_data.tables import Table


def specs(table: Table, *, objects: bool = True) -> Specs:
  """The features of a table but the picture itself; without `objects` those of captions alone."""
  shapes = {"image/id": ((), tf.int64), "image/filename": ((), tf.string), "image/size": ((2,), tf.int64)}
  if objects:
    one = {"id": ((None,), tf.int64), "area": ((None,), tf.float64), "bbox": ((None, 4), tf.float32),
           "is_crowd": ((None,), tf.bool), "label": ((None,), tf.int64), "masks": ((None, None, None), tf.uint8)}
    if table.joints:
      one |= {"keypoints": ((None, table.joints, 3), tf.float32), "num_keypoints": ((None,), tf.int64)}
    shapes |= {f"objects/{key}": spec for key, spec in one.items()}
  if table.captions is not None:
    shapes |= {"captions/id": ((None,), tf.int64), "captions/text": ((None,), tf.string)}
  return {key: tf.TensorSpec(*spec) for key, spec in shapes.items()}


def image_spec(*, encoded: bool) -> tf.TensorSpec:
  """Of the feature "image": its bytes, or what they decode to."""
  return tf.TensorSpec([], tf.string) if encoded else tf.TensorSpec([None, None, 3], tf.uint8)


def parse(raw: Mapping[str, tf.Tensor], keys: Collection[str], *, encoded: bool) -> dict[str, tf.Tensor]:
  """Raw values with the picture decoded where its bytes are not wanted."""
  features = {k: raw[k] for k in keys}
  if "image" in features and not encoded:
    image = tf.io.decode_image(raw["image"], channels=3, expand_animations=False)
    features["image"] = tf.ensure_shape(image, [None, None, 3])
  return features
