"""The report's section of predictions: image, truth, what every run makes of it, and where that is wrong."""

import hashlib
from collections.abc import Sequence

import numpy as np

from tools.reporting import html, report_systems, runs
from tools.reporting.examples import Examples
from tools.reporting.html import Html, Picture, Section, Text
from tools.reporting.report_families import FAMILIES, with_error
from tools.reporting.report_maps import Column
from tools.reporting.report_seen import Seen, given
from tools.reporting.report_uvim import GUESSES

Group = list[tuple[Seen, Examples]]
Row = tuple[str, list[Picture | Text | None]]
WIDE = {"": 8, "large": 4}  # columns of pictures of a size that a page of usual width shows


def sections(found: Sequence[Seen], *, rows: int, wanted: int) -> list[Section]:
  """All sections with pictures, `rows` validation images in each at most, where `wanted` were asked for."""
  problems = [f"{seen.run.name}: {problem}" for seen in found for problem in seen.problems]
  return [*predictions(found, rows=rows, wanted=wanted), *report_systems.sections(found, rows),
          *([Section("Runs without pictures", problems)] if problems else [])]


def predictions(found: Sequence[Seen], *, rows: int, wanted: int) -> list[Section]:
  """A section for each kind of output and set of validation examples, with all runs that predict it."""
  groups: dict[tuple, Group] = {}
  for seen in sorted(found, key=lambda seen: runs.rank_of_pictures(seen.run.kind)):
    for base in seen.examples:
      groups.setdefault((base.family, *base.data, fingerprint(base)), []).append((seen, base))
  return [_predictions(alike(members), rows=rows, wanted=wanted) for members in groups.values()]


def fingerprint(base: Examples) -> str:
  """Of the first image: runs may cut and scale the same dataset in different ways to the same size."""
  levels = np.round((np.clip(np.nan_to_num(base.image[0]), -1, 1) + 1) * 127.5).astype(np.uint8)
  return hashlib.blake2b(levels.tobytes(), digest_size=16).hexdigest()


def alike(members: Group) -> Group:
  """The members with as many examples as the one that has the fewest."""
  count = min(len(base.image) for _, base in members)
  return [(seen, first(base, count)) for seen, base in members]


def first(base: Examples, count: int) -> Examples:
  """The first `count` examples."""
  return base._replace(**{name: {key: x[:count] for key, x in getattr(base, name).items()}
                          for name in ("batch", "truth", "predicted")})


def _predictions(members: Group, *, rows: int, wanted: int) -> Section:
  base = members[0][1]
  family, (dataset, place, _, (height, width)) = FAMILIES[base.family], base.data
  shown = min(rows, len(base.image))
  columns = [column for seen, own in members for column in prediction_columns(seen, own, members)]
  fewer = f" {wanted} were asked for; fewer keep the page small." if shown < min(wanted, len(base.image)) else ""
  sampled = any(seen.extras.get("samples") for seen, _ in members)
  errors, error_legend = wrong(base, columns, shown)
  heads, table = laid_out(picture_rows(base, columns, shown), [head for head, _ in columns], errors,
                          size=family.size)
  return Section(f"Predictions: {family.title}", [
      f"The first {shown} validation images of {f'{dataset} ({place})' if place else dataset}, {height} × {width} pixels, "
      f"not chosen by hand.{fewer} Under each picture its error: {family.error}.", family.caption,
      *([GUESSES] if sampled else []), *family.legend(base, shown), *error_legend,
      html.picture_rows(["image", "truth", *heads], table)])


def prediction_columns(seen: Seen, base: Examples, members: Group) -> list[Column]:
  """(head, {key: (n, …)}) of the pictures of one run; its folder is named where another run is of the same kind."""
  alone = sum(other.run.kind == seen.run.kind for other, _ in members) == 1
  title = ", ".join(filter(None, (runs.SHORT.get(seen.run.kind, seen.run.kind), FAMILIES[base.family].remark(base))))
  name = title if alone else f"{title} ({seen.run.name})"
  further = report_systems.columns(seen, base)
  count = len(base.image)
  return [(f"{name}, T = 0" if "samples" in seen.extras else name, base.predicted),
          *((head if alone else f"{seen.run.name}, {head}", {key: x[:count] for key, x in outputs.items()})
            for head, outputs in further)]


def picture_rows(base: Examples, columns: Sequence[Column], shown: int) -> list[Row]:
  """Label and pictures of the first examples: image, truth, then the columns with their errors."""
  family = FAMILIES[base.family]
  errors = [family.errors(base, outputs) for _, outputs in columns]
  return [(family.label(base, i), [*given(base, i), *(
      with_error(base, outputs, i, values, alt=f"{base.family} of image {i + 1} by {head}")
      for (head, outputs), values in zip(columns, errors))]) for i in range(shown)]


def wrong(base: Examples, columns: Sequence[Column], shown: int) -> tuple[list[list[Picture]], list[Html]]:
  """Pictures [image][column] of what is wrong, and what explains them; nothing where errors cannot be drawn."""
  family = FAMILIES[base.family]
  if family.draw_errors is None:
    return [], []
  pictures, legend = family.draw_errors(base, columns, shown)
  return [[Picture(png, f"errors of image {i + 1} by {head}") for png, (head, _) in zip(row, columns)]
          for i, row in enumerate(pictures)], legend


def laid_out(rows: Sequence[Row], heads: Sequence[str], errors: Sequence[Sequence[Picture]], *,
             size: str = "") -> tuple[list[str], list[Row]]:
  """Heads and rows with each error beside its prediction where the page is wide enough, else in a row of its own.

  Args:
    rows: (label, [image, truth, predictions …]).
    heads: of the predictions.
    errors: one for each prediction of each row; [] for none.
    size: of the pictures, see `Picture`; errors in a row of their own are of usual size.
  """
  if not errors:
    return list(heads), list(rows)
  if 2 + 2 * len(heads) <= WIDE[size]:
    beside = [(label, [*cells[:2], *(cell for prediction, error in zip(cells[2:], own)
                                     for cell in (prediction, error._replace(size=size)))])
              for (label, cells), own in zip(rows, errors)]
    return [text for head in heads for text in (head, "error")], beside
  return list(heads), [row for own, row_errors in zip(rows, errors) for row in (own, ("error", [None, None, *row_errors]))]
