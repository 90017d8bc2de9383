"""What UViM's runs show beside their predictions: samples, a code destroyed bit by bit, the words of the guiding code."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tools.reporting import examples, figures, html
from tools.reporting.examples import STAGE_I, STAGE_II, Examples, Loaded
from tools.reporting.html import Html, Picture, Section
from tools.reporting.report_families import FAMILIES, mean_error, with_error
from tools.reporting.report_maps import Column
from tools.reporting.report_seen import Seen, Special, chart_pair, given
from tools.reporting.validation import Outputs
from uvim_like.systems.uvim import vit
from uvim_like.tasks.base import bind

SAMPLES = 3  # at temperature 1, as in the paper's appendix
CORRUPTIONS = ("zero", "random", "word")
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
REPLACED = {"zero": "zero vectors", "random": "random words", "word": "one word"}
CODES_SHOWN, MASKED_SHOWN = 4, 2  # examples; a third tells nothing new
GUESSES = ("T is the temperature at which stage II draws its words; T = 0 takes the likeliest at every place. Samples "
           "at T = 1 are different guesses of one model: where they agree it is sure, and each is meant to be consistent "
           "in itself, while an average of all guesses would be blurred.")


class Code(NamedTuple):
  """Words of the guiding code.

  Attributes:
    use: (K,) shares of the words that the oracle writes for the examples; None unless stage I.
    oracle, written: (n, L) ints, the second at temperature 0; None unless stage II.
    grid: (rows, columns) of the code where it has a layout in the image, else None.
  """
  use: np.ndarray | None
  oracle: np.ndarray | None
  written: np.ndarray | None
  grid: tuple[int, int] | None


# --- Samples ---------------------------------------------------------------------------------------------------------


def samples(run: Loaded, found: Sequence[Examples]) -> Outputs | None:
  """{key: (n, SAMPLES, …)} at temperature 1; None for a masked model, which always takes the likeliest words."""
  base = found[0]
  if run.config.model.get("masked"):
    return None
  return examples.predict(run, base.batch, **base.options | dict(temperature=1.0, num_samples=SAMPLES))[0]


def sample_columns(seen: Seen, base: Examples) -> list[Column]:
  """A column for each sample."""
  del base
  return [(f"sample {s + 1}, T = 1", {key: x[:, s] for key, x in seen.extras["samples"].items()})
          for s in range(SAMPLES)]


# --- Corrupted codes -------------------------------------------------------------------------------------------------


def corrupted(run: Loaded, found: Sequence[Examples]) -> dict[tuple[str, float], Outputs]:
  """The masked-code experiment of the paper's appendix B: every corruption at every fraction, 0 the code itself.

  The same as stage I's `predict` with `corrupt` and `fraction`, which would compile anew for each of them.
  """
  base, config = found[0], run.config
  model, task = vit.make_model(config.model, config, where="config.model"), bind(config.task, config)
  decode = functools.partial(vit.decode, model=model, task=task, **examples.task_options(base))
  cases = list(itertools.product(CORRUPTIONS, FRACTIONS))

  def all_of(variables, frozen, batch, key):
    del frozen
    planes = task.to_planes(batch["labels"], patch=model.patch_size, spec=model.inputs)
    code = vit.apply(model, variables, planes, vit.context(batch), method="encode").quantized
    words = vit.apply(model, variables, method="words")
    codes = jnp.stack([vit.corrupt_code(key, code, words, mode=mode, fraction=fraction) for mode, fraction in cases])
    made = jax.lax.map(lambda code: decode(variables, code, vit.context(batch)), codes)
    return {name: jnp.swapaxes(x, 0, 1) for name, x in made.items()}

  outputs, _ = examples.in_chunks(all_of, run, base.batch)
  return {case: {name: x[:, place] for name, x in outputs.items()} for place, case in enumerate(cases)}


def masked_sections(found: Sequence[Seen], count: int) -> list[Section]:
  """The masked-code experiment of each run: pictures of some examples, and the mean error of all."""
  return [_masked(seen, min(count, MASKED_SHOWN)) for seen in found]


def _masked(seen: Seen, count: int) -> Section:
  base, made = seen.examples[0], seen.extras["corrupted code"]
  values = {key: FAMILIES[base.family].errors(base, outputs) for key, outputs in made.items()}
  rows = []
  for i in range(min(count, len(base.image))):
    for mode in CORRUPTIONS:
      cells = [with_error(base, made[mode, share], i, values[mode, share],
                          alt=f"{base.family} with {share:.0%} of the code replaced by {REPLACED[mode]}")
               for share in FRACTIONS]
      rows.append((REPLACED[mode], [*(given(base, i) if mode == CORRUPTIONS[0] else [None, None]), *cells]))
  return Section(f"What the code carries ({seen.run.name})", [
      "Stage I with a growing part of its code destroyed, from left to right: positions drawn at random get zero "
      "vectors, random words, or all of them the same word. What changes in the picture is what those words said; what "
      "stays, the base model reads from the image itself. (The experiment of the paper's appendix B.)",
      html.picture_rows(["image", "truth", "whole code", *(f"{share:.0%} replaced" for share in FRACTIONS[1:])], rows),
      html.charts([masked_chart(base, made)])])


def masked_chart(base: Examples, made: dict[tuple[str, float], Outputs]) -> Picture:
  """Mean error of the examples against the share of the code that is destroyed."""
  lines = {REPLACED[mode]: ([100 * share for share in FRACTIONS],
                            [mean_error(base, made[mode, share]) for share in FRACTIONS])
           for mode in CORRUPTIONS}
  return chart_pair(figures.curves, lines, xlabel="share of the code that is replaced, %",
                    ylabel=FAMILIES[base.family].error, markers=True,
                    alt="error against the share of the code that is replaced",
                    caption=f"Mean over the first {len(base.image)} validation images.")


# --- Words -----------------------------------------------------------------------------------------------------------


def code_of(run: Loaded, found: Sequence[Examples]) -> Code:
  """Use of the dictionary by stage I; of stage II the words that it writes beside the oracle's."""
  if run.kind == STAGE_I:
    return Code(word_use(run, found), None, None, None)
  config = run.config
  oracle = vit.make_model(config.oracle.model, config, where="config.oracle.model")
  task = bind(config.oracle.task, config, where="config.oracle.task")

  def both(variables, frozen, batch, key):
    planes = task.to_planes(batch["labels"], patch=oracle.patch_size, spec=oracle.inputs)
    code = vit.apply(oracle, frozen, planes, vit.context(batch), method="encode").code
    written = run.system.predict["sequences"](variables, frozen, batch, key)["tokens"][:, 0] - 1
    return {"oracle": code, "written": written}

  words, _ = examples.in_chunks(both, run, found[0].batch)
  side = round(oracle.code_len ** 0.5)
  return Code(None, words["oracle"], words["written"], (side, side) if oracle.bottleneck_resize else None)


