"""What is wrong with a dataset, all of it: `python -m tools.make_data check --dataset=folder --data_dir=D`.

Prints a line for each problem with the id of its example, and how many there are; exit status 0 when there are none, 1
when there are some, 2 after a mistake in the flags.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tools import shell
from uvim_like import flags
from uvim_like.errors import UserError
from uvim_like.own_data.problems import Problem, summary, watched

__all__ = ["Options", "Problem", "check", "main", "summary", "watched"]


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit status."""
  return shell.exit_status("make_data check", command, argv)


def command(argv: Sequence[str]) -> int:
  """Prints the problems; 1 where there are some."""
  parser = flags.Parser(prog="python -m tools.make_data check", description=__doc__)
  parser.add_argument("--dataset", required=True, help="folder, coco_json, npz, scenes or a TFDS name, as in a config")
  parser.add_argument("--data_dir", default=None, help="where it is, as in a config")
  parser.add_argument("--split", default=None, help="only this split; a TFDS name needs one, e.g. train[:10%%]")
  parser.add_argument("--classes", default="", help="number of classes of labels, by channel: 11 or 134,100; without "
                      "it as many as the dataset itself names (classes.txt), if it does")
  parser.add_argument("--ignore", default="255", help="label values that stand for void, beside the classes")
  given = parser.parse_args(argv)
  options = Options(_numbers(given.classes, "--classes"), frozenset(_numbers(given.ignore, "--ignore")), given.split)
  total, problems = check(given.dataset, given.data_dir, options)
  for problem in problems:
    print(problem.line())
  print(summary(total, problems))
  return 1 if problems else 0


class Options(NamedTuple):
  """What is checked beside the files themselves.

  Attributes:
    classes: number of classes in each channel of labels; () when unknown.
    ignore: values beside these.
    split: the only one; None for all.
  """
  classes: tuple[int, ...] = ()
  ignore: frozenset[int] = frozenset()
  split: str | None = None


def _numbers(text: str, flag: str) -> tuple[int, ...]:
  words = [word.strip() for word in text.split(",") if word.strip()]
  if not all(word.isascii() and word.isdigit() for word in words):
    raise UserError(f"{flag}: '{text}' is not whole numbers with commas, e.g. 134,100")
  return tuple(map(int, words))


def check(dataset: str, data_dir: str | None, options: Options) -> tuple[int, list[Problem]]:
  """(number of examples looked at, all problems in the order of the data).

  Raises:
    UserError: no such dataset, folder or split: nothing could be looked at.
  """
  kind, _, path = dataset.partition(":")
  if kind == "npz":
    from tools.checking import check_arrays
    return check_arrays.check(data_dir or path, options)
  from tools.checking import check_files  # TensorFlow, which the readers need
  if kind in ("folder", "coco_json"):
    root = path or data_dir
    if not root:
      raise UserError(f"--data_dir is missing: the folder of dataset '{dataset}'")
    return check_files.check(root, coco=kind == "coco_json", options=options)
  from tools.checking import check_source
  return check_source.check(dataset, data_dir, options)
