"""A run as a TensorFlow SavedModel: pixels or encoded pictures to the task's maps."""

import contextlib
import io
import pathlib
import shutil
from typing import Any

from tools.exporting import export_program
from tools.exporting.export_function import Function, Lowered
from uvim_like.errors import UserError
from uvim_like.training.trained import Trained

KIND = "savedmodel"
PIXELS, ENCODED = "serving_default", "encoded"   # names of the signatures


def check_available() -> None:
  """Raises UserError, in one line, where the installed versions make no SavedModel."""
  try:
    import tensorflow  # noqa: F401
    from jax.experimental import jax2tf  # noqa: F401
  except ImportError as error:
    raise UserError(f"--format={KIND}: this version of jax and TensorFlow makes none ({error}); "
                    "use --format=stablehlo") from None


def write(folder: pathlib.Path, function: Function, lowered: Lowered, trained: Trained) -> dict[str, Any]:
  """The SavedModel with a script beside it; returns the card, which `export_program.finish` writes."""
  import tensorflow as tf
  from jax.experimental import jax2tf
  shape = ", ".join(map(str, lowered.shape))
  converted = jax2tf.convert(
      function.predict, with_gradient=False, native_serialization_platforms=lowered.exported.platforms,
      polymorphic_shapes=[None, {"pixels": f"({shape})", "seed": None}],
      polymorphic_constraints=[f"{name} <= {side}" for name, side in zip("hw", function.largest or ())
                               if name in lowered.shape])
  module = tf.Module()
  module.weights = {name: tf.Variable(leaf, trainable=False, name=name.replace("/", "."))
                    for name, leaf in zip(function.names, function.weights) if name in lowered.used}
  sides = [side if isinstance(side, int) else None for side in lowered.shape]

  def predict(pixels):
    given = [module.weights[name] if name in lowered.used else tf.zeros(leaf.shape, leaf.dtype)
             for name, leaf in zip(function.names, function.weights)]
    return converted(given, {"pixels": pixels, "seed": tf.constant(function.seed, tf.uint32)})

  def predict_encoded(encoded):
    return predict(tf.ensure_shape(decoded(encoded, function.size, function.largest), [1, *sides[1:]]))

  signatures = {
      PIXELS: tf.function(predict, input_signature=[tf.TensorSpec(sides, tf.uint8, name="pixels")], autograph=False),
      ENCODED: tf.function(predict_encoded, input_signature=[tf.TensorSpec([], tf.string, name="encoded")],
                           autograph=False)}
  with contextlib.redirect_stderr(io.StringIO()):   # it tells where it writes: a temporary place
    tf.saved_model.save(module, str(folder), signatures=signatures)
  shutil.copyfile(export_program.script("run_savedmodel.py"), folder / export_program.RUN)
  card = export_program.card_of(KIND, function, lowered, trained)
  export_program.finish(folder, card)
  return card


def decoded(encoded: Any, size: tuple[int, int] | None, largest: tuple[int, int] | None) -> Any:
  """The picture (1, H, W, 3) in the bytes of a file, at a size that the program takes, as a `run.py` brings it.

  Args:
    encoded: text tensor; JPEG, PNG, GIF or BMP. An EXIF tag is not followed: TensorFlow does not read them.
    size: (H, W) of the program; None where it is open.
    largest: then the sides that it takes at most, to which a picture is shrunk in its proportions; None without limit.
  """
  import tensorflow as tf
  picture = tf.io.decode_image(encoded, channels=3, expand_animations=False)[None]
  if size is None and largest is None:
    return picture
  if size is None:
    sides, most = tf.cast(tf.shape(picture)[1:3], tf.float32), tf.constant(largest, tf.float32)
    size = tf.cast(tf.maximum(tf.round(sides * tf.minimum(tf.reduce_min(most / sides), 1.0)), 1.0), tf.int32)
  resized = tf.image.resize(picture, size, method="bicubic", antialias=True)
  return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)
