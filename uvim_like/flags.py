"""Command-line flags whose mistakes are one line with the nearest valid flag, like every other mistake."""

import argparse
from collections.abc import Sequence

from uvim_like.errors import UserError, unknown


class Parser(argparse.ArgumentParser):
  """An ArgumentParser that raises UserError; flags are never abbreviated."""

  def __init__(self, **options):
    super().__init__(**{"allow_abbrev": False, **options})

  def error(self, message: str):
    raise UserError(message)

  def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
    """As argparse; UserError for an unknown flag, a word that belongs to none, a missing flag or value."""
    flags, rest = self.parse_known_args(args, namespace)
    if rest and rest[0].startswith("-"):
      valid = [option for action in self._actions for option in action.option_strings]
      raise unknown("flag", rest[0].partition("=")[0], valid)
    if rest:
      raise UserError(f"'{rest[0]}' belongs to no flag; flags are written --name=value")
    return flags
