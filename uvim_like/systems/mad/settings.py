"""The settings of MAD: what is learned and how, and the checks of a config's blocks before anything compiles."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from uvim_like.errors import UserError, unknown
from uvim_like.models.mad import Model
from uvim_like.ops import matching
from uvim_like.systems.fields import check_choice
from uvim_like.systems.mad.vocabulary import TASKS, Vocabulary

FORMS = ("masked", "autoregressive")
HEADS = ("cosine", "linear")
# What the released code does otherwise than the paper says, by where it is set.
CODE_FORM = {
    "config.sequences": {"prompt_tokens": 6},
    "config.objectives": {"occluded_visible": True, "noise_masked_captions": True},
    "predict": {"stages": {"keypoints": (1.0,)}, "all_rows": True, "requantise": True,
                "order": {"boxes": "confidence", "masks": "confidence", "keypoints": "confidence"}},
}


class Objectives(NamedTuple):
  """What is learned and how; the config's block `objectives`.

  Attributes:
    tasks: of `TASKS`; one of them trains a specialist.
    form: "masked" (ratios (1.0,) alone make plain parallel decoding) or "autoregressive".
    mask_ratios: one copy of every sequence for each; a pair is an interval from which the step draws.
    weights: of the tasks' losses, each a sum over the decoder's layers of their mean over tokens.
    instances: masks and keypoints trained of an image.
    references: captions used of an image.
    noise_weight: of "no object" in slots without one.
    caption_noise: a wrong word among the shown ones of each caption.
    noise_masked_captions: one in the fully masked caption too (code).
    occluded_visible: labelled but occluded joints count as visible (code), else as hidden.
    matcher: "device" or "scipy".
  """
  tasks: tuple[str, ...] = TASKS
  form: str = "masked"
  mask_ratios: tuple[Any, ...] = (1.0, 0.7)
  weights: Mapping[str, float] = {"boxes": 1.5, "masks": 2.7, "keypoints": 0.5, "captions": 0.3}
  instances: int = 10
  references: int = 5
  noise_weight: float = 1.0
  caption_noise: bool = True
  noise_masked_captions: bool = False
  occluded_visible: bool = False
  matcher: str = "device"


def fill(kind: type, values: Mapping[str, Any], *, where: str) -> Any:
  """A named tuple from a block; what is missing keeps its default, blocks inside are completed.

  Raises:
    UserError: an unknown field, with the nearest; a value of another kind than the default.
  """
  defaults, given = kind._field_defaults, {}
  for name, value in values.items():
    if name not in defaults:
      raise unknown("field", name, defaults, where=where)
    default = defaults[name]
    if isinstance(default, Mapping):
      for key in value:
        if key not in default:
          raise unknown("task", key, default, where=f"{where}.{name}")
      value = {**default, **value}
    elif isinstance(default, tuple) and isinstance(value, (list, tuple)):
      value = tuple(tuple(v) if isinstance(v, (list, tuple)) else v for v in value)
    elif isinstance(default, float) and type(value) is int:
      value = float(value)
    if not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool):
      raise UserError(f"{where}.{name}: {value!r} cannot stand here; its default is {default!r}")
    given[name] = value
  return kind(**given)


def check_vocabulary(vocabulary: Vocabulary) -> Vocabulary:
  """The vocabulary itself; UserError for a size that is no positive number."""
  for name, value in vocabulary._asdict().items():
    if value < 1:
      raise UserError(f"config.sequences.{name}: {value} must be at least 1")
  if vocabulary.prompt_tokens > 6:
    raise UserError(f"config.sequences.prompt_tokens: {vocabulary.prompt_tokens}; the table has 6; nearest: 6")
  return vocabulary


def check_objectives(objectives: Objectives) -> Objectives:
  """The objectives themselves; UserError for unknown words and ratios outside 0..1."""
  if not objectives.tasks:
    raise UserError(f"config.objectives.tasks: there is none; {', '.join(TASKS)}")
  for task in objectives.tasks:
    check_choice(task, TASKS, where="config.objectives.tasks")
  check_choice(objectives.form, FORMS, where="config.objectives.form")
  check_choice(objectives.matcher, matching.SOLVERS, where="config.objectives.matcher")
  for name in ("instances", "references"):
    if getattr(objectives, name) < 1:
      raise UserError(f"config.objectives.{name}: {getattr(objectives, name)} must be at least 1")
  if not objectives.mask_ratios:
    raise UserError("config.objectives.mask_ratios: there is none, e.g. (1.0, 0.7)")
  for ratio in objectives.mask_ratios:
    low, high = ratio if isinstance(ratio, tuple) and len(ratio) == 2 else (ratio, ratio)
    if not all(isinstance(x, (int, float)) for x in (low, high)) or not 0 < low <= high <= 1:
      raise UserError(f"config.objectives.mask_ratios: {ratio!r} is neither a number in (0, 1] nor a pair of such")
  return objectives


def check_model(model: Model, *, where: str) -> None:
  """Raises UserError for fields that do not fit each other."""
  check_choice(model.head, HEADS, where=f"{where}.head")
  if model.width % model.num_heads or model.width % 4:
    raise UserError(f"{where}.width: {model.width} must be a multiple of 4 and of num_heads {model.num_heads}")
  if model.scan_layers:
    raise UserError("config.scan_layers: MAD's decoder gives the output of every layer; set it to False")
