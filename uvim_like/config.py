"""Configs as callers use them: read a file, override, check, fill in defaults, save, compare.

The schema and its checks are in `config_schema`, the JSON form in `config_json`.
"""

import ast
import contextlib
import importlib.util
import inspect
import logging
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ml_collections as mlc

from uvim_like.config_json import diff, from_json, plain, to_json
from uvim_like.config_schema import EVAL_SCHEMA, SCHEMA, TEXT, check, eval_blocks, inherited, resolve, with_defaults
from uvim_like.errors import UserError, suggest, unknown
from uvim_like.own_data import form
from uvim_like.own_data.facts import as_arguments

__all__ = ["ROOT", "EVAL_SCHEMA", "SCHEMA", "check", "diff", "from_json", "inherited", "load_file", "override", "plain",
           "resolve", "split_argv", "to_json", "with_defaults"]

ROOT = pathlib.Path(__file__).resolve().parent.parent
log = logging.getLogger(__name__)
MAX_VALUE = 100_000   # characters of an override's value; a preprocessing string has some hundreds
MAX_DEPTH = 20   # of blocks in an override's path, and of lists and dicts in its value
# What running a config file, which is anybody's Python, mostly raises.
CONFIG_ERRORS = (NameError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError, ImportError,
                 AssertionError, OSError, RecursionError)


def split_argv(argv: Sequence[str]) -> tuple[str | None, list[str], list[str]]:
  """Takes the config's flags out of a command line.

  Args:
    argv: e.g. ["--config=a.py:scenes", "--config.lr=1e-3", "--workdir", "d"]; values may follow as words of their own.

  Returns:
    The file (None when not given), the overrides as "key=value", and the words that remain.

  Raises:
    UserError: a flag without value.
  """
  spec, overrides, rest = None, [], []
  words = iter(argv)
  for word in words:
    flag, equals, value = word.partition("=")
    name = flag.lstrip("-")
    if not flag.startswith("-") or not (name == "config" or name.startswith("config.")):
      rest.append(word)
      continue
    if not equals:
      value = next(words, None)
      if value is None:
        raise UserError(f"{flag} needs a value: {flag}=…")
    if name == "config":
      spec = value
    else:
      overrides.append(f'{name.removeprefix("config.")}={value}')
  return spec, overrides, rest


def load_file(spec: str, overrides: Iterable[str] = ()) -> mlc.ConfigDict:
  """The config of "FILE.py" or "FILE.py:arguments" with overrides applied, references alive; not yet checked.

  The argument `folder` with an override "data_dir=D" reads what the config must know of somebody's own data in D;
  finished examples (dataset "npz") may have the names of their classes beside them.

  Args:
    spec: as after `--config=`.
    overrides: "key=value" or "block.key=value", see `override`.

  Raises:
    UserError: no such file, no `get_config` in it, wrong arguments or overrides; all that is wrong with own data.
  """
  path, colon, arg = spec.partition(":")
  path = os.path.expanduser(path)
  with _mistakes_of(path):
    get_config = getattr(_load_module(pathlib.Path(path)), "get_config", None)
  if get_config is None:
    raise UserError(f"{path}: defines no function 'get_config'")
  if colon and not inspect.signature(get_config).parameters:
    raise UserError(f"{path}: takes no arguments, but was given '{arg}'")
  overrides = list(overrides)
  config = _built(get_config, path, [arg] if colon else [])
  if data_dir := form.data_dir_of(arg, overrides):
    found = form.read(config, data_dir)
    # What was written by hand comes last and counts.
    config = _built(get_config, path, [f"{as_arguments(found.arguments)},{arg}"])
    form.put(config, found, data_dir)
    for note in form.notes(config, found):
      log.warning("%s: %s", data_dir, note)
  for text in overrides:
    override(config, text)
  form.put_stored_names(config)
  return config


def _built(get_config: Callable, path: str, arguments: Sequence[str]) -> mlc.ConfigDict:
  """What a config file's function returns; UserError with the place of its mistake."""
  with _mistakes_of(path):
    config = get_config(*arguments)
  if not isinstance(config, mlc.ConfigDict):
    raise UserError(f"{path}: get_config must return an ml_collections.ConfigDict, not {type(config).__name__}")
  return config


