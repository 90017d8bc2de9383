"""The metrics of a task on saved predictions, with no model: files of tools.predict, or COCO's own; see `evaluate`.

Predictions meet the truth by the picture's name (maps), or by its id (COCO's lists; where predictions.json lies beside
them, ids are those of that file). Pictures come in the order in which trainings read the truth, so that sums are
rounded alike.
"""

import functools
import inspect
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tools.evaluating import prediction_files as saved
from tools.evaluating import truth_files
from tools.evaluating.evaluate_table import Measured
from tools.evaluating.truth_files import Truth
from uvim_like.errors import UserError, suggest, unknown
from uvim_like.evaluators import captions as bleu
from uvim_like.evaluators import coco_instances, coco_panoptic, mean_iou, nyu_depth, surface_normals
from uvim_like.evaluators import panoptic_quality as pq
from uvim_like.evaluators.base import Metric
from uvim_like.evaluators.resize import resize_nearest
from uvim_like.own_data import tables
from uvim_like.own_data.facts import depth_limit
from uvim_like.own_data.maps import READERS, VOID
from uvim_like.tasks import classes, text

Pairs = Iterator[tuple[Mapping, Mapping]]   # (output, target)
Collected = coco_instances.Collected


class Task(NamedTuple):
  """How a task is scored from files.

  Attributes:
    kind: of truth, see `truth_files`.
    evaluator: the metric's module.
    make: (truth, predictions, options) -> metric.
    pairs: (truth, predictions, names) -> (output, target) of each picture.
    names: predictions -> names of the pictures that have one, None where only the truth can tell.
  """
  kind: str
  evaluator: str
  make: Callable[[Truth, saved.Predictions, dict], Metric]
  pairs: Callable[[Truth, saved.Predictions, Sequence[str]], Pairs]
  names: Callable[[saved.Predictions], set[str] | None]


def evaluate(task: str, pred: pathlib.Path, gt: pathlib.Path, *, split: str | None = None,
             options: Mapping[str, Any] | None = None) -> Measured:
  """The metrics of saved predictions.

  Args:
    task: of `TASKS`, or a short name.
    pred: folder of predictions, or one JSON file.
    gt: folder of the truth, or one JSON file.
    split: of the truth, all of whose pictures must have a prediction; predictions of the folder's other pictures are left
      out. Without, pictures that have a prediction are scored. The protocol says how many were left out.
    options: of the metric, over its defaults.

  Raises:
    UserError: an unknown task or option, nothing to score, predictions without truth, pictures without prediction.
  """
  chosen = find(task)
  truth = truth_files.read(gt, chosen.kind, split=split)
  predictions = saved.read(pred, chosen.kind)
  found = chosen.names(predictions)
  others = found & truth_files.elsewhere(gt, chosen.kind, truth) if split is not None and found else frozenset()
  names = matched(truth, found - others if others else found, whole=split is not None)
  metric = made(chosen, truth, predictions, dict(options or {}))
  stats = metric.init()
  for output, target in tqdm(chosen.pairs(truth, predictions, names), total=len(names), desc=task, unit="picture",
                             file=sys.stderr, disable=None):
    stats = metric.update(stats, output, target)
  left = len(truth.names) - len(names)
  share = f"; {left} of the truth's {len(truth.names)} pictures have no prediction and are left out" if left else ""
  share += f"; {len(others)} predictions of pictures outside the split are left out" if others else ""
  return Measured(task, chosen.evaluator, f"{len(names)} pictures of {gt}{f' {split!r}' if split else ''}",
                  metric.compute(stats), metric.protocol + share, dict(options or {}))


def find(name: str) -> Task:
  """The task of a name; UserError with the nearest."""
  long = SHORT.get(name, name.removeprefix("proj."))
  if long not in TASKS:
    raise unknown("task", name, (*TASKS, *SHORT), where="--task")
  return TASKS[long]


