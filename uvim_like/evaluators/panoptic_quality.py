"""Panoptic quality (Kirillov et al. 2019), counted exactly as the official COCO evaluation counts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uvim_like.errors import UserError
from uvim_like.tasks.classes import ClassTable

VOID = 0
# Segment key of the official two-channel converter: 1000 · category + instance.
KEY_STRIDE = 1000
GROUPS = ("All", "Things", "Stuff")

Segment = Mapping[str, Any]


def rgb_to_id(image: np.ndarray) -> np.ndarray:
  """(H, W, 3) uint8 of a COCO panoptic PNG -> (H, W) int64 ids, R + 256 G + 65536 B."""
  return np.asarray(image).astype(np.int64) @ np.array([1, 256, 65536])


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
  """(H, W) ids below 2^24 -> (H, W, 3) uint8, the inverse of `rgb_to_id`; ValueError outside that range."""
  ids = np.asarray(ids).astype(np.int64)
  if ids.size and (ids.min() < 0 or ids.max() >= 1 << 24):
    raise ValueError(f"segment ids {ids.min()}..{ids.max()} do not fit the 24 bits of a panoptic PNG")
  return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def two_channel_to_segments(semantics: np.ndarray, instances: np.ndarray,
                            table: ClassTable) -> tuple[np.ndarray, list[dict[str, int]]]:
  """Segments of a (semantics, instances) prediction, as the official two-channel converter forms them.

  Every (class, instance) pair of a thing is a segment; all pieces of one stuff class are one; semantic 0 is void.

  Args:
    semantics: (H, W) integers, 0 = void, otherwise label + 1.
    instances: (H, W) integers >= 0.
    table: classes of the labels.

  Returns:
    ids (H, W) int64 with 0 = void, and [{id, category_id, iscrowd, area}] in ascending id. UserError for a value
    outside the table.
  """
  semantics, instances = np.asarray(semantics).astype(np.int64), np.asarray(instances).astype(np.int64)
  num_classes = len(table.ids)
  if semantics.size and (semantics.min() < 0 or semantics.max() > num_classes or instances.min() < 0):
    raise UserError(f"panoptic prediction: semantics {semantics.min()}..{semantics.max()} and instances from "
                    f"{instances.min()}; '{table.name}' has semantics 0..{num_classes} and instances from 0")
  # A wider stride than the official one only where 1000 instances would run into the next category.
  stride = max(KEY_STRIDE, int(instances.max(initial=0)) + 1)
  category = np.array([VOID, *table.ids])[semantics]
  countable = np.array([False, *table.isthing])[semantics]
  ids = category * stride + np.where(countable, instances, 0)
  keys, areas = np.unique(ids, return_counts=True)
  segments = [dict(id=int(key), category_id=int(key) // stride, iscrowd=0, area=int(area))
              for key, area in zip(keys, areas) if key != VOID]
  return ids, segments


def _overlaps(gt_ids: np.ndarray, pred_ids: np.ndarray) -> dict[tuple[int, int], int]:
  """{(gt id, predicted id): pixels} of two (H, W) maps."""
  pairs = (np.asarray(gt_ids).astype(np.int64) << 32) | np.asarray(pred_ids).astype(np.int64)
  keys, counts = np.unique(pairs, return_counts=True)
  return {(int(key) >> 32, int(key) & 0xFFFFFFFF): int(count) for key, count in zip(keys, counts)}


def _with_areas(segments: Sequence[Segment], counted: Mapping[int, int]) -> dict[int, dict[str, int]]:
  """{id: {category_id, iscrowd, area}}; the area that the annotation states wins over the counted one."""
  return {int(s["id"]): dict(category_id=int(s["category_id"]), iscrowd=int(s.get("iscrowd", 0)),
                             area=int(s.get("area", counted.get(int(s["id"]), 0)))) for s in segments}


def _areas(overlaps: Mapping[tuple[int, int], int], side: int) -> dict[int, int]:
  """{id: pixels} of the truth (side 0) or the prediction (side 1)."""
  areas: dict[int, int] = {}
  for pair, pixels in overlaps.items():
    areas[pair[side]] = areas.get(pair[side], 0) + pixels
  return areas


def _check_prediction(listed: set[int], in_map: set[int]) -> None:
  """The map and the list of a prediction must name the same segments, as the official evaluation demands."""
  missing, absent = sorted(in_map - {VOID} - listed), sorted(listed - in_map)
  if missing or absent:
    raise UserError(f"panoptic prediction: ids in the map but not in the list {missing[:5]}, "
                    f"in the list but not in the map {absent[:5]}")


def match_segments(pred_ids: np.ndarray, pred_segments: Sequence[Segment], gt_ids: np.ndarray,
                   gt_segments: Sequence[Segment]) -> dict[int, tuple[float, int, int, int]]:
  """Matches the segments of one image.

  A pair matches when both have one category, the truth is no crowd and IoU > 0.5 strictly, where the pixels of the
  prediction that the truth leaves void are taken out of the union. An unmatched crowd costs nothing; an unmatched
  prediction costs nothing when more than half of it lies in void or in a crowd of its category. Of two crowds of one
  category only the last listed is looked at (a quirk of the official code; COCO has at most one).

  Args:
    pred_ids: (H, W) integers < 2^32, 0 = void.
    pred_segments: [{id, category_id}], exactly the ids of the map.
    gt_ids: (H, W) integers < 2^31, 0 = void.
    gt_segments: [{id, category_id, iscrowd, area}]; an area that is absent is counted, iscrowd is then 0.

  Returns:
    {category_id: (sum of IoU, TP, FP, FN)} for the categories that occur. UserError when shapes differ or the
    prediction's map and list disagree.
  """
  if np.shape(pred_ids) != np.shape(gt_ids):
    raise UserError(f"panoptic prediction {np.shape(pred_ids)} and truth {np.shape(gt_ids)} differ in size")
  overlaps = _overlaps(gt_ids, pred_ids)
  pred_pixels = _areas(overlaps, 1)
  _check_prediction({int(s["id"]) for s in pred_segments}, set(pred_pixels))
  # The area of a prediction is always counted, whatever its list says.
  pred = {key: {**s, "area": pred_pixels[key]} for key, s in _with_areas(pred_segments, pred_pixels).items()}
  gt = _with_areas(gt_segments, _areas(overlaps, 0))

  stats: dict[int, list] = {s["category_id"]: [0.0, 0, 0, 0] for s in (*gt.values(), *pred.values())}
  matched_gt, matched_pred = set(), set()
  for (gt_id, pred_id), pixels in overlaps.items():
    if gt_id not in gt or pred_id not in pred:
      continue
    truth, guess = gt[gt_id], pred[pred_id]
    if truth["iscrowd"] or truth["category_id"] != guess["category_id"]:
      continue
    iou = pixels / (truth["area"] + guess["area"] - pixels - overlaps.get((VOID, pred_id), 0))
    if iou > 0.5:
      stats[truth["category_id"]][0] += iou
      stats[truth["category_id"]][1] += 1
      matched_gt.add(gt_id)
      matched_pred.add(pred_id)

  crowd_of_category = {s["category_id"]: key for key, s in gt.items() if s["iscrowd"]}
  for key, segment in gt.items():
    stats[segment["category_id"]][3] += not segment["iscrowd"] and key not in matched_gt
  for key, segment in pred.items():
    ignored = overlaps.get((VOID, key), 0) + overlaps.get((crowd_of_category.get(segment["category_id"]), key), 0)
    stats[segment["category_id"]][2] += key not in matched_pred and not ignored / segment["area"] > 0.5
  return {category: (iou, int(tp), int(fp), int(fn)) for category, (iou, tp, fp, fn) in stats.items()}


def stats_array(stats: Mapping[int, tuple[float, int, int, int]], table: ClassTable) -> np.ndarray:
  """(C, 4) float64 (sum of IoU, TP, FP, FN) by label; categories outside the table are dropped, as officially."""
  return np.array([stats.get(category, (0.0, 0, 0, 0)) for category in table.ids], np.float64).reshape(-1, 4)


def pq_per_class(stats: np.ndarray) -> np.ndarray:
  """(C, 4) sums over a dataset -> (C, 3) PQ, SQ, RQ as fractions; zeros for a class that never occurs."""
  iou, tp, fp, fn = np.asarray(stats, np.float64).T
  weight = tp + fp / 2 + fn / 2
  with np.errstate(invalid="ignore", divide="ignore"):
    pq, sq, rq = iou / weight, iou / tp, tp / weight
  occurs, hit = weight > 0, tp > 0
  return np.stack([np.where(occurs, pq, 0.0), np.where(hit, sq, 0.0), np.where(occurs, rq, 0.0)], axis=-1)


def pq_compute(stats: np.ndarray, table: ClassTable) -> dict[str, float]:
  """Means over the classes with TP + FP + FN > 0.

  Args:
    stats: (C, 4) sums of IoU, TP, FP, FN over the whole dataset.
    table: classes, for the split into things and stuff.

  Returns:
    {"All_pq", "All_sq", "All_rq", "All_n", "Things_…", "Stuff_…"}: fractions 0..1 and the number of classes
    averaged. A group without any such class is nan (the official code divides by zero there).
  """
  stats = np.asarray(stats, np.float64)
  per_class = pq_per_class(stats)
  things = np.array(table.isthing, bool)
  results = {}
  for group, member in zip(GROUPS, (np.ones_like(things), things, ~things)):
    chosen = member & (stats[:, 1:].sum(-1) > 0)
    means = per_class[chosen].mean(0) if chosen.any() else np.full(3, np.nan)
    results |= {f"{group}_{name}": float(value) for name, value in zip(("pq", "sq", "rq"), means)}
    results[f"{group}_n"] = float(chosen.sum())
  return results
