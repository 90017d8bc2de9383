"""Checkpoints of the training state: written in the background, whole or not at all, readable on any mesh.

A state is stored as a nested dict under its leaf names, so that a checkpoint does not depend on container classes. A
record beside it holds every leaf's shape, dtype and checksum, and a checksum of itself: the storage format alone does
not notice zeroed, flipped or exchanged bytes. What was saved last is noted in the workdir, so that a folder that lost
its checkpoints is not taken for a fresh one.
"""

import contextlib
import gc
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from uvim_like import trees
from uvim_like.errors import UserError, suggest
from uvim_like.training import workdir as workdirs
from uvim_like.training.checksums import checksums, text_digest

Tree = Any
log = logging.getLogger(__name__)

FOLDER = "checkpoints"
DAMAGED_FOLDER = "checkpoints_damaged"
LAST_FILE = "last_checkpoint.json"
UNFINISHED = ".orbax-checkpoint-tmp"  # part of the name of a folder that is being written
# What reading truncated, missing or garbled files raises (tried file by file); running out of memory is none of these.
READ_ERRORS = (KeyError, ValueError, OSError, TypeError, AttributeError, IndexError)


class Restored(NamedTuple):
  """A state of the wanted structure and sharding, the step and the metadata that it was saved with."""
  state: Tree
  step: int
  metadata: dict[str, Any]


class Damaged(Exception):
  """A checkpoint that exists but cannot be read as it was written."""


def described(tree: Tree) -> dict[str, tuple[tuple[int, ...], str]]:
  """{name: (shape, dtype)} of every leaf."""
  return {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in trees.flatten_names(tree)}


def record(step: int, state: Tree, metadata: Mapping[str, Any]) -> dict[str, Any]:
  """What is stored beside a state, for `checked_record` to compare with what is read."""
  sums = checksums(state, label=str(step))
  body = {"step": step, "metadata": dict(metadata), "leaves": {
      name: [list(shape), dtype, sums[name]] for name, (shape, dtype) in described(state).items()}}
  return body | {"digest": text_digest(body)}


