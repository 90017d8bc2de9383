"""Learning-rate schedules: a factor, normally in 0..1, as a pure function of the step, and the number of steps."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from uvim_like.errors import UserError, unknown

Schedule = Callable[[Any], jax.Array]

COMMON_OPTIONS = ("decay_type", "warmup_steps", "warmup_start", "base")
OVERLAPS = (False, True, "product")
DECAY_OPTIONS = {
    "constant": (),
    "cosine": ("end", "overlap"),
    "linear": ("end", "overlap"),
    "poly": ("end", "power", "overlap"),
    "step": ("drop_steps", "drop_factor"),
}


def steps(config: Mapping[str, Any], num_examples: int) -> int:
  """Number of training steps: `total_steps`, or `num_epochs` times the examples over `batch_size`, at least 1.

  Args:
    config: holds exactly one of `total_steps` and `num_epochs`, and `batch_size` with the latter.
    num_examples: examples of the training split.

  Raises:
    UserError: both or neither are set, or one is not positive.
  """
  total, epochs = config.get("total_steps"), config.get("num_epochs")
  if (total is None) == (epochs is None):
    state = "neither is" if total is None else "both are"
    raise UserError(f"config: set exactly one of total_steps and num_epochs; {state} set")
  if (total if epochs is None else epochs) <= 0:
    raise UserError(f"config: {'total_steps' if epochs is None else 'num_epochs'} must be positive")
  if epochs is None:
    return int(total)
  return max(1, round(epochs * num_examples / config["batch_size"]))


def decay(progress: jax.Array, step: jax.Array, options: Mapping[str, Any]) -> jax.Array:
  """The factor without warmup.

  Args:
    progress: () share of the steps after warmup that is over, in 0..1.
    step: () the step itself, which the "step" kind compares with `drop_steps`.
    options: the schedule's dict; `end` is the factor at the last step, `power` the exponent of "poly".
  """
  kind, end = options.get("decay_type", "constant"), options.get("end", 0.0)
  if kind == "cosine":
    return end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
  if kind == "linear":
    return end + (1.0 - end) * (1.0 - progress)
  if kind == "poly":
    return end + (1.0 - end) * (1.0 - progress) ** options.get("power", 2.0)
  if kind == "step":
    drops = sum((step >= at).astype(jnp.float32) for at in options["drop_steps"])
    return jnp.float32(options.get("drop_factor", 0.1)) ** drops
  return jnp.ones_like(progress)


def make(options: Mapping[str, Any], *, total_steps: int, where: str = "schedule") -> Schedule:
  """The function step -> factor of one schedule dict.

  `decay_type` is one of `DECAY_OPTIONS` ("constant" when absent). Warmup rises linearly from `warmup_start` (0) over
  `warmup_steps` (0) and multiplies the decay, which begins where warmup ends; `base` (1) multiplies everything.
  The factor is 0 at step 0 whenever there is warmup, so the first update changes nothing (UViM's convention). A training
  that is shorter than its warmup, a trial of a long recipe for a few steps, only ever warms up. With `overlap` the decay
  counts from step 0: True replaces the ramp where that ends, with a small drop (deeplab2, timm), "product" multiplies the
  two from the start (mmcv).

  Raises:
    UserError: an unknown decay type, option or overlap.
  """
  kind = options.get("decay_type", "constant")
  if kind not in DECAY_OPTIONS:
    raise unknown("decay_type", kind, DECAY_OPTIONS, where=where)
  for key in options:
    if key not in COMMON_OPTIONS + DECAY_OPTIONS[kind]:
      raise unknown("option", key, COMMON_OPTIONS + DECAY_OPTIONS[kind], where=where)
  if options.get("overlap", False) not in OVERLAPS:
    raise unknown("overlap", str(options["overlap"]), [str(one) for one in OVERLAPS], where=where)
  if kind == "step" and not options.get("drop_steps"):
    raise UserError(f"{where}: decay_type 'step' needs drop_steps, the steps at which the factor drops")
  return _Schedule(dict(options), total_steps)


class _Schedule:
  """The function that `make` returns; a class so that its options can be seen when printed."""

  def __init__(self, options: dict[str, Any], total_steps: int):
    self.options, self.total_steps = options, total_steps

  def __call__(self, step) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    warmup = self.options.get("warmup_steps", 0)
    overlap = self.options.get("overlap", False)
    begin = 0 if overlap else warmup
    progress = jnp.clip((step - begin) / max(self.total_steps - begin, 1), 0.0, 1.0)
    factor = decay(progress, step, self.options)
    if overlap is True:
      factor = jnp.where(step < warmup, 1.0, factor)
    factor = factor * self.options.get("base", 1.0)
    if warmup:
      start = self.options.get("warmup_start", 0.0)
      factor = factor * (start + (1.0 - start) * jnp.minimum(1.0, step / warmup))
    return factor

  def __repr__(self) -> str:
    return f"Schedule({self.options}, total_steps={self.total_steps})"
