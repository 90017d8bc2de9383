"""The names of a folder's classes: classes.txt or classes.json beside the images, in any of the usual forms."""

import json
from typing import Any, NamedTuple

from etils import epath

from uvim_like.errors import UserError
from uvim_like.own_data.maps import VOID

FILES = ("classes.json", "classes.txt", "labels.txt")
MOST = 1 << 16   # classes: 16 bits of a label map


class Listing(NamedTuple):
  """Class i of the label maps is names[i]."""
  names: tuple[str, ...]

  @property
  def count(self) -> int:
    """C: values 0..C-1 are classes."""
    return len(self.names)


def find(root: epath.Path) -> Listing | None:
  """The first of `FILES` in a folder; None without any; UserError for one that says no names."""
  path = next((root / name for name in FILES if (root / name).exists()), None)
  return None if path is None else parse(path)


def parse(path: epath.Path) -> Listing:
  """A text with a name a line, or JSON: ["road", …], {"0": "road", …}, [{"id": 0, "name": "road"}, …], or one of these
  under "classes", "names" or "categories".

  Raises:
    UserError: none of these, ids that are no whole numbers from 0 on, or twice the same; a line without a name.
  """
  try:
    text = path.read_text(encoding="utf-8-sig")
    values = json.loads(text) if path.suffix == ".json" else None
  except (ValueError, OSError, RecursionError) as error:
    raise UserError(f"{path}: cannot be read: {error}") from error
  names = _by_id(values if path.suffix == ".json" else _lines(text, path), path)
  if not names or min(names) < 0 or max(names) >= MOST:
    raise UserError(f"{path}: ids of classes must be 0 or more, below {MOST}, and there must be some")
  return Listing(tuple(names.get(i, f"class {i}") for i in range(max(names) + 1)))


def _lines(text: str, path: epath.Path) -> list[str]:
  """The names of a text, whose places are their ids: one left out would give all that follow another."""
  lines = [line.strip() for line in text.rstrip().splitlines()]
  if "" in lines:
    number = lines.index("")
    raise UserError(f"{path}: line {number + 1} is empty, and the names below it would have other ids than people think; "
                    f"remove it, or write 'class {number}' where this id is used")
  return lines


def _by_id(values: Any, path: epath.Path) -> dict[int, str]:
  """{id: name} of any of the forms."""
  if isinstance(values, dict):
    inner = next((values[key] for key in ("classes", "names", "categories") if key in values), None)
    if inner is not None:
      return _by_id(inner, path)
    pairs = [(key, name) for key, name in values.items()]
  elif isinstance(values, list) and values and all(isinstance(entry, dict) for entry in values):
    pairs = [(entry.get("id"), entry.get("name")) for entry in values]
  elif isinstance(values, list):
    pairs = list(enumerate(values))
  else:
    pairs = []
  try:
    pairs = [(int(key), name) for key, name in pairs if int(key) != VOID]   # which has a name in some lists
  except (TypeError, ValueError):
    raise UserError(f'{path}: ids of classes must be whole numbers, as in [{{"id": 0, "name": "road"}}]') from None
  names = dict(pairs)
  if len(names) < len(pairs) or not all(isinstance(name, str) for name in names.values()):
    raise UserError(f"{path}: every class needs a name and an id of its own: [\"road\", …] or {{\"0\": \"road\", …}}")
  return names
