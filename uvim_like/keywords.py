"""Options that a config hands to a function: their names are checked before anything calls it."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from uvim_like.errors import UserError, unknown

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def describe(function: functools.partial, *, rest: Callable | None = None, **blocks: Callable) -> functools.partial:
  """`function`, with what its signature does not say.

  Args:
    function: takes options by keyword.
    rest: the function that gets its **options.
    **blocks: option, itself a dict -> the function that gets it as keywords.
  """
  out = functools.partial(function)
  out.rest, out.blocks = rest, blocks
  return out


def names(function: Callable, *, after_data: bool) -> dict[str, bool]:
  """Options that a function still takes -> whether they must be given; what a partial has set already is none.

  Args:
    function: any, or of `describe`.
    after_data: positional parameters without default are data and no options.
  """
  bound, found = getattr(function, "keywords", {}), {}
  for parameter in inspect.signature(function).parameters.values():
    missing = parameter.default is parameter.empty
    data = after_data and missing and parameter.kind in POSITIONAL
    if parameter.kind in (*POSITIONAL, parameter.KEYWORD_ONLY) and parameter.name not in bound and not data:
      found[parameter.name] = missing
  rest = getattr(function, "rest", None)
  return found if rest is None else names(rest, after_data=after_data) | found


def check(function: Callable, given: Mapping[str, Any], *, where: str, after_data: bool = True) -> None:
  """Raises UserError unless a function takes these options, with the nearest that it does; see `names`."""
  accepted = names(function, after_data=after_data)
  for name in given:
    if name not in accepted:
      raise unknown("option", name, accepted, where=where)
  for name, needed in accepted.items():
    if needed and name not in given:
      raise UserError(f"{where}: option '{name}' is missing")
  for name, inner in getattr(function, "blocks", {}).items():
    if given.get(name):
      check(inner, given[name], where=f"{where}.{name}")
