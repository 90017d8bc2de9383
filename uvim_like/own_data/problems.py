"""One thing that is wrong with somebody's data, and how many of each sort there are."""

import collections
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tqdm import tqdm


class Problem(NamedTuple):
  """One thing that is wrong: which example, what sort, the details."""
  example: str
  kind: str
  detail: str = ""

  def line(self) -> str:
    """E.g. "train/street_3: image does not decode: truncated"; always one line."""
    return " ".join(f"{self.example}: {self.kind}{f': {self.detail}' if self.detail else ''}".split())


def summary(total: int, problems: Sequence[Problem]) -> str:
  """One line: examples, problems, how many of each sort."""
  if not problems:
    return f"{total} examples: no problems"
  kinds = collections.Counter(problem.kind for problem in problems)
  sorts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
  return f"{total} examples: {len(problems)} problems ({sorts})"


def watched(items: Iterable, *, total: int, name: str) -> Iterator:
  """The items, with a progress bar on the terminal's error stream."""
  return iter(tqdm(items, total=total, desc=name, unit="example", file=sys.stderr, disable=None))
