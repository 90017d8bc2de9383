"""Checkpoints of the training state: written in the background, whole or not at all, readable on any mesh.

A state is stored as a nested dict under its leaf names, so that a checkpoint does not depend on container classes,
with a checksum per leaf: the storage format alone does not notice zeroed or flipped bytes of array data.
"""

import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from uvim_like import trees
from uvim_like.errors import UserError, suggest

Tree = Any
log = logging.getLogger(__name__)

FOLDER = "checkpoints"
DAMAGED_FOLDER = "checkpoints_damaged"
# What reading truncated, missing or garbled files raises (tried file by file); running out of memory is none of these.
READ_ERRORS = (KeyError, ValueError, OSError)


class Restored(NamedTuple):
  """A state of the wanted structure and sharding, the step and the metadata that it was saved with."""
  state: Tree
  step: int
  metadata: dict[str, Any]


class Damaged(Exception):
  """A checkpoint that exists but cannot be read as it was written."""


@jax.jit
def checksums(leaves: list[jax.Array]) -> list[jax.Array]:
  """Sum of each leaf's bit patterns modulo 2³²: exact, and the same however the leaf is sharded."""

  def one(leaf):
    bits = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
    unsigned = jnp.dtype(f"uint{8 * bits.dtype.itemsize}")
    return jnp.sum(jax.lax.bitcast_convert_type(bits, unsigned).astype(jnp.uint32), dtype=jnp.uint32)

  return [one(leaf) for leaf in leaves]


def _sums_by_name(state: Tree) -> dict[str, int]:
  names, leaves = zip(*trees.flatten_names(state))
  return {name: int(total) for name, total in zip(names, jax.device_get(checksums(list(leaves))))}


def diff_text(stored: Mapping[str, tuple], wanted: Mapping[str, tuple], *, limit: int = 5) -> str:
  """How two {name: (shape, dtype)} differ, as one line; "" when they do not.

  Names that are missing come with the nearest stored name that is extra.
  """
  missing = [name for name in wanted if name not in stored]
  extra = [name for name in stored if name not in wanted]
  other = [name for name in wanted if name in stored and stored[name] != wanted[name]]
  parts = []
  for title, names, describe in (
      ("missing in the checkpoint", missing, lambda n: f"{n} ({suggest(n, extra)})" if extra else n),
      ("extra in the checkpoint", extra, str),
      ("of another shape", other, lambda n: f"{n}: stored {_shown(stored[n])}, wanted {_shown(wanted[n])}")):
    if names:
      more = f", … {len(names) - limit} more" if len(names) > limit else ""
      parts.append(f"{len(names)} {title}: {', '.join(map(describe, names[:limit]))}{more}")
  return "; ".join(parts)


def _shown(shape_dtype: tuple) -> str:
  return f"{shape_dtype[1]}{list(shape_dtype[0])}"


