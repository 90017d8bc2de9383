"""A trained run as one function of uint8 pixels: preprocessing, network, decoding, and the task's maps."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.errors import InconclusiveDimensionOperation

from uvim_like import trees
from uvim_like.errors import UserError, unknown
from uvim_like.inference import sizes, views
from uvim_like.inference.views import AIT, View
from uvim_like.ops import inputs
from uvim_like.systems.base import System, Vars
from uvim_like.training.trained import Trained

Array = jax.Array
PLATFORMS = ("cpu", "cuda", "tpu")
BATCH_KEYS = ("image", "image_ctx", "valid_size")   # of a batch, those that are made from the pixels alone
FULL_SIZE = ("depth", "semantics", "instances", "normals")   # maps that can be brought back to the picture's own size
SQUARE = ("square_area_resize",)   # ops that leave out what is beside the central square
NPZ_STRING = "value_range(-1, 1)"   # what reading does to the stored pictures of the dataset "npz"


class Function(NamedTuple):
  """What is exported.

  Attributes:
    predict: (weights, {"pixels": uint8 (B, H, W, 3), "seed": () uint32}) -> {name: (B, …)}.
    names: of the weights, "params/…", "state/…" and "frozen/…".
    weights: as the checkpoint has them.
    program: the preprocessing.
    views: of the run, whose predictions are put together.
    size: (H, W) that all pictures must have; None: any.
    largest: (H, W) that no picture may exceed; None without a bound.
    seed: the run's.
    full_size: maps come at the picture's own size.
  """
  predict: Any
  names: tuple[str, ...]
  weights: tuple[np.ndarray, ...]
  program: inputs.Program
  views: tuple[View, ...]
  size: tuple[int, int] | None
  largest: tuple[int, int] | None
  seed: int
  full_size: bool


def make(trained: Trained, *, view: str | None = None, size: tuple[int, int] | None = None, full_size: bool = False,
         picture: tuple[int, int] | None = (480, 640)) -> Function:
  """The function of a run.

  Args:
    trained: the run.
    view: name of one of its evaluations; None: all that see the picture as the first does.
    size: (H, W) of all pictures, where the string leaves it open.
    full_size: bring maps back to the picture's own size, nearest, as the evaluators do.
    picture: (H, W) of one of the run's pictures, from which a size follows where nothing else says one; None: unknown.

  Raises:
    UserError: a run that cannot predict from a picture; an op that is not known to export; a size that cannot be.
  """
  views.check_predictable(trained.config)
  program, chosen = select(trained.config, view)
  if full_size and any(step.name in SQUARE for step in program.steps):
    raise UserError("--full_size: the preprocessing shows the central square alone; leave it out")
  fixed = fixed_size(trained.config, program, chosen, size=size, picture=picture)
  tree = {"params": trained.vars.params, "state": trained.vars.state, "frozen": trained.frozen}
  named = trees.flatten_names(tree)
  predict = functools.partial(_predict, system=trained.system, structure=jax.tree.structure(tree), program=program,
                              chosen=chosen, full_size=full_size)
  return Function(predict, tuple(name for name, _ in named), tuple(np.asarray(leaf) for _, leaf in named), program,
                  chosen, fixed, inputs.largest_size(program), int(trained.config.seed) & 0xFFFFFFFF, full_size)


def select(config: Any, name: str | None) -> tuple[inputs.Program, tuple[View, ...]]:
  """The preprocessing, and the run's views whose predictions differ among those that have it.

  Raises:
    UserError: no such view, or a preprocessing that is not known to export.
  """
  found = views.views(config)
  if name is not None:
    found = [view for view in found if view.name == name]
    if not found:
      raise unknown("evaluation", name, [view.name for view in views.views(config)], where="--view")
  programs = [program_of(config, view) for view in found]
  chosen = []
  for view, program in zip(found, programs):
    same = any((view.pred, view.options) == (other.pred, other.options) for other in chosen)
    if not same and _steps(program) == _steps(programs[0]):
      chosen.append(view)
  return programs[0], tuple(chosen)


def beside(config: Any, chosen: Sequence[View]) -> list[str]:
  """Names of the run's views that predict something else than the chosen ones."""
  return [view.name for view in views.views(config)
          if all((view.pred, view.options) != (other.pred, other.options) for other in chosen)]


def program_of(config: Any, view: View) -> inputs.Program:
  """The picture's part of a view's preprocessing."""
  where = "config.pp_eval" if view.name == "pp_eval" else f"config.{view.name}.pp"
  return inputs.compile_string(text_of(config, view), where=where)


def text_of(config: Any, view: View) -> str:
  """A view's preprocessing string, of a mixture the first; finished examples need none, their levels are scaled."""
  text = view.pp.split(";")[0]
  return text if text.strip() or dataset_of(config, view) != "npz" else NPZ_STRING


def dataset_of(config: Any, view: View) -> str:
  """The dataset of an evaluation; its metric may name another, whose classes it has."""
  return (config.dataset if view.name == "pp_eval" else config[view.name].dataset) or config.dataset


def _steps(program: inputs.Program) -> list[tuple]:
  return [(step.name, {**step.arguments}) for step in program.steps if step.name not in ("keep", "drop")]


