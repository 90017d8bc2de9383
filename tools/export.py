"""A training's weights as a file: `python -m tools.export --workdir=D --format=npz --out=O.npz [--step=N]`."""

import argparse
import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from uvim_like import trees, weights
from uvim_like.errors import UserError, unknown
from uvim_like.systems.base import Vars
from uvim_like.training import checkpoint

FORMATS = ("npz",)
log = logging.getLogger(__name__)


class _Parser(argparse.ArgumentParser):
  """Reports mistakes as UserError, so that they end like all others: one line."""

  def error(self, message):
    raise UserError(message)


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Flags, checked.

  Raises:
    UserError: naming the flag and the nearest valid value.
  """
  parser = _Parser(prog="python -m tools.export", description=__doc__, allow_abbrev=False)
  parser.add_argument("--workdir", required=True, help="folder of a training")
  parser.add_argument("--format", default="npz", help=f"one of {', '.join(FORMATS)}")
  parser.add_argument("--out", required=True, help="file to write")
  parser.add_argument("--step", default=None, help="a checkpoint's step; default: the newest that can be read")
  parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
  flags = parser.parse_args(argv)
  if flags.format not in FORMATS:
    raise unknown("value", flags.format, FORMATS, where="--format")
  if not flags.out.endswith(".npz"):
    raise UserError(f"--out: '{flags.out}' is no .npz file name; did you mean '{flags.out.rstrip('/')}.npz'?")
  if flags.step is not None and not (flags.step.isascii() and flags.step.isdigit()):
    raise UserError(f"--step: '{flags.step}' is no whole number")
  flags.step = None if flags.step is None else int(flags.step)
  flags.workdir, flags.out = pathlib.Path(flags.workdir).expanduser(), pathlib.Path(flags.out).expanduser()
  return flags


def stored_shapes(workdir: pathlib.Path, step: int) -> Any:
  """What a checkpoint holds, as a nested dict of shapes on this host's memory: no config, no model, no accelerator.

  Raises:
    UserError: its description is damaged.
  """
  place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
  try:
    with ocp.training.Checkpointer(workdir.absolute() / checkpoint.FOLDER) as reader:
      tree = reader.checkpointables_metadata(step).metadata["state"]
  except checkpoint.READ_ERRORS as error:
    raise UserError(f"{workdir / checkpoint.FOLDER / str(step)}: its description cannot be read "
                    f"({type(error).__name__})") from error
  if not tree:
    raise UserError(f"{workdir / checkpoint.FOLDER / str(step)}: its description is missing or unreadable")
  return trees.unflatten_names({name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
                                for name, leaf in trees.flatten_names(tree)})


def read_checkpoint(workdir: pathlib.Path, step: int | None = None) -> tuple[Vars, int, bool]:
  """The variables to use of a checkpoint: the averaged parameters where the training kept them.

  Args:
    workdir: of the training.
    step: exactly this one; None: the newest that is whole.

  Returns:
    Variables as numpy arrays, the step, and whether the parameters are averaged.

  Raises:
    UserError: no checkpoints, no such step, none that can be read.
  """
  if not workdir.is_dir():
    raise UserError(f"--workdir: no folder {workdir}")
  with checkpoint.Checkpoints(workdir) as saved:
    steps = saved.steps()
    if not steps:
      raise UserError(f"--workdir: no checkpoints in {workdir}")
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
      return variables_of(restored.state), candidate, "ema" in restored.state
  raise UserError(f"{workdir}: no checkpoint can be read: {'; '.join(failures)}")


def variables_of(state: dict[str, Any]) -> Vars:
  """The variables in the nested dict of a stored `TrainState`, on the host."""
  params = state["ema"] if "ema" in state else state["vars"]["params"]
  return jax.device_get(Vars(params, state["vars"].get("state", {})))


def largest_difference(variables: Vars, loaded: dict[str, Any]) -> float:
  """Largest absolute difference of any number in the file; equal bits differ by 0, whatever they mean.

  Raises:
    UserError: the file has other names, shapes or types.
  """
  want = dict(trees.flatten_names({"params": variables.params, "state": variables.state}))
  have = dict(trees.flatten_names(loaded))
  described = [{name: (leaf.shape, str(leaf.dtype)) for name, leaf in tree.items()} for tree in (have, want)]
  if text := checkpoint.diff_text(*described):
    raise UserError(f"what was written is not what is read back: {text}")
  differences = [np.max(np.abs(have[name].astype(np.float64) - np.asarray(leaf).astype(np.float64)))
                 for name, leaf in want.items() if have[name].tobytes() != np.asarray(leaf).tobytes()]
  return float(max(differences, default=0.0))


def run(flags: argparse.Namespace) -> float:
  """Writes the file, reads it again, says what it holds; returns the largest difference.

  Raises:
    UserError: see `read_checkpoint`.
  """
  variables, step, averaged = read_checkpoint(flags.workdir, flags.step)
  weights.save_vars(flags.out, variables)
  difference = largest_difference(variables, weights.load_npz(flags.out))
  leaves = jax.tree.leaves(variables.params)
  kind = "averaged parameters" if averaged else "parameters"
  print(f"wrote {flags.out}: step {step}, {sum(leaf.size for leaf in leaves):,} {kind} in {len(leaves)} arrays, "
        f"{len(jax.tree.leaves(variables.state))} arrays of state")
  print(f"maximal difference after reading it back: {difference:g}")
  return difference


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; exit code 0, 1 when the file differs from the checkpoint, 2 after a person's mistake."""
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    return int(run(parse(argv)) != 0)
  except UserError as error:
    if "--debug" in argv:
      raise
    print(f"export: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
  sys.exit(main())