def matched(truth: Truth, names: set[str] | None, *, whole: bool) -> list[str]:
  """The pictures to score, in the truth's order; UserError when the two do not go together."""
  if names is None:
    return list(truth.names)
  strange = sorted(names - set(truth.names))
  if strange:
    raise UserError(f"--pred: {len(strange)} predictions have no truth in {truth.place}: {', '.join(strange[:5])}"
                    f"{', …' if len(strange) > 5 else ''}; {suggest(strange[0], truth.names)}")
  missing = [name for name in truth.names if name not in names]
  if whole and missing or len(missing) == len(truth.names):
    raise UserError(f"--pred: {len(missing)} of {len(truth.names)} pictures have no prediction: "
                    f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}")
  return [name for name in truth.names if name in names]


def made(task: Task, truth: Truth, predictions: saved.Predictions, options: dict[str, Any]) -> Metric:
  """The metric with its options; UserError for one that it does not have."""
  module = {"nyu_depth": nyu_depth, "mean_iou": mean_iou, "surface_normals": surface_normals,
            "coco_panoptic": coco_panoptic, "coco_instances": coco_instances, "captions": bleu}[task.evaluator]
  for name in options:
    if name not in inspect.signature(module.make).parameters:
      raise unknown("option", name, inspect.signature(module.make).parameters, where="--metric")
  return task.make(truth, predictions, options)


def refuse(options: Mapping[str, Any], names: Sequence[str], reason: str) -> None:
  """Raises UserError where one of some options is given, which saved predictions do not have."""
  for name in names:
    if name in options:
      raise UserError(f"--metric.{name}: {reason}; leave it out")


# --- maps -------------------------------------------------------------------------------------------------------------


def map_pairs(truth: Truth, predictions: saved.Predictions, names: Sequence[str], *, key: str,
              feature: str) -> Pairs:
  """Predicted and true maps of one kind."""
  for name in names:
    yield {key: predictions.map(name)}, {feature: READERS[truth.folder](truth.maps[name])}


def semantic_pairs(truth: Truth, predictions: saved.Predictions, names: Sequence[str]) -> Pairs:
  """Class maps; the truth's folder is its feature."""
  return map_pairs(truth, predictions, names, key="semantics", feature=truth.folder)


def depth_metric(truth: Truth, predictions: saved.Predictions, options: dict) -> Metric:
  """The whole picture, every measured pixel: as trainings on own data evaluate; options are those of `nyu_depth`."""
  if "preset" not in options and "max_depth" not in options:
    maps = map(READERS["depth"], truth.maps.values())
    highest = max(float(depth[np.isfinite(depth)].max(initial=0)) for depth in maps)
    options = {**options, **({"max_depth": depth_limit(highest)} if highest > 0 else {})}
  return nyu_depth.make(**{"preset": "plain", "target_key": "depth", **options})


def semantic_metric(truth: Truth, predictions: saved.Predictions, options: dict) -> Metric:
  """All classes that the predictions name, the truth lists or has; where neither names any, those found in both.

  A class that the predictor does not know must count as missed: pixels of classes beyond the count would be left out.
  """
  if "num_classes" in options:
    return mean_iou.make(**{"target_key": truth.folder, **options})
  found = (READERS[truth.folder](path) for path in truth.maps.values())
  counts = [1 + int(np.max(ids[(ids != VOID) & (ids != saved.WIDE_VOID)], initial=0)) for ids in found]
  named = [count for count in (predictions.classes, truth.classes) if count is not None]
  count = max(counts + (named or [int(np.max(predictions.map(name), initial=0)) for name in predictions.maps]))
  metric = mean_iou.make(**{"target_key": truth.folder, **options, "num_classes": count})
  return metric._replace(protocol=mean_iou.describe(count, "the predictions and the truth"))


def normals_metric(truth: Truth, predictions: saved.Predictions, options: dict) -> Metric:
  """Angles against the PNG's normals."""
  return surface_normals.make(**{"target_key": "normals", **options})


# --- segments ---------------------------------------------------------------------------------------------------------


