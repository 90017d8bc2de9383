"""What a finished run makes of validation examples, as plain arrays: predictions, samples, codes, corrupted codes."""

import functools
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import train
from uvim_like import config_json, weights
from uvim_like.errors import UserError
from uvim_like.systems.base import System, Vars
from uvim_like.systems.uvim import vit
from uvim_like.tasks.base import bind
from uvim_like.tasks.depth import MAX_DEPTH, MIN_DEPTH
from uvim_like.training import setup

Outputs = dict[str, np.ndarray]

MEASURED = 64  # examples behind every number of the report that is not in metrics.jsonl
SAMPLES = 3  # at temperature 1, as in the paper's appendix
CORRUPTIONS = ("zero", "random", "word")
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
STAGE_I, STAGE_II, REGRESSION, NO_CODE = "stage I", "stage II", "per-pixel regression", "base model without code"
FAMILIES = {"depth": "depth", "semantics": "panoptic", "color": "colour"}  # first output -> what is predicted
ERRORS = {"depth": "RMSE in metres", "panoptic": "pixels of wrong class, %", "colour": "RMSE in levels of 0 to 255"}
ERROR_FORMATS = {"depth": "{:.2f} m", "panoptic": "{:.1f} %", "colour": "{:.1f}"}


class Examples(NamedTuple):
  """The first validation examples of a run, in order; n of them.

  Attributes:
    kind: STAGE_I, STAGE_II, REGRESSION, NO_CODE or the system's name.
    family: a value of FAMILIES.
    data: what the examples are: dataset, its place, split and (H, W). Runs with the same are comparable.
    image: (n, H, W, 3) in [-1, 1].
    truth: as the task's outputs, {key: (n, …)}.
    predicted: {key: (n, …)}; of stage II at temperature 0.
    samples: {key: (n, SAMPLES, …)} at temperature 1; {} unless stage II.
    corrupted: {(corruption, fraction): {key: (n, …)}}; {} unless stage I.
    words: {"oracle": (n, L), "written": (n, L)} ints, the second at temperature 0; {} unless stage II.
    grid: (rows, columns) of the code where it has a layout in the image, else None.
    word_use: (K,) shares of the words that the oracle writes for these examples; None unless stage I.
    seconds: of one prediction, compiled, divided by n.
  """
  kind: str
  family: str
  data: tuple
  image: np.ndarray
  truth: Outputs
  predicted: Outputs
  samples: Outputs
  corrupted: dict[tuple[str, float], Outputs]
  words: Outputs
  grid: tuple[int, int] | None
  word_use: np.ndarray | None
  seconds: float


def kind_of(config: Mapping[str, Any]) -> str:
  """What a config trains, in the words of the report."""
  if config.get("oracle"):
    return STAGE_II
  if config["model"].get("zero_decoder_seq"):
    return REGRESSION if "regression" in (config.get("task") or "") else NO_CODE
  name = config["model_name"].removeprefix("proj.")
  return STAGE_I if name == "uvim.vit" else name


def read_config(workdir: str | os.PathLike) -> Any:
  """The config of a run; UserError when its folder has none."""
  path = pathlib.Path(workdir) / "config.json"
  if not path.is_file():
    raise UserError(f"--workdir: no config.json in '{workdir}'; give the folder of a training")
  return config_json.from_json(path.read_text(encoding="utf-8"))


def examples_of(workdir: str | os.PathLike, count: int = MEASURED) -> Examples:
  """Rebuilds a run from its folder and lets it predict.

  Args:
    workdir: with config.json and weights.
    count: at most so many examples; the split may have fewer.

  Raises:
    UserError: no weights, no validation split, a dataset or a stage I that is not there any more.
  """
  config = read_config(workdir)
  system = setup.make_system(config)
  setup_frozen = _present(system.frozen, config)
  loaded = weights.load(str(workdir))
  variables = Vars(params=loaded["params"], state=loaded["state"])
  host = first_examples(config, count)
  batch = {name: host[name] for name in setup.DEVICE_KEYS if name in host}
  kind, key = kind_of(config), jax.random.key(config.get("seed", 0))
  run = functools.partial(_predict, system._replace(frozen=setup_frozen), variables, batch, key,
                          task_options=task_options(config))
  predicted, seconds = run(timed=True)
  family = next((FAMILIES[name] for name in predicted if name in FAMILIES), "")
  if not family:
    raise UserError(f"{workdir}: no pictures are known for the outputs {', '.join(predicted)}; "
                    f"known: {', '.join(FAMILIES)}")
  return Examples(
      kind, family, (config.dataset, config.get("data_dir"), config.val_split, host["image"].shape[1:3]), host["image"],
      as_outputs(host["labels"], family), predicted,
      samples=run(temperature=1.0, num_samples=SAMPLES)[0] if kind == STAGE_II else {},
      corrupted=corrupted(config, variables, batch, key) if kind == STAGE_I else {},
      words=words_of(config, system, variables, batch, key) if kind == STAGE_II else {}, grid=_grid(config, kind),
      word_use=word_use(system, variables, batch, key) if kind == STAGE_I else None, seconds=seconds)


def task_options(config: Any) -> dict[str, Any]:
  """How the run's own evaluation reads the network, e.g. {"estimate": "mean"}: the pictures show what was measured."""
  plain = config_json.plain(config)
  return next((block["pred_kw"]["task_options"] for block in (plain[name] for name, _ in plain.get("evals") or ())
               if (block.get("pred_kw") or {}).get("task_options")), {})


def _present(frozen: Any, config: Any) -> Any:
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(frozen)):
    raise UserError(f"config.oracle.model_init: no weights at '{config.oracle.get('model_init')}'")
  return frozen


