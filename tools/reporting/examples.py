"""What a run makes of validation examples, as plain arrays: its weights, and a prediction for each kind of output."""

import functools
import os
import pathlib
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tools.reporting import validation
from tools.reporting.validation import Batch, Outputs, Source
from uvim_like import config_json, weights
from uvim_like.errors import UserError
from uvim_like.evaluators.save_predictions import as_storable
from uvim_like.systems.base import System, Vars
from uvim_like.tasks.depth import MAX_DEPTH
from uvim_like.training import setup, trained
from uvim_like.training.trained import Trained

MEASURED = 64  # examples behind every number of the report that is not in metrics.jsonl
STAGE_I, STAGE_II, REGRESSION, NO_CODE = "stage I", "stage II", "per-pixel regression", "base model without code"
TOKENIZER, SOLVER, MAD, MAD_AR = "ait.vqvae", "ait.solver", "mad.decoder", "mad.decoder, autoregressive"
POLYMAX, PER_PIXEL = "polymax.kmax", "polymax.per_pixel"


class Loaded(NamedTuple):
  """A run that can predict.

  Attributes:
    trained: config, system, frozen stage, step.
    kind: see `kind_of`.
    variables: as trained; `fitting` checks them against the network.
    key: random, the same whenever the run is looked at.
  """
  trained: Trained
  kind: str
  variables: Vars
  key: jax.Array

  @property
  def config(self) -> Any:
    """As trained, with defaults."""
    return self.trained.config

  @property
  def system(self) -> System:
    """The training problem."""
    return self.trained.system

  @property
  def frozen(self) -> Any:
    """Stage I and the like."""
    return self.trained.frozen


class Examples(NamedTuple):
  """What a run predicts of one kind of output for its first validation examples, in order; n of them.

  Attributes:
    kind: of the run, see `kind_of`.
    family: of the output, a key of FORMS.
    data: dataset, its place, split and (H, W). Runs with the same are comparable.
    batch: what the model reads, {name: (n, …)}; "image" (n, H, W, 3) is in [-1, 1].
    options: of `predict`, those of the run's own evaluation.
    truth: as the family's outputs, {key: (n, …)}.
    predicted: {key: (n, …)}.
    seconds: of one prediction, compiled, for one example.
    names: {value or label: class name}; values without a name go by their number.
    text_model: of captions; None without.
    max_depth: metres; what is farther was not measured.
  """
  kind: str
  family: str
  data: tuple
  batch: Outputs
  options: dict[str, Any]
  truth: Outputs
  predicted: Outputs
  seconds: float
  names: Mapping[int, str] = {}
  text_model: str | None = None
  max_depth: float = MAX_DEPTH

  @property
  def image(self) -> np.ndarray:
    """(n, H, W, 3) in [-1, 1]."""
    return self.batch["image"]

  def size(self, i: int) -> tuple[int, int]:
    """(H, W) of example i without the padding of its canvas."""
    size = self.batch.get("valid_size")
    return tuple(map(int, size[i])) if size is not None and np.all(size[i] > 0) else self.image.shape[1:3]


# --- Kinds of outputs ------------------------------------------------------------------------------------------------


class Form(NamedTuple):
  """A kind of output: the keys that a prediction has, the entry of a batch that holds its truth, how to read that."""
  outputs: tuple[str, ...]
  needs: str
  truth: Callable[[Batch], Outputs]


def true_objects(batch: Batch) -> Outputs:
  """Annotated objects as a prediction would have them: score 1, masks inside their boxes; empty slots have score 0."""
  truth = {"boxes": batch["boxes"], "classes": batch["box_labels"], "scores": (batch["box_labels"] > 0).astype(np.float32)}
  if "box_masks" in batch:
    truth["masks"] = batch["box_masks"].astype(np.float32)
  return truth | ({"keypoints": batch["keypoints"]} if "keypoints" in batch else {})


FORMS = {
    "panoptic": Form(("semantics", "instances"), "labels",
                     lambda batch: {"semantics": batch["labels"][..., 0], "instances": batch["labels"][..., 1]}),
    "semantic": Form(("semantics",), "labels", lambda batch: {"semantics": batch["labels"][..., 0]}),
    "depth": Form(("depth",), "labels", lambda batch: {"depth": batch["labels"][..., 0]}),
    "normals": Form(("normals",), "labels", lambda batch: {"normals": batch["labels"]}),
    "colour": Form(("color",), "labels", lambda batch: {"color": batch["labels"]}),
    "objects": Form(("boxes", "scores", "classes"), "boxes", true_objects),
    "captions": Form(("captions",), "captions", lambda batch: {"captions": batch["captions"]})}


def families_of(keys: Collection[str]) -> list[str]:
  """The families of a prediction with these keys; a class map that comes with instances is no semantic one."""
  found = [name for name, form in FORMS.items() if set(form.outputs) <= set(keys)]
  return [name for name in found if not (name == "semantic" and "panoptic" in found)]


# --- The run ---------------------------------------------------------------------------------------------------------


def kind_of(config: Mapping[str, Any]) -> str:
  """What a config trains, in the words of the report: UViM's stages and baselines, else the system's name."""
  if config.get("oracle"):
    return STAGE_II
  if config["model"].get("zero_decoder_seq"):
    return REGRESSION if "regression" in (config.get("task") or "") else NO_CODE
  name = config["model_name"].removeprefix("proj.")
  if name == MAD and (config.get("objectives") or {}).get("form") == "autoregressive":
    return MAD_AR
  return STAGE_I if name == "uvim.vit" else name


