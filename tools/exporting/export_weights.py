"""Weights as files: big_vision's .npz, .safetensors with its JSON, a backbone in the hub's layout; each read again."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from tools.exporting import export_hub
from tools.exporting.export_hub import OURS as OURS  # the mark of a config.json that was written here
from uvim_like import trees, weights, weights_hf, weights_rules, weights_torch
from uvim_like.errors import UserError
from uvim_like.systems import image_backbone
from uvim_like.systems.base import Vars
from uvim_like.training import checkpoint

JSON_KEY = "card"   # of a .safetensors file's own metadata, whose values are texts
MODEL, CONFIG = "model.safetensors", "config.json"   # as the hub names them


def named(variables: Vars) -> dict[str, np.ndarray]:
  """{"params/…" or "state/…": array}."""
  return {name: np.asarray(leaf) for name, leaf in
          trees.flatten_names({"params": variables.params, "state": variables.state})}


def largest_difference(want: Mapping[str, np.ndarray], have: Mapping[str, np.ndarray]) -> float:
  """Largest absolute difference of any number in the file; equal bits differ by 0, whatever they mean.

  Raises:
    UserError: the file has other names, shapes or types.
  """
  described = [{name: (leaf.shape, str(leaf.dtype)) for name, leaf in tree.items()} for tree in (have, want)]
  if text := checkpoint.diff_text(*described):
    raise UserError(f"what was written is not what is read back: {text}")
  with np.errstate(invalid="ignore"):   # inf - inf
    differences = [np.max(np.abs(have[name].astype(np.float64) - leaf.astype(np.float64)))
                   for name, leaf in want.items() if have[name].tobytes() != leaf.tobytes()]
  return float(np.max(differences, initial=0.0)) if differences else 0.0


# --- one file ---------------------------------------------------------------------------------------------------------


def write_npz(path: pathlib.Path, variables: Vars) -> None:
  """big_vision's layout."""
  weights.save_vars(path, variables)


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  """What `write_npz` wrote."""
  return dict(trees.flatten_names(weights.load_npz(path)))


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> None:
  """The arrays with the card in the file's metadata, and once more, to be read by people, as JSON beside it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(card, ensure_ascii=False)
  save(path, arrays, {"format": "np", JSON_KEY: text})
  json_path(path).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save(path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
  """A .safetensors file that others may read as they may read any file of this person's."""
  ordered = {name: np.asarray(leaf, order="C") for name, leaf in arrays.items()}
  path.write_bytes(safetensors.numpy.save(ordered, metadata=dict(metadata)))


def json_path(path: pathlib.Path) -> pathlib.Path:
  """The JSON beside a .safetensors file."""
  return path.with_suffix(".json")


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The arrays and the card of a file.

  Raises:
    UserError: no such file, a damaged one, or one without a card.
  """
  arrays = weights_torch.read_state_dict(path)
  with safetensors.safe_open(path, framework="np") as file:
    text = (file.metadata() or {}).get(JSON_KEY)
  if text is None:
    raise UserError(f"{path}: has no card; it was not written by tools.export")
  try:
    return arrays, json.loads(text)
  except ValueError as error:
    raise UserError(f"{path}: its card is no JSON") from error


def read_json(path: pathlib.Path) -> Any:
  """The JSON beside a .safetensors file; UserError when it is not there, or is none."""
  try:
    return json.loads(json_path(path).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{json_path(path)}: cannot be read ({type(error).__name__})") from error


# --- the hub's layout -------------------------------------------------------------------------------------------------


def backbone_of(config: Any, variables: Vars) -> tuple[Any, dict[str, Any]]:
  """A run's backbone as a module, and its {"params", "state"}; UserError: see `image_backbone.find`."""
  found = image_backbone.find(config, where="--format=hf")
  return found.module, found.of({"params": variables.params, "state": variables.state})


def write_hf(folder: pathlib.Path, config: Any, variables: Vars) -> tuple[str, ...]:
  """`model.safetensors` and `config.json` of the backbone.

  Returns:
    Our names of the arrays that the hub's layout does not know (a pyramid on a ViT), which are left out.
  """
  model, tree = backbone_of(config, variables)
  table, leaves = weights_hf.table(model), trees.flatten_names(tree)
  left_out = tuple(name for name, _ in leaves if not weights_rules.has_name(name, table))
  kept = {name: leaf for name, leaf in leaves if name not in left_out}
  arrays = weights_rules.to_theirs(trees.unflatten_names(kept), table)
  if not arrays:
    raise UserError(f"--format=hf: none of the backbone's arrays has a name there, e.g. '{left_out[0]}'")
  folder.mkdir(parents=True, exist_ok=True)
  save(folder / MODEL, arrays, {"format": "np"})
  (folder / CONFIG).write_text(json.dumps(described(config, model), indent=1) + "\n", encoding="utf-8")
  return left_out


def described(config: Any, model: Any) -> dict[str, Any]:
  """What `config.json` says of a run's backbone, as JSON gives it back."""
  return json.loads(json.dumps(export_hub.config_of(model, tuple(config.model.get("input_size") or ()))))


def check_described(path: pathlib.Path, want: dict[str, Any]) -> None:
  """Raises UserError where a `config.json` is missing, or says something else, which others would build."""
  try:
    have = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: cannot be read ({type(error).__name__})") from error
  if not isinstance(have, dict):
    raise UserError(f"{path}: an object is expected")
  if wrong := sorted(key for key in {*have, *want} if key not in have or key not in want or have[key] != want[key]):
    raise UserError(f"{path}: '{wrong[0]}' is {have.get(wrong[0])!r:.80}, of the run it is {want.get(wrong[0])!r:.80}")


def read_hf(folder: pathlib.Path, config: Any, variables: Vars) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """The backbone's arrays as trained and as they come back from the hub's layout, both by our names.

  Raises:
    UserError: a file is damaged or missing, holds arrays that the backbone has not, or describes another.
  """
  model, tree = backbone_of(config, variables)
  check_described(folder / CONFIG, described(config, model))
  flat = weights_torch.read_state_dict(folder / MODEL)
  table = weights_hf.table(model)
  converted = weights_rules.to_ours(flat, table, tree)
  if converted.rest:
    raise UserError(f"{folder / MODEL}: '{next(iter(converted.rest))}' is no array of this backbone")
  have = {name: np.asarray(leaf) for name, leaf in trees.flatten_names(converted.tree)}
  want = {name: np.asarray(leaf) for name, leaf in trees.flatten_names(tree)}
  return {name: leaf for name, leaf in want.items() if weights_rules.has_name(name, table)}, have
