"""From a checked config to everything a run holds fixed: mesh, system, optimizer, shardings, compiled step."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from uvim_like import keywords, names, weights
from uvim_like.config_schema import VAL_PREFIX
from uvim_like.errors import UserError, unknown
from uvim_like.evaluators import mean
from uvim_like.evaluators import run as evaluation
from uvim_like.evaluators.base import Metric
from uvim_like.ops.constraint import use_mesh
from uvim_like.ops.loops import written_out
from uvim_like.systems.base import System
from uvim_like.training import batches, logs, optim, schedules, sharding, step

Tree = Any
# The CPU backend may start independent work in any order, which keeps far more alive at a time: 4.9 GiB against 2.6 GiB
# of temporaries for Listing 1 at batch 1, at the same speed.
COMPILER_OPTIONS = {"cpu": {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}}


class Run(NamedTuple):
  """What a run holds fixed.

  Attributes:
    config: with defaults filled in.
    mesh: the devices.
    system: the training problem.
    frozen: `System.frozen` on the devices.
    tx: the optimizer.
    rates: (pattern, schedule) pairs, for the log.
    total_steps: number of updates.
    shardings: of the `TrainState`.
    abstract: the `TrainState` in shapes.
    key: the run's random key, on all devices.
  """
  config: Any
  mesh: Mesh
  system: System
  frozen: Tree
  tx: Any
  rates: list[tuple[str, Callable]]
  total_steps: int
  shardings: Tree
  abstract: Tree
  key: jax.Array


def make_system(config: Mapping[str, Any]) -> System:
  """The system that `config.model_name` denotes; UserError for an unknown one or a field that does not fit."""
  module = names.load("uvim_like.systems", config["model_name"], where="config.model_name", needs="make")
  return module.make(config)


def prepare(config: Any, *, num_examples: int, batch: Mapping[str, np.ndarray], system: System | None = None,
            devices: Sequence[jax.Device] | None = None, in_shapes: bool = False) -> Run:
  """Builds a run from a config and one batch of the data, in shapes only: nothing is trained or compiled yet.

  Args:
    config: with defaults.
    num_examples: in the training split.
    batch: this process's part of a batch.
    system: made before, else made here.
    devices: of the mesh; default all.
    in_shapes: leave the frozen stage and the key in shapes too, for a step that is compiled and never run.

  Raises:
    UserError: whatever does not fit; see `make_system`, `optim.make`, `sharding`.
  """
  mesh = sharding.make_mesh(config.mesh, devices=devices)
  sharding.check_batch_size(config.batch_size, mesh, grad_accum_steps=config.grad_accum_steps)
  system = system or make_system(config)
  shapes = global_shapes(batch, config.batch_size)
  variables = shapes_of(system, shapes, config)
  total_steps = schedules.steps(config, num_examples)
  tx, rates = optim.make(config, variables.params, total_steps=total_steps)
  init = functools.partial(step.start_from, tx=tx, ema_decay=config.ema_decay)
  abstract = jax.eval_shape(init, variables)
  make_key, everywhere = functools.partial(jax.random.key, config.seed), sharding.replicated(mesh)
  if in_shapes:
    frozen, key = sharding.placed_shapes((system.frozen, jax.eval_shape(make_key)), everywhere)
  else:
    frozen, key = place_frozen(system.frozen, mesh, config), jax.jit(make_key, out_shardings=everywhere)()
  return Run(config, mesh, system, frozen, tx, rates, total_steps,
             sharding.state_shardings(mesh, abstract, config.sharding), abstract, key)


def shapes_of(system: System, batch: Mapping[str, jax.ShapeDtypeStruct], config: Any) -> Any:
  """The variables in shapes; UserError when the batch lacks what the system reads, or has it in another size."""
  try:
    return jax.eval_shape(system.init, jax.random.key(0), batch)
  except KeyError as error:
    if not isinstance(error.args[0], str) or error.args[0] in batch:
      raise
    raise UserError(f"config.pp_train: the batch has no '{error.args[0]}', which the model reads; it has "
                    f"{', '.join(sorted(batch))}; is it missing in keep(…)?") from error
  except UserError:
    raise
  except (TypeError, ValueError) as error:
    wanted = config.model.get("input_size")
    sizes = ", ".join(f"'{name}' is {leaf.shape[1:]}" for name, leaf in batch.items())
    raise UserError(f"config.pp_train makes what the model does not take: {sizes}"
                    f"{f'; config.model.input_size is {tuple(wanted)}' if wanted else ''} "
                    f"({' '.join(str(error).split())[:200]})") from error


def global_shapes(batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the whole batch from one process's part of it."""
  return {name: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for name, x in batch.items()}


