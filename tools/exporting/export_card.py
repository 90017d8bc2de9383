"""What an exported model says of itself: run, inputs, outputs, classes, config; and checksums of its files."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from uvim_like import config as configs
from uvim_like.errors import UserError
from uvim_like.inference import tables
from uvim_like.inference.views import View, system_of
from uvim_like.ops import inputs
from uvim_like.training.trained import Trained

CARD = "card.json"
DIGEST = "digest"
# What the numbers of each output are.
MEANINGS = {
    "depth": "metres", "semantics": "classes, 0 = void, k = classes.semantics[k - 1]",
    "instances": "instance numbers, 0 = none", "color": "red, green, blue in [-1, 1]",
    "normals": "unit vectors: x right, y up, z towards the camera",
    "boxes": "[y0, x0, y1, x1] as fractions of the canvas, of which the picture fills valid_size",
    "scores": "0 to 1; 0 is no detection", "labels": "classes of the boxes",
    "classes": "k = classes.objects[k - 1], 0 = none",
    "masks": "inside their boxes; foreground from 0.5", "keypoints": "(y, x, visibility), fractions of the canvas",
    "captions": "pieces of the text model, 0 = end",
    "valid_size": "rows and columns of the canvas that the picture fills"}


def of_run(trained: Trained, *, averaged: bool | None = None) -> dict[str, Any]:
  """The part that every artefact has: which run, what it was trained as, its classes, its whole config."""
  return about(trained.config, trained.step, trained.workdir, averaged=averaged)


def about(config: Any, step: int, workdir: pathlib.Path, *, averaged: bool | None = None) -> dict[str, Any]:
  """As `of_run`, of a config and a step alone."""
  system = system_of(config)
  return {
      "system": system, "task": config.get("task"), "trained": {
          "run": workdir.resolve().name, "step": step, "dataset": config.dataset, "split": config.train_split,
          **({} if averaged is None else {"averaged": averaged})},
      "classes": class_names(config), "jax": jax.__version__,
      "normalisation": normalisation(config), "preprocessing": config.get("pp_eval") or config.get("pp_train"),
      "config": json.loads(configs.to_json(config))}


def class_names(config: Any) -> dict[str, list[str]]:
  """{"semantics": names of the values 1..C, "objects": of the labels 1..C}, as far as the run has such outputs."""
  values = configs.plain(config)
  view = View("", "", "", "", {}, {"dataset": values["dataset"]}, 1)
  blocks = [values[name] for name, _ in values.get("evals") or ()]
  metrics = [{"dataset": block.get("dataset") or values["dataset"], **(block.get("metric") or {})} for block in blocks]
  found = {}
  for metric in metrics or [view.metric]:
    for key, table in (("semantics", tables.semantic_table), ("objects", tables.object_table)):
      named = table(config, view._replace(metric=metric))
      if named is not None and key not in found:
        found[key] = list(named.names)
  return found


def normalisation(config: Any) -> dict[str, Any] | None:
  """What brings levels into the network's range: out = (level - in_min) / (in_max - in_min) · (max - min) + min."""
  try:
    program = inputs.compile_string((config.get("pp_eval") or config.get("pp_train")).split(";")[0])
  except UserError:   # random ops of a training string: nothing is claimed
    return None
  for step in program.steps:
    if step.name == "value_range" and step.arguments["target"] == inputs.DECODED:
      given = step.arguments["arguments"]
      return {"min": given["vmin"], "max": given["vmax"], "in_min": given["in_min"], "in_max": given["in_max"]}
  return None


def outputs(shapes: Mapping[str, Any]) -> dict[str, Any]:
  """{name: type, shape and meaning} of a program's results."""
  return {name: {"dtype": str(x.dtype), "shape": [str(side) if not isinstance(side, int) else side for side in x.shape],
                 "meaning": MEANINGS.get(name, "")} for name, x in shapes.items()}


# --- files ------------------------------------------------------------------------------------------------------------


def write(folder: pathlib.Path, card: Mapping[str, Any], files: Sequence[str]) -> None:
  """The card, with checksums of the files beside it and of itself."""
  body = dict(card) | {"files": {name: checksum(folder / name) for name in files}}
  text = json.dumps(body | {DIGEST: digest(body)}, indent=1, ensure_ascii=False) + "\n"
  (folder / CARD).write_text(text, encoding="utf-8")


def read(folder: pathlib.Path) -> dict[str, Any]:
  """A card; UserError when there is none, or it is no card."""
  path = folder / CARD
  try:
    card = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: no card of an exported model ({type(error).__name__})") from error
  if not isinstance(card, dict) or not isinstance(card.get("files"), dict):
    raise UserError(f"{path}: no card of an exported model")
  return card


def damage(folder: pathlib.Path, card: Mapping[str, Any]) -> str | None:
  """What was changed since the artefact was written; None when nothing was."""
  if card.get(DIGEST) != digest({key: value for key, value in card.items() if key != DIGEST}):
    return f"{CARD} was changed"
  for name, wanted in card["files"].items():
    if not (folder / name).is_file():
      return f"{name} is missing"
    if checksum(folder / name) != wanted:
      return f"{name} was changed: its checksum is not the card's"
  return None


def digest(card: Mapping[str, Any]) -> str:
  """SHA-256 of a card, whatever its layout."""
  return hashlib.sha256(json.dumps(card, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def checksum(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
