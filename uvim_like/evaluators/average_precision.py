"""COCO's average precision through pycocotools, from plain lists instead of files."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from uvim_like import joints

Annotation = dict[str, Any]
KINDS = ("bbox", "segm", "keypoints")
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium",
         "AR_large")
KEYPOINT_NAMES = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")


def average_precision(images: Sequence[Mapping], truth: Sequence[Mapping], found: Sequence[Mapping], *, kind: str,
                      categories: Sequence[int] | None = None, sigmas: Sequence[float] = joints.SIGMAS
                      ) -> dict[str, float]:
  """COCO's twelve numbers (ten for keypoints) in its own order and by its own code; -1 where nothing could be found.

  Args:
    images: {"id", "height", "width"} of every image, those without objects too.
    truth: {"image_id", "category_id", "area", "bbox" [x, y, w, h] pixels, "iscrowd"}, and by kind "segmentation" (RLE)
      or "keypoints" [x, y, v, …] with "num_keypoints".
    found: {"image_id", "category_id", "score"} and "bbox", "segmentation" or "keypoints"; ties in score keep this
      order.
    kind: "bbox", "segm" or "keypoints".
    categories: all ids; by default those of the truth and of what was found.
    sigmas: for keypoints, one for each joint.
  """
  if categories is None:
    categories = sorted({int(a["category_id"]) for a in (*truth, *found)})
  gt, dt = (_coco(images, entries, categories) for entries in ([_numbered(a, i) for i, a in enumerate(truth, 1)],
                                                               [_measured(d, i, kind) for i, d in enumerate(found, 1)]))
  with contextlib.redirect_stdout(io.StringIO()):
    scorer = COCOeval(gt, dt, kind)
    if kind == "keypoints":
      scorer.params.kpt_oks_sigmas = np.array(sigmas, np.float64)
    if not images:
      return dict.fromkeys(names(kind), -1.0)
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
  return {name: float(value) for name, value in zip(names(kind), scorer.stats, strict=True)}


def names(kind: str) -> tuple[str, ...]:
  """What `average_precision` gives for a kind."""
  return KEYPOINT_NAMES if kind == "keypoints" else NAMES


def _coco(images, annotations, categories) -> COCO:
  """COCO's index over lists; its constructor reads a file only."""
  index = COCO()
  index.dataset = {"info": {}, "images": [dict(i) for i in images], "annotations": annotations,
                   "categories": [{"id": int(c), "name": str(c)} for c in categories]}
  with contextlib.redirect_stdout(io.StringIO()):
    index.createIndex()
  return index


def _numbered(annotation: Mapping, number: int) -> Annotation:
  """Ids from 1: the official code takes 0 for "not matched"."""
  return {**annotation, "id": number, "iscrowd": int(annotation.get("iscrowd", 0))}


def _measured(detection: Mapping, number: int, kind: str) -> Annotation:
  """A detection with the area and box that COCO derives from it, as `COCO.loadRes` does; that refuses an empty list."""
  out = {**detection, "id": number, "iscrowd": 0}
  if kind == "bbox":
    x, y, w, h = detection["bbox"]
    corners = [[x, y, x, y + h, x + w, y + h, x + w, y]]
    return {**out, "area": w * h, "segmentation": detection.get("segmentation", corners)}
  if kind == "segm":
    area = float(rle.area(compressed(detection["segmentation"])))
    return {**out, "area": area, "bbox": detection.get("bbox", rle.toBbox(compressed(detection["segmentation"])))}
  x, y = detection["keypoints"][0::3], detection["keypoints"][1::3]
  x0, x1, y0, y1 = np.min(x), np.max(x), np.min(y), np.max(y)
  return {**out, "area": (x1 - x0) * (y1 - y0), "bbox": [x0, y0, x1 - x0, y1 - y0]}


def compressed(segmentation: Mapping) -> Mapping:
  """RLE as pycocotools counts with: lists of run lengths are packed."""
  if isinstance(segmentation["counts"], list):
    return rle.frPyObjects(segmentation, *segmentation["size"])
  return segmentation


def encode(mask: np.ndarray) -> dict:
  """RLE of a mask (H, W)."""
  return rle.encode(np.asfortranarray(np.asarray(mask).astype(np.uint8)))