@contextlib.contextmanager
def _mistakes_of(path: str) -> Iterator[None]:
  """Shows what goes wrong in somebody's config file as one line with the place in that file."""
  try:
    yield
  except UserError:
    raise
  except SyntaxError as error:
    code = (error.text or "").strip()[:80]
    raise UserError(f"{error.filename or path}:{error.lineno}: {error.msg}: {code}") from error
  except CONFIG_ERRORS as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename in (path, os.path.abspath(path))]
    place = f"{path}:{lines[-1]}" if lines else path
    raise UserError(f"{place}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def _load_module(path: pathlib.Path):
  """Runs a config file; the repository's root is importable, so that `from configs import common` works anywhere."""
  try:
    found = path.is_file()
  except OSError as error:   # a name of thousands of characters
    raise UserError(f"--config: '{str(path)[:80]}…': {error.strerror}") from error
  if not found:
    siblings = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    raise UserError(f"--config: no file '{path}'; {suggest(str(path), siblings)}")
  if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
  spec = importlib.util.spec_from_file_location(f"config_file_{path.stem}", path)
  if spec is None:
    raise UserError(f"--config: '{path}' is no Python file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def override(config: mlc.ConfigDict, text: str) -> None:
  """Sets one value in place, as `--config.a.b=value`; whatever refers to it by `get_ref` follows.

  Values are Python literals, and plain words where the key holds a string. A key must be in the config already, or be
  an optional one of the schema. A new value has the type of the old: integers serve as floats, lists as tuples and the
  reverse, None anywhere.

  Raises:
    UserError: unknown key with the nearest valid one, or a value of another type.
  """
  path, equals, value = text.partition("=")
  if not equals or not path:
    raise UserError(f"override '{text}': key=value is expected")
  *parents, key = path.split(".")
  if len(parents) > MAX_DEPTH:
    raise UserError(f"override '{text:.80}…': more than {MAX_DEPTH} blocks deep")
  where, block = "config", config
  for i, parent in enumerate(parents):
    if parent not in block and i == 0 and isinstance(getattr(SCHEMA.get(parent), "default", None), dict):
      block[parent] = mlc.ConfigDict(SCHEMA[parent].default)
    if parent not in block:
      raise unknown("key", parent, {*block, *_optional(config, parents[:i])}, where=where)
    block, where = block[parent], f"{where}.{parent}"
    if not isinstance(block, mlc.ConfigDict):
      raise UserError(f"{where}: {block!r} is no block, '{path}' cannot be set")
  schema = _optional(config, parents)
  if key not in block and key not in schema:
    raise unknown("key", key, {*block, *schema}, where=where)
  is_text = key in schema and schema[key].kind is TEXT
  _set(block, key, parse_value(value, block.get(key), is_text=is_text, where=f"{where}.{key}"), where=f"{where}.{key}")


def _optional(config: mlc.ConfigDict, parents: Sequence[str]) -> dict:
  """Keys that may be absent under the block `parents`."""
  if not parents:
    return SCHEMA
  return EVAL_SCHEMA if len(parents) == 1 and parents[0] in eval_blocks(plain(config)) else {}


def _set(block: mlc.ConfigDict, key: str, value: Any, *, where: str) -> None:
  try:
    with block.unlocked():
      block[key] = value
  except (TypeError, ValueError, KeyError, AttributeError) as error:   # ConfigDict's words for such names
    raise UserError(f"{where}: {error.args[0] if error.args else error}") from None


def parse_value(text: str, current: Any, *, is_text: bool = False, where: str = "config") -> Any:
  """`text` as a value of the type of `current`; None for `current` takes any.

  Raises:
    UserError: another type.
  """
  if len(text) > MAX_VALUE:
    raise UserError(f"{where}: a value of {len(text)} characters; at most {MAX_VALUE} are read")
  value = _literal(text)
  if _depth(value, MAX_DEPTH) > MAX_DEPTH:
    raise UserError(f"{where}: more than {MAX_DEPTH} lists and dicts inside each other")
  if value is None:
    return None
  if isinstance(current, str) or is_text:
    return value if isinstance(value, str) else text
  if isinstance(current, bool):
    value = {"true": True, "false": False}.get(text.strip().lower(), value)
  if isinstance(current, float) and type(value) is int:
    return float(value)
  if isinstance(current, (list, tuple)) and isinstance(value, (list, tuple)):
    return type(current)(value)
  if isinstance(current, mlc.ConfigDict) and isinstance(value, dict):
    return _block(value, where)
  if current is not None and type(value) is not type(current):
    kind = "dict" if isinstance(current, mlc.ConfigDict) else type(current).__name__
    raise UserError(f"{where}: wants a value of type {kind} like {plain(current)!r}, not '{text}'")
  return value


def _literal(text: str) -> Any:
  """The Python literal that a text is, the text itself where it is none; never anything that runs."""
  try:
    return ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
    return text


def _depth(value: Any, limit: int) -> int:
  """How many lists, tuples, sets and dicts are inside each other; it looks no deeper than the limit."""
  if not isinstance(value, (list, tuple, set, dict)) or limit < 0:
    return 0
  inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
  return 1 + max((_depth(entry, limit - 1) for entry in inner), default=0)


def _block(value: dict, where: str) -> mlc.ConfigDict:
  """A dict as a block; UserError for keys that no block can have."""
  try:
    return mlc.ConfigDict(value)
  except (TypeError, ValueError, KeyError, AttributeError) as error:
    raise UserError(f"{where}: {error.args[0] if error.args else error}") from None
