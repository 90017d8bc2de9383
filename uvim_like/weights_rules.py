"""Weights under other people's names: a table of name templates and array layouts, read in both directions."""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from uvim_like import trees, weights
from uvim_like.cubic import resize_grid
from uvim_like.errors import UserError

Tree = Any
Shape = tuple[int, ...]


class Layout(NamedTuple):
  """How an array is stored elsewhere.

  Attributes:
    to_ours: (array, our shape) -> array; where the two cannot agree, an array that shows so by its shape.
    to_theirs: array -> array, the exact inverse.
    resize: (array, our shape) -> array of our shape, for a table of positions of another size; None: cannot be resized.
  """
  to_ours: Callable[[np.ndarray, Shape], np.ndarray]
  to_theirs: Callable[[np.ndarray], np.ndarray]
  resize: Callable[[np.ndarray, Shape], np.ndarray] | None = None


class Rule(NamedTuple):
  """One kind of array in both namings.

  Attributes:
    ours: template such as "params/stage{s}_block{b}/norm1/scale"; {s} stands for a whole number, {s+1} for it plus 1.
    theirs: template, or several: their arrays, each brought to our layout, lie side by side on our last axis.
    layout: name in `LAYOUTS`.
  """
  ours: str
  theirs: tuple[str, ...]
  layout: str = "same"


class Fused(NamedTuple):
  """An array of theirs that is several arrays of equal height, one below another (along its first axis).

  Attributes:
    whole: template of its name.
    parts: templates of the names under which the rules know its parts.
  """
  whole: str
  parts: tuple[str, ...]


class Table(NamedTuple):
  """All names of one kind of model in one format.

  Attributes:
    rules: where several have the same `ours`, the first one is written and all are read.
    ignored: patterns of their names that say nothing here: classifiers, counters, tables that are computed.
    prefixes: what their names may have before them, e.g. "vit." or "backbone.".
    fused: arrays that are cut before the rules are read, and joined after they are written.
  """
  rules: tuple[Rule, ...]
  ignored: tuple[str, ...] = ()
  prefixes: tuple[str, ...] = ()
  fused: tuple[Fused, ...] = ()


class Converted(NamedTuple):
  """Attributes:
    tree: {"params": tree, "state": tree} under our names.
    rest: {their name: array} of what the table does not know, or knows only in part.
    ignored: {their name: array} of what it passes over.
  """
  tree: dict[str, Tree]
  rest: dict[str, np.ndarray]
  ignored: dict[str, np.ndarray]


def rule(ours: str, *theirs: str, layout: str = "same") -> Rule:
  """A `Rule` for a parameter, "params/" left out."""
  return Rule(f"params/{ours}", theirs, layout)


def dense(ours: str, *theirs: str, bias: bool = True) -> tuple[Rule, ...]:
  """Rules of a linear layer; with several of theirs, they are side by side in ours."""
  kernel = rule(f"{ours}/kernel", *(f"{name}.weight" for name in theirs), layout="dense")
  return (kernel, rule(f"{ours}/bias", *(f"{name}.bias" for name in theirs))) if bias else (kernel,)


def conv(ours: str, theirs: str, *, bias: bool = True) -> tuple[Rule, ...]:
  """Rules of a convolution."""
  kernel = rule(f"{ours}/kernel", f"{theirs}.weight", layout="conv")
  return (kernel, rule(f"{ours}/bias", f"{theirs}.bias")) if bias else (kernel,)


def norm(ours: str, theirs: str) -> tuple[Rule, ...]:
  """Rules of a LayerNorm."""
  return rule(f"{ours}/scale", f"{theirs}.weight"), rule(f"{ours}/bias", f"{theirs}.bias")


def batch_norm(ours: str, theirs: str) -> tuple[Rule, ...]:
  """Rules of a BatchNorm with its running statistics."""
  return (*norm(ours, theirs), Rule(f"state/{ours}/mean", (f"{theirs}.running_mean",)),
          Rule(f"state/{ours}/var", (f"{theirs}.running_var",)))


