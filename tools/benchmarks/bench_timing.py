"""What the parts of `tools.bench` share: functions timed in turn, random weights, rows of a table."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MIB = 2 ** 20


def times_in_turn(runs: Mapping[str, Callable], repeats: int, *, warm: bool = True) -> dict[str, list[float]]:
  """Seconds of each run of each function, one after the other, so that a change of the machine's speed meets all.

  Args:
    runs: {name: function}, which must return when its work is done.
    repeats: timed calls of each.
    warm: call each once before the clock starts; False for long ones that are compiled already.
  """
  times: dict[str, list[float]] = {name: [] for name in runs}
  for function in runs.values() if warm else ():
    function()
  for _ in range(repeats):
    for name, function in runs.items():
      began = time.perf_counter()
      function()
      times[name].append(time.perf_counter() - began)
  return times


def alternate(runs: Mapping[str, Callable], repeats: int, *, warm: bool = True) -> dict[str, float]:
  """Median seconds of each function, see `times_in_turn`."""
  return {name: statistics.median(values) for name, values in times_in_turn(runs, repeats, warm=warm).items()}


def finished(function: Callable, *arguments: Any) -> Callable[[], None]:
  """A call of a compiled function that returns when its result is there."""
  return lambda: jax.block_until_ready(function(*arguments))


def random_arrays(shapes: Any, *, scale: float = 0.02, seed: int = 0) -> Any:
  """Normal numbers for a tree of float32 shapes, made without compiling a model's initialisers.

  Args:
    shapes: tree of shapes.
    scale: standard deviation; 0.02 keeps a transformer's activations near 1.
    seed: of numpy's generator.
  """
  numbers = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(scale * numbers.standard_normal(x.shape, np.float32), x.dtype), shapes)


def row(what: str, value: float, other: float | None, name: str) -> tuple:
  """A row of what was measured, its value, the value beside it with its name, and their ratio."""
  if other is None:
    return what, f"{value:.4g}", "", ""
  return what, f"{value:.4g}", f"{name} {other:.4g}", f"{value / other:.2f}"


def matmul_speed(*, side: int = 1024, repeats: int = 5) -> float:
  """GFLOP/s of a float32 product of two matrices: what this machine gives now, beside which seconds can be read."""
  x = jnp.ones((side, side))
  product = jax.jit(jnp.matmul)
  return 2e-9 * side ** 3 / min(times_in_turn({"matmul": finished(product, x, x)}, repeats)["matmul"])
