"""The part of a preprocessing string that needs nothing but the image, to run on pictures without labels.

Ops that read labels, annotations or ids are left out; what remains is the very string, op for op.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pp_ops import builder, geometry
from pp_ops.pipeline import example_seed
from pp_ops.registry import SEED, Features, Op, features_op
from uvim_like.errors import UserError

OPS: dict[str, Op] = {}
IMAGE_KEYS = ("image", "image_ctx", "valid_size")   # of a batch, those that come from the image alone
SQUARE = ("square_area_resize",)   # ops whose result shows the central square alone
MIXED = ";"   # between the strings of a mixture of datasets
IMAGE_SPEC = tf.TensorSpec([None, None, 3], tf.uint8)


class ImagePart(NamedTuple):
  """What is left of a string.

  Attributes:
    program: the ops, in order.
    keys: what it puts out, of `IMAGE_KEYS`.
    left_out: ops that would have changed the picture but need more than the picture.
    square: only the central square of the picture is seen.
    shapes: {key: (H, W, 3) or (2,)}, None for sides that depend on the picture.
  """
  program: builder.Program
  keys: tuple[str, ...]
  left_out: tuple[str, ...]
  square: bool
  shapes: Mapping[str, tuple[int | None, ...]]

  def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
    """The entries of a batch, without its first axis, of a picture uint8 (H, W, 3).

    Op by op, as evaluations do in effect: a compiled graph divides by multiplying with the reciprocal, and every third
    pixel differs in its last bit.
    """
    try:
      return {key: value.numpy() for key, value in _run(self.program, self.keys, tf.constant(image)).items()}
    except tf.errors.OpError as error:
      raise UserError(f"preprocessing '{self.program.text}': {' '.join(error.message.split())[:200]}") from error


def make(pp: str, modules: Sequence[str] | None = None) -> ImagePart:
  """The image part of a string.

  Before a `canvas` stands, in addition, an op that shrinks pictures that do not fit on it: in an evaluation they are an
  error, so no number of one can differ.

  Args:
    pp: the string; of a mixture of datasets the first.
    modules: of ops, as `config.pp_modules`.

  Raises:
    UserError: a mistake in the string.
  """
  program = builder.compile_string(pp.split(MIXED)[0], modules)
  steps, present, left_out, kept = [], {"image"}, [], None
  for step in program.steps:
    reads, writes = (set(declared(step.arguments.arguments)) for declared in (step.op.reads, step.op.writes))
    if step.call.name == "keep":
      kept = reads
    if reads <= present and step.call.name not in ("keep", "drop"):
      steps += [_shrink_step(step)] if step.call.name == "canvas" else []
      steps.append(step)
      present |= writes
    elif writes & set(IMAGE_KEYS) and not reads <= present:
      left_out.append(step.call.name)
  keys = tuple(key for key in IMAGE_KEYS if key in present and (kept is None or key in kept))
  part = builder.Program(program.text, tuple(steps))
  traced = tf.function(functools.partial(_run, part, keys), autograph=False).get_concrete_function(IMAGE_SPEC)
  shapes = {key: tuple(x.shape) for key, x in traced.structured_outputs.items()}
  return ImagePart(part, keys, tuple(left_out), any(s.call.name in SQUARE for s in steps), shapes)


def _run(program: builder.Program, keys: Collection[str], image: tf.Tensor) -> dict[str, tf.Tensor]:
  """The outputs of one picture. Random choices, if there are any, are always the same."""
  out = builder.run(program, {"image": image, SEED: example_seed(0, 0, 0)})
  return {key: out[key] for key in keys}


@features_op(OPS, reads=("image",), writes=("image",))
def shrink_to(features: Features, size: int | Sequence[int]) -> Features:
  """Scales a picture that is larger than `size` down until it fits, sides in their ratio; others stay as they are."""
  height, width = (size, size) if isinstance(size, int) else tuple(size)
  sides = tf.shape(features["image"])[:2]
  factor = tf.reduce_min(tf.cast([height, width], tf.float64) / tf.cast(sides, tf.float64))
  small = tf.maximum(tf.cast(tf.cast(sides, tf.float64) * factor, tf.int32), 1)
  image = tf.cond(factor < 1, lambda: geometry.resize({"image": features["image"]}, small[0], small[1],
                                                      antialias=True)["image"], lambda: features["image"])
  return {**features, "image": tf.ensure_shape(image, [None, None, 3])}


def _shrink_step(canvas: builder.Step) -> builder.Step:
  """`shrink_to` the size of a canvas."""
  size, op = canvas.arguments.arguments["size"], OPS["shrink_to"]
  call = builder.Call("shrink_to", (size,), {}, canvas.call.column)
  return builder.Step(call, op, op.signature.bind(size))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """uint8 (H, W, 3) -> (*size, 3), bilinear with antialiasing: for pictures larger than any evaluation's."""
  scaled = geometry.resize({"image": tf.constant(image)}, tf.constant(size[0]), tf.constant(size[1]), antialias=True)
  return scaled["image"].numpy()