def to_ours(flat: Mapping[str, np.ndarray], table: Table, like: Tree, *, resample: bool = False) -> Converted:
  """Arrays of a foreign checkpoint under our names and in our layouts.

  Args:
    flat: {their name: array}.
    table: of the model and the format.
    like: {"params", "state"} of the model, arrays or shapes: gives the number of heads and the like.
    resample: resize position tables that were made for another window or grid; else they are left mis-shaped.
  """
  shapes = {name: tuple(leaf.shape) for name, leaf in trees.flatten_names(like)}
  parts: dict[str, tuple[Rule, dict[int, tuple[str, np.ndarray]]]] = {}
  rest, ignored = {}, {}
  for name, array in _cut(flat, table).items():
    bare = _strip(name, table)
    found = _find(bare, table)
    if found is None:
      kept = ignored if trees.match_first(bare, list(table.ignored)) is not None else rest
      kept[name] = array
    else:
      row, index, ours = found
      parts.setdefault(ours, (row, {}))[1][index] = name, np.asarray(array)
  tree = {}
  for ours, (row, arrays) in parts.items():
    if len(arrays) < len(row.theirs):
      rest |= dict(arrays.values())
    else:
      tree[ours] = _read(row, [arrays[i][1] for i in range(len(arrays))], shapes.get(ours), resample)
  nested = trees.unflatten_names(tree)
  return Converted({"params": nested.get("params", {}), "state": nested.get("state", {})}, rest, ignored)


def to_theirs(tree: Tree, table: Table) -> dict[str, np.ndarray]:
  """{their name: array} of our {"params", "state"}: the inverse of `to_ours`, bit for bit.

  Raises:
    UserError: an array that the format has no name for.
  """
  out: dict[str, np.ndarray] = {}
  for name, leaf in trees.flatten_names(tree):
    for row in table.rules:
      if match := _pattern(row.ours).fullmatch(name):
        numbers = _numbers(match)
        pieces = np.split(np.asarray(leaf), len(row.theirs), axis=-1) if len(row.theirs) > 1 else [np.asarray(leaf)]
        out |= {_fill(theirs, numbers): np.ascontiguousarray(LAYOUTS[row.layout].to_theirs(piece))
                for theirs, piece in zip(row.theirs, pieces)}
        break
    else:
      raise UserError(f"'{name}' has no name in the other layout")
  return _joined(out, table)


def has_name(name: str, table: Table) -> bool:
  """Whether a format has a name for an array of ours."""
  return any(_pattern(row.ours).fullmatch(name) for row in table.rules)


def merge(init: Tree, flat: Mapping[str, np.ndarray], table: Table, dont_load: Sequence[str] = (), *,
          strict: bool = True, resample: bool = False, where: str = "weights") -> tuple[Tree, weights.Report]:
  """`weights.merge` of a foreign checkpoint into our {"params", "state"}; its unknown arrays are reported as extra.

  Args:
    init: {"params", "state"} of the model.
    flat: {their name: array}.
    table: of the model and the format.
    dont_load: see `weights.merge`; patterns of our full names ("params/…").
    strict: see `weights.merge`.
    resample: see `to_ours`.
    where: place named in the error.

  Raises:
    UserError: nothing in the file has a name of this format; see `weights.merge`.
  """
  converted = to_ours(flat, table, init, resample=resample)
  if not converted.tree["params"]:
    some = ", ".join(list(flat)[:3])
    raise UserError(f"{where}: no array has a name of this format; the file has {some or 'nothing'}")
  return weights.merge(init, converted.tree | converted.rest, dont_load, strict=strict, where=where)


def shapes_of(variables: Mapping[str, Tree]) -> dict[str, Tree]:
  """{"params", "state"} of a Flax model's variables, as shapes or arrays; "state" is {} when it has none."""
  return {"params": variables["params"], "state": variables.get("state", {})}


def _strip(name: str, table: Table) -> str:
  for prefix in table.prefixes:
    name = name.removeprefix(prefix)
  return name


