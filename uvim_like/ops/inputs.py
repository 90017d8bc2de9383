"""The picture's part of an evaluation's preprocessing string as a function of uint8 pixels, without TensorFlow.

`compile_string` keeps what the string does to the picture, and leaves out what it does to labels and objects. The ops
are those of `pp_ops` with the same arguments; a test compares the two, op by op. What is exported sees the same pixels
as the training did.
"""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.errors import UserError, shortened, suggest
from uvim_like.ops.input_ops import (
  DECODED,
  KEY_OPS,
  NYU_SIZE,
  STATE_OPS,
  WHERE,
  Picture,
  State,
  pair,
  with_picture,
  without,
)

Array = jax.Array
# What makes labels and objects of annotations; the picture stays as it is.
LABEL_OPS = ("coco_panoptic", "make_canonical", "semantic_labels", "normal_labels", "depth_labels", "nyu_depth",
             "panoptic_masks", "instances", "box_masks", "downscale_masks", "pad_instances", "tokenize_captions",
             "concat")
RANDOM_OPS = ("randu", "det_fliplr", "flip_lr", "inception_box", "crop_box", "decode_jpeg_and_inception_crop",
              "random_flip", "jitter_scale", "random_scale", "random_crop", "detr_scale", "cut_depth",
              "brightness_contrast", "random_gamma", "hue_saturation", "kmax_colours")
NEED_ROOM = ("canvas",)   # ops that say how large a picture may be, where nothing before them scales it
SCALE = ("resize", "resize_all", "fit", "resize_short", "square_area_resize", "nyu_eval_crop")


class Step(NamedTuple):
  """One op with its arguments, defaults filled in."""
  name: str
  function: Callable[..., State]
  arguments: Mapping[str, Any]


class Program(NamedTuple):
  """A string's ops on the picture; `text` is the whole string."""
  text: str
  steps: tuple[Step, ...]


# --- strings ----------------------------------------------------------------------------------------------------------


def compile_string(text: str, *, where: str = WHERE) -> Program:
  """The ops of a preprocessing string that touch the picture.

  Args:
    text: the string; with or without `decode`.
    where: the config key, for messages.

  Raises:
    UserError: not a string of ops; an op or argument that is not known here; an op that draws at random.
  """
  steps, keys = [], {DECODED}
  for name, args, kwargs in _parse(text, where):
    if name in RANDOM_OPS:
      raise UserError(f"{where}: '{name}' draws at random; only an evaluation's preprocessing can be exported")
    if name in LABEL_OPS:
      if keys & _named(args, kwargs):
        raise UserError(f"{where}: '{name}' of the picture itself is not known to export")
      continue
    step = _resolve(name, args, kwargs, keys, where)
    if step is not None:
      steps.append(step)
      keys = _keys_after(step, keys)
  if DECODED not in keys:
    raise UserError(f"{where}: the string does not put out '{DECODED}'")
  return Program(text, tuple(steps))


def _parse(text: str, where: str) -> list[tuple[str, tuple, dict[str, Any]]]:
  """(name, positional arguments, named ones) of each op; literals only."""
  try:
    node = ast.parse(" ".join(text.split()), mode="eval").body
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    raise UserError(f"{where}: '{shortened(text)}' is not op|op(…)|…") from error
  nodes = []
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    nodes.append(node.right)
    node = node.left
  return [_call(node, where) for node in (node, *reversed(nodes))]


def _call(node: ast.expr, where: str) -> tuple[str, tuple, dict[str, Any]]:
  if isinstance(node, ast.Name):
    return node.id, (), {}
  if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
    raise UserError(f"{where}: '{shortened(ast.unparse(node))}' is no op")
  try:
    return (node.func.id, tuple(ast.literal_eval(arg) for arg in node.args),
            {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in node.keywords})
  except (ValueError, TypeError) as error:
    raise UserError(f"{where}: arguments of '{node.func.id}' are not literals") from error


