"""Where the validation examples of a run come from, what their classes are called, and how their captions are written."""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

import train
from tools.rendering import instance_arrays
from uvim_like import config_json
from uvim_like.errors import UserError
from uvim_like.evaluators import run as evaluation
from uvim_like.inference import tables, views
from uvim_like.tasks import classes
from uvim_like.training import setup

Outputs = dict[str, np.ndarray]
Batch = Mapping[str, np.ndarray]
MOST_BYTES, FEWEST = 2 ** 29, 8  # of the examples together; so many are taken however large they are
MASK_SIDE = 32  # pixels of a true mask inside its box, where the data has masks of whole images


class Source(NamedTuple):
  """Where validation examples come from; arguments of a provider's `eval_batches`."""
  dataset: str
  data_dir: str | None
  split: str
  pp: str
  target_keys: tuple[str, ...] = ()


def asked(config: Any) -> Iterator[tuple[str, dict[str, Any], list[Source]]]:
  """(prediction, its options, where examples may come from) of each different evaluation in a config.

  Examples come from the validation split as training prepares it, or from the evaluation's own data where there is no
  such split, or where it has no truth for this output.
  """
  plain = config_json.plain(config)
  shared = []
  if plain.get("val_split") and (plain.get("pp_eval") or plain.get("pp_train")):
    shared = [Source(plain["dataset"], plain.get("data_dir"), plain["val_split"], plain.get("pp_eval") or plain["pp_train"])]
  blocks = [plain.get(name) or {} for name, _ in plain.get("evals") or ()]
  known = []
  for block in blocks or [{}]:
    what = block.get("pred") or "predict", dict(block.get("pred_kw") or {})
    own = [Source(block.get("dataset") or plain["dataset"], block.get("data_dir") or plain.get("data_dir"),
                  block["split"], block["pp"])] if block.get("split") and block.get("pp") else []
    if (what, own if not shared else []) not in known:
      known.append((what, own if not shared else []))
      yield *what, [*shared, *own]


def first_examples(config: Any, source: Source, count: int) -> Outputs:
  """The first examples that the model reads, as {name: (n, …)}, padding left out; whole masks become box masks.

  Args:
    config: as trained.
    source: where they come from.
    count: at most so many; fewer of large ones, see `MOST_BYTES`.

  Raises:
    UserError: an empty split, a dataset that is not there, or one that needs TensorFlow where there is none.
  """
  try:
    provider = train.data_provider(source.dataset)
  except ImportError as error:
    raise UserError(f"dataset '{source.dataset}': reading it needs a package that is not installed ({error.name})") from None
  parts: list[Outputs] = []
  for batch, _ in provider.eval_batches(**source._asdict(), batch_size=min(count, config.get("batch_size") or count),
                                        pp_modules=config.get("pp_modules")):
    real = np.asarray(batch["_mask"]) > 0
    parts.append(_compact({name: np.asarray(x)[real] for name, x in batch.items() if name in setup.DEVICE_KEYS}))
    size = sum(x[:1].nbytes for x in parts[0].values())
    count = min(count, max(FEWEST, MOST_BYTES // max(size, 1)))
    if sum(len(part["image"]) for part in parts) >= count:
      break
  if not parts or not len(parts[0]["image"]):
    raise UserError(f"{source.dataset}: the split '{source.split}' holds no examples")
  return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def _compact(batch: Outputs) -> Outputs:
  """A batch without masks of whole images, which take gigabytes; predictions read those inside boxes at most."""
  if "masks" not in batch:
    return batch
  masks, rest = batch["masks"], {name: x for name, x in batch.items() if name != "masks"}
  if "box_masks" in batch:
    return rest
  return rest | {"box_masks": np.stack([instance_arrays.rasterise(m, b, MASK_SIDE) for m, b in zip(masks, batch["boxes"])])}


# --- Names -----------------------------------------------------------------------------------------------------------


def class_names(config: Any, *, objects: bool) -> dict[int, str]:
  """{value: name} of the run's classes, 0 = void; only void where they are not known.

  Args:
    config: as trained, with defaults.
    objects: labels of objects are meant, else values of class maps.
  """
  make = tables.object_table if objects else tables.semantic_table
  try:
    found = [make(config, view) for view in views.views(config)]
  except UserError:  # neither evaluations nor a validation set: nothing names the classes
    found = []
  table = next(filter(None, found), None) or _of_dataset(config, objects=objects)
  return {0: "void", **{label + 1: name for label, name in enumerate(table.names if table else ())}}


def _of_dataset(config: Any, *, objects: bool) -> classes.ClassTable | None:
  """The dataset's own table: a tokenizer of masks does not count classes."""
  try:
    table = classes.table(config.dataset)
  except UserError:
    return None
  return tables.things_of(table) if objects else table


def text_model(config: Any) -> str | None:
  """The model that writes the run's captions as tokens: as its evaluation, its preprocessing or its data have it."""
  plain = config_json.plain(config)
  for name, kind in plain.get("evals") or ():
    model = ((plain.get(name) or {}).get("metric") or {}).get("model")
    if evaluation.load(kind).__name__.endswith(".captions") and model:
      return model
  named = re.search(r"tokenize_captions\(\s*['\"]([^'\"]+)", json.dumps(plain).replace('\\"', '"'))
  if named:
    return named.group(1)
  beside = pathlib.Path(plain.get("data_dir") or ".").expanduser() / "captions.model"
  return str(beside) if beside.is_file() else None
