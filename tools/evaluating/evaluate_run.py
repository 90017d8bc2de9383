"""All evaluations of a trained run at one of its steps; see `evaluate`."""

import functools
import os
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
from tqdm import tqdm

import train
from tools.evaluating.evaluate_table import Measured
from uvim_like import config as configs
from uvim_like.errors import UserError, unknown
from uvim_like.training import setup, sharding, trained
from uvim_like.training.trained import Trained


def evaluate(workdir: str | os.PathLike, *, step: int | None = None, overrides: Iterable[str] = (),
             only: Sequence[str] = ()) -> tuple[Trained, list[Measured]]:
  """The run, and what each of its evaluations gives, in the config's order, the validation losses first.

  Args:
    workdir: of the training.
    step: of a kept checkpoint; None: the newest.
    overrides: of the config.
    only: names of evaluations; all without. "val" are the losses.

  Raises:
    UserError: as `trained.restore`; a config without evaluations, or without one of these names; whatever is wrong with
      the data.
  """
  run = trained.restore(workdir, step=step, overrides=overrides)
  config = configs.inherited(run.config, trained.read_config(run.workdir))
  train.use_compilation_cache(config.compilation_cache)
  held, variables = on_devices(run._replace(config=config))
  evaluators = setup.make_evaluators(held, watched(train.data_provider(config.dataset)))
  names = [evaluator.name for evaluator in evaluators]
  for name in only:
    if name not in names:
      raise unknown("evaluation", name, names, where="--evals")
  if not evaluators:
    raise UserError(f"{run.workdir}: its config has neither evals nor val_split; nothing is evaluated")
  chosen = [evaluator for evaluator in evaluators if not only or evaluator.name in only]
  return run, [measure(evaluator, variables, config) for evaluator in chosen]


def on_devices(run: Trained) -> tuple[setup.Run, Any]:
  """What evaluators need of a run, without an optimiser, and the variables on its devices."""
  mesh = sharding.make_mesh(devices=jax.devices()[:usable(run.config, len(jax.devices()))])
  everywhere = sharding.replicated(mesh)
  key = jax.jit(lambda: jax.random.key(run.config.seed), out_shardings=everywhere)()
  frozen = sharding.place(run.frozen, everywhere)
  held = setup.Run(run.config, mesh, run.system, frozen, None, [], run.step, None, None, key)
  return held, sharding.place(run.vars, everywhere)


def usable(config: Any, devices: int) -> int:
  """The most devices among which every evaluation's batches divide; those of the training need not be at hand."""
  sizes = [config.batch_size, *(config[name].batch_size for name, _ in config.evals)]
  return max(count for count in range(1, devices + 1) if all(size % count == 0 for size in sizes))


def measure(evaluator: setup.Evaluator, variables: Any, config: Any) -> Measured:
  """Runs one evaluator."""
  kinds = dict(config.evals)
  block = config[evaluator.name] if evaluator.name in kinds else config
  split = block.split if evaluator.name in kinds else config.val_split
  place = f" in {block.data_dir}" if block.data_dir else ""
  return Measured(evaluator.name, kinds.get(evaluator.name, "losses"), f"{block.dataset} '{split}'{place}",
                  evaluator.run(variables), evaluator.metric.protocol,
                  configs.plain(block.metric) if evaluator.name in kinds else {})


def watched(data: types.ModuleType) -> types.SimpleNamespace:
  """A provider of data whose evaluation batches show a progress bar on the terminal's error stream."""
  return types.SimpleNamespace(eval_batches=functools.partial(_eval_batches, data))


def _eval_batches(data: types.ModuleType, **place: Any) -> "Watched":
  return Watched(data.eval_batches(**place), f"{place['dataset']} {place['split']}")


class Watched:
  """Batches with a progress bar, each time they are gone through."""

  def __init__(self, batches: Any, name: str):
    self._batches, self._name = batches, name

  def __len__(self) -> int:
    return len(self._batches)

  def __iter__(self) -> Iterator:
    return iter(tqdm(self._batches, total=len(self._batches), desc=self._name, unit="batch", file=sys.stderr,
                     disable=None))
