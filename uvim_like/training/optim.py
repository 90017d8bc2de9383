"""From a config's optimiser keys to one optax transformation whose output is added to the parameters.

Order (UViM fact sheet, section 6): clip by global norm → scaling rule → ·lr·lr_mult → + wd·param → ·schedule → ·(-1).
So weight decay is NOT multiplied by the learning rate: a recipe of another school writes wd = lr · its own wd.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from uvim_like import trees
from uvim_like.errors import UserError, unknown
from uvim_like.training import schedules
from uvim_like.training.adafactor import scale_by_adafactor

Tree = Any

# Scaling rules of optax that need nothing beyond gradients and parameters, under their optax names.
OPTAX_RULES = (
    "scale_by_adam", "scale_by_adamax", "scale_by_amsgrad", "scale_by_belief", "scale_by_factored_rms", "scale_by_lion",
    "scale_by_novograd", "scale_by_radam", "scale_by_rms", "scale_by_sm3", "scale_by_stddev", "scale_by_yogi",
    "trace", "identity")
# Names of whole optimisers: only their scaling rule is taken, since lr, wd and schedule are keys of their own.
ALIASES = {"adam": "scale_by_adam", "adamw": "scale_by_adam", "lion": "scale_by_lion", "rmsprop": "scale_by_rms",
           "momentum": "trace", "sgd": "identity", "adafactor": "scale_by_adafactor"}
DEFAULT_WD_MULTS = ((".*/kernel", 1.0),)


class Rates(NamedTuple):
  """What applies to one parameter.

  Attributes:
    lr: multiplier of the learning rate.
    wd: multiplier of the weight decay, 0 for none.
    schedule: index into the schedules, None when frozen.
  """
  lr: float
  wd: float
  schedule: int | None


class Row(NamedTuple):
  """A line of the table that is printed once."""
  name: str
  shape: tuple[int, ...]
  lr_mult: float
  wd_mult: float
  schedule: int | None


class ScheduledState(NamedTuple):
  """`count`: () int32, updates so far."""
  count: jax.Array


def scaling_rule(name: str, options: Mapping[str, Any] | None = None) -> optax.GradientTransformation:
  """The transformation that `optax_name` names, with the keyword arguments of `optax`.

  Args:
    name: own 'scale_by_adafactor' (a leading 'big_vision.' is dropped), a rule or an alias listed above.
    options: keyword arguments, checked against the rule's signature.

  Raises:
    UserError: unknown name or option.
  """
  choices = ("scale_by_adafactor", *OPTAX_RULES, *ALIASES)
  short = name.removeprefix("big_vision.")
  short = ALIASES.get(short, short)
  if short == "scale_by_adafactor":
    rule = scale_by_adafactor
  elif short in OPTAX_RULES:
    rule = getattr(optax, short)
  else:
    raise unknown("optax_name", name, choices, where="config")
  options = dict(options or {})
  if short == "trace":
    options = {"decay": 0.9} | options
  for key in options:
    if key not in inspect.signature(rule).parameters:
      raise unknown("option", key, inspect.signature(rule).parameters, where=f"config.optax ({name})")
  return rule(**options)


def _pairs(value: Any, *, where: str) -> list[tuple[str, Any]]:
  """Pairs (pattern, value) of a list, tuple or frozen ConfigDict value; UserError when it is of another form."""
  if isinstance(value, str) or not isinstance(value, Sequence):
    raise UserError(f"{where}: a list of (pattern, value) pairs is expected, not {value!r}")
  for pair in value:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[0], str):
      raise UserError(f"{where}: a pair (pattern, value) is expected, not {pair!r}")
  return [(pattern, entry) for pattern, entry in value]


def _multipliers(value: Any, names: list[str], *, default: float, where: str, check: bool = True) -> dict[str, float]:
  """Multiplier of each name: that of the first pattern that matches the full name, else `default`."""
  pairs = _pairs(value, where=where)
  patterns = [pattern for pattern, _ in pairs]
  if check:
    trees.check_patterns_used(patterns, names, where=where)
  matches = {name: trees.match_first(name, patterns) for name in names}
  return {name: default if i is None else float(pairs[i][1]) for name, i in matches.items()}


def _schedule_pairs(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any] | None]]:
  """The `schedule` key as pairs; one dict stands for all parameters, an absent key for a constant factor of 1."""
  schedule = config.get("schedule")
  if schedule is None:
    return [(".*", {})]
  if hasattr(schedule, "items"):  # dict or ConfigDict, which is no Mapping
    return [(".*", schedule)]
  return _pairs(schedule, where="config.schedule")


def rates(config: Mapping[str, Any], params: Tree) -> dict[str, Rates]:
  """What `lr_mults`, `wd_mults` and `schedule` give each parameter, by name; the first matching pattern wins.

  An unmatched parameter has lr multiplier 1 and no weight decay (default: `.*/kernel` decays); every parameter must
  be matched by a schedule.

  Raises:
    UserError: a pattern that matches no parameter, a parameter without schedule, or a value of the wrong form.
  """
  names = [name for name, _ in trees.flatten_names(params)]
  lr = _multipliers(config.get("lr_mults") or (), names, default=1.0, where="config.lr_mults")
  given = config.get("wd_mults")
  wd = _multipliers(DEFAULT_WD_MULTS if given is None else given, names, default=0.0, where="config.wd_mults",
                    check=given is not None)
  pairs = _schedule_pairs(config)
  patterns = [pattern for pattern, _ in pairs]
  trees.check_patterns_used(patterns, names, where="config.schedule")
  result = {}
  for name in names:
    i = trees.match_first(name, patterns)
    if i is None:
      raise UserError(f"config.schedule: no pattern matches parameter '{name}'; add ('.*', …) at the end, None freezes")
    result[name] = Rates(lr[name], wd[name], None if pairs[i][1] is None else i)
  return result


def table(config: Mapping[str, Any], params: Tree) -> list[Row]:
  """One row per parameter: name, shape, lr and wd multiplier, index of its schedule (None: frozen)."""
  by_name = rates(config, params)
  return [Row(name, tuple(leaf.shape), *by_name[name]) for name, leaf in trees.flatten_names(params)]


def scale_and_decay(by_name: Mapping[str, Rates], factors: Sequence[Callable], *, lr: float,
                    wd: float) -> optax.GradientTransformation:
  """-factor(step) · (lr·mult·u + wd·mult·param), per parameter; step is 0 in the first update."""

  def init(params):
    del params
    return ScheduledState(jnp.zeros([], jnp.int32))

  def update(updates, state, params=None):
    if params is None:
      raise ValueError("tx.update needs the parameters: weight decay reads them")
    now = [factor(state.count) for factor in factors]

    def one(name, update, param):
      rate = by_name[name]
      update = update * lr * rate.lr
      if wd and rate.wd:
        update = update + wd * rate.wd * param
      return -now[rate.schedule] * update

    return trees.map_names(one, updates, params), ScheduledState(optax.safe_increment(state.count))

  return optax.GradientTransformation(init, update)


def make(config: Mapping[str, Any], params: Tree, *,
         total_steps: int) -> tuple[optax.GradientTransformation, list[tuple[str, Callable]]]:
  """The optimiser of a config, for `optax.apply_updates`.

  Args:
    config: `optax_name, optax, lr, wd, lr_mults, wd_mults, schedule, grad_clip_norm`; see `configs/`.
    params: the parameter tree, arrays or shapes; only names and shapes are read.
    total_steps: where the schedules end.

  Returns:
    The transformation, and a list (pattern, function step -> factor) in the order of `config.schedule`. Frozen
    parameters have zero updates, no optimiser state, and are no part of the clipped norm; their function is 0. State
    leaves have names that end with the parameter's name.

  Raises:
    UserError: unknown names or options, patterns that match nothing.
  """
  if config.get("lr") is None:
    raise UserError("config: lr, the learning rate, is not set")
  by_name = rates(config, params)
  pairs = _schedule_pairs(config)
  frozen = {name for name, rate in by_name.items() if rate.schedule is None}
  factors = [
      optax.constant_schedule(0.0) if options is None else schedules.make(
          options, total_steps=total_steps,
          where="config.schedule" if len(pairs) == 1 else f"config.schedule ('{pattern}')")
      for pattern, options in pairs]
  clip = config.get("grad_clip_norm")
  parts = [optax.clip_by_global_norm(clip)] if clip else []
  parts.append(scaling_rule(config.get("optax_name", "scale_by_adam"), config.get("optax")))
  parts.append(scale_and_decay(by_name, factors, lr=config["lr"], wd=config.get("wd") or 0.0))
  tx = optax.chain(*parts)
  if frozen:
    trained = trees.map_names(lambda name, _: name not in frozen, params)
    tx = optax.chain(optax.masked(tx, trained),
                     optax.masked(optax.set_to_zero(), jax.tree.map(lambda keep: not keep, trained)))
  return tx, [(pattern, factor) for (pattern, _), factor in zip(pairs, factors)]