def _named(args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[str]:
  """Every string among the arguments."""
  values = [*args, *kwargs.values()]
  return {word for value in values for word in (value if isinstance(value, (list, tuple)) else [value])
          if isinstance(word, str)}


def _resolve(name: str, args: tuple, kwargs: dict[str, Any], keys: set[str], where: str) -> Step | None:
  """The op with its arguments; None where it works on something else than the picture."""
  if name in STATE_OPS:
    return Step(name, STATE_OPS[name], _bound(name, STATE_OPS[name], args, kwargs, where))
  if name not in KEY_OPS:
    known = (*KEY_OPS, *STATE_OPS)
    raise UserError(f"{where}: the op '{shortened(name)}' is not known to export; {suggest(name, known)}")
  default = "labels" if name == "check_range" else DECODED
  places = {part: kwargs.pop(part) for part in ("key", "inkey", "outkey") if part in kwargs}
  key = places.get("key", default)
  source, target = places.get("inkey") or key, places.get("outkey") or key
  if source not in keys:
    return None if target not in keys else Step(name, _forget, {"key": target})
  arguments = _bound(name, KEY_OPS[name], args, kwargs, where)
  return Step(name, _on_key, {"function": KEY_OPS[name], "source": source, "target": target, "arguments": arguments})


def _bound(name: str, function: Callable, args: tuple, kwargs: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Arguments by name, without the picture."""
  signature = inspect.signature(function)
  try:
    bound = signature.bind(None, *args, **kwargs)
  except TypeError as error:
    raise UserError(f"{where}: {name}: {error}") from error
  bound.apply_defaults()
  first, *_ = signature.parameters
  return {key: value for key, value in bound.arguments.items() if key != first}


def _on_key(state: State, *, function: Callable[..., Picture], source: str, target: str,
            arguments: Mapping[str, Any]) -> State:
  return with_picture(state, target, function(state.pictures[source], **arguments))


def _forget(state: State, *, key: str) -> State:
  """A picture's key is written over with something else."""
  return without(state, (key,))


def _keys_after(step: Step, keys: set[str]) -> set[str]:
  a = step.arguments
  if step.function is _on_key:
    return keys | {a["target"]}
  if step.function is _forget or step.name == "drop":
    return keys - set(a.get("keys", (a.get("key"),)))
  if step.name == "copy":
    return keys | {a["outkey"]} if a["inkey"] in keys else keys - {a["outkey"]}
  return keys & set(a["keys"]) if step.name == "keep" else keys


# --- running ----------------------------------------------------------------------------------------------------------


def run(program: Program, pixels: Array) -> dict[str, Array]:
  """Everything that a string makes of the pixels: "image", often "image_ctx" or "valid_size" (B, 2) int32.

  Args:
    program: see `compile_string`.
    pixels: uint8 (B, H, W, 3), all of one size; H and W may be unknown until the call.

  Raises:
    UserError: pixels of another type or size than the string takes; a size that the string leaves open.
  """
  if pixels.ndim != 4 or pixels.dtype != jnp.uint8 or pixels.shape[-1] != 3:
    raise UserError(f"{WHERE}: pixels are uint8 (B, H, W, 3), not {pixels.dtype}{list(pixels.shape)}")
  state = State({DECODED: Picture(pixels)})
  for step in program.steps:
    keys = dict(step.arguments)
    positional = keys.pop("keys", ()) if step.name in ("keep", "drop") else ()
    state = step.function(state, *positional, **keys)
  for key, picture in state.pictures.items():
    if picture.height is not None:
      raise UserError(f"{WHERE}: '{key}' has no fixed size: the string needs a canvas(…) or a resize(…), or the "
                      "pictures one size")
  out = {key: picture.pixels for key, picture in state.pictures.items()}
  if state.valid is not None:
    valid = jnp.stack([jnp.asarray(side, jnp.int32) for side in state.valid])
    out["valid_size"] = jnp.broadcast_to(valid, (pixels.shape[0], 2))
  return out


def required_size(program: Program) -> tuple[int, int] | None:
  """(height, width) that all pictures must have; None when the string takes others as well."""
  for step in program.steps:
    if step.name == "nyu_eval_crop":
      return NYU_SIZE
    if step.name in SCALE:
      return None
  return None


def largest_size(program: Program) -> tuple[int, int] | None:
  """(height, width) that no picture may exceed, where a canvas comes before anything that scales; None without."""
  for step in program.steps:
    if step.name in NEED_ROOM:
      return pair(step.arguments["size"])
    if step.name in SCALE:
      return None
  return None


def fixed_output(program: Program) -> bool:
  """Whether pictures of all sizes come out with one size."""
  return any(step.name in ("resize", "resize_all", "canvas", "square_area_resize", "nyu_eval_crop")
             and step.arguments.get("target", DECODED) == DECODED for step in program.steps)
