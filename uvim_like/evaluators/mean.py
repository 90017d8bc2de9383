"""Exact means of what a system computes per example, mostly its validation losses."""

import numpy as np

from uvim_like.errors import UserError
from uvim_like.evaluators.base import Example, Metric


def make() -> Metric:
  """Mean over examples of every output, each a number per example; {"name": mean, …}, nothing without examples."""
  return Metric(init=dict, update=update, merge=merge, compute=compute,
                protocol="mean over examples, padding left out")


def update(stats: dict, output: Example, target: Example) -> dict:
  """Stats {name: (sum, count)} with one more example; UserError for an output that is not one number."""
  del target
  shapes = {name: np.shape(value) for name, value in output.items() if np.size(value) != 1}
  if shapes:
    raise UserError(f"mean: outputs must be one number per example, got {shapes}")
  return merge(stats, {name: np.array([float(np.reshape(value, ())), 1.0]) for name, value in output.items()})


def merge(a: dict, b: dict) -> dict:
  """Sums and counts of both."""
  return {name: a.get(name, np.zeros(2)) + b.get(name, np.zeros(2)) for name in {**a, **b}}


def compute(stats: dict) -> dict[str, float]:
  """{name: mean}."""
  return {name: float(total / count) for name, (total, count) in stats.items()}
