"""What a system knows of a task: three pure functions with the config's options bound."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvim_like import names


class Task(NamedTuple):
  """A task as pure functions.

  Attributes:
    to_planes: (labels (B, H, W, …), patch=, spec=) -> {name: (B, N, P) int or (B, N, C, P) float}.
    losses: (outputs {name: Planes}, planes) -> {"loss_…": Loss}.
    from_planes: (outputs, grid=, patch=, **options) -> {name: (B, H, W, …)}, the keys in `outputs`.
    outputs: what a prediction holds.
    labels: channels and type of the batch's labels, as the shape and dtype of one pixel.
    planes: names of the planes that the labels become; of integer labels one a channel, in order.
  """
  to_planes: Callable[..., dict]
  losses: Callable[..., dict]
  from_planes: Callable[..., dict]
  outputs: tuple[str, ...]
  labels: jax.ShapeDtypeStruct
  planes: tuple[str, ...]

  def limits(self, spec: Mapping[str, tuple[int, int]]) -> tuple[int, ...] | None:
    """Classes of each channel of integer labels, as a model's `inputs` give them; None for labels that are no classes."""
    if not jnp.issubdtype(self.labels.dtype, jnp.integer):
      return None
    return tuple(spec[name][0] for name in self.planes)


def bind(name: str, config: Mapping[str, Any], *, where: str = "config.task") -> Task:
  """The task module `name` with those of its OPTIONS that the config sets.

  Raises:
    UserError: no such task, with the nearest.
  """
  module = names.load("uvim_like.tasks", name, where=where, needs="to_planes")
  options = {key: config.get(key) for key in getattr(module, "OPTIONS", ()) if config.get(key) is not None}
  return Task(functools.partial(module.to_planes, **options), module.losses,
              functools.partial(module.from_planes, **options), module.OUTPUTS, module.LABELS, module.PLANES)
