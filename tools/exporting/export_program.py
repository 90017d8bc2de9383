"""A run as a folder that needs nothing of this code: StableHLO program, weights, card, and the script that runs it."""

import importlib.util
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tools.exporting import export_card
from tools.exporting.export_function import Function, Lowered
from uvim_like.config import ROOT
from uvim_like.errors import UserError
from uvim_like.training.trained import Trained

KIND = "stablehlo"
PROGRAM, WEIGHTS, RUN = "model.stablehlo", "weights.npz", "run.py"
READER = "flatbuffers"   # pure Python (Apache-2.0), with which jax reads programs and which it does not install


def write(folder: pathlib.Path, function: Function, lowered: Lowered, trained: Trained) -> dict[str, Any]:
  """Program, weights, script and the package that reads programs; returns the card, which `finish` writes."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / PROGRAM).write_bytes(lowered.exported.serialize())
  np.savez(folder / WEIGHTS, **{name: _storable(leaf) for name, leaf in zip(function.names, function.weights)
                                if name in lowered.used})
  shutil.copyfile(script("run_stablehlo.py"), folder / RUN)
  copy_reader(folder / READER)
  card = card_of(KIND, function, lowered, trained)
  finish(folder, card)
  return card


def finish(folder: pathlib.Path, card: Mapping[str, Any], results: Sequence[Any] = ()) -> None:
  """The card with how the artefact compared, and with checksums of what lies beside it."""
  compared = [{"output": result.name, "max_abs_difference": result.largest, "share": result.share,
               "allowed": result.allowed} for result in results]
  export_card.write(folder, dict(card) | {"compared": compared}, files_of(folder))


def card_of(kind: str, function: Function, lowered: Lowered, trained: Trained) -> dict[str, Any]:
  """What an artefact says of itself."""
  shapes = lowered.exported.out_tree.unflatten(lowered.exported.out_avals)
  return {
      "kind": kind, **export_card.of_run(trained),
      "inputs": {"pixels": {"dtype": "uint8", "shape": list(lowered.shape), "meaning": "RGB, upright"},
                 "seed": {"dtype": "uint32", "shape": [], "meaning": "of what is drawn at random"}},
      "outputs": export_card.outputs(shapes), "full_size": function.full_size, "size": function.size,
      "largest": function.largest, "seed": function.seed, "platforms": list(lowered.exported.platforms),
      "prediction": [{"view": view.name, "function": view.pred, "options": view.options, "preprocessing": view.pp}
                     for view in function.views],
      "weights": [[name, str(leaf.dtype), list(leaf.shape)] for name, leaf in zip(function.names, function.weights)]}


def _storable(leaf: np.ndarray) -> np.ndarray:
  return leaf.view("V2") if str(leaf.dtype) == "bfloat16" else leaf


def script(name: str) -> pathlib.Path:
  """One of the examples; UserError where the checkout does not have them."""
  path = ROOT / "examples" / name
  if not path.is_file():
    raise UserError(f"{path} is missing: exports carry it along; run tools.export from a checkout of the repository")
  return path


def copy_reader(target: pathlib.Path) -> None:
  """The package that reads programs, as it is installed here."""
  found = importlib.util.find_spec(READER)
  if found is None or not found.submodule_search_locations:
    raise UserError(f"--format={KIND} needs the package '{READER}': pip install -r requirements.txt")
  shutil.copytree(found.submodule_search_locations[0], target, dirs_exist_ok=True,
                  ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def files_of(folder: pathlib.Path) -> Sequence[str]:
  """Names of all files of an artefact but the card, relative to it."""
  paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
  names = (str(path.relative_to(folder)) for path in paths)
  return sorted(name for name in names if name != export_card.CARD)

