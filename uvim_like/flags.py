"""Command-line flags whose mistakes are one line with the nearest valid flag, like every other mistake."""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

from uvim_like.errors import UserError, unknown

DIGITS = 18   # of a whole number: more are a slip of the keyboard


class Parser(argparse.ArgumentParser):
  """An ArgumentParser that raises UserError; flags are never abbreviated, and `--debug` is one of them.

  `--debug` itself is acted on where mistakes are shown (`tools.shell`, `train`).
  """

  def __init__(self, **options):
    super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **options})
    self.add_argument("--debug", action="store_true", help="show the traceback of a mistake")

  def add_whole(self, flag: str, *, least: int = 1, **options: Any) -> None:
    """A flag that is a whole number of at least `least`; options as `add_argument`."""
    self.add_argument(flag, type=functools.partial(_whole, least=least), **options)

  def error(self, message: str):
    raise UserError(message.removeprefix("argument "))

  def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
    """As argparse; UserError for an unknown flag, a word that belongs to none, a missing flag or value."""
    flags, rest = self.parse_known_args(args, namespace)
    if rest and rest[0].startswith("-"):
      valid = [option for action in self._actions for option in action.option_strings]
      raise unknown("flag", rest[0].partition("=")[0], valid)
    if rest:
      raise UserError(f"'{rest[0]}' belongs to no flag; flags are written --name=value")
    return flags


def whole(text: str, flag: str, *, least: int = 1) -> int:
  """The whole number that a text says; UserError that names the flag for anything else, or less than `least`."""
  try:
    return _whole(text, least)
  except argparse.ArgumentTypeError as error:
    raise UserError(f"{flag}: {error}") from None


def _whole(text: str, least: int) -> int:
  """The same as the `type` of a flag, whose name argparse puts before the message."""
  if not (text.isascii() and text.isdigit() and len(text) <= DIGITS) or int(text) < least:
    raise argparse.ArgumentTypeError(f"'{text:.50}' is no whole number from {least} on")
  return int(text)
