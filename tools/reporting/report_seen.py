"""What the page knows of a run, and what a system adds to the page beside its predictions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tools.reporting import figures, figures_objects, report_families
from tools.reporting.examples import Examples, Loaded
from tools.reporting.html import Picture, Section, Text
from tools.reporting.report_maps import Column
from tools.reporting.runs import Run


class Seen(NamedTuple):
  """A run with its predictions, or with the reasons why there are none.

  Attributes:
    run: its folder.
    examples: one entry a kind of output; () where it could not predict.
    extras: {name of a special: what it gathered}.
    problems: what hindered it, in words.
    step: of the checkpoint that predicted; None for the final weights.
  """
  run: Run
  examples: tuple[Examples, ...] = ()
  extras: Mapping[str, Any] = {}
  problems: tuple[str, ...] = ()
  step: int | None = None

  @property
  def seconds(self) -> float | None:
    """Of the slowest prediction, for one example; None without predictions."""
    return max((base.seconds for base in self.examples), default=None)


def no_columns(seen: Seen, base: Examples) -> list[Column]:
  """A special that adds nothing to the table of predictions."""
  del seen, base
  return []


def no_sections(found: Sequence[Seen], count: int) -> list[Section]:
  """A special that has no section of its own."""
  del found, count
  return []


class Special(NamedTuple):
  """What runs of some systems show beside their predictions.

  Attributes:
    name: under which `Seen.extras` holds what was gathered.
    gather: (run, its predictions) -> plain data, None where this run has nothing to show.
    sections: (all runs that have it, images to show) -> sections of the page.
    columns: (run, its predictions of a kind of output) -> further columns of the table of predictions.
  """
  name: str
  gather: Callable[[Loaded, Sequence[Examples]], Any]
  sections: Callable[[Sequence[Seen], int], list[Section]] = no_sections
  columns: Callable[[Seen, Examples], list[Column]] = no_columns


def chart_pair(function: Callable[..., bytes], *args, alt: str, caption: str = "", **kwargs) -> Picture:
  """A chart for light and for dark pages."""
  return Picture(function(*args, ink=figures.INK, **kwargs), alt, caption,
                 dark=function(*args, ink=figures.INK_DARK, **kwargs))


def given(base: Examples, i: int) -> list[Picture | Text]:
  """Image and truth of example i."""
  height, width = base.size(i)
  pixels, size = base.image[i][:height, :width], report_families.FAMILIES[base.family].size
  png = figures_objects.objects_image(pixels, np.zeros((0, 4)), labels=()) if size else figures.color_image(pixels)
  return [Picture(png, f"validation image {i + 1}", size=size),
          report_families.cell(base, base.truth, i, alt=f"true {base.family} of image {i + 1}")]
