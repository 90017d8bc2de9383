"""The report's sections with pictures: predictions beside the truth, corrupted codes, words of the guiding code."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tools import examples, figures, html, runs
from tools.examples import CORRUPTIONS, ERROR_FORMATS, ERRORS, FRACTIONS, SAMPLES, Examples
from tools.html import Html, Picture, Section
from tools.runs import Run
from uvim_like.errors import UserError
from uvim_like.tasks import classes

Column = tuple[str, Mapping[str, np.ndarray]]
CODES_SHOWN, MASKED_SHOWN = 4, 2  # examples; a third tells nothing new
CAPTIONS = {
    "depth": "Bright is near, dark is far; a row shares the scale of its truth, which stands in front. Hatched: the "
             "sensor gave no reading.",
    "panoptic": "Colour is the class, brightness tells instances apart, white lines are borders of segments.",
    "colour": "The image is the grey input, the truth its original."}
GUESSES = ("T is the temperature at which stage II draws its words; T = 0 takes the likeliest at every place. Samples "
           "at T = 1 are different guesses of one model: where they agree it is sure, and each is meant to be consistent "
           "in itself, while an average of all guesses would be blurred.")
REPLACED = {"zero": "zero vectors", "random": "random words", "word": "one word"}


class Seen(NamedTuple):
  """A run with its examples, or with the reason why there are none."""
  run: Run
  examples: Examples | None
  problem: str = ""


def sections(found: Sequence[Seen], *, rows: int, wanted: int) -> list[Section]:
  """All sections with pictures, `rows` validation images in each at most, where `wanted` were asked for."""
  with_examples = [seen for seen in found if seen.examples]
  problems = [f"{seen.run.name}: {seen.problem}" for seen in found if seen.problem]
  return [
      *predictions(with_examples, rows=rows, wanted=wanted),
      *(masked(seen, count=min(rows, MASKED_SHOWN)) for seen in with_examples if seen.examples.corrupted),
      *codes(with_examples, count=min(rows, CODES_SHOWN)),
      *([Section("Runs without pictures", problems)] if problems else [])]


def chart_pair(function: Callable[..., bytes], *args, alt: str, caption: str = "", **kwargs) -> Picture:
  """A chart for light and for dark pages."""
  return Picture(function(*args, ink=figures.INK, **kwargs), alt, caption,
                 dark=function(*args, ink=figures.INK_DARK, **kwargs))


# --- Predictions -----------------------------------------------------------------------------------------------------


def predictions(found: Sequence[Seen], *, rows: int, wanted: int) -> list[Section]:
  """A section for each set of validation examples: image, truth, and what every run makes of them."""
  groups: dict[tuple, list[Seen]] = {}
  for seen in sorted(found, key=lambda seen: runs.rank_of_pictures(seen.run.kind)):
    groups.setdefault((seen.examples.family, *seen.examples.data), []).append(seen)
  return [_predictions(family, f"{dataset} ({place})" if place else dataset, members, rows=rows, wanted=wanted)
          for (family, dataset, place, *_), members in groups.items()]


def _predictions(family: str, dataset: str, members: Sequence[Seen], *, rows: int, wanted: int) -> Section:
  base = members[0].examples
  shown = min(rows, len(base.image))
  columns = [column for seen in members for column in prediction_columns(seen, members)]
  fewer = f" {wanted} were asked for; fewer keep the page small." if shown < min(wanted, len(base.image)) else ""
  height, width = base.image.shape[1:3]
  return Section(f"Predictions: {family}", [
      f"The first {shown} validation images of {dataset}, {height} × {width} pixels, not chosen by hand.{fewer} Under "
      f"each picture its error: {ERRORS[family]}.", CAPTIONS[family],
      *([GUESSES] if any(seen.examples.samples for seen in members) else []),
      *_legend(family, members[0].run, base, shown),
      html.picture_rows(["image", "truth", *(head for head, _ in columns)],
                        [picture_row(family, base, i, columns) for i in range(shown)])])


def prediction_columns(seen: Seen, members: Sequence[Seen]) -> list[Column]:
  """(head, {key: (n, …)}) of the pictures of one run; its folder is named where another run is of the same kind."""
  alone = sum(other.run.kind == seen.run.kind for other in members) == 1
  name = seen.run.kind if alone else f"{seen.run.kind} ({seen.run.name})"
  if not seen.examples.samples:
    return [(name, seen.examples.predicted)]
  samples = [(f"{'' if alone else seen.run.name + ', '}sample {s + 1}, T = 1",
              {key: x[:, s] for key, x in seen.examples.samples.items()}) for s in range(SAMPLES)]
  return [(f"{name}, T = 0", seen.examples.predicted), *samples]


def picture_row(family: str, base: Examples, i: int, columns: Sequence[Column]) -> tuple[str, list[Picture]]:
  """Label and pictures of example i: image, truth, then the columns with their errors."""
  cells = _given(family, base, i)
  for head, outputs in columns:
    error = float(examples.errors(family, _rows(outputs, i), _rows(base.truth, i))[0])
    caption = "–" if np.isnan(error) else ERROR_FORMATS[family].format(error)
    cells.append(Picture(draw(family, outputs, base.truth, i), f"{family} of image {i + 1} by {head}", caption))
  return scale_text(base.truth["depth"][i]) if family == "depth" else f"{i + 1}", cells


def _given(family: str, base: Examples, i: int) -> list[Picture]:
  return [Picture(figures.color_image(base.image[i]), f"validation image {i + 1}"),
          Picture(draw(family, base.truth, base.truth, i), f"true {family} of image {i + 1}")]


def _rows(outputs: Mapping[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
  """Example i alone, its axis kept."""
  return {key: x[i:i + 1] for key, x in outputs.items()}


def draw(family: str, outputs: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], i: int) -> bytes:
  """Example i of the outputs {key: (n, …)} as PNG, depth on the scale of its truth."""
  if family == "depth":
    low, high = figures.depth_range(truth["depth"][i])
    return figures.depth_image(outputs["depth"][i], vmin=low, vmax=high)
  if family == "panoptic":
    return figures.panoptic_image(outputs["semantics"][i], outputs["instances"][i])
  return figures.color_image(outputs["color"][i])


def scale_text(depth: np.ndarray) -> str:
  """The range of a depth map, e.g. "1.2–4.8 m", in one line."""
  low, high = figures.depth_range(depth)
  return f"{low:.1f}–{high:.1f}\N{NO-BREAK SPACE}m"


def _legend(family: str, run: Run, base: Examples, shown: int) -> list[Html]:
  if family == "depth":
    return [html.figure(Picture(figures.scale_bar(), "colour scale from near to far", "near → far"), kind="bar")]
  if family != "panoptic":
    return []
  names = class_names(run)
  present = [int(value) for value in np.unique(base.truth["semantics"][:shown]) if value >= 0]
  return [html.chips([(names.get(value, f"class {value}"), figures.class_color(value)) for value in present])]


def class_names(run: Run) -> dict[int, str]:
  """{semantic value: name} of the run's dataset; only void where its class table is not known."""
  tables = [(block.get("metric") or {}).get("dataset") for *_, block in runs.evaluations(run)]
  dataset = next(filter(None, tables), run.config.dataset)
  try:
    return {0: "void", **{label + 1: name for label, name in enumerate(classes.table(dataset).names)}}
  except UserError:  # a dataset of the user's own: its classes go by their numbers
    return {0: "void"}