def _cut(flat: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
  """The arrays, fused ones in their parts; one that does not divide stays whole."""
  out = {}
  for name, array in flat.items():
    matches = ((fused, _pattern(fused.whole).fullmatch(_strip(name, table))) for fused in table.fused)
    fused, match = next(((fused, match) for fused, match in matches if match), (None, None))
    array = np.asarray(array)
    if fused and array.ndim and not array.shape[0] % len(fused.parts):
      names = [_fill(part, _numbers(match)) for part in fused.parts]
      out |= zip(names, np.split(array, len(names)))
    else:
      out[name] = array
  return out


def _joined(flat: dict[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
  """The inverse of `_cut`; parts that are not all there stay as they are."""
  for fused in table.fused:
    for match in [match for name in flat if (match := _pattern(fused.parts[0]).fullmatch(name))]:
      names = [_fill(part, _numbers(match)) for part in fused.parts]
      if set(names) <= set(flat):
        flat[_fill(fused.whole, _numbers(match))] = np.concatenate([flat.pop(name) for name in names])
  return flat


def _find(name: str, table: Table) -> tuple[Rule, int, str] | None:
  """The rule that knows a name of theirs, which of its parts it is, and our name."""
  for row in table.rules:
    for index, theirs in enumerate(row.theirs):
      if match := _pattern(theirs).fullmatch(name):
        return row, index, _fill(row.ours, _numbers(match))
  return None


def _read(row: Rule, arrays: list[np.ndarray], shape: Shape | None, resample: bool) -> np.ndarray:
  layout = LAYOUTS[row.layout]
  pieces = [layout.to_ours(array, shape or array.shape) for array in arrays]
  out = np.concatenate(pieces, axis=-1) if len(pieces) > 1 else pieces[0]
  wrong = shape is not None and out.shape != shape and out.ndim == len(shape)
  return layout.resize(out, shape) if wrong and resample and layout.resize else out


_PLACE = re.compile(r"\{(\w)(?:\+(\d+))?\}")


@functools.cache
def _pattern(template: str) -> re.Pattern:
  """A template as a regular expression with groups named after the letter and what is added to it."""
  parts, last = [], 0
  for match in _PLACE.finditer(template):
    parts += [re.escape(template[last:match.start()]), rf"(?P<{match[1]}_{match[2] or 0}>\d+)"]
    last = match.end()
  return re.compile("".join([*parts, re.escape(template[last:])]))


def _numbers(match: re.Match) -> dict[str, int]:
  return {group[0]: int(value) - int(group[2:]) for group, value in match.groupdict().items()}


def _fill(template: str, numbers: Mapping[str, int]) -> str:
  return _PLACE.sub(lambda match: str(numbers[match[1]] + int(match[2] or 0)), template)


def _fits(array: np.ndarray, shape: Shape) -> np.ndarray:
  """Reshaped where the number of elements allows, else as it is."""
  return array.reshape(shape) if array.size == math.prod(shape) else array


def _square_table(array: np.ndarray, shape: Shape) -> np.ndarray:
  side = math.isqrt(array.shape[0])
  return array.reshape(side, side, -1) if side * side == array.shape[0] else array


def _positions(array: np.ndarray, shape: Shape) -> np.ndarray:
  """Without the class token's row where the model has none."""
  extra = array.shape[1] - shape[1] if array.ndim == len(shape) == 3 else 0
  has_token = math.isqrt(array.shape[1]) ** 2 != array.shape[1] if extra else False
  wants_token = math.isqrt(shape[1]) ** 2 != shape[1] if extra else False
  return array[:, 1:] if extra == 1 or (has_token and not wants_token) else array


def _resize_table(array: np.ndarray, shape: Shape) -> np.ndarray:
  return resize_grid(array, shape[:2]).astype(array.dtype) if array.shape[-1] == shape[-1] else array


def _resize_positions(array: np.ndarray, shape: Shape) -> np.ndarray:
  """Square grids only, with a class token on both sides or on neither."""
  old, new = (math.isqrt(n) for n in (array.shape[1], shape[1]))
  token = array.shape[1] - old * old
  if token not in (0, 1) or shape[1] - new * new != token or array.shape[-1] != shape[-1]:
    return array
  grid = resize_grid(array[0, token:].reshape(old, old, -1), (new, new)).reshape(1, new * new, -1)
  return np.concatenate([array[:, :token], grid.astype(array.dtype)], axis=1)


LAYOUTS: dict[str, Layout] = {
    "same": Layout(lambda a, shape: a, lambda a: a),
    "dense": Layout(lambda a, shape: a.T, lambda a: a.T),  # (out, in)
    "conv": Layout(lambda a, shape: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a,  # (out, in, y, x)
                   lambda a: a.transpose(3, 2, 0, 1)),
    "heads_in": Layout(lambda a, shape: _fits(a.T, shape), lambda a: a.reshape(a.shape[0], -1).T),
    "heads_out": Layout(lambda a, shape: _fits(a.T, shape), lambda a: a.reshape(-1, a.shape[-1]).T),
    "heads_bias": Layout(_fits, lambda a: a.reshape(-1)),
    "per_head": Layout(lambda a, shape: a.reshape(-1), lambda a: a.reshape(-1, 1, 1)),  # (heads, 1, 1)
    "per_channel": Layout(lambda a, shape: a.reshape(-1), lambda a: a.reshape(1, 1, 1, -1)),  # (1, 1, 1, channels)
    "offsets": Layout(_square_table, lambda a: a.reshape(-1, a.shape[-1]), _resize_table),  # ((2w - 1)^2, heads)
    "positions": Layout(_positions, lambda a: a, _resize_positions),
}


def eval_shapes(model: Any, image_shape: Shape) -> dict[str, Tree]:
  """{"params", "state"} of a backbone as shapes, without computing anything."""
  image = jax.ShapeDtypeStruct(image_shape, np.float32)
  return shapes_of(jax.eval_shape(lambda image: model.init(jax.random.key(0), image), image))
