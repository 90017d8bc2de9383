"""Masked inference stage by stage: what stands after each pass, for MAD's tasks and UViM's masked language model."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tools.reporting import examples, html, report_objects
from tools.reporting.examples import MAD, STAGE_II, Examples, Loaded
from tools.reporting.html import Html, Picture, Section, Text
from tools.reporting.report_families import FAMILIES, mean_error, with_error
from tools.reporting.report_families import cell as cell_of
from tools.reporting.report_seen import Seen, Special, given
from tools.reporting.validation import Outputs
from uvim_like.systems.mad import inference
from uvim_like.systems.uvim import lm

SHOWN = 4  # images
FAMILY_OF = {"boxes": "objects", "masks": "objects", "keypoints": "objects", "captions": "captions"}


class Stages(NamedTuple):
  """One task's decoding.

  Attributes:
    task: of MAD, or "code" of UViM's language model.
    ratios: share of tokens that are hidden in each stage, 1.0 first.
    after: what stands after each stage.
  """
  task: str
  ratios: tuple[float, ...]
  after: tuple[Outputs, ...]


def stages_of_mad(run: Loaded, found: Sequence[Examples]) -> dict[str, list[Stages]] | None:
  """{family: the tasks that are decoded in several stages}; None when there is none.

  Random numbers of a stage do not depend on how many follow, so the first stages alone are the beginning of all.
  """
  made: dict[str, list[Stages]] = {}
  trained = (run.config.get("objectives") or {}).get("tasks") or tuple(inference.STAGES)
  for base in found:
    options = {**base.options, "tasks": tuple(base.options.get("tasks") or trained)}
    ratios = {**inference.STAGES, **(options.get("stages") or {})}
    for task in options["tasks"]:
      if FAMILY_OF[task] == base.family and len(ratios[task]) > 1:
        before = [examples.predict(run, base.batch, **options | {"stages": {**ratios, task: tuple(ratios[task][:k])}})[0]
                  for k in range(1, len(ratios[task]))]
        made.setdefault(base.family, []).append(Stages(task, tuple(ratios[task]), (*before, base.predicted)))
  return made or None


def stages_of_uvim(run: Loaded, found: Sequence[Examples]) -> dict[str, list[Stages]] | None:
  """The same of a language model that was trained by masking; None for others."""
  base = found[0]
  ratios = tuple(base.options.get("stages") or lm.STAGES)
  if not run.config.model.get("masked") or len(ratios) < 2:
    return None
  before = [examples.predict(run, base.batch, **base.options | {"stages": ratios[:k]})[0] for k in range(1, len(ratios))]
  return {base.family: [Stages("code", ratios, (*before, base.predicted))]}


def sections(found: Sequence[Seen], count: int) -> list[Section]:
  """A section for each run: every task with its pictures and a table of what each stage gains."""
  return [Section(f"Stages of masked inference ({seen.run.name})", [
      "Everything is hidden and written at once; then, stage by stage, a share of the tokens is hidden again and asked "
      "for once more, given the rest.",
      *(part for base in seen.examples for stages in seen.extras["stages"].get(base.family, ())
        for part in _task(base, stages, min(count, SHOWN, len(base.image))))]) for seen in found]


def _task(base: Examples, stages: Stages, count: int) -> list[str | Html]:
  heads = [f"stage {k + 1}: {ratio:.0%} hidden" for k, ratio in enumerate(stages.ratios)]
  values = [FAMILIES[base.family].errors(base, outputs) for outputs in stages.after]
  rows = [(f"{i + 1}", [*given(base, i), *(_cell(base, stages, k, i, values[k]) for k in range(len(heads)))])
          for i in examples_to_show(base, stages, count)]
  table = [{"name": head, **numbers(base, stages.task, outputs)} for head, outputs in zip(heads, stages.after)]
  columns = {key: key for row in table for key in row if key != "name"}
  return [f"{stages.task.capitalize()}, over the first {len(base.image)} validation images:",
          html.table(table, columns={"name": "after", **columns}), html.picture_rows(["image", "truth", *heads], rows)]


def _cell(base: Examples, stages: Stages, k: int, i: int, values: np.ndarray) -> Picture | Text:
  alt = f"{stages.task} of image {i + 1} after stage {k + 1}"
  if stages.task in ("masks", "keypoints"):  # boxes do not change, so neither does their F1
    return cell_of(base, stages.after[k], i, alt=alt)
  cell = with_error(base, stages.after[k], i, values, alt=alt)
  if isinstance(cell, Text) and k:
    return cell._replace(marked=changed_words(report_objects.draw_caption(base, stages.after[k - 1], i), cell.words))
  return cell


def changed_words(before: str, after: str) -> tuple[int, ...]:
  """Positions of the words of a sentence that did not stand there before."""
  old = before.split()
  return tuple(place for place, word in enumerate(after.split()) if place >= len(old) or old[place] != word)


def numbers(base: Examples, task: str, outputs: Outputs) -> Mapping[str, float | None]:
  """What a stage is worth: the task's own error."""
  if task == "keypoints":
    values = report_objects.joint_distances(base, outputs)
    return {"distance of joints, % of the person's diagonal": float(np.mean(values)) if len(values) else None,
            "found persons": len(values)}
  if task == "masks":
    values = report_objects.mask_overlaps(base, outputs)
    return {"IoU of masks of found objects, %": float(np.mean(values)) if len(values) else None}
  return {FAMILIES[base.family].error: mean_error(base, outputs)}


def examples_to_show(base: Examples, stages: Stages, count: int) -> list[int]:
  """The first examples; for keypoints those with a labelled joint, where there are any."""
  every = range(len(base.image))
  if stages.task == "keypoints" and "keypoints" in base.truth:
    posed = [i for i in every if (base.truth["keypoints"][i][..., 2] > 0).any()]
    return (posed or list(every))[:count]
  return list(every)[:count]


SPECIALS: dict[str, tuple[Special, ...]] = {
    MAD: (Special("stages", stages_of_mad, sections),),
    STAGE_II: (Special("stages", stages_of_uvim, sections),)}
