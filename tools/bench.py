"""`python -m tools.bench uvim|ait|mad [--rows=A,B] [--repeats=N]`: speed and memory, forms side by side in one run.

  uvim   a stage I step with integer labels against one-hot labels, memory of Listing 1, decoding, start-up
  ait    depth in 225 tokens, one by one and in one pass, and the tokenizer, beside the authors' times
  mad    four tasks of one image: calls of the decoder, times of the three ways to decode, cost and memory by instances

Times come from alternating runs on whatever the machine is doing meanwhile; quote the ratios.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

import jax

from tools import shell
from uvim_like.errors import UserError, unknown
from uvim_like.flags import Parser
from uvim_like.training.logs import table_text

PARTS = ("uvim", "ait", "mad")


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Flags, checked as far as they do not depend on the part.

  Raises:
    UserError: naming the flag and the nearest valid value.
  """
  parser = Parser(prog="python -m tools.bench", description=__doc__)
  parser.add_argument("what", help=f"one of {', '.join(PARTS)}")
  parser.add_whole("--repeats", default=7, help="timed runs of each form")
  parser.add_argument("--rows", default=None, help="parts of the table, with commas; all by default")
  flags = parser.parse_args(argv)
  if flags.what not in PARTS:
    raise unknown("system", flags.what, PARTS, where="bench")
  return flags


def wanted(rows: str | None, part: ModuleType) -> list[str]:
  """The names in `--rows`, or all of a part; UserError for one that it has not."""
  names = list(part.ROWS) if rows is None else [name for name in rows.split(",") if name]
  for name in names:
    if name not in part.ROWS:
      raise unknown("rows", name, part.ROWS, where="--rows")
  if not names:
    raise UserError(f"--rows: is empty; valid: {', '.join(part.ROWS)}")
  return names


def run(flags: argparse.Namespace) -> None:
  """Measures and prints the table."""
  part = importlib.import_module(f"tools.benchmarks.bench_{flags.what}")
  rows = []
  for name in wanted(flags.rows, part):
    rows += part.ROWS[name](repeats=flags.repeats)
  print(f"jax {jax.__version__}, {jax.devices()[0].device_kind} x {jax.device_count()}")
  print(table_text(part.HEADER, rows))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit code: 0, or 2 after a person's mistake, shown as one line."""
  return shell.exit_status("bench", lambda words: run(parse(words)), argv)


if __name__ == "__main__":
  sys.exit(main())
