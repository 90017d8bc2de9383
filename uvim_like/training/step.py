"""One training step of any system: a pure function of (state, frozen, batch, key)."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from uvim_like.systems.base import System, Vars

Array = jax.Array
Tree = Any
Batch = Mapping[str, Array]
TOTALS = ("loss", "grad_norm", "update_norm", "param_norm")  # metrics that say that something is wrong, not what


class TrainState(flax.struct.PyTreeNode):
  """All that a training must keep.

  Attributes:
    step: () int32, updates made so far.
    vars: what the system learns.
    opt: optimizer state.
    ema: moving average of the parameters, or () without `ema_decay`.
    skipped: () int32, how many of the updates were left out because something was not finite.
  """
  step: Array
  vars: Vars
  opt: Tree
  ema: Tree = ()
  skipped: Array = flax.struct.field(default_factory=lambda: jnp.int32(0))

  def eval_vars(self) -> Vars:
    """The variables to evaluate and export: averaged parameters where there are any."""
    return self.vars.replace(params=self.ema) if self.ema != () else self.vars


def init_state(key: Array, batch: Batch, *, system: System, tx: optax.GradientTransformation,
               ema_decay: float | None = None) -> TrainState:
  """Step 0, from a batch of the right shapes; also under `jax.eval_shape` and `jax.jit`."""
  return start_from(system.init(key, batch), tx=tx, ema_decay=ema_decay)


def start_from(variables: Vars, *, tx: optax.GradientTransformation, ema_decay: float | None = None) -> TrainState:
  """Step 0 with the given variables."""
  ema = jax.tree.map(jnp.copy, variables.params) if ema_decay else ()
  return TrainState(jnp.int32(0), variables, tx.init(variables.params), ema, jnp.int32(0))


def train_step(state: TrainState, frozen: Tree, batch: Batch, key: Array, *, system: System,
               tx: optax.GradientTransformation, accumulate: int = 1, ema_decay: float | None = None,
               skip_nonfinite: bool = False) -> tuple[TrainState, dict[str, Array]]:
  """One update.

  Args:
    state: before.
    frozen: `System.frozen` on the devices.
    batch: {name: (B, …)}.
    key: the run's key; the step's own is derived from it and the step number.
    system: the training problem.
    tx: the optimizer.
    accumulate: micro batches whose gradients are summed before the update; B must be a multiple of it.
    ema_decay: of the averaged parameters, None for none.
    skip_nonfinite: leave the update out when any metric is not finite: only `step` and `skipped` advance.

  Returns:
    The next state, and () metrics: "loss", the mean of every part, norms of gradient, update and parameters, and
    "grad_norm/<group>" for each top-level group of parameters, which tells where a non-finite gradient came from; with
    `skip_nonfinite` "nonfinite_skipped", the updates left out so far.
  """
  key = jax.random.fold_in(key, state.step)
  if accumulate == 1:
    (loss, out), grads = _value_and_grad(state.vars, frozen, batch, key, system)
    next_state, parts = out.state, {name: jnp.mean(part) for name, part in out.parts.items()}
  else:
    loss, parts, stats, grads = _accumulated(state.vars, frozen, batch, key, system, accumulate)
    advance = system.advance is not None
    next_state = system.advance(state.vars.state, stats, jax.random.fold_in(key, accumulate)) if advance else state.vars.state
  updates, opt = tx.update(grads, state.opt, state.vars.params)
  params = optax.apply_updates(state.vars.params, updates)
  ema = state.ema
  if ema_decay:
    ema = jax.tree.map(lambda old, new: ema_decay * old + (1 - ema_decay) * new, ema, params)
  metrics = {"loss": loss, **parts, **grad_norms(grads), "update_norm": optax.tree.norm(updates),
             "param_norm": optax.tree.norm(params)}
  new = TrainState(state.step + 1, Vars(params, next_state), opt, ema, state.skipped)
  if skip_nonfinite:
    new = _unless_finite(all_finite(metrics), new, state)
    metrics["nonfinite_skipped"] = new.skipped
  return new, metrics


def all_finite(metrics: Mapping[str, Array]) -> Array:
  """() bool: whether every number of a step is finite."""
  return functools.reduce(jnp.logical_and, map(jnp.isfinite, metrics.values()))


def _unless_finite(finite: Array, new: TrainState, old: TrainState) -> TrainState:
  """The new state, or the old one at the next step; decided on the devices."""
  kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
  return kept.replace(step=new.step, skipped=old.skipped + jnp.where(finite, 0, 1))


def _value_and_grad(variables: Vars, frozen: Tree, batch: Batch, key: Array, system: System):
  """((loss, LossOut), gradients of the parameters)."""
  def objective(params):
    out = system.loss(variables.replace(params=params), frozen, batch, key, True)
    return out.loss, out
  return jax.value_and_grad(objective, has_aux=True)(variables.params)


def _accumulated(variables: Vars, frozen: Tree, batch: Batch, key: Array, system: System, accumulate: int):
  """Loss, mean parts, summed statistics and mean gradients over micro batches, one at a time in memory.

  A micro batch takes every `accumulate`-th example, so that each device's rows stay on it.
  """
  micro = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), dict(batch))

  def one(index, micro):
    (loss, out), grads = _value_and_grad(variables, frozen, micro, jax.random.fold_in(key, index), system)
    return loss, {name: jnp.mean(part) for name, part in out.parts.items()}, out.stats, grads

  def add(total, xs):
    return jax.tree.map(jnp.add, total, one(*xs)), None

  first = jax.tree.map(lambda x: x[0], micro)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, 0, first))
  (loss, parts, stats, grads), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro))
  mean = functools.partial(jax.tree.map, lambda x: x / accumulate)
  return mean(loss), mean(parts), stats, mean(grads)


def grad_norms(grads: Tree) -> dict[str, Array]:
  """{"grad_norm": (), "grad_norm/<group>": ()} with the first level of the tree as groups."""
  groups = {f"grad_norm/{name}": optax.tree.norm(tree) for name, tree in grads.items()}
  return {"grad_norm": jnp.sqrt(sum(jnp.square(norm) for norm in groups.values())), **groups}


def first_non_finite(metrics: Mapping[str, Any]) -> str | None:
  """The part of the loss, or else the gradient's group, that is not finite; None when all is well.

  Args:
    metrics: host numbers of one step.
  """
  bad = [name for name, value in metrics.items() if not math.isfinite(value)]
  groups = [name for name in bad if name.startswith("grad_norm/")]
  parts = [name for name in bad if name not in groups and name not in TOTALS]
  return next(iter(parts + groups + bad), None)