def place_frozen(frozen: Tree, mesh: Mesh, config: Any) -> Tree:
  """A frozen stage on the devices; UserError when its weights were not found."""
  check_frozen(frozen, config)
  return sharding.place(frozen, sharding.replicated(mesh))


def check_frozen(frozen: Tree, config: Any) -> None:
  """Raises UserError when the weights of a frozen stage were not found."""
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(frozen)):
    where, source = missing_source(frozen, config)
    if not source:
      raise UserError(f"{where} is missing: the workdir of a finished stage I, or its .npz file")
    weights.load(source, where=where)  # says what is missing, and where it can be found
    raise UserError(f"{where}: '{source}' holds no weights of a stage I")


def frozen_keys(config: Any) -> list[str]:
  """The keys that say where the weights of the frozen stage lie."""
  if not config.get("tokenizers"):
    return ["config.oracle.model_init"]
  return [f"config.tokenizers.{name}.model_init" for name in config.tokenizers]


def missing_source(frozen: Tree, config: Any) -> tuple[str, str | None]:
  """(config key, its value) of the frozen stage whose weights were not found: the oracle, or one of the tokenizers."""
  if not config.get("tokenizers"):
    return "config.oracle.model_init", config.oracle.get("model_init")
  name = next(name for name, tree in frozen.items()
              if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)))
  return f"config.tokenizers.{name}.model_init", config.tokenizers[name].get("model_init")


def init_state(run: Run, batch: Mapping[str, np.ndarray]) -> tuple[step.TrainState, str]:
  """A fresh state on the devices, pretrained weights in place, and the report of what was loaded ("" if nothing)."""
  shapes = global_shapes(batch, run.config.batch_size)
  init = jax.jit(lambda key: run.system.init(key, jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), shapes)),
                 out_shardings=run.shardings.vars)
  if run.system.load is not None:  # weights that do not fit are told before anything compiles
    run.system.load(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.abstract.vars))
  variables, report = init(jax.random.key(run.config.seed)), ""
  if run.system.load is not None:
    variables, report = run.system.load(sharding.to_host(variables, run.mesh))
    variables = sharding.place(variables, run.shardings.vars)
  start = jax.jit(functools.partial(step.start_from, tx=run.tx, ema_decay=run.config.ema_decay),
                  out_shardings=run.shardings)
  return start(variables), report


def step_function(run: Run) -> Callable:
  """The training step as a function of (state, frozen, batch, key), traced for the run's mesh."""
  function = functools.partial(step.train_step, system=run.system, tx=run.tx,
                               accumulate=run.config.grad_accum_steps, ema_decay=run.config.ema_decay,
                               skip_nonfinite=bool(run.config.skip_nonfinite))

  def on_mesh(state, frozen, batch, key):
    with use_mesh(run.mesh):
      return function(state, frozen, batch, key)

  return on_mesh


def compile_step(run: Run, state: Tree, batch: Mapping[str, jax.Array]) -> jax.stages.Compiled:
  """The compiled training step; state and batch may be shapes with their shardings."""
  platform = run.mesh.devices.flat[0].platform
  jitted = jax.jit(step_function(run), donate_argnums=0, out_shardings=(run.shardings, sharding.replicated(run.mesh)))
  return jitted.lower(state, run.frozen, batch, run.key).compile(compiler_options=COMPILER_OPTIONS.get(platform))


def step_flops(run: Run, state: Tree, batch: Mapping[str, jax.Array]) -> float:
  """Floating point operations of a training step over the whole mesh."""
  return count_flops(step_function(run._replace(mesh=None)), state, run.frozen, batch, run.key)


def count_flops(function: Callable, *arguments: Any) -> float:
  """Floating point operations of one call over the whole mesh, loops counted as often as they run."""
  with written_out():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


DEVICE_KEYS = batches.MODEL_KEYS  # of a batch; the rest stays on the host


