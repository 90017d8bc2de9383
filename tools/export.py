"""A training as files that others can use: `python -m tools.export --workdir=D --format=npz,stablehlo --out=O`.

  npz          parameters and state in big_vision's layout
  safetensors  the same with config, normalisation, class names and card in its metadata, and as JSON beside it
  hf           the image backbone in the hub's layout: model.safetensors and config.json
  stablehlo    a folder with program, weights, card, run.py: uint8 pixels to the task's maps, with jax and numpy alone
  savedmodel   the same as a TensorFlow SavedModel, which takes encoded pictures as well

Weights are read again, and must be the same bits. Programs are run again in a process of their own, and compared with
the run's own preprocessing and prediction. What differs is removed, and the exit status is 1. `--check=PATH` does this
for what was exported before; damaged bytes fail it. Exit status 2 is a mistake, in one line.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from tools import shell
from tools.exporting import export_card, export_flags, export_weights
from tools.exporting.export_flags import FILES, PROGRAMS, SUFFIXES
from uvim_like import config as configs
from uvim_like.errors import UserError
from uvim_like.training import trained as runs


class Failed(Exception):
  """An artefact that is not what it should be; the text is told, and the exit status is 1."""


# --- writing ----------------------------------------------------------------------------------------------------------


def targets(flags: argparse.Namespace) -> dict[str, pathlib.Path]:
  """{format: what to write}; UserError for a place that holds something else."""
  several = len(flags.format) > 1
  found = {name: flags.out / FILES[name] if several else flags.out for name in dict.fromkeys(flags.format)}
  for name, path in found.items():
    if name in SUFFIXES and path.is_dir():
      raise UserError(f"--out: {path} is a folder; a file name such as {path / FILES[name]} is wanted")
    if name not in SUFFIXES and path.exists() and not _is_artefact(path):
      raise UserError(f"--out: {path} exists and is no export; give another place")
  return found


def _is_artefact(path: pathlib.Path) -> bool:
  """Whether a folder may be replaced: empty, or an export itself. A model that came from the hub is not ours."""
  if not path.is_dir():
    return False
  marks = ((export_card.CARD, "kind"), (export_weights.CONFIG, export_weights.OURS))
  return not any(path.iterdir()) or any(key in _object(path / name) for name, key in marks)


def _object(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object; {} where there is none."""
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def staged(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A place of the same name to write to; what is there at the end takes the place of `path`, if nothing was raised."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as name:
    room = pathlib.Path(name)
    yield room / path.name
    for made in sorted(room.iterdir()):
      target = path.parent / made.name
      if target.is_dir():
        shutil.rmtree(target)
      os.replace(made, target)


def run(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
  """Writes what is asked for.

  Raises:
    UserError: see `uvim_like.training.trained`; a format that this run does not have.
    Failed: what was written is not what the run is; it is gone again.
  """
  wanted = targets(flags)
  check_workdir(flags.workdir)
  for name, path in wanted.items():
    if name in PROGRAMS:
      write_program(flags, overrides, name, path)
    else:
      write_weights(flags, overrides, name, path)


def check_workdir(workdir: pathlib.Path) -> None:
  """Raises UserError when there is no such folder."""
  if not workdir.is_dir():
    raise UserError(f"--workdir: no folder {workdir}")


def write_weights(flags: argparse.Namespace, overrides: Sequence[str], name: str, path: pathlib.Path) -> None:
  """One of the formats that hold arrays alone, read again before it is in its place."""
  stored = runs.read_variables(flags.workdir, flags.step)
  config = None if name == "npz" else runs.read_config(flags.workdir, overrides)
  with staged(path) as room:
    left_out: Sequence[str] = ()
    if name == "npz":
      export_weights.write_npz(room, stored.vars)
    elif name == "safetensors":
      card = export_card.about(config, stored.step, flags.workdir, averaged=stored.averaged)
      export_weights.write_safetensors(room, export_weights.named(stored.vars), card)
    else:
      left_out = export_weights.write_hf(room, config, stored.vars)
    difference = reread(name, room, config, stored)
    if difference:
      raise Failed(f"{path}: differs by {difference:g} after reading it back; it is removed")
  leaves = jax.tree.leaves(stored.vars.params)
  kind = "averaged parameters" if stored.averaged else "parameters"
  what = (f"{sum(leaf.size for leaf in leaves):,} {kind} in {len(leaves)} arrays, "
          f"{len(jax.tree.leaves(stored.vars.state))} arrays of state" if name != "hf" else "the backbone")
  print(f"wrote {path}: step {stored.step}, {what}")
  if left_out:
    print(f"left out, since the hub's layout has no names for them: {len(left_out)} arrays, e.g. {left_out[0]}")
  print(f"maximal difference after reading it back: {difference:g}")


def reread(name: str, path: pathlib.Path, config: Any, stored: runs.Stored) -> float:
  """Largest difference of a weights file from a checkpoint; 0 when all bits are equal.

  Raises:
    Failed: it holds other arrays, or another card.
    UserError: it cannot be read.
  """
  try:
    if name == "hf":
      want, have = export_weights.read_hf(path, config, stored.vars)
    else:
      want = export_weights.named(stored.vars)
      have = export_weights.read_npz(path) if name == "npz" else _with_card(path)
    return export_weights.largest_difference(want, have)
  except UserError as error:
    raise Failed(str(error)) from error


def _with_card(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a .safetensors file whose card is that of the JSON beside it."""
  arrays, card = export_weights.read_safetensors(path)
  if export_weights.read_json(path) != card:
    raise UserError(f"{export_weights.json_path(path)}: is not the card in {path.name}")
  return arrays


def write_program(flags: argparse.Namespace, overrides: Sequence[str], name: str, path: pathlib.Path) -> None:
  """One of the formats that run, run again before it is in its place."""
  from tools.exporting import export_check, export_function, export_program, export_savedmodel
  if name == "savedmodel":
    export_savedmodel.check_available()
  run_ = restored(flags, overrides, flags.step)
  views = export_function.select(run_.config, flags.view)[1]
  pictures, source = export_check.pictures_of(run_, views[0])
  function = export_function.make(run_, view=flags.view, size=flags.input_size, full_size=flags.full_size,
                                  picture=export_check.size_of(pictures, source))
  lowered = export_function.lower(function)
  writer = export_program if name == "stablehlo" else export_savedmodel
  with staged(path) as room:
    card = writer.write(room, function, lowered, run_)
    print(f"{name}: step {run_.step}, pixels uint8 {list(lowered.shape)} -> {', '.join(card['outputs'])}")
    if others := export_function.beside(run_.config, function.views):
      print(f"  evaluations that are not in it: {', '.join(others)}; --view=NAME exports one of them")
    for line in lowered.refused:
      print(f"  a size stays fixed: {line}")
    results = compared(run_, function, room, card, pictures, source, tolerance=flags.tolerance, shape=lowered.shape)
    if not all(result.passed for result in results):
      worst = max(results, key=lambda result: result.largest if not result.passed else -1.0)
      raise Failed(f"{path}: '{worst.name}' differs from the run's own prediction: max abs difference "
                   f"{worst.largest:.3g}, {100 * worst.share:.4g} % within {worst.allowed:.1e}; it is removed")
    export_program.finish(room, card, results)
  print(f"wrote {path}")


def restored(flags: argparse.Namespace, overrides: Sequence[str], step: int | None) -> runs.Trained:
  """The run at a step; its evaluations look where an override says that the data lies now."""
  found = runs.restore(flags.workdir, step=step, overrides=overrides)
  return found._replace(config=configs.inherited(found.config, runs.read_config(found.workdir)))


def compared(run_: runs.Trained, function: Any, folder: pathlib.Path, card: Any, pictures: Sequence[np.ndarray],
             source: str, *, tolerance: float | None, shape: Sequence[str | int]) -> list[Any]:
  """The artefact's answers beside the run's own, told line by line."""
  from tools.exporting import export_check, export_savedmodel
  pictures = export_check.suited(pictures, function.size, function.largest)
  calls = export_check.calls_of(pictures, shape)
  files = [calls[0][:1]] if card["kind"] == export_savedmodel.KIND else []   # it takes bytes of pictures as well
  relative, needed = export_check.tolerances(run_.config, tolerance)
  want = export_check.references(run_, function, [*calls, *files])
  try:
    got = export_check.run_alone(folder, calls, files)
  except export_check.NotRunning as error:
    raise Failed(f"{folder.name} does not run: {error}") from error
  results = export_check.compare(got, want, relative=relative, needed=needed)
  sizes = ", ".join([*(str(list(call.shape)) for call in calls), *("a PNG file" for _ in files)])
  print(f"compared in a process of its own with the run's preprocessing and prediction, on {source}, as {sizes}:")
  for result in results:
    print(result.line())
  if chosen := export_check.chosen(run_.config):
    print(f"  ({card['system']} chooses {chosen}: a near tie may fall differently in two programs, so "
          f"{100 * needed:g} % of the values must agree)")
  return results


# --- checking ---------------------------------------------------------------------------------------------------------


def check(flags: argparse.Namespace, overrides: Sequence[str]) -> None:
  """Compares an artefact with its run.

  Raises:
    UserError: no artefact there; no such run.
    Failed: it is damaged, or is not what the run is.
  """
  path = flags.check
  check_workdir(flags.workdir)
  if not path.exists():
    raise UserError(f"--check: there is no {path}")
  if path.suffix in SUFFIXES.values() or (path / export_weights.MODEL).is_file():
    name = {suffix: kind for kind, suffix in SUFFIXES.items()}.get(path.suffix, "hf")
    check_weights(flags, overrides, name, path)
  elif (path / export_card.CARD).is_file():
    check_program(flags, overrides, path)
  else:
    raise UserError(f"--check: {path} is no export: no {' or '.join(SUFFIXES.values())} file, and no folder with "
                    f"{export_card.CARD} or {export_weights.MODEL}")
  print(f"{path}: equals the run")


def check_weights(flags: argparse.Namespace, overrides: Sequence[str], name: str, path: pathlib.Path) -> None:
  """Compares arrays, bit by bit, with the checkpoint that they are of: --step, or the card's, or the newest."""
  stored = runs.read_variables(flags.workdir, flags.step)
  step = _step_of(path) if name == "safetensors" and flags.step is None else None
  if step not in (None, stored.step):
    stored = runs.read_variables(flags.workdir, step)
  config = None if name == "npz" else runs.read_config(flags.workdir, overrides)
  difference = reread(name, path, config, stored)
  if difference:
    raise Failed(f"{path}: differs from step {stored.step} of {flags.workdir} by {difference:g}")
  print(f"maximal difference from step {stored.step}: 0")


def _step_of(path: pathlib.Path) -> int | None:
  try:
    card = export_weights.read_safetensors(path)[1]
  except UserError as error:
    raise Failed(str(error)) from error
  return card.get("trained", {}).get("step")


def check_program(flags: argparse.Namespace, overrides: Sequence[str], path: pathlib.Path) -> None:
  """Compares checksums, then runs the artefact beside the run."""
  from tools.exporting import export_check, export_function
  try:
    card = export_card.read(path)
  except UserError as error:
    raise Failed(str(error)) from error
  if text := export_card.damage(path, card):
    raise Failed(f"{path}: {text}")
  run_ = restored(flags, overrides, flags.step)
  if flags.step is None and run_.step != card["trained"]["step"]:
    run_ = restored(flags, overrides, card["trained"]["step"])
  views = [entry["view"] for entry in card["prediction"]]
  pictures, source = export_check.pictures_of(run_, export_function.select(run_.config, views[0])[1][0])
  function = export_function.make(run_, view=views[0] if len(views) == 1 else None,
                                  size=card["size"] and tuple(card["size"]), full_size=card["full_size"],
                                  picture=export_check.size_of(pictures, source))
  results = compared(run_, function, path, card, pictures, source, tolerance=flags.tolerance,
                     shape=card["inputs"]["pixels"]["shape"])
  if bad := [result for result in results if not result.passed]:
    worst = max(bad, key=lambda result: result.largest)
    raise Failed(f"{path}: '{worst.name}' differs from the run's own prediction: max abs difference "
                 f"{worst.largest:.3g}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; exit status 0, 1 where an artefact is not what the run is, 2 after a person's mistake."""
  return shell.exit_status("export", command, argv)


def command(argv: Sequence[str]) -> int:
  """1 where an artefact is not what the run is, else 0."""
  flags, overrides = export_flags.parse(argv, description=__doc__)
  try:
    (check if flags.check else run)(flags, overrides)
  except Failed as error:
    print(f"export: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