def checked_record(stored: Any, step: int) -> dict[str, Any]:
  """The record of a checkpoint, as it was written; raises Damaged when it is another's or not whole."""
  if not isinstance(stored, dict) or "digest" not in stored:
    raise Damaged("its record is missing or unreadable")
  body = {key: value for key, value in stored.items() if key != "digest"}
  if text_digest(body) != stored["digest"]:
    raise Damaged("its record was changed")
  if body["step"] != step:
    raise Damaged(f"it is the checkpoint of step {body['step']}")
  return body


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
    self._pending: int | None = None
    policies = ocp.training.preservation_policies
    keep = [policies.LatestN(keep_last)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
    self._quiet = contextlib.ExitStack()
    self._quiet.enter_context(_quiet_library())  # its threads, too: what goes wrong there is raised by `wait`
    self._orbax = ocp.training.Checkpointer(
        self.folder, preservation_policy=policies.AnyPreservationPolicy(keep) if every else None
    ) if every or self.folder.is_dir() else None

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
    self.wait()
    nested = trees.unflatten_names(dict(trees.flatten_names(state)))
    about = record(step, state, metadata or {})
    self._pending = step
    self._guarded(lambda: self._orbax.save_checkpointables_async(
        step, {"state": nested}, force=True, custom_metadata=about))
    return True

  def _guarded(self, write) -> None:
    """Calls what writes; a disk that takes no more is a person's to mend, and the half checkpoint is cleared away."""
    step = self._pending
    try:
      write()
    except (OSError, ValueError, RuntimeError) as error:
      reason = workdirs.disk_reason(error)
      self._pending = None
      if reason is None:
        raise
      self._remove_unfinished()
      whole = [s for s in self.steps() if s != step]
      raise UserError(f"{self.folder}: the checkpoint of step {step} could not be written: {reason}; "
                      + (f"the last complete one is of step {max(whole)}" if whole else "there is none before it")
                      + "; mend that and give the same command again") from error

  def _remove_unfinished(self) -> None:
    """Clears away what killed or failed saves left; only a run that holds the workdir may."""
    if jax.process_index() == 0 and self.folder.is_dir():
      for path in self.folder.iterdir():
        if UNFINISHED in path.name:
          shutil.rmtree(path, ignore_errors=True)

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, ascending; whether they are readable is not known yet."""
    return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints) if self._orbax else []

  def latest(self) -> int | None:
    """The newest finished step, None when there is none."""
    return max(self.steps(), default=None)

  def recorded(self) -> int | None:
    """The step of the last checkpoint that is known to have been complete, None when nothing is known."""
    noted = workdirs.read_json(self.workdir / LAST_FILE)
    return noted["step"] if noted else None

  def restore(self, abstract_state: Tree, step: int | None = None, *, at_most: int | None = None) -> Restored | None:
    """The newest readable checkpoint (or that of `step`), placed as `abstract_state` says.

    A damaged newest checkpoint is named in a warning, moved to `workdir/checkpoints_damaged` (its number would block
    later saves; not when read only), and the one before is taken.

    Args:
      abstract_state: tree of ShapeDtypeStructs with shardings; the mesh may be another than that of the run.
      step: an exact step, which must be readable.
      at_most: no newer step than this.

    Returns:
      None when there is no checkpoint at all, and none was ever complete (with `at_most`: none so early).

    Raises:
      UserError: the stored tree differs from the wanted one; no such step; checkpoints exist, or existed, but none is
        readable.
    """
    self.wait()
    if self.every is not None:
      self._remove_unfinished()
    steps = self.steps()
    if at_most is None:
      self._check_recorded(steps)
    steps = [s for s in steps if at_most is None or s <= at_most]
    if step is not None and step not in steps:
      raise UserError(f"{self.folder}: no checkpoint of step {step}; {suggest(str(step), map(str, steps))}")
    failures = {}
    for candidate in reversed(steps if step is None else [step]):
      try:
        restored = self._read(candidate, abstract_state)
      except Damaged as error:
        gc.collect()  # tasks of the library that failed beside the first speak up when they are collected
        failures[candidate] = error
        log.warning("checkpoint %s is damaged and passed over: %s", self.folder / str(candidate), error)
        continue
      self._set_aside(list(failures))
      return restored
    if failures:
      raise UserError(f"{self.folder}: no readable checkpoint; " + "; ".join(
          f"step {s}: {error}" for s, error in failures.items()) + "; move the folder away to start anew")
    return None

  def _check_recorded(self, steps: list[int]) -> None:
    """Says when the last complete checkpoint is not there any more; UserError when there is no other."""
    last = self.recorded()
    if last is None or last in steps:
      return
    if not steps:
      raise UserError(f"{self.folder}: the checkpoint of step {last} was saved here and is gone, and there is no other; "
                      f"put it back, or remove {self.workdir / LAST_FILE} to start anew")
    if max(steps) < last:
      log.warning("checkpoint %s was saved and is gone", self.folder / str(last))

  def _read(self, step: int, abstract_state: Tree) -> Restored:
    """One checkpoint; raises Damaged, or UserError when the trees differ."""
    folder = self.folder / str(step)
    try:
      about = self._orbax.checkpointables_metadata(step)
      tree = about.metadata["state"]
      stored = described(tree)
    except READ_ERRORS as error:
      raise Damaged(_first_line(error)) from error
    if tree is None:
      raise Damaged("its description is unreadable")
    kept = checked_record(about.custom_metadata, step)
    written = {name: (tuple(shape), dtype) for name, (shape, dtype, _) in kept["leaves"].items()}
    if difference := diff_text(written, described(abstract_state)):
      raise UserError(f"{folder}: does not fit this config: {difference}")
    if stored != written:
      raise Damaged(f"its description is not that of what was saved: {diff_text(stored, written)}")
    nested = trees.unflatten_names(dict(trees.flatten_names(abstract_state)))
    loaded, failure = None, None
    try:
      loaded = self._orbax.load_checkpointables(step, {"state": nested})["state"]
    except READ_ERRORS as error:
      failure = _root(error)  # the library wraps whatever happened, in layers, the outermost a KeyError
      if not isinstance(failure, READ_ERRORS):
        raise
    # Each process reads its own pieces: all must take the same way on.
    if _any_process(failure is not None):
      raise Damaged(_first_line(failure) if failure else "another process could not read its part") from failure
    by_name = dict(trees.flatten_names(loaded))
    state = trees.map_names(lambda name, _: by_name[name], abstract_state)
    sums = checksums(state, label=str(step))
    if wrong := [name for name in sums if sums[name] != kept["leaves"][name][2]]:
      raise Damaged(f"checksums differ for {len(wrong)} leaves, first {wrong[0]}")
    return Restored(state, step, kept["metadata"])

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
    """Returns when nothing is being written any more, and notes what is complete.

    Raises:
      UserError: the disk took no more; anything else that went wrong in the background as it was raised there.
    """
    if not self._orbax:
      return
    self._guarded(self._orbax.wait)
    if self._pending is not None:
      if jax.process_index() == 0:
        workdirs.write_json(self.workdir / LAST_FILE, {"step": self._pending})
      self._pending = None

  def close(self) -> None:
    """Waits and releases the background threads."""
    with self._quiet:
      if self._orbax:
        try:
          self.wait()
        finally:
          orbax, self._orbax = self._orbax, None
          orbax.close()


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
  """Leaves it to one line of ours to tell of a damaged checkpoint or a full disk: the library would add pages."""
  loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    for logger, level in zip(loggers, levels):
      logger.setLevel(level)


def _any_process(flag: bool) -> bool:
  """Whether the flag is set on any process."""
  return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def _root(error: BaseException) -> BaseException:
  """The innermost of errors that were raised from one another."""
  while error.__cause__ is not None:
    error = error.__cause__
  return error


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