def panoptic_metric(truth: Truth, predictions: saved.Predictions, options: dict) -> Metric:
  """PQ of segments that come as COCO's PNG and JSON."""
  refuse(options, ("dataset",), "the classes are those of the truth's own list")
  table = classes.from_categories(options.get("categories") or truth.categories, name="the truth")
  if strange := sorted({category["id"] for category in predictions.categories} - set(table.ids)):
    raise UserError(f"--pred: panoptic.json has category ids {strange[:5]}, which {truth.place} does not have")
  metric = coco_panoptic.make(categories=options.get("categories") or truth.categories)
  return metric._replace(update=functools.partial(add_segments, table=table))


def add_segments(stats: np.ndarray, output: Mapping, target: Mapping, *, table: classes.ClassTable) -> np.ndarray:
  """Stats with one more picture; a prediction of another size is nearest-resized, segments may vanish then."""
  gt_ids = pq.rgb_to_id(target["panoptic_image"])
  ids = resize_nearest(pq.rgb_to_id(output["panoptic_image"]), gt_ids.shape)
  left = set(np.unique(ids).tolist())
  segments = [segment for segment in output["segments_info"] if segment["id"] in left]
  matches = pq.match_segments(ids, segments, gt_ids, coco_panoptic.gt_segments(target, table))
  return stats + pq.stats_array(matches, table)


def panoptic_pairs(truth: Truth, predictions: saved.Predictions, names: Sequence[str]) -> Pairs:
  """Pictures of ids, and what is listed of them."""
  for name in names:
    objects = truth.objects[name]
    target = {"panoptic_image": READERS["panoptic"](truth.maps[name]),
              **{f"panoptic_objects/{key}": objects[key] for key in ("id", "label", "is_crowd")}}
    yield {"panoptic_image": predictions.segments(name), "segments_info": predictions.listed[name]}, target


# --- objects, captions ------------------------------------------------------------------------------------------------


def objects_metric(truth: Truth, predictions: saved.Predictions, options: dict) -> Metric:
  """Average precision of what predictions and truth both have: boxes, masks, joints.

  Raises:
    UserError: an option that is about a network's masks or raw features, where files have run lengths and COCO's pixels;
      kinds that the truth does not have.
  """
  refuse(options, ("threshold", "dataset"), "saved objects are in COCO's form already, masks as run lengths")
  kinds, absent = scored_kinds(truth, predictions, options.get("kinds"))
  person = options.get("person") or truth.person
  metric = coco_instances.make(**{"dataset": "coco_instances", "person": person, **options, "kinds": kinds})
  left = f"; predicted {', '.join(absent)} are left out, which the truth does not have" if absent else ""
  return metric._replace(update=functools.partial(add_objects, masks="masks" in kinds),
                         compute=functools.partial(object_numbers, kinds=kinds, person=person or 1),
                         protocol=coco_instances.describe(kinds, None) + left)


