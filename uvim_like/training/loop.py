"""The one loop: steps, logs, evaluations and checkpoints of any system."""

import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from uvim_like import weights
from uvim_like.errors import UserError
from uvim_like.labels import check_channels
from uvim_like.training import checkpoint, checksums, logs, setup, sharding, signals
from uvim_like.training import workdir as workdirs
from uvim_like.training.setup import DEVICE_KEYS, Evaluator, Run
from uvim_like.training.step import TrainState, first_non_finite

Batch = Mapping[str, np.ndarray]
WEIGHTS_FILE = "weights.npz"
NONFINITE_FILE = "nonfinite.json"
SHOWN_EXAMPLES = 8  # of a batch, in a line; all of them are in the file


class NonFinite(UserError):
  """A loss or gradient that is not finite; the last good checkpoint stays."""


class Pending(NamedTuple):
  """A step whose numbers were not read yet: its number, its metrics, the positions of its examples (b,)."""
  number: int
  metrics: Mapping[str, jax.Array]
  examples: np.ndarray


def metadata(run: Run) -> dict[str, Any]:
  """What is noted with every checkpoint: a checksum of the frozen stage, without which it means nothing."""
  return {"frozen": checksums.digest(run.frozen)}


def restore_or_init(run: Run, saved: checkpoint.Checkpoints, batch: Batch, *, at_most: int | None = None,
                    say=print) -> TrainState:
  """The newest good checkpoint (no newer than `at_most`) on the run's mesh, or a fresh state.

  Raises:
    UserError: as `restore`.
  """
  if (found := restore(run, saved, at_most=at_most)) is not None:
    say(f"resumed from step {found.step}")
    return found.state
  state, report = setup.init_state(run, batch)
  if report:
    say(report)
  return state


def restore(run: Run, saved: checkpoint.Checkpoints, *, at_most: int | None = None) -> checkpoint.Restored | None:
  """The newest good checkpoint (no newer than `at_most`) on the run's mesh; None when there is none.

  Raises:
    UserError: as `Checkpoints.restore`; the run's frozen stage is not the one that the checkpoint was trained with.
  """
  found = saved.restore(checkpoint.abstract(run.abstract, run.shardings), at_most=at_most)
  if found is not None and found.metadata.get("frozen") != metadata(run)["frozen"]:
    raise UserError(f"{', '.join(setup.frozen_keys(run.config))}: these are not the stage I weights that "
                    f"{saved.folder} was trained with; put those back, or give another --workdir")
  return found


def train(run: Run, state: TrainState, batches: Iterator[Batch], evaluators: list[Evaluator], *,
          saved: checkpoint.Checkpoints, workdir: pathlib.Path, stop: signals.StopRequest) -> TrainState:
  """Trains from the state's step to the last one.

  A step's numbers are read while the next step runs, so that the devices never wait for the host; before a checkpoint
  they are read first, so that only a state known to be finite is saved, and only after its log lines. A checkpoint is
  begun before the evaluations of its step; those that a killed run did not finish are made up for when it goes on.

  Args:
    run: what is fixed.
    state: where to begin; donated.
    batches: from the state's step on.
    evaluators: run at their own intervals and after the last step.
    saved: where checkpoints go.
    workdir: where metrics go.
    stop: asked after every step.

  Raises:
    NonFinite: a loss or gradient is not finite.
    signals.Stopped: a signal came, and the state is saved.
  """
  config, start = run.config, int(state.step)
  about = metadata(run)
  step = flops = None
  peak = logs.peak_flops(run.mesh.devices.flat[0].device_kind)
  if start < run.total_steps:
    host = next(batches)
    batch = to_devices(run, host)
    began = time.perf_counter()
    step = setup.compile_step(run, state, batch)
    flops = setup.step_flops(run, state, batch) if peak else None
    compiled = f"compiled the training step in {time.perf_counter() - began:.1f} s"
  with logs.Logger(workdir, total_steps=run.total_steps, batch_size=config.batch_size, resume_step=start,
                   flops_per_step=flops, peak=peak and peak * run.mesh.size,
                   active=jax.process_index() == 0) as logger:
    for evaluator in unfinished(evaluators, workdir, start, last=start == run.total_steps) if start else ():
      evaluate(evaluator, state, start, logger)
    if step:
      logger.say(compiled)
    pending, stop.armed = None, True
    for number in range(start + 1, run.total_steps + 1):
      with jax.transfer_guard("disallow"):
        state, metrics = step(state, run.frozen, batch, run.key)
      last, examples = number == run.total_steps, positions(host)
      if not last:
        host = next(batches)
        batch = to_devices(run, host)
      if pending:
        _report(run, logger, pending, workdir)
      pending = Pending(number, metrics, examples)
      if number == start + 1:
        jax.block_until_ready(metrics)
        logger.start(number)  # the first step pays for start-up
      stopping = stop.agreed(number)
      due = [] if stopping else [e for e in evaluators if last or number % e.log_steps == 0]
      if due or last or stopping or number % config.checkpoint_steps == 0:
        _report(run, logger, pending, workdir)
        pending = None
        logger.sync()
        saved.save(number, state, about, force=last or stopping)
      if stopping:
        saved.wait()
        raise signals.Stopped(f"{stop.name or 'another process'}: stopped after step {number} of {run.total_steps}, "
                              f"everything is saved; the same command goes on")
      for evaluator in due:
        evaluate(evaluator, state, number, logger)
  saved.wait()
  return state


