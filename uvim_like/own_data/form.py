"""A config's form `folder`: which facts of somebody's data it needs, and these put into it."""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections as mlc

from uvim_like.errors import UserError
from uvim_like.own_data import facts as own
from uvim_like.own_data.facts import Facts

SWITCH = "folder"
OFF = ("folder=false", "folder=0")
SHOWN = 12   # names in a line
STORED, STORED_NAMES = "npz", "class_names.json"   # the dataset of finished examples, and what may lie beside its splits
# Op of a preprocessing string -> what it needs of the folder.
_OPS = {"semantic_labels": ("semantic",), "depth_labels": ("depth",), "nyu_depth": ("depth",),
        "normal_labels": ("normals",), "coco_panoptic": ("panoptic",), "instances": ("instances", "masks"),
        "tokenize_captions": ("captions",)}

KINDS = (("semantic", "classes"), ("panoptic", "kinds of segments"), ("objects", "kinds of objects"))
# Task of MAD, whose strings read more than one task learns -> the same.
_TASKS = {"boxes": ("instances",), "masks": ("instances", "masks"), "keypoints": ("instances",),
          "captions": ("captions",)}


def data_dir_of(arg: str, overrides: Iterable[str]) -> str | None:
  """The folder of "…:folder" with an override "data_dir=…"; None for another form, or where no folder is said."""
  words = {word.strip().partition("=")[0] for word in arg.split(",") if word.strip().lower() not in OFF}
  given = [text.partition("=")[2] for text in overrides if text.startswith("data_dir=")]
  return given[-1] if SWITCH in words and given else None


def needs(config: Mapping[str, Any]) -> frozenset[str]:
  """What the training strings of a config read, as `facts.read` wants it; what none of its tasks learns is optional."""
  text = config["pp_train"]
  found = {need for op, wanted in _OPS.items() if re.search(rf"\b{op}\b(?!\")", text) for need in wanted}
  if "masks=False" in text:
    found -= {"masks"}
  tasks = tuple((config.get("objectives") or {}).get("tasks", ()))
  if not tasks:
    return frozenset(found)
  must = set(_TASKS[tasks[0]]) if len(tasks) == 1 else set()
  return frozenset(must | {f"{need}?" for need in found - must - {"masks"}})


def read(config: Mapping[str, Any], data_dir: str) -> Facts:
  """The facts that a config needs; UserError as `facts.read`."""
  return own.read(data_dir, needs(config))


def summary(config: Mapping[str, Any]) -> str:
  """One line of what a config took over from own data; "" for other data."""
  names = config.get("class_names") or {}
  if SWITCH not in str(config["dataset"]):
    return ""
  parts = [f"{len(names[kind])} {words} ({', '.join(_name(entry) for entry in list(names[kind])[:SHOWN])}"
           f"{', …' if len(names[kind]) > SHOWN else ''})"
           for kind, words in KINDS
           if names.get(kind)]
  parts += [f"depth up to {config['max_depth']:g} m"] if config.get("max_depth") else []
  splits = " and ".join(dict.fromkeys(filter(None, (config["train_split"], config.get("val_split")))))
  return f"own data in {config.get('data_dir')}: {', '.join([f'splits {splits}', *parts])}"


def _name(entry: str | Mapping[str, Any]) -> str:
  return entry if isinstance(entry, str) else str(entry["name"])


def notes(config: Mapping[str, Any], found: Facts) -> list[str]:
  """Lines that a person should read before the training of a config on this data."""
  first_stage = config.get("oracle") or config
  planes = (first_stage.get("model") or {}).get("outputs")
  bins = planes.get("depth", (0,))[0] if first_stage.get("task") == "depth" and hasattr(planes, "get") else 0
  width = found.arguments.get("max_depth", 0) / bins if bins else 0
  if found.nearest >= width:
    return found.notes
  return [*found.notes, f"depth is learned in {bins} bins, of which the first stands for no measurement: what is nearer "
          f"than {width:.2g} m (the nearest is {found.nearest:.2g} m) is not learned"]


def put(config: mlc.ConfigDict, found: Facts, data_dir: str) -> None:
  """Names of classes and the folder, which do not go into a config as arguments; alters it."""
  config.data_dir = data_dir
  if found.class_names:
    config.class_names = found.class_names
  for name, evaluator in config.get("evals", ()):
    if evaluator in ("coco_panoptic", "save_predictions") and "panoptic" in found.class_names:
      config[name].metric.categories = found.class_names["panoptic"]


def put_stored_names(config: mlc.ConfigDict) -> None:
  """The class names that lie beside finished examples, in the form of `Facts.class_names`; alters the config.

  Raises:
    UserError: the file is no such object.
  """
  if config.get("dataset") != STORED or not config.get("data_dir") or config.get("class_names"):
    return
  path = pathlib.Path(config.data_dir).expanduser() / STORED_NAMES
  if not path.is_file():
    return
  try:
    names = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, OSError) as error:
    raise UserError(f"{path}: cannot be read: {error}") from error
  if not isinstance(names, dict) or not all(_are_names(kind, listed) for kind, listed in names.items()):
    raise UserError(f'{path}: {{"semantic": ["wall", …]}} is needed, "objects": [{{"id": 1, "name": "box"}}, …], or '
                    '"panoptic": the same with "isthing"')
  config.class_names = names


def _are_names(kind: str, listed: Any) -> bool:
  """Whether a list is one of `Facts.class_names`."""
  keys = {"semantic": set(), "objects": {"id", "name"}, "panoptic": {"id", "name", "isthing"}}
  return kind in keys and isinstance(listed, list) and all(
      keys[kind] <= set(entry) if isinstance(entry, dict) else kind == "semantic" for entry in listed)
