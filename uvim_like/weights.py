"""Weights as .npz files in big_vision's layout: reading, writing, and fitting them to a model."""

import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from uvim_like import trees
from uvim_like.errors import UserError, suggest
from uvim_like.weight_sources import WEIGHTS_FILE, locate
from uvim_like.weight_sources import exists as exists  # callers say weights.exists

Tree = Any
# What reading a truncated, garbled, compressed or encrypted archive raises (tried on thousands of damaged files); for a
# password or a compression that Python does not know it is some RuntimeError.
READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError)


def load(source: str | os.PathLike, *, where: str = "") -> dict[str, Tree]:
  """{'params': tree, 'state': tree} of a source (see `locate`), its towers named as in the newer releases.

  Stage I files of the first release say Encoder and Decoder for encoder and decoder. Module numbers of old layouts are
  settled by `merge`, which knows the model.

  Args:
    source: see `locate`.
    where: place named in the error, e.g. the config key.

  Raises:
    UserError: see `locate` and `read_npz`.
  """
  try:
    loaded = load_npz(locate(source))
  except UserError as error:
    raise (UserError(f"{where}: {error}") if where else error) from None
  towers = {old: old.lower() for old in ("Encoder", "Decoder") if old.lower() not in loaded["params"]}
  return loaded | {"params": {towers.get(name, name): value for name, value in loaded["params"].items()}}


def save_vars(path: str | os.PathLike, variables: Any, *, dtype: Any = None) -> None:
  """Writes a system's variables as one .npz, atomically; what `load` reads back.

  Args:
    path: the file.
    variables: has `params` and `state`: trees of arrays that this process holds in full.
    dtype: of the floating-point parameters in the file, e.g. "bfloat16"; None leaves them as they are. The state (sums
      and counts) always keeps its own.
  """
  def cast(leaf):
    leaf = np.asarray(leaf)
    return leaf.astype(np.dtype(dtype)) if dtype is not None and _is_floating(leaf.dtype) else leaf

  save_npz(path, {"params": jax.tree.map(cast, variables.params), "state": variables.state})


def save_npz(path: str | os.PathLike, tree: Mapping[str, Any]) -> None:
  """Writes a tree of arrays as one .npz whose keys are the leaf names, atomically.

  Args:
    path: the file; its folder is made if need be.
    tree: usually {'params': …, 'state': …}. bfloat16 leaves are stored as 2-byte void, as numpy does with them.

  Raises:
    UserError: the path is a folder.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    raise UserError(f"{path}: is a folder; a file name such as {path / WEIGHTS_FILE} is wanted")
  path.parent.mkdir(parents=True, exist_ok=True)
  flat = {name: _storable(np.asarray(leaf)) for name, leaf in trees.flatten_names(tree)}
  temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
  try:
    with open(temporary, "wb") as file:
      np.savez(file, **flat)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _storable(array: np.ndarray) -> np.ndarray:
  return array.view("V2") if array.dtype == ml_dtypes.bfloat16 else array


def _is_floating(dtype: np.dtype) -> bool:
  return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """{key: array} of an .npz, without pickle; 2-byte void arrays come back as bfloat16.

  Raises:
    UserError: no such file, not an .npz, a damaged one, or one that holds other things than plain arrays.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    siblings = [p.name for p in path.parent.glob("*.npz")] if path.parent.is_dir() else []
    raise UserError(f"no file {path}; {suggest(path.name, siblings)}")
  try:
    data = np.load(path, allow_pickle=False)
    if isinstance(data, np.ndarray):
      raise UserError(f"{path}: a single array, not an .npz of named arrays")
    with data:
      arrays = {key: data[key] for key in data.files}
  except UserError:
    raise
  except READ_ERRORS as error:
    raise UserError(f"{path}: not a readable .npz of plain arrays ({error})") from error
  for key, array in arrays.items():
    if not isinstance(array, np.ndarray):
      raise UserError(f"{path}: '{key}' is no array; the file is some other kind of archive, not an .npz")
  return {key: _restored(array) for key, array in arrays.items()}


