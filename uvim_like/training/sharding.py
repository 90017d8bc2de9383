"""Where arrays live: the device mesh, the batch over it, and parameters by rules of (name pattern, placement)."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from uvim_like import trees
from uvim_like.errors import UserError, suggest, unknown
from uvim_like.ops.constraint import BATCH_AXES, batch_spec

Tree = Any

DEFAULT_MESH = {"data": -1}
DEFAULT_RULES = ((".*", "replicate"),)
# Splitting a leaf saves memory and costs a gather: below this many elements the gather costs more.
MIN_SPLIT_SIZE = 2 ** 16


def make_mesh(axes: Any = None, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The device mesh of a config's `mesh` key.

  Args:
    axes: axis name -> size, as a dict, a ConfigDict or a list of pairs (a dict's ConfigDict is read in alphabetical
      order; pairs keep theirs). One size may be -1: all the devices that remain. Default {'data': -1}.
    devices: default all devices.

  Returns:
    A mesh with Auto axis types, to be passed explicitly in a NamedSharding.

  Raises:
    UserError: the sizes do not multiply to the number of devices, or no axis carries the batch.
  """
  devices = list(jax.devices() if devices is None else devices)
  axes = DEFAULT_MESH if axes is None else axes
  pairs = list(axes.items()) if hasattr(axes, "items") else [tuple(pair) for pair in axes]
  names, sizes = [name for name, _ in pairs], [int(size) for _, size in pairs]
  if len(set(names)) < len(names):
    raise UserError(f"config.mesh: an axis is named twice in {pairs}")
  if not set(names) & set(BATCH_AXES):
    raise UserError(f"config.mesh: no axis of {names} carries the batch; name one of {list(BATCH_AXES)}")
  if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
    raise UserError(f"config.mesh: sizes must be positive, one of them may be -1; got {dict(pairs)}")
  fixed, count = math.prod(size for size in sizes if size != -1), len(devices)
  if count % fixed or (-1 not in sizes and fixed != count):
    raise UserError(f"config.mesh: {dict(pairs)} needs {'a multiple of ' if -1 in sizes else ''}{fixed} devices, but "
                    f"there are {count}; valid sizes of an axis: {_divisors(count)}, or -1 for the rest")
  shape = tuple(count // fixed if size == -1 else size for size in sizes)
  return jax.make_mesh(shape, tuple(names), axis_types=(AxisType.Auto,) * len(names), devices=devices)


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def batch_devices(mesh: Mesh) -> int:
  """Number of devices among which a batch is divided."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """First axis over ('data', 'fsdp'), as far as the mesh has them."""
  return NamedSharding(mesh, batch_spec(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh, *, grad_accum_steps: int = 1,
                     where: str = "config.batch_size") -> None:
  """Raises UserError, naming the key, when a batch (or a micro batch) does not divide among devices and processes."""
  unit = math.lcm(batch_devices(mesh) * grad_accum_steps, jax.process_count())
  if batch_size < 1 or batch_size % unit:
    below = batch_size // unit * unit
    near = [size for size in (below, below + unit) if size > 0]
    accumulation = f" x {grad_accum_steps} accumulation steps" if grad_accum_steps > 1 else ""
    raise UserError(f"{where}: {batch_size} does not divide among {batch_devices(mesh)} devices"
                    f"{accumulation}; nearest that does: {' or '.join(map(str, near))}")


def to_global(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
  """This process's rows of every array of a batch, as arrays over the whole mesh.

  Rows of the global batch are ordered by process.
  """
  sharding = batch_sharding(mesh)
  return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def place(tree: Tree, shardings: Tree) -> Tree:
  """Host arrays (the same ones in every process) on the devices; `shardings` is a tree like it, or one for all."""
  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _: shardings, tree)

  def put(leaf, target):
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, target, lambda index: leaf[index])

  return jax.tree.map(put, tree, shardings)


def placed_shapes(tree: Tree, shardings: Tree) -> Tree:
  """Arrays or shapes as shapes with their places; `shardings` is a tree like it, or one for all."""
  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings)


def to_host(tree: Tree, mesh: Mesh) -> Tree:
  """Arrays over the mesh as numpy arrays, whole, in every process."""
  if jax.process_count() > 1:
    tree = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
  return jax.device_get(tree)


def state_shardings(mesh: Mesh, tree: Tree, rules: Any = None, *, min_size: int = MIN_SPLIT_SIZE) -> Tree:
  """A tree of NamedShardings for a tree of arrays or shapes.

  A rule is (pattern, placement); the first that matches wins. A pattern must match the whole name or the end of it
  from a "/" on, so that 'encoder/.*' serves the parameter 'params/encoder/x/kernel' and its optimiser moments
  'opt/0/v_row/encoder/x/kernel' alike. A placement is one of
    'replicate': a copy on every device;
    an axis of the mesh, e.g. 'fsdp': the largest array axis (the last of equals) that divides by that mesh axis is
      split; leaves below `min_size` elements, and those without such an axis, are replicated;
    a list per array axis, of None, a mesh axis or a list of them, e.g. (None, 'fsdp'). Array axes of size 1 are
      never split (factored moments keep the parameter's rank with axes of size 1).
  Scalars are replicated and need no rule.

  Args:
    mesh: the devices.
    tree: arrays or ShapeDtypeStructs.
    rules: default `[('.*', 'replicate')]`.
    min_size: least number of elements for a placement by axis name.

  Raises:
    UserError: a leaf without rule, a pattern that matches nothing, a placement that does not fit mesh or leaf.
  """
  rules = [tuple(rule) for rule in (DEFAULT_RULES if rules is None else rules)]
  patterns = [f"(?:.*/)?(?:{pattern})" for pattern, _ in rules]
  named = trees.flatten_names(tree)
  for (pattern, placement), full in zip(rules, patterns):
    _check_placement(pattern, placement, mesh)
    if not any(re.fullmatch(full, name) for name, _ in named):
      raise UserError(f"config.sharding: pattern '{pattern}' matches no leaf; "
                      f"{suggest(pattern, {part for name, _ in named for part in (name, *name.split('/'))})}")

  def place(name, leaf):
    if not leaf.shape:
      return replicated(mesh)
    i = trees.match_first(name, patterns)
    if i is None:
      raise UserError(f"config.sharding: no rule for '{name}' {leaf.shape}; add ('.*', 'replicate') at the end")
    return NamedSharding(mesh, _spec(name, tuple(leaf.shape), rules[i][1], mesh, min_size))

  return trees.map_names(place, tree)


def _check_placement(pattern: str, placement: Any, mesh: Mesh) -> None:
  where = f"config.sharding ('{pattern}')"
  if isinstance(placement, str):
    if placement != "replicate" and placement not in mesh.shape:
      raise unknown("placement", placement, ["replicate", *mesh.shape], where=where)
    return
  if not isinstance(placement, Sequence):
    raise UserError(f"{where}: a placement is 'replicate', a mesh axis or a list per array axis, not {placement!r}")
  for entry in placement:
    for axis in (entry,) if isinstance(entry, str) or entry is None else entry:
      if axis is not None and axis not in mesh.shape:
        raise unknown("mesh axis", axis, mesh.shape, where=where)


def _spec(name: str, shape: tuple[int, ...], placement: Any, mesh: Mesh, min_size: int) -> PartitionSpec:
  if placement == "replicate":
    return PartitionSpec()
  if isinstance(placement, str):
    size = mesh.shape[placement]
    fitting = [axis for axis, n in enumerate(shape) if n % size == 0 and n > 1]
    if size == 1 or math.prod(shape) < min_size or not fitting:
      return PartitionSpec()
    split = max(fitting, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(placement if axis == split else None for axis in range(len(shape))))
  if len(placement) > len(shape):
    raise UserError(f"config.sharding: placement {tuple(placement)} has {len(placement)} entries, but '{name}' has "
                    f"the shape {shape}")
  entries = []
  for axis, entry in enumerate(placement):
    names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
    parts = math.prod(mesh.shape[n] for n in names)
    if shape[axis] > 1 and shape[axis] % parts:
      raise UserError(f"config.sharding: axis {axis} of '{name}' {shape} does not divide into {parts} parts over "
                      f"{'x'.join(names)}; valid: {[n for n in _divisors(shape[axis]) if n <= mesh.size]}")
    entries.append(names if names and shape[axis] > 1 else None)
  return PartitionSpec(*entries)


def table(shardings: Tree, tree: Tree) -> list[tuple[str, tuple[int, ...], str]]:
  """(name, shape, spec as text) of every leaf, for the one-time printout."""
  placed = dict(trees.flatten_names(shardings))
  return [(name, tuple(leaf.shape), str(placed[name].spec)) for name, leaf in trees.flatten_names(tree)]