def word_use(run: Loaded, found: Sequence[Examples]) -> np.ndarray | None:
  """(K,) share of each word among all that a tokenizer writes for the examples; None where it writes none."""
  def use(variables, frozen, batch, key):
    return {"use": run.system.loss(variables, frozen, batch, key, False).parts["code_use"]}
  shares = examples.in_chunks(use, run, found[0].batch)[0]["use"]
  written = shares.sum(axis=1) > 0  # an image without objects has no masks to write
  return shares[written].mean(axis=0) if written.any() else None


def use_charts(found: Sequence[tuple[Seen, np.ndarray | None]]) -> list[Picture]:
  """How often each word is written, a chart for each run that writes any."""
  return [chart_pair(figures.code_use, use, alt=f"use of the dictionary of {seen.run.name}",
                     caption=f"{seen.run.name}: words for the first {len(seen.examples[0].image)} validation images.")
          for seen, use in found if use is not None]


def code_sections(found: Sequence[Seen], count: int) -> list[Section]:
  """One section for all runs: use of the dictionaries, then codes beside the oracle's."""
  pieces: list[str] = []
  uses = use_charts([(seen, seen.extras["code"].use) for seen in found])
  if uses:
    pieces += ["How often the oracle writes each word of its dictionary. Good: no word is dead and the bars are nearly "
               "level. The perplexity says how many equally frequent words would carry as much.", html.charts(uses)]
  for seen in found:
    code = seen.extras["code"]
    if code.oracle is not None:
      pieces += [f"The code that stage II ({seen.run.name}) writes at T = 0 beside the oracle's, which saw the truth: "
                 f"{np.mean(code.oracle == code.written):.0%} of the words agree over {len(code.oracle)} images. Each "
                 "tile is a word; number and colour say which, faded ones differ from the oracle's. A different word "
                 "need not be wrong: several often draw nearly the same.",
                 code_rows(seen.examples[0], code, min(count, CODES_SHOWN))]
  return [Section("The guiding code", pieces)] if pieces else []


def code_rows(base: Examples, code: Code, count: int) -> Html:
  """Image, the oracle's code and the written one, with the number of words that agree."""
  alike = (code.oracle == code.written).sum(axis=1)
  rows = [(f"{i + 1}", [
      *given(base, i),
      Picture(figures.code_image(code.oracle[i], grid=code.grid),
              "words of the oracle: " + " ".join(map(str, code.oracle[i])), sharp=False),
      Picture(figures.code_image(code.written[i], reference=code.oracle[i], grid=code.grid),
              "words of stage II: " + " ".join(map(str, code.written[i])),
              f"{alike[i]} of {code.oracle.shape[1]} agree", sharp=False)])
          for i in range(min(count, len(code.oracle)))]
  return html.picture_rows(["image", "truth", "the oracle's words", "stage II's words"], rows)


SPECIALS: dict[str, tuple[Special, ...]] = {
    STAGE_I: (Special("corrupted code", corrupted, masked_sections), Special("code", code_of, code_sections)),
    STAGE_II: (Special("samples", samples, columns=sample_columns), Special("code", code_of, code_sections))}
