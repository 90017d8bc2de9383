"""Reading predictions and targets by name, with a message a person can act on when the name is not there."""

from collections.abc import Mapping

import numpy as np

from uvim_like.errors import UserError, suggest


def required(example: Mapping[str, np.ndarray], key: str, *, where: str) -> np.ndarray:
  """`example[key]` as an array; UserError naming `where` and the nearest key otherwise."""
  if key not in example:
    raise UserError(f"{where}: no '{key}' among its entries; {suggest(key, example)}")
  return np.asarray(example[key])


def add_counts(a: dict, b: dict) -> dict:
  """Sum of two dicts of numbers; a key that only one of them has is kept."""
  return {key: a.get(key, 0) + b.get(key, 0) for key in {**a, **b}}
