"""One step of a training once more, example by example: which of them made a loss or a gradient that is not finite."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from uvim_like.errors import UserError
from uvim_like.ops.constraint import use_mesh
from uvim_like.training import checkpoint, logs, loop, setup
from uvim_like.training.setup import Run
from uvim_like.training.step import TrainState, first_non_finite

Batch = Mapping[str, np.ndarray]


class Replay(NamedTuple):
  """What a step was made of.

  Attributes:
    number: of the step.
    examples: (B,) positions in the split.
    parts: {name: (B,)} losses of every example.
    metrics: {name: number} of the whole step.
    gradients: (B,) bool, whether a batch of this example alone has a finite gradient; None where the losses tell.
  """
  number: int
  examples: np.ndarray
  parts: dict[str, np.ndarray]
  metrics: dict[str, float]
  gradients: np.ndarray | None

  def bad(self) -> np.ndarray:
    """(B,) bool: the examples that are to blame."""
    losses = ~np.all([np.isfinite(values) for values in self.parts.values()], axis=0)
    return losses if self.gradients is None else losses | ~self.gradients


def start(run: Run, saved: checkpoint.Checkpoints, batch: Batch, *, number: int, say=print) -> TrainState:
  """The state of the newest checkpoint before a step, or the fresh one.

  Raises:
    UserError: no such step in this training, or several processes.
  """
  if not 1 <= number <= run.total_steps:
    raise UserError(f"--replay_step: {number} is none of the steps 1 to {run.total_steps}")
  if jax.process_count() > 1:
    raise UserError("--replay_step: wants one process; checkpoints restore on any number of devices")
  return loop.restore_or_init(run, saved, batch, at_most=number - 1, say=say)


def replay(run: Run, state: TrainState, batches: Iterator[Batch], *, number: int, say=print) -> Replay:
  """Makes the steps up to `number` again, exactly, and takes that one apart. Nothing is written.

  Args:
    run: what is fixed.
    state: at or before the step; donated.
    batches: from the state's step on.
    number: of the step, counted from 1.
    say: told when steps have to be made again.
  """
  host = next(batches)
  step = setup.compile_step(run, state, loop.to_devices(run, host))
  if (between := number - 1 - int(state.step)) > 0:
    say(f"making {between} steps again, from {int(state.step)} on")
  while int(state.step) < number - 1:
    state, _ = step(state, run.frozen, loop.to_devices(run, host), run.key)
    host = next(batches)
  batch = loop.to_devices(run, host)
  parts = example_parts(run, state, batch)
  losses_tell = not all(np.isfinite(values).all() for values in parts.values())
  gradients = None
  if not losses_tell and not np.isfinite(_metrics(step, run, state, batch)["grad_norm"]):
    say("the losses are finite, a gradient is not: taking each example alone")
    gradients = np.array([np.isfinite(_metrics(step, run, state, _alone(run, host, row))["grad_norm"])
                          for row in range(len(loop.positions(host)))])
  return Replay(number, loop.positions(host), parts, _metrics(step, run, state, batch), gradients)


def _metrics(step: Any, run: Run, state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, float]:
  """Numbers of one step; the state is copied first, since the step takes it."""
  _, metrics = step(jax.tree.map(jax.numpy.copy, state), run.frozen, batch, run.key)
  return {name: float(value) for name, value in jax.device_get(metrics).items()}


def _alone(run: Run, host: Batch, row: int) -> dict[str, jax.Array]:
  """A batch of one example as often as it has rows, so that nothing is compiled again."""
  return loop.to_devices(run, {name: np.repeat(value[row:row + 1], len(value), axis=0) for name, value in host.items()})


def example_parts(run: Run, state: TrainState, batch: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
  """{part: (B,)} losses of a step before the mean, with the step's own random keys."""
  accumulate = run.config.grad_accum_steps
  losses = jax.jit(functools.partial(_losses_on_mesh, run))
  key = jax.random.fold_in(run.key, state.step)
  if accumulate == 1:
    return jax.device_get(losses(state.vars, run.frozen, batch, key))
  # As in training, a micro batch is every accumulate-th example.
  micro = [jax.device_get(losses(state.vars, run.frozen, {name: value[i::accumulate] for name, value in batch.items()},
                                 jax.random.fold_in(key, i))) for i in range(accumulate)]
  return {name: np.stack([parts[name] for parts in micro], axis=1).reshape(-1) for name in micro[0]}


def _losses_on_mesh(run: Run, variables: Any, frozen: Any, batch: Mapping[str, jax.Array], key: jax.Array):
  with use_mesh(run.mesh):
    return run.system.loss(variables, frozen, batch, key, True).parts


def text(result: Replay, *, names: Sequence[str] | None = None, where: str = "") -> str:
  """The report that is printed: parts, gradients, and every example with its losses.

  Args:
    result: of `replay`.
    names: ids of the examples; their positions by default.
    where: dataset and split.
  """
  names = [str(i) for i in result.examples] if names is None else names
  bad, part = result.bad(), first_non_finite(result.metrics)
  verdict = "everything is finite" if part is None else f"'{part}' is {result.metrics[part]}"
  rows = [(name, *(f"{values[i]:.6g}" for values in result.parts.values()), "<- not finite" if bad[i] else "")
          for i, name in enumerate(names)]
  numbers = logs.table_text(("number", "value"), [(name, f"{value:.6g}") for name, value in result.metrics.items()])
  table = logs.table_text(("example", *result.parts, ""), rows)
  blamed = ", ".join(name for name, wrong in zip(names, bad) if wrong) or "none by itself"
  end = "" if part is None else f"\nnot finite: {blamed}"
  return f"step {result.number}: {verdict}\n\n{numbers}\n\nexamples of {where}\n{table}{end}"