def read_config(workdir: str | os.PathLike) -> Any:
  """The config of a run; UserError when its folder has none, or one that is none."""
  path = pathlib.Path(workdir).expanduser() / "config.json"
  if not path.is_file():
    what = "there is no folder" if not path.parent.exists() else "no config.json in"
    raise UserError(f"--workdir: {what} '{workdir}'; give the folder of a training")
  try:
    config = config_json.from_json(path.read_text(encoding="utf-8"))
  except (UserError, UnicodeDecodeError) as error:
    raise UserError(f"--workdir: {path} cannot be read: {error}") from None
  missing = [key for key in ("model", "model_name") if not config.get(key)]
  if missing:
    raise UserError(f"--workdir: {path} is no config of a training: it has no '{missing[0]}'")
  return config


def load(workdir: str | os.PathLike) -> Loaded:
  """Rebuilds a run from its folder: its newest checkpoint, or its final weights where no checkpoint is left.

  Raises:
    UserError: no weights, a config that is not valid any more, a frozen stage that is not there.
  """
  found = trained.restore(workdir)
  return Loaded(found, kind_of(found.config), found.vars, jax.random.key(found.config.seed))


def fitting(run: Loaded, batch: Batch) -> Vars:
  """The run's variables, checked against its network; UserError names what does not fit."""
  shapes = setup.shapes_of(run.system, {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()},
                           run.config)
  merged, _ = weights.merge({"params": shapes.params, "state": shapes.state},
                            {"params": run.variables.params, "state": run.variables.state}, where=str(run.trained.workdir))
  return Vars(params=merged["params"], state=merged["state"])


def predictions(run: Loaded, count: int = MEASURED) -> list[Examples]:
  """What the run predicts, an entry for each kind of output that its own evaluation asks for.

  Args:
    run: rebuilt.
    count: at most so many examples; the split may have fewer.

  Raises:
    UserError: no validation data with a truth, a dataset that is gone, outputs that nobody draws.
  """
  found: dict[str, Examples] = {}
  seen: list[str] = []
  batches: dict[Source, Outputs] = {}
  for name, options, candidates in validation.asked(run.config):
    for source in candidates:
      if source not in batches:
        batches[source] = validation.first_examples(run.config, source, count)
      batch = batches[source]
      run = run._replace(variables=fitting(run, batch))
      keys = list(jax.eval_shape(functools.partial(run.system.predict[name], **options), run.variables,
                                 run.frozen, batch, run.key))
      seen += keys
      families = [family for family in families_of(keys) if family not in found and FORMS[family].needs in batch]
      if families:
        predicted, seconds = predict(run, batch, name, timed=True, **options)
        for family in families:
          found[family] = _entry(run, family, source, batch, options, predicted, seconds)
        break
  if not found:
    raise UserError(f"{run.trained.workdir}: no pictures are known for the outputs {', '.join(dict.fromkeys(seen)) or '(none)'} "
                    f"with this validation data; known: {', '.join(FORMS)}")
  return list(found.values())


def _entry(run: Loaded, family: str, source: Source, batch: Outputs, options: dict[str, Any], predicted: Outputs,
           seconds: float) -> Examples:
  data = (source.dataset, source.data_dir, source.split, batch["image"].shape[1:3])
  return Examples(run.kind, family, data, batch, options, FORMS[family].truth(batch), predicted, seconds,
                  names=validation.class_names(run.config, objects=family == "objects"),
                  text_model=validation.text_model(run.config) if family == "captions" else None,
                  max_depth=run.config.get("max_depth") or MAX_DEPTH)


def task_options(base: Examples) -> dict[str, Any]:
  """How the run's own evaluation reads the network, e.g. {"estimate": "mean"}: the pictures show what was measured."""
  return dict(base.options.get("task_options") or {})


# --- Predictions -----------------------------------------------------------------------------------------------------


def predict(run: Loaded, batch: Batch, name: str = "predict", *, timed: bool = False,
            **options) -> tuple[Outputs, float]:
  """A system's prediction for all examples; see `in_chunks`."""
  return in_chunks(functools.partial(run.system.predict[name], **options), run, batch, timed=timed)


def in_chunks(function: Callable[..., Mapping[str, jax.Array]], run: Loaded, batch: Batch, *,
              timed: bool = False) -> tuple[Outputs, float]:
  """{name: (n, …)} on the host of a function that is compiled for as many examples as training has in memory.

  Args:
    function: (variables, frozen, batch, key) -> {name: (B, …)}.
    run: gives all but the batch.
    batch: {name: (n, …)}; a last chunk that is smaller is filled up with the last example.
    timed: measure a second, compiled call.

  Returns:
    The outputs, and seconds an example (nan unless timed).
  """
  count = len(batch["image"])
  size = min(run.config.get("batch_size") or count, count)
  compiled, parts, seconds = jax.jit(function), [], float("nan")
  for start in range(0, count, size):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    arguments = run.variables, run.frozen, {name: x[rows] for name, x in batch.items()}, run.key
    made = jax.block_until_ready(compiled(*arguments))
    if timed and not start:
      began = time.perf_counter()
      jax.block_until_ready(compiled(*arguments))
      seconds = (time.perf_counter() - began) / size
    parts.append({key: as_storable(x)[:count - start] for key, x in made.items()})  # bfloat16 as float32
  return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, seconds