def _restored(array: np.ndarray) -> np.ndarray:
  return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def load_npz(path: str | os.PathLike) -> dict[str, Tree]:
  """{'params': tree, 'state': tree} of a weights file.

  Accepts the layouts that are around: `params/…` (beside `state/…`, `opt/…`, `chrono/…`), `opt/target/…` of old
  optimisers, or bare parameter names. `state` is {} when the file has none.

  Raises:
    UserError: see `read_npz`; a name that is an array and a group of arrays at once.
  """
  flat = read_npz(path)
  groups = {"/".join(parts[:i]) for key in flat if (parts := key.split("/")) for i in range(1, len(parts))}
  if clash := sorted(groups & set(flat)):
    raise UserError(f"{path}: '{clash[0]}' is both an array and a group of arrays")

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
  new_name = {name: f"{prefix}_{i}" for prefix, names in _numbered(tree).items() for i, name in enumerate(names)}
  return {new_name.get(name, name): renumber(value) if isinstance(value, Mapping) else value
          for name, value in tree.items()}


def _numbered(tree: Mapping[str, Any]) -> dict[str, list[str]]:
  """{prefix: its numbered module names in numeric order}."""
  found: dict[str, list[tuple[int, str]]] = {}
  for name, value in tree.items():
    if isinstance(value, Mapping) and (match := re.fullmatch(r"(.+)_(\d+)", name)):
      found.setdefault(match[1], []).append((int(match[2]), name))
  return {prefix: [name for _, name in sorted(pairs)] for prefix, pairs in found.items()}


def renumber_like(tree: Tree, model: Tree, *, _path: str = "") -> tuple[Tree, list[tuple[str, str]]]:
  """`renumber` where a model wants it: other names than the model's, as many of them, and the model counts from 0.

  So weights with names of our own (that may well start at 1, or be a user's) are never touched.

  Returns:
    The tree, and (module in the file, module of the model) for each that was renamed.
  """
  if not (isinstance(tree, Mapping) and isinstance(model, Mapping)):
    return tree, []
  wanted, new_name = _numbered(model), {}
  for prefix, names in _numbered(tree).items():
    linen = [f"{prefix}_{i}" for i in range(len(names))]
    if names != linen and wanted.get(prefix) == linen:
      new_name |= dict(zip(names, linen))
  changes = [(_path + old, _path + new) for old, new in new_name.items() if old != new]
  renamed = {}
  for name, value in tree.items():
    new = new_name.get(name, name)
    renamed[new], below = renumber_like(value, model.get(new), _path=f"{_path}{new}/")
    changes += below
  return renamed, changes


class Report(NamedTuple):
  """What became of each leaf, by name; `misshaped` holds (name, shape in the file, shape wanted).

  Attributes:
    taken: from the file.
    kept: in the initialised tree, since a `dont_load` pattern matches them.
    missing: in the tree, absent from the file.
    extra: in the file only.
    misshaped: in both with different shapes.
    renumbered: (module in the file, module of the model) where the file counts modules in an older way.
  """
  taken: tuple[str, ...]
  kept: tuple[str, ...]
  missing: tuple[str, ...]
  extra: tuple[str, ...]
  misshaped: tuple[tuple[str, tuple, tuple], ...]
  renumbered: tuple[tuple[str, str], ...] = ()

  @property
  def fits(self) -> bool:
    """Every leaf was taken or deliberately kept, and the file has nothing else."""
    return not (self.missing or self.extra or self.misshaped)

  def counts(self) -> str:
    """"2 taken, 1 kept, 0 missing, 0 extra, 0 mis-shaped"."""
    return ", ".join(f"{len(getattr(self, field))} {field.replace('misshaped', 'mis-shaped')}"
                     for field in ("taken", "kept", "missing", "extra", "misshaped"))

  def _lists(self) -> dict[str, list[str]]:
    """{title: one text a name} of everything but the taken ones."""
    return {"kept": list(self.kept), "missing": list(self.missing), "extra": list(self.extra),
            "mis-shaped": [f"{name}: file {have}, model {want}" for name, have, want in self.misshaped],
            "renumbered": [f"{old} -> {new}" for old, new in self.renumbered]}

  def text(self, *, limit: int = 20) -> str:
    """Counts in the first line, then the names of all but the taken ones (at most `limit` of each kind)."""
    lines = [self.counts()]
    for title, names in self._lists().items():
      lines += [f"  {title}:"] * bool(names) + [f"    {name}" for name in names[:limit]]
      lines += [f"    … and {len(names) - limit} more"] * (len(names) > limit)
    return "\n".join(lines)

  def line(self, *, limit: int = 3) -> str:
    """What does not fit as one line: the counts and the first names of each kind."""
    problems = {title: names for title, names in self._lists().items() if title in ("missing", "extra", "mis-shaped")}
    parts = [f"{title} {', '.join(names[:limit])}{', …' * (len(names) > limit)}"
             for title, names in problems.items() if names]
    return "; ".join([self.counts(), *parts])


