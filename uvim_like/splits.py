"""Split arithmetic as in TFDS: "train", "train[4096:]", "train[:10%]", "train[64:128]+validation"."""

import re
from collections.abc import Callable

import numpy as np

from uvim_like.errors import UserError

PART = re.compile(r"\s*([\w.-]+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*")


def select(split: str, size_of: Callable[[str], int]) -> list[tuple[str, np.ndarray]]:
  """The examples that a split names.

  Args:
    split: parts joined by "+", each the name of a split with an optional slice; bounds count examples, or percent
      (rounded to the nearest example); negative ones count from the end.
    size_of: name -> number of examples; raises UserError for names that do not exist.

  Returns:
    (name, indices int64) per part, in the order written.

  Raises:
    UserError: text of another form, bounds beyond the split, nothing selected.
  """
  parts = []
  for text in split.split("+"):
    match = PART.fullmatch(text)
    if not match:
      raise UserError(f"split '{split}': cannot read '{text.strip()}'; write e.g. 'train', 'train[4096:]', "
                      "'train[:10%]', 'train[64:128]+validation'")
    name, start, stop = match.groups()
    size = size_of(name)
    first = 0 if start is None else _bound(start, size, text, name)
    last = size if stop is None else _bound(stop, size, text, name)
    parts.append((name, np.arange(first, max(first, last), dtype=np.int64)))
  if not sum(len(indices) for _, indices in parts):
    sizes = ", ".join(f"{name} has {size_of(name)}" for name, _ in parts)
    raise UserError(f"split '{split}' selects no example ({sizes})")
  return parts


def _bound(text: str, size: int, part: str, name: str) -> int:
  """A slice bound as an index in 0..size."""
  if text.endswith("%"):
    percent = int(text[:-1])
    if abs(percent) > 100:
      raise UserError(f"split '{part.strip()}': {text} is beyond 100%")
    value = round(percent * size / 100)
  else:
    value = int(text)
    if abs(value) > size:
      raise UserError(f"split '{part.strip()}': {value} is beyond the {size} examples of '{name}'")
  return value + size if text.startswith("-") else value