def fixed_size(config: Any, program: inputs.Program, chosen: Sequence[View], *, size: tuple[int, int] | None,
               picture: tuple[int, int] | None) -> tuple[int, int] | None:
  """(H, W) that all pictures must have: what the string asks for, or what was said, or what suits the network.

  None where the string brings every picture to one size.

  Raises:
    UserError: another size than the string asks for, or more than the network's canvas; nothing says a size.
  """
  wanted, canvas = inputs.required_size(program), config.model.get("input_size")
  if wanted and size not in (None, wanted):
    raise UserError(f"--input_size: {_text(size)}, but the preprocessing takes {_text(wanted)} alone")
  largest = inputs.largest_size(program)
  if size and largest and (size[0] > largest[0] or size[1] > largest[1]):
    raise UserError(f"--input_size: {_text(size)} is larger than the canvas; nearest: {_text(largest)}")
  if wanted or size:
    return wanted or size
  if inputs.fixed_output(program):
    return None
  if views.system_of(config) == AIT:
    room = views.canvas_of(config, chosen[0])
    return sizes.on_canvas(picture or room, room, chosen[0].options.get("windows", 0))
  if canvas and len(canvas) == 2:
    return tuple(canvas)
  if picture is None:
    raise UserError("--input_size=HxW is needed: the network has no size of its own, and the run's pictures, whose first "
                    "one would say it, are not at hand (--config.data_dir=D, where they have moved)")
  return sizes.capped(picture)


def _text(size: tuple[int, int]) -> str:
  return f"{size[0]}x{size[1]}"


def _predict(weights: Sequence[Array], given: Mapping[str, Array], *, system: System, structure: Any,
             program: inputs.Program, chosen: Sequence[View], full_size: bool) -> dict[str, Array]:
  """The outputs of all views; "valid_size" is there where pictures stand on a canvas."""
  pixels = given["pixels"]
  made = inputs.run(program, pixels)
  entries = {key: made[key] for key in BATCH_KEYS if key in made}
  tree = jax.tree.unflatten(structure, weights)
  variables = Vars(tree["params"], tree["state"])
  out: dict[str, Array] = {}
  for view in chosen:
    outputs = system.predict[view.pred](variables, tree["frozen"], entries, jax.random.key(given["seed"]),
                                        **view.options)
    out |= {key: value for key, value in outputs.items() if key not in out}
  if "valid_size" in entries:
    out["valid_size"] = entries["valid_size"]
  if full_size:
    out = {key: to_picture(value, entries, pixels) if key in FULL_SIZE else value for key, value in out.items()}
  return {key: value.astype(jnp.float32) if value.dtype == jnp.bfloat16 else value for key, value in out.items()}


def to_picture(x: Array, entries: Mapping[str, Array], pixels: Array) -> Array:
  """Maps (B, h, w), (B, S, h, w) or normals (…, 3) at the pictures' own size, nearest, a canvas's padding cut off.

  The rule is that of `uvim_like.evaluators.resize`.
  """
  axis = x.ndim - (3 if x.shape[-1] == 3 and x.ndim >= 4 else 2)
  for i in range(2):
    old, new = jnp.int32(x.shape[axis + i]), jnp.asarray(pixels.shape[1 + i], jnp.int32)
    if "valid_size" in entries:
      canvas = entries["image"].shape[1 + i]
      share = entries["valid_size"][0, i] * x.shape[axis + i] / canvas
      old = jnp.maximum(jnp.round(share), 1).astype(jnp.int32)
    step = old.astype(jnp.float32) * (jnp.float32(1) / new.astype(jnp.float32))
    place = (jnp.arange(pixels.shape[1 + i], dtype=jnp.float32) + 0.5) * step
    x = jnp.take(x, jnp.minimum(jnp.floor(place).astype(jnp.int32), old - 1), axis=axis + i, mode="clip")
  return x


# --- lowering ---------------------------------------------------------------------------------------------------------


class Lowered(NamedTuple):
  """A function as a program.

  Attributes:
    exported: of `jax.export`; called with ([weights], {"pixels", "seed"}).
    used: names of the weights that it reads; in the places of the others anything of their shape may stand.
    shape: of the pixels, e.g. ("b", "h", "w", 3); a letter is open until the call.
    refused: why fewer sizes are open than could be, one line an attempt.
  """
  exported: jax_export.Exported
  used: frozenset[str]
  shape: tuple[str | int, ...]
  refused: tuple[str, ...]


def lower(function: Function, *, platforms: Sequence[str] = PLATFORMS) -> Lowered:
  """The program with as many open sizes as the network allows: with the batch, or without it."""
  refused = []
  shapes = _shapes(function)
  for shape in shapes:
    try:
      exported = _export(function, shape, platforms)
    except InconclusiveDimensionOperation as error:  # the network must know the size that was left open
      if shape == shapes[-1]:
        raise
      refused.append(f"{shape}: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
      continue
    used = frozenset(function.names[i] for i in exported.module_kept_var_idx if i < len(function.names))
    return Lowered(exported, used, shape, tuple(refused))
  raise AssertionError("the last shape is lowered or raises")


def _shapes(function: Function) -> list[tuple[str | int, ...]]:
  if function.size is None:
    return [("b", "h", "w", 3), (1, "h", "w", 3)]
  return [("b", *function.size, 3), (1, *function.size, 3)]


def specs(shape: Sequence[str | int], largest: tuple[int, int] | None) -> dict[str, jax.ShapeDtypeStruct]:
  """What the program takes beside the weights."""
  bounds = [f"{name} <= {side}" for name, side in zip("hw", largest or ()) if name in shape]
  sides = jax_export.symbolic_shape(", ".join(map(str, shape)), constraints=bounds)
  return {"pixels": jax.ShapeDtypeStruct(sides, jnp.uint8), "seed": jax.ShapeDtypeStruct((), jnp.uint32)}


def _export(function: Function, shape: Sequence[str | int], platforms: Sequence[str]) -> jax_export.Exported:
  described = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in function.weights]
  return jax_export.export(jax.jit(function.predict), platforms=tuple(platforms))(
      described, specs(shape, function.largest))
