"""Configs as JSON text and back, exactly; and what differs between two of them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections as mlc

from uvim_like.errors import UserError

ABSENT = "(absent)"
# JSON has no tuples. They are written as lists, so that the text reads plainly, and their places as JSON pointers
# (RFC 6901) under this key.
TUPLES = "__tuples__"


def plain(config: Any) -> Any:
  """A config as nested dicts, lists and tuples of Python values, references resolved.

  Raises:
    UserError: a required placeholder without value.
  """
  if isinstance(config, mlc.ConfigDict):
    return {key: plain(_get(config, key)) for key in config}
  if isinstance(config, Mapping):
    return {key: plain(value) for key, value in config.items()}
  if isinstance(config, (list, tuple)):
    return type(config)(map(plain, config)) if type(config) in (list, tuple) else tuple(map(plain, config))
  return config


def _get(config: mlc.ConfigDict, key: str) -> Any:
  try:
    return config[key]
  except mlc.config_dict.RequiredValueError:
    raise UserError(f"config: '{key}' has no value yet; give it one, e.g. --config.{key}=…") from None


def to_json(config: mlc.ConfigDict) -> str:
  """The text of `config.json`: values resolved, keys in the config's order, tuples remembered.

  Raises:
    UserError: a value that JSON cannot hold (arrays, functions, dtypes, nan), with its key.
  """
  tree = plain(config)
  tuples = list(_check_values(tree, ""))
  return json.dumps({**tree, TUPLES: tuples}, indent=2, allow_nan=False) + "\n"


def from_json(text: str) -> mlc.ConfigDict:
  """The config that `to_json` wrote: equal to it with references resolved, tuples as tuples.

  Raises:
    UserError: not JSON, or no object.
  """
  try:
    tree = json.loads(text)
  except json.JSONDecodeError as error:
    raise UserError(f"config.json: no JSON ({error})") from None
  if not isinstance(tree, dict):
    raise UserError("config.json: an object is expected at the top")
  tuples = set(tree.pop(TUPLES, ()))
  return mlc.ConfigDict(_with_tuples(tree, "", tuples))


def _children(tree: Any, pointer: str) -> list[tuple[Any, str, Any]]:
  """(key, JSON pointer, value) of each entry of a dict, list or tuple; nothing for other values."""
  entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
  return [(key, f"{pointer}/" + str(key).replace("~", "~0").replace("/", "~1"), value) for key, value in entries]


def _check_values(tree: Any, pointer: str):
  """Yields the pointers of all tuples; UserError for what JSON cannot hold."""
  if isinstance(tree, tuple):
    yield pointer
  for key, below, value in _children(tree, pointer):
    if isinstance(tree, dict) and not isinstance(key, str):
      raise UserError(f'config{below.replace("/", ".")}: the key {key!r} is no string, config.json cannot hold it')
    yield from _check_values(value, below)
  finite = not isinstance(tree, float) or abs(tree) < float("inf")
  if not (isinstance(tree, (dict, list, tuple, str, bool, int, float)) or tree is None) or not finite:
    raise UserError(f'config{pointer.replace("/", ".")}: {tree!r} is no text, finite number, list or dict; '
                    'config.json cannot hold it')


def _with_tuples(tree: Any, pointer: str, tuples: set[str]) -> Any:
  rebuilt = [(key, _with_tuples(value, below, tuples)) for key, below, value in _children(tree, pointer)]
  if isinstance(tree, dict):
    return dict(rebuilt)
  if isinstance(tree, list):
    return (tuple if pointer in tuples else list)(value for _, value in rebuilt)
  return tree


def diff(a: mlc.ConfigDict, b: mlc.ConfigDict) -> list[tuple[str, Any, Any]]:
  """What differs, for the message when a run resumes with another config.

  Returns:
    (dotted key, value in a, value in b) in order of keys, `ABSENT` where one has none. A list and a tuple with the same
    entries do not differ: nothing reads the difference.
  """
  left, right = dict(leaves(plain(a))), dict(leaves(plain(b)))
  keys = sorted(set(left) | set(right))
  pairs = [(key, left.get(key, ABSENT), right.get(key, ABSENT)) for key in keys]
  return [(key, x, y) for key, x, y in pairs if _as_lists(x) != _as_lists(y)]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """(dotted key, value) of everything in a config that is no block; an empty block counts as a value."""
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _as_lists(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _as_lists(entry) for key, entry in value.items()}
  return [_as_lists(entry) for entry in value] if isinstance(value, (list, tuple)) else value
