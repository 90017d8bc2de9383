"""Panoptic quality of (semantics, instances) predictions, at the true size of every image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uvim_like.errors import UserError
from uvim_like.evaluators import panoptic_quality as pq
from uvim_like.evaluators.base import Example, Metric
from uvim_like.evaluators.entries import required
from uvim_like.evaluators.resize import resize_nearest, without_padding
from uvim_like.tasks import classes

_PROTOCOL = ("PQ as fractions, COCO rules: IoU > 0.5 without void, crowds ignored, sums over the dataset, mean over "
             "the classes of '{name}' that occur (nan when none does); prediction nearest-resized to the image's true "
             "size, pieces of one stuff class merged; a predicted class that the dataset does not have is void")


def make(*, dataset: str = "coco/2017_panoptic", categories: Sequence[Mapping[str, Any]] | None = None) -> Metric:
  """Panoptic quality for datasets with the features of coco/2017_panoptic.

  Args:
    dataset: whose class table to use.
    categories: instead of `dataset`, a COCO-style list [{id, name, isthing}] in the order of the labels.

  Returns:
    A Metric that reads output "semantics" and "instances", both (h, w) at any size, and gives the keys of `pq_compute`.
    With "valid_size" in the batch, they show a canvas that is larger than the image. Its stats are a (C, 4) array.
  """
  table = classes.table(dataset, where="metric.dataset") if categories is None else classes.from_categories(categories)

  def update(stats: np.ndarray, output: Example, target: Example) -> np.ndarray:
    return stats + image_stats(output, target, table)

  return Metric(
      init=lambda: np.zeros((len(table.ids), 4), np.float64),
      update=update,
      merge=np.add,
      compute=lambda stats: pq.pq_compute(stats, table),
      target_keys=("panoptic_image", "panoptic_objects/id", "panoptic_objects/label", "panoptic_objects/is_crowd"),
      protocol=_PROTOCOL.format(name=table.name))


def image_stats(output: Example, target: Example, table: classes.ClassTable) -> np.ndarray:
  """(C, 4) sums of IoU, TP, FP, FN of one image."""
  gt_ids = pq.rgb_to_id(required(target, "panoptic_image", where="coco_panoptic, target"))
  found = (required(output, key, where="coco_panoptic, prediction") for key in ("semantics", "instances"))
  semantics, instances = (resize_nearest(without_padding(x, target), gt_ids.shape) for x in found)
  semantics = np.where(semantics > len(table.ids), 0, semantics)  # a head may have more classes than the dataset
  pred_ids, pred_segments = pq.two_channel_to_segments(semantics, instances, table)
  return pq.stats_array(pq.match_segments(pred_ids, pred_segments, gt_ids, gt_segments(target, table)), table)


def gt_segments(target: Example, table: classes.ClassTable) -> list[dict[str, int]]:
  """[{id, category_id, iscrowd}] of the raw features, with `area` where the dataset hands it over.

  Raises UserError for a label outside the table: the dataset and the evaluator's `dataset` do not belong together.
  """
  ids, labels, crowds = (required(target, f"panoptic_objects/{key}", where="coco_panoptic, target").reshape(-1)
                         for key in ("id", "label", "is_crowd"))
  if labels.size and not 0 <= labels.min() <= labels.max() < len(table.ids):
    raise UserError(f"coco_panoptic: labels {labels.min()}..{labels.max()} in the data, but '{table.name}' has "
                    f"{len(table.ids)} classes; set the evaluator's `dataset`")
  segments = [dict(id=int(i), category_id=table.ids[int(label)], iscrowd=int(crowd))
              for i, label, crowd in zip(ids, labels, crowds)]
  if "panoptic_objects/area" in target:
    areas = np.asarray(target["panoptic_objects/area"]).reshape(-1)
    segments = [{**segment, "area": int(area)} for segment, area in zip(segments, areas)]
  return segments