class Checkpoints:
  """The checkpoints of a run, in `workdir/checkpoints/<step>`.

  Args:
    workdir: the run's folder, shared by all processes.
    every: save at multiples of this step; None: read only, nothing on disk is touched.
    keep_every: multiples of this step are kept for good.
    keep_last: so many of the newest are kept.
  """

  def __init__(self, workdir: str | os.PathLike, *, every: int | None = None, keep_every: int | None = None,
               keep_last: int = 2):
    self.workdir = pathlib.Path(workdir).absolute()
    self.folder = self.workdir / FOLDER
    self.every = every
    policies = ocp.training.preservation_policies
    keep = [policies.LatestN(keep_last)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
    if every is None:
      self._orbax = ocp.training.Checkpointer(self.folder) if self.folder.is_dir() else None
    else:
      self._orbax = ocp.training.Checkpointer(
          self.folder, preservation_policy=policies.AnyPreservationPolicy(keep))

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def save(self, step: int, state: Tree, metadata: Mapping[str, Any] | None = None, *, force: bool = False) -> bool:
    """Starts saving when `step` is a multiple of `every`, or with `force`; returns whether it did.

    The call returns when the arrays are copied off the devices; the files appear under their final name only when
    they are complete. A step that exists already is left as it is.

    Args:
      step: number of updates that made this state.
      state: tree of arrays.
      metadata: anything that JSON holds.
      force: save whatever the step.
    """
    if self.every is None:
      raise ValueError("these checkpoints were opened read only (every=None)")
    if not force and step % self.every:
      return False
    if step in self.steps():
      return False
    nested = trees.unflatten_names(dict(trees.flatten_names(state)))
    self._orbax.save_checkpointables_async(
        step, {"state": nested}, force=True,
        custom_metadata={"step": step, "checksums": _sums_by_name(state), "metadata": dict(metadata or {})})
    return True

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, ascending; whether they are readable is not known yet."""
    return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints) if self._orbax else []

  def latest(self) -> int | None:
    """The newest finished step, None when there is none."""
    return max(self.steps(), default=None)

  def restore(self, abstract_state: Tree, step: int | None = None) -> Restored | None:
    """The newest readable checkpoint (or that of `step`), placed as `abstract_state` says.

    A damaged newest checkpoint is named in a warning, moved to `workdir/checkpoints_damaged` (its number would block
    later saves; not when read only), and the one before is taken.

    Args:
      abstract_state: tree of ShapeDtypeStructs with shardings; the mesh may be another than that of the run.
      step: an exact step, which must be readable.

    Returns:
      None when there is no checkpoint at all.

    Raises:
      UserError: the stored tree differs from the wanted one; no such step; checkpoints exist but none is readable.
    """
    self.wait()
    steps = self.steps()
    if step is not None and step not in steps:
      raise UserError(f"{self.folder}: no checkpoint of step {step}; {suggest(str(step), map(str, steps))}")
    failures = {}
    for candidate in reversed(steps if step is None else [step]):
      try:
        restored = self._read(candidate, abstract_state)
      except Damaged as error:
        failures[candidate] = error
        log.warning("checkpoint %s is damaged and passed over: %s", self.folder / str(candidate), error)
        continue
      self._set_aside(list(failures))
      return restored
    if failures:
      raise UserError(f"{self.folder}: no readable checkpoint; " + "; ".join(
          f"step {s}: {error}" for s, error in failures.items()) + "; move the folder away to start anew")
    return None

  def _read(self, step: int, abstract_state: Tree) -> Restored:
    """One checkpoint; raises Damaged, or UserError when the trees differ."""
    folder = self.folder / str(step)
    try:
      about = self._orbax.checkpointables_metadata(step)
      tree = about.metadata["state"]
    except READ_ERRORS as error:
      raise Damaged(_first_line(error)) from error
    custom = about.custom_metadata or {}
    if tree is None or custom.get("step") != step:
      raise Damaged("its metadata is missing or unreadable")
    stored = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in trees.flatten_names(tree)}
    wanted = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in trees.flatten_names(abstract_state)}
    if difference := diff_text(stored, wanted):
      raise UserError(f"{folder}: does not fit this config: {difference}")
    nested = trees.unflatten_names(dict(trees.flatten_names(abstract_state)))
    loaded, failure = None, None
    try:
      loaded = self._orbax.load_checkpointables(step, {"state": nested})["state"]
    except READ_ERRORS as error:
      failure = error.__cause__ or error  # the library wraps whatever happened in a KeyError
      if not isinstance(failure, READ_ERRORS):
        raise
    # Each process reads its own pieces: all must take the same way on.
    if _any_process(failure is not None):
      raise Damaged(_first_line(failure) if failure else "another process could not read its part") from failure
    by_name = dict(trees.flatten_names(loaded))
    state = trees.map_names(lambda name, _: by_name[name], abstract_state)
    sums = _sums_by_name(state)
    if wrong := [name for name in sums if sums[name] != custom["checksums"].get(name)]:
      raise Damaged(f"checksums differ for {len(wrong)} leaves, first {wrong[0]}")
    return Restored(state, step, custom["metadata"])

  def _set_aside(self, steps: list[int]) -> None:
    if not steps or self.every is None:
      return
    if jax.process_index() == 0:
      target = self.workdir / DAMAGED_FOLDER
      target.mkdir(exist_ok=True)
      for step in steps:
        free = next(name for i in range(len(os.listdir(target)) + 1)
                    if not (name := target / (f"{step}" if i == 0 else f"{step}_{i}")).exists())
        os.replace(self.folder / str(step), free)
        log.warning("moved the damaged checkpoint to %s", free)
    multihost_utils.sync_global_devices("damaged checkpoints set aside")
    self._orbax.reload()

  def wait(self) -> None:
    """Returns when nothing is being written any more; raises what a write in the background raised."""
    if self._orbax:
      self._orbax.wait()

  def close(self) -> None:
    """Waits and releases the background threads."""
    if self._orbax:
      self._orbax.close()
      self._orbax = None


def _any_process(flag: bool) -> bool:
  """Whether the flag is set on any process."""
  return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def _first_line(error: BaseException) -> str:
  """Type and beginning of a library's message, which may run over pages."""
  text = str(error.args[0] if error.args else error).strip().splitlines()
  return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def abstract(state: Tree, shardings: Tree | None = None) -> Tree:
  """Shapes, dtypes and shardings of a state of arrays (or of shapes, with `shardings`), as `restore` wants them."""
  if shardings is None:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=getattr(x, "sharding", None)),
                        state)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