# --- Codes -----------------------------------------------------------------------------------------------------------


def masked(seen: Seen, *, count: int) -> Section:
  """The masked-code experiment: pictures of `count` examples, and the mean error of all."""
  base = seen.examples
  rows = []
  for i in range(min(count, len(base.image))):
    given = _given(base.family, base, i)
    for mode in CORRUPTIONS:
      cells = [Picture(draw(base.family, base.corrupted[mode, share], base.truth, i),
                       f"{base.family} with {share:.0%} of the code replaced by {REPLACED[mode]}")
               for share in FRACTIONS]
      rows.append((REPLACED[mode], [*(given if mode == CORRUPTIONS[0] else [None, None]), *cells]))
  return Section(f"What the code carries ({seen.run.name})", [
      "Stage I with a growing part of its code destroyed, from left to right: positions drawn at random get zero "
      "vectors, random words, or all of them the same word. What changes in the picture is what those words said; what "
      "stays, the base model reads from the image itself. (The experiment of the paper's appendix B.)",
      html.picture_rows(["image", "truth", "whole code", *(f"{share:.0%} replaced" for share in FRACTIONS[1:])], rows),
      html.charts([masked_chart(base)])])


def masked_chart(base: Examples) -> Picture:
  """Mean error of the examples against the share of the code that is destroyed."""
  lines = {REPLACED[mode]: ([100 * share for share in FRACTIONS],
                            [mean_error(base, base.corrupted[mode, share]) for share in FRACTIONS])
           for mode in CORRUPTIONS}
  return chart_pair(figures.curves, lines, xlabel="share of the code that is replaced, %", ylabel=ERRORS[base.family],
                    markers=True, alt="error against the share of the code that is replaced",
                    caption=f"Mean over the first {len(base.image)} validation images.")


