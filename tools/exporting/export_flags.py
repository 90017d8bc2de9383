"""The flags of tools.export."""

import argparse
import pathlib
from collections.abc import Sequence

from tools import shell
from uvim_like import flags as flag_tools
from uvim_like.errors import UserError, unknown

FILES = {"npz": "weights.npz", "safetensors": "weights.safetensors", "hf": "hf", "stablehlo": "stablehlo",
         "savedmodel": "savedmodel"}   # format -> name in the folder --out, where several are asked for
FORMATS = tuple(FILES)
SUFFIXES = {"npz": ".npz", "safetensors": ".safetensors"}   # of single files; the others are folders
PROGRAMS = ("stablehlo", "savedmodel")


def parse(argv: Sequence[str], *, description: str) -> tuple[argparse.Namespace, list[str]]:
  """Flags, checked, and overrides of the run's config.

  Args:
    argv: words of the command line.
    description: what --help says of the command.

  Raises:
    UserError: naming the flag and the nearest valid value.
  """
  overrides, rest = shell.overrides_of_run(argv)
  parser = flag_tools.Parser(prog="python -m tools.export", description=description,
                             epilog="--config.key=value changes a key of the run's config, e.g. where stage I lies.")
  parser.add_argument("--workdir", required=True, help="folder of a training")
  parser.add_argument("--format", default="npz", help=f"of {', '.join(FORMATS)}; several with commas")
  parser.add_argument("--out", help="file or folder to write; with several formats a folder for all of them")
  parser.add_argument("--check", metavar="PATH", help="compare what was exported before; nothing is written")
  parser.add_whole("--step", least=0, help="a checkpoint's step; default: the newest that can be read")
  parser.add_argument("--view", default=None, help="of programs: the evaluation of the config that is wanted")
  parser.add_argument("--input_size", default=None, metavar="HxW", help="of programs: of all pictures, where the "
                      "preprocessing does not bring every picture to one size")
  parser.add_argument("--full_size", action="store_true", help="of programs: maps at the picture's size")
  parser.add_argument("--tolerance", default=None, help="of programs: of numbers, relative to the largest of an output")
  flags = parser.parse_args(rest)
  flags.workdir = pathlib.Path(flags.workdir).expanduser()
  flags.input_size = None if flags.input_size is None else _size(flags.input_size)
  flags.tolerance = None if flags.tolerance is None else _number(flags.tolerance, "--tolerance")
  flags.format = [name.strip() for name in flags.format.split(",")]
  for name in flags.format:
    if name not in FORMATS:
      raise unknown("value", name, FORMATS, where="--format")
  if bool(flags.out) == bool(flags.check):
    raise UserError("--out: give the file or folder to write, or --check=PATH to compare what is there")
  flags.check = flags.check and pathlib.Path(flags.check).expanduser()
  flags.out = flags.out and pathlib.Path(flags.out).expanduser()
  if flags.out and len(flags.format) == 1:
    suffix = SUFFIXES.get(flags.format[0])
    if suffix and flags.out.suffix != suffix:
      raise UserError(f"--out: '{flags.out}' is no {suffix} file name; did you mean '{flags.out}{suffix}'?")
  return flags, overrides


def _number(text: str, flag: str) -> float:
  try:
    value = float(text)
  except ValueError:
    raise UserError(f"{flag}: '{text}' is no number") from None
  if not 0 <= value < float("inf"):
    raise UserError(f"{flag}: {text} must be 0 or more")
  return value


def _size(text: str) -> tuple[int, int]:
  sides = text.lower().split("x")
  sides = sides * 2 if len(sides) == 1 else sides
  if len(sides) != 2 or not all(sides):
    raise UserError(f"--input_size: '{text}' is no HEIGHTxWIDTH, e.g. 480x640")
  height, width = (flag_tools.whole(side, "--input_size") for side in sides)
  return height, width