def scored_kinds(truth: Truth, predictions: saved.Predictions,
                 wanted: str | Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """(the kinds that are scored, those that were predicted and the truth lacks); all that a person wanted are scored.

  Raises:
    UserError: nothing is left, or the truth lacks what is wanted.
  """
  kinds = (wanted,) if isinstance(wanted, str) else tuple(wanted or predictions.kinds)
  absent = tuple(kind for kind in kinds if kind in coco_instances.KINDS and kind not in truth.kinds)
  if absent and (wanted or len(absent) == len(kinds)):
    flag = "--metric.kinds" if wanted else "--pred"
    raise UserError(f"{flag}: {', '.join(absent)} cannot be scored: {truth.place} has {', '.join(truth.kinds)} alone")
  return tuple(kind for kind in kinds if kind not in absent), absent


def object_numbers(stats: Collected, *, kinds: Sequence[str], person: int) -> dict[str, float]:
  """The numbers of each kind, from the entries that have it."""
  numbers = {}
  for kind in kinds:
    own = tuple(entry for entry in stats.found if OWN[kind] in entry)
    numbers |= coco_instances.compute(stats._replace(found=own), (kind,), person)
  return numbers


def add_objects(stats: Collected, output: Mapping, target: Mapping, *, masks: bool) -> Collected:
  """Stats with one more picture, whose detections are in COCO's form already."""
  number, size = coco_instances.image_id(target), coco_instances.image_size(target)
  truth = coco_instances.truth_of(target, number, size, masks=masks, shift=tables.HALF)
  found = tuple({**entry, "image_id": number} for entry in output["found"])
  image = dict(id=number, height=size[0], width=size[1])
  return Collected((*stats.images, image), (*stats.truth, *truth), (*stats.found, *found))


def object_pairs(truth: Truth, predictions: saved.Predictions, names: Sequence[str]) -> Pairs:
  """Detections of each picture, their categories as labels from 1, and its annotations."""
  labels = {number: label for label, number in enumerate(truth.table.ids, 1)}
  masks = "masks" in predictions.kinds and "masks" in truth.kinds
  for name in names:
    found = predictions.detections(name, truth.ids[name])
    if strange := [entry["category_id"] for entry in found if entry["category_id"] not in labels]:
      raise UserError(f"--pred: category_id {strange[0]} of '{name}' is not among the truth's categories "
                      f"{sorted(labels)[:20]}")
    found = [{**entry, "category_id": labels[entry["category_id"]]} for entry in found]
    yield {"found": found}, truth.annotations(name, masks=masks)


def caption_metric(truth: Truth, predictions: saved.Predictions, options: dict) -> Metric:
  """BLEU of sentences, which need no text model."""
  refuse(options, ("model",), "saved captions are sentences, which need no text model")
  references = options.get("references")
  return Metric(init=bleu.nothing, update=functools.partial(add_caption, references=references), merge=np.add,
                compute=bleu.compute, protocol=bleu.describe(references))


def add_caption(stats: np.ndarray, output: Mapping, target: Mapping, *, references: int | None) -> np.ndarray:
  """Stats with one more sentence."""
  sentences = [s for s in target["sentences"][:references] if s.strip()]
  if not sentences:
    return stats
  return stats + bleu.counts(text.ptb_tokens(output["caption"]), list(map(text.ptb_tokens, sentences)))


def caption_pairs(truth: Truth, predictions: saved.Predictions, names: Sequence[str]) -> Pairs:
  """The sentence of each picture, and its references."""
  for name in names:
    yield {"caption": predictions.caption(name, truth.ids[name])}, {"sentences": truth.sentences(name)}


TASKS = {
    "depth": Task("depth", "nyu_depth", depth_metric, functools.partial(map_pairs, key="depth", feature="depth"),
                  saved.Predictions.names_of_maps),
    "semantic_segmentation": Task("semantic", "mean_iou", semantic_metric, semantic_pairs,
                                  saved.Predictions.names_of_maps),
    "surface_normals": Task("normals", "surface_normals", normals_metric,
                            functools.partial(map_pairs, key="normals", feature="normals"),
                            saved.Predictions.names_of_maps),
    "panoptic_segmentation": Task("panoptic", "coco_panoptic", panoptic_metric, panoptic_pairs,
                                  saved.Predictions.names_of_segments),
    "instance_segmentation": Task("instances", "coco_instances", objects_metric, object_pairs,
                                  saved.Predictions.names_of_lists),
    "captions": Task("captions", "captions", caption_metric, caption_pairs, saved.Predictions.names_of_lists),
}
OWN = {"boxes": "bbox", "masks": "segmentation", "keypoints": "keypoints"}   # what a detection of a kind has
SHORT = {"depth_regression": "depth", "semantic": "semantic_segmentation", "normals": "surface_normals",
         "panoptic": "panoptic_segmentation", "instances": "instance_segmentation", "boxes": "instance_segmentation",
         "masks": "instance_segmentation", "keypoints": "instance_segmentation", "caption": "captions"}
