"""A finished or interrupted training, read back from its folder: config, system and the variables to predict with."""

import logging
import os
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from uvim_like import config as configs
from uvim_like import trees, weights
from uvim_like.errors import UserError, unknown
from uvim_like.systems.base import System, Vars
from uvim_like.training import checkpoint, checksums, setup
from uvim_like.training import workdir as workdirs
from uvim_like.weight_sources import WEIGHTS_FILE

Tree = Any
log = logging.getLogger(__name__)


class Trained(NamedTuple):
  """What a training left behind.

  Attributes:
    config: as trained, with defaults filled in.
    system: the training problem.
    vars: on the host; the averaged parameters where the training keeps them (`config.ema_decay`), which its evaluations
      use.
    frozen: `System.frozen`, real arrays.
    step: number of updates that made the variables.
    workdir: the folder.
  """
  config: Any
  system: System
  vars: Vars
  frozen: Tree
  step: int
  workdir: pathlib.Path


class Stored(NamedTuple):
  """The variables of a checkpoint, its step, what was noted with it, and whether the parameters are averaged."""
  vars: Vars
  step: int
  metadata: dict[str, Any]
  averaged: bool


def restore(workdir: str | os.PathLike, *, step: int | None = None, overrides: Iterable[str] = ()) -> Trained:
  """A training from its folder; nothing in the folder is touched, and a live run may hold it.

  Args:
    workdir: of a training; or its weights.npz. A folder whose checkpoints were taken away still has its final weights.
    step: of a checkpoint that was kept; None: the newest that is whole.
    overrides: of the config, "key=value": e.g. "oracle.model_init=D" where stage I was moved.

  Raises:
    UserError: no such folder, config, step or stage I; a damaged or unfitting checkpoint; nothing to restore.
  """
  folder = pathlib.Path(workdir).expanduser()
  if folder.name == WEIGHTS_FILE and folder.is_file():
    folder = folder.parent
  config = read_config(folder, overrides)
  system = setup.make_system(config)
  setup.check_frozen(system.frozen, config)
  stored = read_variables(folder, step)
  kept = stored.metadata.get("frozen")
  if kept is not None and kept != checksums.digest(system.frozen):
    keys = setup.frozen_keys(config)
    raise UserError(f"{', '.join(keys)}: these are not the stage I weights that {folder} was trained with; put those "
                    f"back, or name them: {' '.join(f'--{key}=…' for key in keys)}")
  return Trained(config, system, stored.vars, system.frozen, stored.step, folder)


def read_config(workdir: pathlib.Path, overrides: Iterable[str] = ()) -> Any:
  """The config of a training's folder, checked, with defaults; UserError when there is none, or a wrong override."""
  path = workdir / workdirs.CONFIG_FILE
  if workdir.is_file():
    raise UserError(f"--workdir: {workdir}: a file does not say what network it is for; give the folder of its "
                    f"training, which has {workdirs.CONFIG_FILE} and {WEIGHTS_FILE}")
  if not path.is_file():
    what = "no such folder" if not workdir.exists() else f"no {workdirs.CONFIG_FILE} in it"
    raise UserError(f"--workdir: {workdir}: {what}; give the folder of a training")
  config = configs.from_json(path.read_text(encoding="utf-8"))
  for text in overrides:
    configs.override(config, text)
  configs.check(config)
  return configs.with_defaults(config)


def read_variables(workdir: pathlib.Path, step: int | None = None) -> Stored:
  """The variables to use of a checkpoint, or of the final weights where no checkpoint is left.

  Args:
    workdir: of the training.
    step: exactly this one; None: the newest that is whole.

  Raises:
    UserError: no checkpoints, no such step, none that can be read.
  """
  with checkpoint.Checkpoints(workdir) as saved:
    steps = saved.steps()
    if not steps and (workdir / WEIGHTS_FILE).is_file() and step is None:
      return _final_weights(workdir)
    if not steps:
      raise UserError(f"--workdir: no checkpoints in {workdir}" + (f" of step {step}" if step is not None else ""))
    if step is not None and step not in steps:
      raise unknown("step", str(step), map(str, steps), where="--step")
    failures = []
    for candidate in reversed(steps if step is None else [step]):
      try:
        restored = saved.restore(stored_shapes(workdir, candidate), candidate)
      except UserError as error:
        log.warning("passing over a damaged checkpoint: %s", error)
        failures.append(str(error))
        continue
      averaged = "ema" in restored.state
      params = restored.state["ema"] if averaged else restored.state["vars"]["params"]
      variables = jax.device_get(Vars(params, restored.state["vars"].get("state", {})))
      return Stored(variables, candidate, restored.metadata, averaged)
  raise UserError(f"{workdir}: no checkpoint can be read: {'; '.join(failures)}")


def _final_weights(workdir: pathlib.Path) -> Stored:
  """What a finished training wrote beside its checkpoints: already averaged where it averages."""
  loaded = weights.load_npz(workdir / WEIGHTS_FILE)
  noted = workdirs.read_json(workdir / workdirs.FINISHED_FILE) or {}
  return Stored(Vars(loaded["params"], loaded["state"]), int(noted.get("step", 0)), {}, False)


def stored_shapes(workdir: pathlib.Path, step: int) -> Any:
  """What a checkpoint holds, as a nested dict of shapes in this host's memory: no model and no accelerator is needed.

  Raises:
    UserError: its description is damaged.
  """
  place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
  folder = workdir / checkpoint.FOLDER / str(step)
  try:
    with ocp.training.Checkpointer(workdir.absolute() / checkpoint.FOLDER) as reader:
      tree = reader.checkpointables_metadata(step).metadata["state"]
  except checkpoint.READ_ERRORS as error:
    raise UserError(f"{folder}: its description cannot be read ({type(error).__name__})") from error
  if not tree:
    raise UserError(f"{folder}: its description is missing or unreadable")
  return trees.unflatten_names({name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
                                for name, leaf in trees.flatten_names(tree)})