def positions(batch: Batch) -> np.ndarray:
  """(b,) int64: where this process's examples stand in the split; rows are counted where the data does not say."""
  return np.asarray(batch["_index"]) if "_index" in batch else np.arange(len(batch["image"]))


def unfinished(evaluators: list[Evaluator], workdir: pathlib.Path, step: int, *, last: bool) -> list[Evaluator]:
  """The evaluators that are due at a restored step and whose numbers are not in the log: the run was killed there."""
  written = logs.evaluated(workdir / logs.METRICS_FILE, step) if jax.process_index() == 0 else set()
  missing = [(last or step % e.log_steps == 0) and not any(name.startswith(e.prefix) for name in written - {"step"})
             for e in evaluators]
  if jax.process_count() > 1 and missing:
    missing = multihost_utils.broadcast_one_to_all(np.array(missing)).tolist()
  return [evaluator for evaluator, wanted in zip(evaluators, missing) if wanted]


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
    workdirs.note_finished(workdir, run.config, int(state.step))


def check_labels(batch: Batch, limits: tuple[int, ...] | None, *, where: str, key: str = "") -> None:
  """Raises UserError when an integer label is outside its channel's classes, with the example's position.

  Args:
    batch: host arrays; `labels` (B, H, W, channels).
    limits: number of classes a channel, or None for labels that are no classes. -1 means ignored.
    where: the split, for the message.
    key: of the config, which says how many classes there are; "" where that is not known.
  """
  if limits is None or "labels" not in batch or not np.issubdtype(batch["labels"].dtype, np.integer):
    return
  check_channels(batch["labels"].shape[-1], limits, where=where)
  for channel, classes in enumerate(limits):
    labels = batch["labels"][..., channel]
    if labels.max() < classes and labels.min() >= -1:
      continue
    worst = labels.reshape(len(labels), -1)
    row = int(np.argmax((worst.max(1) >= classes) | (worst.min(1) < -1)))
    value = worst[row].max() if worst[row].max() >= classes else worst[row].min()
    name = int(batch["_index"][row]) if "_index" in batch else row
    raise UserError(f"{where}: example {name}: label {value} in channel {channel}, but the model has {classes} classes "
                    f"there, 0 to {classes - 1}{f' ({key})' if key else ''}; nearest valid: "
                    f"{classes - 1 if value > 0 else -1}")


def to_devices(run: Run, batch: Batch) -> dict[str, jax.Array]:
  """A host batch on the mesh, its labels checked."""
  check_labels(batch, run.system.label_limits, where=f"{run.config.dataset} {run.config.train_split}",
               key=run.system.label_key)
  return sharding.to_global(run.mesh, {key: value for key, value in batch.items() if key in DEVICE_KEYS})


def _report(run: Run, logger: logs.Logger, pending: Pending, workdir: pathlib.Path) -> None:
  """Reads one step's numbers, stops on a non-finite one, writes them when it is time."""
  number = pending.number
  values = {name: float(value) for name, value in jax.device_get(pending.metrics).items()}
  skipped = int(values.get("nonfinite_skipped", 0))
  bad = first_non_finite(values)
  if bad is not None:
    text = note_nonfinite(run, number, bad, values, pending.examples, workdir)
    if skipped > run.config.skip_nonfinite or not run.config.skip_nonfinite:
      raise NonFinite(f"{text}; the last checkpoint is good; --replay_step={number} shows which examples it is; "
                      "a lower lr, or grad_clip_norm, is the usual remedy")
    logger.say(f"{text}; the update is left out, {skipped} of {run.config.skip_nonfinite}")
  if number % run.config.log_training_steps and number != run.total_steps:
    return
  # The optimizer's own count stands still at an update that is left out.
  rate = {"schedule" if pattern == ".*" else f"schedule/{pattern}": float(function(number - 1 - skipped))
          for pattern, function in run.rates}
  speed = logger.progress(number, values["loss"])
  logger.write(number, values | rate | speed)


def note_nonfinite(run: Run, number: int, part: str, values: Mapping[str, float], examples: np.ndarray,
                   workdir: pathlib.Path) -> str:
  """Writes the step, its numbers and its examples to a file in the workdir, and returns the line that says so."""
  if jax.process_count() > 1:
    examples = multihost_utils.process_allgather(examples, tiled=True)
  ids = examples.tolist()
  config = run.config
  if jax.process_index() == 0:
    workdirs.write_json(workdir / NONFINITE_FILE, {
        "step": number, "part": part, "dataset": config.dataset, "split": config.train_split, "examples": ids,
        "metrics": {name: logs.json_value(value) for name, value in values.items()}})
  more = f", … (all {len(ids)} in {workdir / NONFINITE_FILE})" if len(ids) > SHOWN_EXAMPLES else ""
  return (f"step {number}: '{part}' is {values[part]}, loss {values['loss']:.4g}; examples "
          f"{', '.join(map(str, ids[:SHOWN_EXAMPLES]))}{more} of {config.dataset} {config.train_split}")


def evaluate_only(run: Run, saved: checkpoint.Checkpoints, evaluators: list[Evaluator], workdir: pathlib.Path) -> None:
  """Evaluates the newest checkpoint with everything the config names.

  Raises:
    UserError: there is no checkpoint, or as `restore`.
  """
  restored = restore(run, saved)
  if restored is None:
    raise UserError(f"--eval_only: no checkpoint in {workdir}")
  with logs.Logger(workdir, total_steps=run.total_steps, batch_size=run.config.batch_size,
                   active=jax.process_index() == 0) as logger:
    for evaluator in evaluators:
      evaluate(evaluator, restored.state, restored.step, logger)