class Evaluator(NamedTuple):
  """One entry of `config.evals`, or the validation losses.

  Attributes:
    name: as in the config.
    prefix: before the names of its numbers.
    metric: what is measured.
    log_steps: how often.
    run: (vars) -> {name: number}.
  """
  name: str
  prefix: str
  metric: Metric
  log_steps: int
  run: Callable[[Tree], dict[str, float]]


def make_evaluators(run: Run, data: Any) -> list[Evaluator]:
  """The validation losses (with `val_split` and `pp_eval`) and all of `config.evals`, checked, compiled when first run.

  Args:
    run: the run.
    data: the provider of batches, see `train.data_provider`.
  """
  config, found = run.config, []
  if config.val_split:
    block = dict(dataset=config.dataset, split=config.val_split, pp=config.pp_eval or config.pp_train,
                 batch_size=config.batch_size, data_dir=config.data_dir)
    found.append(_evaluator("val", VAL_PREFIX, mean.make(), config.log_eval_steps, block, _losses(run), run, data,
                            where="config"))
  for name, kind in config.evals:
    block = config[name]
    options = dict(block.metric)
    make = evaluation.load(kind).make
    if "dataset" in inspect.signature(make).parameters:
      options.setdefault("dataset", block.dataset)
    keywords.check(make, options, where=f"config.{name}.metric", after_data=False)
    predict = _prediction(run, block.pred, block.pred_kw, where=f"config.{name}.pred")
    found.append(_evaluator(name, block.prefix, _metric(make, options, where=f"config.{name}"), block.log_steps, block, predict, run, data,
                            where=f"config.{name}"))
  return found


def _metric(make: Callable, options: Mapping[str, Any], *, where: str) -> Metric:
  try:
    return make(**options)
  except UserError as error:
    raise UserError(f"{where}: {error}") from error


def _evaluator(name, prefix, metric, log_steps, block, function, run, data, *, where) -> Evaluator:
  sharding.check_batch_size(block["batch_size"], run.mesh, where=f"{where}.batch_size")
  batches = data.eval_batches(
      dataset=block["dataset"], split=block["split"], pp=block["pp"], batch_size=block["batch_size"],
      data_dir=block["data_dir"], pp_modules=run.config.pp_modules, target_keys=metric.target_keys,
      process_index=jax.process_index(), process_count=jax.process_count())
  return Evaluator(name, prefix, metric, log_steps, functools.partial(_evaluate, function, batches, metric, run))


def _evaluate(function: Callable, batches: Any, metric: Metric, run: Run, variables: Tree) -> dict[str, float]:
  def on_devices(batch):
    inputs = {key: value for key, value in batch.items() if key in DEVICE_KEYS}
    return function(variables, run.frozen, sharding.to_global(run.mesh, inputs), run.key)
  return evaluation.evaluate(on_devices, batches, metric)


def _losses(run: Run) -> Callable:
  def losses(variables, frozen, batch, key):
    with use_mesh(run.mesh):
      return run.system.loss(variables, frozen, batch, key, False).parts
  return jax.jit(losses, out_shardings=sharding.batch_sharding(run.mesh))  # each process reads its own rows


def _prediction(run: Run, name: str, options: Mapping[str, Any], *, where: str) -> Callable:
  if name not in run.system.predict:
    raise unknown("prediction", name, run.system.predict, where=where)
  keywords.check(run.system.predict[name], options, where=f"{where}_kw")
  function = functools.partial(run.system.predict[name], **options)

  def predict(variables, frozen, batch, key):
    with use_mesh(run.mesh):
      return function(variables, frozen, batch, key)
  return jax.jit(predict, out_shardings=sharding.batch_sharding(run.mesh))


def overview(run: Run) -> str:
  """What is printed once: every parameter, and which rates and placement apply to how many of them."""
  params = run.abstract.vars.params
  places = {name: place for name, _, place in sharding.table(run.shardings.vars.params, params)}
  groups: dict[tuple, list[str]] = {}
  for row in optim.table(run.config, params):
    schedule = "frozen" if row.schedule is None else row.schedule
    groups.setdefault((row.lr_mult, row.wd_mult, schedule, places[row.name]), []).append(row.name)
  rows = [(*group, len(found), found[0]) for group, found in groups.items()]
  table = logs.table_text(("lr x", "wd x", "schedule", "placement", "arrays", "for example"), rows)
  return f"{logs.parameter_overview(params)}\n{table}\n{run.mesh.size} devices {dict(run.mesh.shape)}"
