"""The one kind of error that is a person's to mend: shown as a single line, without a traceback."""

import difflib
from collections.abc import Iterable

MAX_NAME = 200  # characters of somebody's name for something that a message shows


class UserError(ValueError):
  """A mistake in a config, a flag, a file or a dataset; the message names the place and the nearest valid choice."""


def suggest(name: str, choices: Iterable[str]) -> str:
  """The nearest valid name, or all of them when none is near: the second half of every "unknown …" message.

  Args:
    name: what was written.
    choices: what would have been valid.

  Returns:
    "did you mean 'x'?" or "valid: a, b, c" (at most twenty names).
  """
  choices = sorted(map(str, choices))
  name = name[:MAX_NAME]
  near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
  if near:
    return f"did you mean '{near[0]}'?"
  shown = ", ".join(choices[:20]) + (", …" if len(choices) > 20 else "")
  return f"valid: {shown}" if choices else "nothing is valid here"


def unknown(what: str, name: str, choices: Iterable[str], *, where: str = "") -> UserError:
  """The error for a name that does not exist, e.g. `unknown("op", "resise", OPS, where="pp_train")`."""
  place = f"{where}: " if where else ""
  return UserError(f"{place}unknown {what} '{shortened(name)}'; {suggest(name, choices)}")


def shortened(name: str) -> str:
  """A name as messages show it."""
  return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…"
