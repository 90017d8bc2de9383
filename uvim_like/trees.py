"""Trees of arrays under path names: "decoder/LogitsDense/kernel", as checkpoints, regexes and reports write them."""

import re
from collections.abc import Mapping
from typing import Any

import jax

from uvim_like.errors import UserError, suggest

Tree = Any


def key_name(key: Any) -> str:
  """One part of a pytree path as text: dict key, attribute or list index."""
  for attribute in ("key", "name", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def flatten_names(tree: Tree) -> list[tuple[str, Any]]:
  """(name, leaf) of every leaf, names joined by "/", in jax's leaf order."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [("/".join(map(key_name, path)), leaf) for path, leaf in leaves]


def map_names(function, tree: Tree, *rest: Tree) -> Tree:
  """Like `jax.tree.map`, with the leaf's name as the first argument: `function(name, leaf, *others)`."""
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf, *others: function("/".join(map(key_name, path)), leaf, *others), tree, *rest)


def unflatten_names(flat: Mapping[str, Any]) -> dict:
  """The nested dict of a mapping "a/b/c" -> leaf (the inverse of `flatten_names` for dicts)."""
  tree: dict = {}
  for name, leaf in flat.items():
    *parents, last = name.split("/")
    node = tree
    for part in parents:
      node = node.setdefault(part, {})
    node[last] = leaf
  return tree


def match_first(name: str, patterns: list[str]) -> int | None:
  """Index of the first pattern that matches the full name, or None."""
  return next((i for i, pattern in enumerate(patterns) if re.fullmatch(pattern, name)), None)


def check_pattern(pattern: str, *, where: str) -> None:
  """Raises UserError unless the text is a regular expression."""
  try:
    re.compile(pattern)
  except (re.error, OverflowError, RecursionError) as error:
    raise UserError(f"{where}: '{pattern}' is no regular expression ({error})") from None


def check_patterns_used(patterns: list[str], names: list[str], *, where: str) -> None:
  """Raises UserError when a pattern matches no name at all: a typo there would otherwise train silently.

  Shadowed patterns (everything they match was taken by an earlier one) are allowed: the listings have none,
  but "first match wins" is how people write a default at the end.
  """
  for pattern in patterns:
    check_pattern(pattern, where=where)
    if not any(re.fullmatch(pattern, name) for name in names):
      raise UserError(f"{where}: pattern '{pattern}' matches no parameter; "
                      f"{suggest(pattern, {n.split('/')[0] for n in names} | set(names))}")
