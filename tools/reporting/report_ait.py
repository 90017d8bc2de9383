"""What AiT's runs show beside their predictions: soft against hard decoding, and the use of a tokenizer's codebook."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tools.reporting import examples, html, report_objects
from tools.reporting.examples import SOLVER, TOKENIZER, Examples, Loaded
from tools.reporting.html import Section
from tools.reporting.report_families import FAMILIES, mean_error, with_error
from tools.reporting.report_seen import Seen, Special, given
from tools.reporting.report_uvim import use_charts, word_use
from tools.reporting.validation import Outputs

SHOWN = 3  # images
# (what the next position reads is a mixture, the map is decoded from mixtures): section 3.2 of the paper.
WAYS = {"hard tokens, hard decoding": dict(soft_feedback=False, soft_detokenizer=False),
        "hard tokens, soft decoding": dict(soft_feedback=False, soft_detokenizer=True),
        "soft tokens, soft decoding": dict(soft_feedback=True, soft_detokenizer=True)}


class Way(NamedTuple):
  """A form of decoding: its name, what comes out, seconds an example."""
  name: str
  outputs: Outputs
  seconds: float


def ways(run: Loaded, found: Sequence[Examples]) -> dict[str, list[Way]] | None:
  """{family: predictions in every form}; None for a run that writes no dense tokens."""
  parallel = (run.config.get("solver") or {}).get("parallel", False)
  made = {}
  for base in found:
    if base.family == "objects" and "masks" not in base.predicted:
      continue
    # Nothing is fed back where all tokens are written at once.
    made[base.family] = [Way(name, *examples.predict(run, base.batch, timed=True, **base.options | way))
                         for name, way in WAYS.items() if not (parallel and way["soft_feedback"])]
  return made or None


def ways_sections(found: Sequence[Seen], count: int) -> list[Section]:
  """A section for each run and kind of output: a table of all forms, and pictures of some examples."""
  return [_ways(seen, base, seen.extras["soft and hard"][base.family], min(count, SHOWN, len(base.image)))
          for seen in found for base in seen.examples if base.family in seen.extras["soft and hard"]]


def _ways(seen: Seen, base: Examples, made: Sequence[Way], count: int) -> Section:
  family = FAMILIES[base.family]
  errors = [family.errors(base, way.outputs) for way in made]
  first = 1 if family.size else 0  # objects are drawn over the image: it need not stand beside them as well
  rows = [(family.label(base, i), [*given(base, i)[first:], *(
      with_error(base, way.outputs, i, values, alt=f"{base.family} of image {i + 1}, {way.name}")
      for way, values in zip(made, errors))]) for i in range(count)]
  return Section(f"Soft against hard: {family.title} ({seen.run.name})", [
      "A hard token is one word of the dictionary; a soft one is the mixture of all words by their probabilities. Tokens "
      "are what the next position reads, decoding is what turns the finished sequence into a map. Soft decoding moves "
      "boundaries and depths between the dictionary's words.",
      html.table([way_row(base, way) for way in made], columns={
          "name": "form", "error": family.error, "iou": "IoU of masks of found objects, %", "milliseconds": "ms/image"}
          if base.family == "objects" else {"name": "form", "error": family.error, "milliseconds": "ms/image"},
          best={"error": "max" if base.family == "objects" else "min", "iou": "max"}, formats={"milliseconds": ".1f"}),
      html.note(f"Over the first {len(base.image)} validation images."),
      html.picture_rows([*["image", "truth"][first:], *(way.name for way in made)], rows)])


def way_row(base: Examples, way: Way) -> dict[str, Any]:
  """The numbers of one form."""
  row: dict[str, Any] = {"name": way.name, "error": mean_error(base, way.outputs), "milliseconds": 1000 * way.seconds}
  if base.family == "objects":
    values = report_objects.mask_overlaps(base, way.outputs)
    row["iou"] = float(np.mean(values)) if len(values) else None
  return row


def use_sections(found: Sequence[Seen], count: int) -> list[Section]:
  """How often the tokenizers write each of their words."""
  del count
  charts = use_charts([(seen, seen.extras["codebook"]) for seen in found])
  return [Section("The tokenizers' codebooks", [
      "How often each word of the codebook stands in the codes of the validation maps. Good: no word is dead and the bars "
      "are nearly level. The perplexity says how many equally frequent words would carry as much.",
      html.charts(charts)])] if charts else []


SPECIALS: dict[str, tuple[Special, ...]] = {
    SOLVER: (Special("soft and hard", ways, ways_sections),),
    TOKENIZER: (Special("codebook", word_use, use_sections),)}
