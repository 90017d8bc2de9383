"""What every command does around its work: a mistake is one line and exit status 2."""

import sys
from collections.abc import Callable, Sequence

from uvim_like import config as configs
from uvim_like.errors import UserError
from uvim_like.training import workdir as workdirs

MISTAKE = 2


def exit_status(name: str, run: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
  """Runs a command's work and returns the exit status.

  A UserError, and a disk that takes no more, become one line on the error stream; with `--debug` among the words the
  traceback is shown.

  Args:
    name: before the line.
    run: (words) -> exit status; None is 0.
    argv: the words; those of the process by default.
  """
  words = list(sys.argv[1:] if argv is None else argv)
  try:
    return run(words) or 0
  except (UserError, OSError) as error:
    reason = None if isinstance(error, UserError) else workdirs.disk_reason(error)
    if "--debug" in words or not (reason or isinstance(error, UserError)):
      raise
    place = f"{error.filename}: " if reason and error.filename else ""
    print(f"{name}: {place}{reason or error}", file=sys.stderr)
    return MISTAKE


def overrides_of_run(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """(overrides "key=value", the other words) of a command about a finished run, whose own config is used.

  Raises:
    UserError: a config file is named.
  """
  spec, overrides, rest = configs.split_argv(argv)
  if spec is not None:
    raise UserError("--config: the run's own config is taken; single values change by --config.key=value")
  return overrides, rest