def compare(init: Tree, loaded: Tree, dont_load: Sequence[str] = (), *, where: str = "weights") -> Report:
  """The report of `merge` alone; `init` may be shapes.

  Raises:
    UserError: a `dont_load` pattern that matches nothing, or is no regular expression.
  """
  return _fit(init, loaded, dont_load, where=where)[0]


def merge(init: Tree, loaded: Tree, dont_load: Sequence[str] = (), *, strict: bool = True,
          where: str = "weights") -> tuple[Tree, Report]:
  """The initialised tree with its leaves taken from `loaded`, and a report.

  Args:
    init: tree of arrays or shapes; its structure and dtypes are those of the result.
    loaded: tree of arrays; modules that it counts in the old way are renumbered, see `renumber_like`.
    dont_load: patterns of full names; a matching leaf keeps its initial value, or is ignored when the file alone
      has it.
    strict: missing, extra or mis-shaped leaves are an error; otherwise initial values stand in for them.
    where: place named in the error.

  Raises:
    UserError: strict and not everything fits; a leaf that keeps its initial value where `init` has only its shape; a
      leaf that holds no numbers; a `dont_load` pattern that matches nothing.
  """
  report, have = _fit(init, loaded, dont_load, where=where)
  if strict and not report.fits:
    raise UserError(f"{where}: does not fit the model: {report.line()}")
  taken = set(report.taken)
  for name, leaf in trees.flatten_names(init):
    if name not in taken and isinstance(leaf, jax.ShapeDtypeStruct):
      raise UserError(f"{where}: '{name}' has no value: it is not taken from the file, and nothing is initialised here")
    if name in taken and have[name].dtype.kind not in "biuf" and have[name].dtype != ml_dtypes.bfloat16:
      raise UserError(f"{where}: '{name}' holds {have[name].dtype}, no real numbers")
  merged = trees.map_names(lambda name, leaf: have[name].astype(leaf.dtype) if name in taken else leaf, init)
  return merged, report


def _fit(init: Tree, loaded: Tree, dont_load: Sequence[str], *, where: str) -> tuple[Report, dict[str, np.ndarray]]:
  """The report, and {name in the model: array of the file}."""
  loaded, renumbered = renumber_like(loaded, init)
  want = dict(trees.flatten_names(init))
  have = {name: np.asarray(leaf) for name, leaf in trees.flatten_names(loaded)}
  patterns = list(dont_load)
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(f"{where}: dont_load: '{pattern}' is no regular expression ({error})") from None
  trees.check_patterns_used(patterns, list(want | have), where=f"{where}: dont_load")
  kept = {name for name in want | have if trees.match_first(name, patterns) is not None}
  shared = [name for name in want if name in have and name not in kept]
  wrong = {name: (name, tuple(have[name].shape), tuple(want[name].shape)) for name in shared
           if tuple(have[name].shape) != tuple(want[name].shape)}
  return Report(
      taken=tuple(name for name in shared if name not in wrong),
      kept=tuple(name for name in want if name in kept),
      missing=tuple(name for name in want if name not in have and name not in kept),
      extra=tuple(name for name in have if name not in want and name not in kept),
      misshaped=tuple(wrong.values()), renumbered=tuple(renumbered)), have
