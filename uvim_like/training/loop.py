"""The one loop: steps, logs, evaluations and checkpoints of any system."""

import pathlib
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from uvim_like import weights
from uvim_like.errors import UserError
from uvim_like.training import checkpoint, logs, setup, sharding
from uvim_like.training.setup import DEVICE_KEYS, Evaluator, Run
from uvim_like.training.step import TrainState, first_non_finite

Batch = Mapping[str, np.ndarray]
WEIGHTS_FILE = "weights.npz"


class NonFinite(UserError):
  """A loss or gradient that is not finite; the last good checkpoint stays."""


def restore_or_init(run: Run, saved: checkpoint.Checkpoints, batch: Batch, *, say=print) -> TrainState:
  """The newest good checkpoint on the run's mesh, or a fresh state."""
  restored = saved.restore(checkpoint.abstract(run.abstract, run.shardings))
  if restored is not None:
    say(f"resumed from step {restored.step}")
    return restored.state
  state, report = setup.init_state(run, batch)
  if report:
    say(report)
  return state


def train(run: Run, state: TrainState, batches: Iterator[Batch], evaluators: list[Evaluator], *,
          saved: checkpoint.Checkpoints, workdir: pathlib.Path) -> TrainState:
  """Trains from the state's step to the last one.

  A step's numbers are read while the next step runs, so that the devices never wait for the host; before a checkpoint
  they are read first, so that only a state known to be finite is saved.

  Args:
    run: what is fixed.
    state: where to begin; donated.
    batches: from the state's step on.
    evaluators: run at their own intervals and after the last step.
    saved: where checkpoints go.
    workdir: where metrics go.

  Raises:
    NonFinite: a loss or gradient is not finite.
  """
  config, start = run.config, int(state.step)
  batch = _to_devices(run, next(batches))
  began = time.perf_counter()
  step, flops = setup.compile_step(run, state, batch)
  devices = run.mesh.devices.flat
  peak = logs.peak_flops(devices[0].device_kind)
  with logs.Logger(workdir, total_steps=run.total_steps, batch_size=config.batch_size, resume_step=start,
                   flops_per_step=flops, peak=peak and peak * run.mesh.size,
                   active=jax.process_index() == 0) as logger:
    logger.say(f"compiled the training step in {time.perf_counter() - began:.1f} s")
    pending = None
    for number in range(start + 1, run.total_steps + 1):
      with jax.transfer_guard("disallow"):
        state, metrics = step(state, run.frozen, batch, run.key)
      last = number == run.total_steps
      if not last:
        batch = _to_devices(run, next(batches))
      if pending:
        _report(run, logger, *pending)
      pending = number, metrics
      if number == start + 1:
        jax.block_until_ready(metrics)
        logger.start(number)  # the first step pays for start-up
      due = [e for e in evaluators if last or number % e.log_steps == 0]
      if due or last or number % config.checkpoint_steps == 0:
        _report(run, logger, *pending)
        pending = None
        saved.save(number, state, force=last)
      for evaluator in due:
        evaluate(evaluator, state, number, logger)
  saved.wait()
  return state


def evaluate(evaluator: Evaluator, state: TrainState, number: int, logger: logs.Logger) -> dict[str, float]:
  """Runs one evaluator on the state, writes its numbers under its prefix, and says the protocol beside them."""
  began = time.perf_counter()
  values = evaluator.run(state.eval_vars())
  seconds = time.perf_counter() - began
  named = {evaluator.prefix + name: value for name, value in values.items()}
  logger.write(number, named)
  shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
  protocol = f"  [{evaluator.metric.protocol}]" if evaluator.metric.protocol else ""
  logger.say(f"{evaluator.name} after {number} steps: {shown}  ({seconds:.1f} s){protocol}")
  return named


def finish(run: Run, state: TrainState, saved: checkpoint.Checkpoints, workdir: pathlib.Path) -> None:
  """Waits for the last checkpoint and writes the variables to evaluate as one npz file in big_vision's layout."""
  saved.wait()
  variables = state.eval_vars()
  if run.mesh.size > 1:
    gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(run.mesh))
    variables = gather(variables)
  if jax.process_index() == 0:
    host = jax.device_get(variables)
    weights.save_npz(workdir / WEIGHTS_FILE, {"params": host.params, "state": host.state})


def check_labels(batch: Batch, limits: tuple[int, ...] | None, *, where: str) -> None:
  """Raises UserError when an integer label is outside its channel's classes, with the example's position.

  Args:
    batch: host arrays; `labels` (B, H, W, channels).
    limits: number of classes a channel, or None for labels that are no classes. -1 means ignored.
    where: the split, for the message.
  """
  if limits is None or not np.issubdtype(batch["labels"].dtype, np.integer):
    return
  for channel, classes in enumerate(limits):
    labels = batch["labels"][..., channel]
    if labels.max() < classes and labels.min() >= -1:
      continue
    worst = labels.reshape(len(labels), -1)
    row = int(np.argmax((worst.max(1) >= classes) | (worst.min(1) < -1)))
    value = worst[row].max() if worst[row].max() >= classes else worst[row].min()
    name = int(batch["_index"][row]) if "_index" in batch else row
    raise UserError(f"{where}: example {name}: label {value} in channel {channel}, but config.model.inputs has "
                    f"{classes} classes there; nearest valid: {classes - 1 if value > 0 else -1}")


def _to_devices(run: Run, batch: Batch) -> dict[str, jax.Array]:
  """A host batch on the mesh, its labels checked."""
  check_labels(batch, run.system.label_limits, where=f"{run.config.dataset} {run.config.train_split}")
  return sharding.to_global(run.mesh, {key: value for key, value in batch.items() if key in DEVICE_KEYS})


def _report(run: Run, logger: logs.Logger, number: int, metrics: Mapping[str, jax.Array]) -> None:
  """Reads one step's numbers, stops on a non-finite one, writes them when it is time."""
  values = {name: float(value) for name, value in jax.device_get(metrics).items()}
  bad = first_non_finite(values)
  if bad is not None:
    raise NonFinite(f"step {number}: '{bad}' is {values[bad]}; loss {values['loss']:.4g}. "
                    "The last checkpoint is good; a lower lr, or grad_clip_norm, is the usual remedy")
  if number % run.config.log_training_steps and number != run.total_steps:
    return
  rate = {"schedule" if pattern == ".*" else f"schedule/{pattern}": float(function(number - 1))
          for pattern, function in run.rates}
  speed = logger.progress(number, values["loss"])
  logger.write(number, values | rate | speed)


def evaluate_only(run: Run, saved: checkpoint.Checkpoints, evaluators: list[Evaluator], workdir: pathlib.Path) -> None:
  """Evaluates the newest checkpoint with everything the config names.

  Raises:
    UserError: there is no checkpoint.
  """
  restored = saved.restore(checkpoint.abstract(run.abstract, run.shardings))
  if restored is None:
    raise UserError(f"--eval_only: no checkpoint in {workdir}")
  with logs.Logger(workdir, total_steps=run.total_steps, batch_size=run.config.batch_size,
                   active=jax.process_index() == 0) as logger:
    for evaluator in evaluators:
      evaluate(evaluator, restored.state, restored.step, logger)