def first_examples(config: Any, count: int) -> dict[str, np.ndarray]:
  """The first `count` examples of the validation split, as {name: (n, …)}, padding left out."""
  if not config.get("val_split"):
    raise UserError("config.val_split: the run has no validation split to take examples from")
  found: list[dict[str, np.ndarray]] = []
  size = min(count, config.batch_size)
  for batch, _ in train.data_provider(config.dataset).eval_batches(
      dataset=config.dataset, split=config.val_split, pp=config.get("pp_eval") or config.pp_train, batch_size=size,
      data_dir=config.get("data_dir"), pp_modules=config.get("pp_modules")):
    real = np.asarray(batch["_mask"]) > 0
    found.append({name: np.asarray(x)[real] for name, x in batch.items()})
    if sum(len(part["image"]) for part in found) >= count:
      break
  if not found or not len(found[0]["image"]):
    raise UserError(f"config.val_split: '{config.val_split}' holds no examples")
  return {name: np.concatenate([part[name] for part in found])[:count] for name in found[0]}


def as_outputs(labels: np.ndarray, family: str) -> Outputs:
  """Labels (n, H, W, C) under the names of the task's outputs."""
  if family == "panoptic":
    return {"semantics": labels[..., 0], "instances": labels[..., 1]}
  return {"depth": labels[..., 0]} if family == "depth" else {"color": labels}


def _predict(system: System, variables: Vars, batch: Mapping[str, np.ndarray], key: jax.Array, *, timed: bool = False,
             **options) -> tuple[Outputs, float]:
  """The outputs on the host, and with `timed` the seconds of a second, compiled call by the number of examples."""
  function = jax.jit(functools.partial(system.predict["predict"], **options))
  outputs = jax.block_until_ready(function(variables, system.frozen, batch, key))
  began = time.perf_counter()
  if timed:
    jax.block_until_ready(function(variables, system.frozen, batch, key))
  seconds = (time.perf_counter() - began) / len(batch["image"])
  return {name: np.asarray(x) for name, x in outputs.items()}, seconds


def corrupted(config: Any, variables: Vars, batch: Mapping[str, np.ndarray],
              key: jax.Array) -> dict[tuple[str, float], Outputs]:
  """The masked-code experiment of the paper's appendix B: every corruption at every fraction, 0 the code itself.

  The same as stage I's `predict` with `corrupt` and `fraction`, which would compile anew for each of them.
  """
  model, task = vit.make_model(config.model, config, where="config.model"), bind(config.task, config)

  def encode(variables, batch):
    planes = task.to_planes(batch["labels"], patch=model.patch_size, spec=model.inputs)
    code = vit.apply(model, variables, planes, vit.context(batch), method="encode").quantized
    return code, vit.apply(model, variables, method="words")

  decode = jax.jit(functools.partial(vit.decode, model=model, task=task, **task_options(config)))
  code, words = jax.jit(encode)(variables, batch)
  made = {}
  for mode in CORRUPTIONS:
    for fraction in FRACTIONS:
      vectors = vit.corrupt_code(key, code, words, mode=mode, fraction=fraction)
      made[mode, fraction] = {name: np.asarray(x) for name, x in decode(variables, vectors, vit.context(batch)).items()}
  return made


def words_of(config: Any, system: System, variables: Vars, batch: Mapping[str, np.ndarray], key: jax.Array) -> Outputs:
  """The code that stage I's oracle writes, seeing the truth, and the one that stage II writes, seeing the image."""
  oracle = vit.make_model(config.oracle.model, config, where="config.oracle.model")
  task = bind(config.oracle.task, config, where="config.oracle.task")

  def both(variables, frozen, batch, key):
    planes = task.to_planes(batch["labels"], patch=oracle.patch_size, spec=oracle.inputs)
    code = vit.apply(oracle, frozen, planes, vit.context(batch), method="encode").code
    return {"oracle": code, "written": system.predict["sequences"](variables, frozen, batch, key)["tokens"][:, 0] - 1}
  return {name: np.asarray(x) for name, x in jax.jit(both)(variables, system.frozen, batch, key).items()}


def word_use(system: System, variables: Vars, batch: Mapping[str, np.ndarray], key: jax.Array) -> np.ndarray:
  """(K,) share of each word among all that the oracle writes for the batch."""
  losses = jax.jit(functools.partial(system.loss, train=False))
  return np.asarray(losses(variables, system.frozen, batch, key).parts["code_use"]).mean(axis=0)


def _grid(config: Any, kind: str) -> tuple[int, int] | None:
  model = config.oracle.model if kind == STAGE_II else config.model
  side = round(model.get("code_len", 0) ** 0.5)
  return (side, side) if model.get("bottleneck_resize") else None


def errors(family: str, predicted: Outputs, truth: Outputs) -> np.ndarray:
  """(n,) error of each example, as ERRORS names it; nan where no pixel of the truth is labelled."""
  if family == "depth":
    gt = truth["depth"].astype(np.float64)
    return np.sqrt(_mean(np.square(predicted["depth"] - gt), (gt > MIN_DEPTH) & (gt < MAX_DEPTH)))
  if family == "panoptic":
    return 100 * _mean(predicted["semantics"] != truth["semantics"], truth["semantics"] > 0)
  difference = (predicted["color"] - truth["color"]) * 127.5
  return np.sqrt(_mean(np.square(difference), np.ones(difference.shape, bool)))


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
  """Mean over all axes but the first, of the counted values."""
  axes = tuple(range(1, values.ndim))
  number = counted.sum(axes)
  return np.where(number, np.where(counted, values, 0.0).sum(axes) / np.maximum(number, 1), np.nan)