def mean_error(base: Examples, outputs: Mapping[str, np.ndarray]) -> float:
  """Mean of the examples' errors; nan when no truth is labelled."""
  values = examples.errors(base.family, outputs, base.truth)
  return float(np.mean(values[np.isfinite(values)])) if np.isfinite(values).any() else float("nan")


def codes(found: Sequence[Seen], *, count: int) -> list[Section]:
  """Use of the dictionary by stage I, and the words that stage II writes beside the oracle's."""
  pieces: list[str] = []
  uses = [chart_pair(figures.code_use, seen.examples.word_use, alt=f"use of the dictionary of {seen.run.name}",
                     caption=f"{seen.run.name}: words for the first {len(seen.examples.image)} validation images.")
          for seen in found if seen.examples.word_use is not None]
  if uses:
    pieces += ["How often the oracle writes each word of its dictionary. Good: no word is dead and the bars are nearly "
               "level. The perplexity says how many equally frequent words would carry as much.", html.charts(uses)]
  for seen in (seen for seen in found if seen.examples.words):
    oracle, written = seen.examples.words["oracle"], seen.examples.words["written"]
    pieces += [f"The code that stage II ({seen.run.name}) writes at T = 0 beside the oracle's, which saw the truth: "
               f"{np.mean(oracle == written):.0%} of the words agree over {len(oracle)} images. Each tile is a word; "
               "number and colour say which, faded ones differ from the oracle's. A different word need not be wrong: "
               "several often draw nearly the same.", code_rows(seen.examples, count)]
  return [Section("The guiding code", pieces)] if pieces else []


def code_rows(base: Examples, count: int) -> Html:
  """Image, the oracle's code and the written one, with the number of words that agree."""
  oracle, written = base.words["oracle"], base.words["written"]
  alike = (oracle == written).sum(axis=1)
  rows = [(f"{i + 1}", [
      *_given(base.family, base, i),
      Picture(figures.code_image(oracle[i], grid=base.grid), "words of the oracle: " + " ".join(map(str, oracle[i])),
              sharp=False),
      Picture(figures.code_image(written[i], reference=oracle[i], grid=base.grid),
              "words of stage II: " + " ".join(map(str, written[i])), f"{alike[i]} of {oracle.shape[1]} agree",
              sharp=False)])
          for i in range(min(count, len(oracle)))]
  return html.picture_rows(["image", "truth", "the oracle's words", "stage II's words"], rows)
