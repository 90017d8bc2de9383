"""What a preprocessing string makes of data that are not at hand: shapes from the kinds of features that datasets have.

For plans. Heights, widths and counts are open, as in a folder of pictures, but for NYU, whose pictures are all alike.
"""

import re

import tensorflow as tf

from pp_ops import sources_folder, sources_scenes
from pp_ops.source import Specs

NYU = (480, 640)
# Everything that a source of ours or of TFDS calls by these names has these ranks and types.
_MORE = {"objects/masks": ((None, None, None), tf.uint8), "image/size": ((2,), tf.int64), "file_name": ((), tf.string),
         "depth_filled": ((None, None), tf.float32), "labels_raw": ((None, None, 1), tf.int32)}
_TEXT_MODEL = re.compile(r"""(tokenize_captions\(\s*(?:model\s*=\s*)?)(["']).*?\2""")


def features(dataset: str) -> Specs:
  """The features that a dataset could have, by the names of all of ours."""
  labels = {kind.feature: (kind.shape, kind.dtype) for kind in sources_folder.KINDS.values()}
  specs = {name: tf.TensorSpec(*spec) for name, spec in (labels | _MORE).items()} | sources_scenes.feature_specs(None)
  size = NYU if "nyu" in dataset else (None, None)
  pictures = {name for name, spec in specs.items() if tuple(spec.shape[:2]) == (None, None) and name.count("/") == 0}
  return {name: tf.TensorSpec((*size, *spec.shape[2:]), spec.dtype) if name in pictures else spec
          for name, spec in specs.items()}


def text_model(pp: str) -> str:
  """A string with the project's own text model in the place of another, which no shape depends on."""
  return _TEXT_MODEL.sub(r'\1"scenes"', pp)
