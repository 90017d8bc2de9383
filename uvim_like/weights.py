"""Weights as .npz files in big_vision's layout, and merging foreign weights into an initialised tree."""

import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from uvim_like import trees
from uvim_like.errors import UserError, suggest

Tree = Any


def save_npz(path: str | os.PathLike, tree: Mapping[str, Any]) -> None:
  """Writes a tree of arrays as one .npz whose keys are the leaf names, atomically.

  Args:
    path: the file; its folder is made if need be.
    tree: usually {'params': …, 'state': …}. bfloat16 leaves are stored as 2-byte void, as numpy does with them.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  flat = {name: np.asarray(leaf) for name, leaf in trees.flatten_names(tree)}
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
  try:
    with os.fdopen(handle, "wb") as file:
      np.savez(file, **{name: _storable(array) for name, array in flat.items()})
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def _storable(array: np.ndarray) -> np.ndarray:
  return array.view("V2") if array.dtype == ml_dtypes.bfloat16 else array


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """{key: array} of an .npz, without pickle; 2-byte void arrays come back as bfloat16.

  Raises:
    UserError: no such file, not an .npz, or an array of Python objects.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    siblings = [p.name for p in path.parent.glob("*.npz")] if path.parent.is_dir() else []
    raise UserError(f"no file {path}; {suggest(path.name, siblings)}")
  try:
    data = np.load(path, allow_pickle=False)
    if not isinstance(data, np.ndarray):
      with data:
        return {key: _restored(data[key]) for key in data.files}
  except (zipfile.BadZipFile, EOFError, ValueError) as error:
    raise UserError(f"{path}: not a readable .npz of plain arrays ({error})") from error
  raise UserError(f"{path}: a single array, not an .npz of named arrays")


def _restored(array: np.ndarray) -> np.ndarray:
  return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def load_npz(path: str | os.PathLike) -> dict[str, Tree]:
  """{'params': tree, 'state': tree} of a weights file.

  Accepts the layouts that are around: `params/…` (beside `state/…`, `opt/…`, `chrono/…`), `opt/target/…` of old
  optimisers, or bare parameter names. `state` is {} when the file has none.

  Raises:
    UserError: see `read_npz`.
  """
  flat = read_npz(path)

  def under(prefix):
    return trees.unflatten_names({k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)})

  for prefix in ("params/", "opt/target/"):
    if any(key.startswith(prefix) for key in flat):
      return {"params": under(prefix), "state": under("state/")}
  return {"params": trees.unflatten_names(flat), "state": {}}


def renumber(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Old module numbers to linen's: in each dict, names ending in _<n> are counted from 0 per prefix.

  E.g. {'Dense_3', 'Dense_10', 'LayerNorm_1'} becomes {'Dense_0', 'Dense_1', 'LayerNorm_0'}, in numeric order. Old
  flax numbered all modules of a parent together. Names of parameters themselves (leaves) are left alone.
  """
  numbered: dict[str, list[int]] = {}
  for name, value in tree.items():
    if isinstance(value, Mapping) and (match := re.fullmatch(r"(.+)_(\d+)", name)):
      numbered.setdefault(match[1], []).append(int(match[2]))
  new_name = {f"{prefix}_{n}": f"{prefix}_{i}" for prefix, numbers in numbered.items()
              for i, n in enumerate(sorted(numbers))}
  return {new_name.get(name, name): renumber(value) if isinstance(value, Mapping) else value
          for name, value in tree.items()}


class Report(NamedTuple):
  """What became of each leaf, by name; `misshaped` holds (name, shape in the file, shape wanted).

  Attributes:
    taken: from the file.
    kept: in the initialised tree, since a `dont_load` pattern matches them.
    missing: in the tree, absent from the file.
    extra: in the file only.
    misshaped: in both with different shapes.
  """
  taken: tuple[str, ...]
  kept: tuple[str, ...]
  missing: tuple[str, ...]
  extra: tuple[str, ...]
  misshaped: tuple[tuple[str, tuple, tuple], ...]

  def text(self, *, limit: int = 20) -> str:
    """Counts in the first line, then the names of all but the taken ones (at most `limit` of each kind)."""
    counts = ", ".join(f"{len(getattr(self, field))} {field.replace('misshaped', 'mis-shaped')}"
                       for field in self._fields)
    lines = [counts]
    for field in ("kept", "missing", "extra"):
      lines += _listed(field, [f"{name}" for name in getattr(self, field)], limit)
    lines += _listed("mis-shaped", [f"{name}: file {have}, model {want}" for name, have, want in self.misshaped], limit)
    return "\n".join(lines)


def _listed(title: str, names: Sequence[str], limit: int) -> list[str]:
  if not names:
    return []
  more = [f"    … and {len(names) - limit} more"] if len(names) > limit else []
  return [f"  {title}:", *(f"    {name}" for name in names[:limit]), *more]


def merge(init: Tree, loaded: Tree, dont_load: Sequence[str] = (), *, strict: bool = True,
          where: str = "weights") -> tuple[Tree, Report]:
  """The initialised tree with its leaves taken from `loaded`, and a report.

  Args:
    init: tree of arrays or shapes; its structure and dtypes are those of the result.
    loaded: tree of arrays.
    dont_load: patterns of full names; a matching leaf keeps its initial value, or is ignored when the file alone
      has it.
    strict: missing, extra or mis-shaped leaves are an error; otherwise initial values stand in for them.
    where: place named in the error.

  Raises:
    UserError: with the report, when strict and not everything fits; a `dont_load` pattern that matches nothing.
  """
  want, have = dict(trees.flatten_names(init)), dict(trees.flatten_names(loaded))
  patterns = list(dont_load)
  trees.check_patterns_used(patterns, list(want | have), where=f"{where}: dont_load")
  kept = {name for name in want | have if trees.match_first(name, patterns) is not None}
  shared = [name for name in want if name in have and name not in kept]
  wrong = tuple((name, tuple(have[name].shape), tuple(want[name].shape)) for name in shared
                if tuple(have[name].shape) != tuple(want[name].shape))
  wrong_names = {name for name, *_ in wrong}
  report = Report(
      taken=tuple(name for name in shared if name not in wrong_names),
      kept=tuple(name for name in want if name in kept),
      missing=tuple(name for name in want if name not in have and name not in kept),
      extra=tuple(name for name in have if name not in want and name not in kept),
      misshaped=wrong)
  if strict and (report.missing or report.extra or report.misshaped):
    raise UserError(f"{where}: does not fit the model: {report.text()}")
  taken = set(report.taken)
  merged = trees.map_names(
      lambda name, leaf: np.asarray(have[name]).astype(leaf.dtype) if name in taken else leaf, init)
  return merged, report
