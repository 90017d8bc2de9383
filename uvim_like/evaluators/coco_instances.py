"""Boxes, masks and keypoints of objects under COCO's protocol, at the true size of every image."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from uvim_like.errors import UserError, unknown
from uvim_like.evaluators import average_precision as ap
from uvim_like.evaluators.base import Example, Metric
from uvim_like.evaluators.entries import required
from uvim_like.evaluators.panoptic_quality import rgb_to_id
from uvim_like.evaluators.paste import paste_mask
from uvim_like.evaluators.resize import canvas_size

KINDS = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}   # ours -> COCO's
PREFIX = {"boxes": "box_", "masks": "mask_", "keypoints": "keypoint_"}
_WHERE = "coco_instances"
_MOVED = 0.5   # the source `coco_instances` moves COCO's joints into the middle of their pixels; this moves them back


class Collected(NamedTuple):
  """Stats: COCO's lists over the images seen; see `average_precision`."""
  images: tuple[dict, ...] = ()
  truth: tuple[dict, ...] = ()
  found: tuple[dict, ...] = ()


def make(*, kinds: Sequence[str] = ("boxes",), dataset: str = "scenes", threshold: float = 0.5,
         person: int | None = None) -> Metric:
  """Average precision of "boxes", "masks" and "keypoints", each as COCO defines it, by pycocotools.

  Reads the output's "boxes" (N, 4) as fractions of the canvas, "scores" (N,), "classes" (N,), and for the kinds
  "masks" (N, S, S) probabilities inside the box, "keypoints" (N, J, 3). Slots with score 0 or class 0, or without area,
  are nothing. With "valid_size" in the batch, the canvas is larger than the image.

  Args:
    kinds: what is scored, any of the three.
    dataset: where the truth comes from: "coco_instances…" has masks and sizes as features, "scenes" and "npz" a
      panoptic image.
    threshold: a pasted mask covers a pixel from here on.
    person: class whose keypoints are scored; by default 1 for COCO, 5 for scenes.

  Returns:
    A Metric giving box_AP, box_AP50, …, mask_AP, …, keypoint_AP, … as fractions, and "images".

  Raises:
    UserError: an unknown kind.
  """
  kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
  for kind in kinds:
    if kind not in KINDS:
      raise unknown("kind", kind, KINDS, where=_WHERE)
  coco = dataset.startswith("coco")
  shift = joint_shift(dataset)
  human = (1 if coco else 5) if person is None else person

  def update(stats: Collected, output: Example, target: Example) -> Collected:
    number, size = image_id(target), image_size(target)
    image = dict(id=number, height=size[0], width=size[1])
    truth = truth_of(target, number, size, masks="masks" in kinds, shift=shift)
    found = found_in(output, target, number, size, kinds=kinds, threshold=threshold, shift=shift)
    return Collected((*stats.images, image), (*stats.truth, *truth), (*stats.found, *found))

  return Metric(init=Collected, update=update, compute=lambda stats: compute(stats, kinds, human),
                merge=lambda a, b: Collected(*(x + y for x, y in zip(a, b))),
                target_keys=target_keys(kinds, coco), protocol=describe(kinds, threshold))


def joint_shift(dataset: str) -> float:
  """Pixels by which predicted joints are moved back to where the dataset's annotations count them."""
  return _MOVED if dataset.startswith("coco") else 0.0


def target_keys(kinds: Sequence[str], coco: bool) -> tuple[str, ...]:
  """Raw features that hold the truth."""
  keys = ["image/id", *(f"objects/{name}" for name in ("id", "area", "bbox", "label", "is_crowd"))]
  if coco:
    keys += ["image/size", *(["objects/masks"] if "masks" in kinds else [])]
  else:
    keys.append("panoptic_image")
  if "keypoints" in kinds:
    keys += ["objects/keypoints", "objects/num_keypoints"]
  return tuple(keys)


def describe(kinds: Sequence[str], threshold: float | None) -> str:
  """The line that stands beside the numbers; `threshold` None: masks that were saved as run lengths."""
  parts = [f"COCO AP as fractions by pycocotools for {', '.join(kinds)}: IoU or OKS 0.50:0.05:0.95, 101 recall points, "
           "at most 100 detections an image (20 persons), area ranges by the annotated area, crowds ignored, -1 where "
           "there is nothing to find; at the images' true size"]
  if "masks" in kinds:
    parts.append("masks as their run lengths say" if threshold is None else
                 f"masks pasted into their boxes bilinearly, cut at {threshold:g}")
  return "; ".join(parts)


def image_id(target: Example) -> int:
  """The number by which images are told apart and ties between them are ordered."""
  key = "image/id" if "image/id" in target else "_index"
  return int(np.reshape(required(target, key, where=f"{_WHERE}, target"), -1)[0])


def image_size(target: Example) -> tuple[int, int]:
  """True (H, W)."""
  if "image/size" in target:
    h, w = np.reshape(target["image/size"], -1)
    return int(h), int(w)
  h, w = required(target, "panoptic_image", where=f"{_WHERE}, target").shape[:2]
  return int(h), int(w)


# --- truth --------------------------------------------------------------------------------------------------------

def truth_of(target: Example, number: int, size: tuple[int, int], *, masks: bool, shift: float) -> list[dict[str, Any]]:
  """COCO annotations of one image from its raw features; entries with id 0 and an empty box are padding."""
  field = {name: required(target, f"objects/{name}", where=f"{_WHERE}, target")
           for name in ("id", "area", "bbox", "label", "is_crowd")}
  rows = np.flatnonzero((np.reshape(field["id"], -1) != 0) | np.any(np.reshape(field["bbox"], (-1, 4)) != 0, -1))
  entries = []
  for i in rows:
    entry = dict(image_id=number, category_id=int(field["label"][i]) + 1, iscrowd=int(field["is_crowd"][i]),
                 area=float(field["area"][i]), bbox=pixel_box(field["bbox"][i], size))
    if masks:
      entry["segmentation"] = ap.encode(object_mask(target, int(i)))
    if "objects/keypoints" in target:
      points = np.asarray(target["objects/keypoints"][i], np.float64)
      seen = points[:, 2] > 0
      points = np.where(seen[:, None], points - [shift, shift, 0], 0)
      entry |= dict(keypoints=points.ravel().tolist(), num_keypoints=int(seen.sum()))
    entries.append(entry)
  return entries


def pixel_box(bbox: np.ndarray, size: tuple[int, int]) -> list[float]:
  """[y0, x0, y1, x1] fractions -> [x, y, w, h] in pixels.

  Rounded to thousandths: datasets keep the fractions in single precision, annotations have at most two decimals.
  """
  y0, x0, y1, x1 = np.round(np.asarray(bbox, np.float64) * [size[0], size[1], size[0], size[1]], 3).tolist()
  return [x0, y0, x1 - x0, y1 - y0]


def object_mask(target: Example, i: int) -> np.ndarray:
  """(H, W) of the object at position i: its own map, or its id in the panoptic image."""
  if "objects/masks" in target:
    return np.asarray(target["objects/masks"][i])
  ids = rgb_to_id(required(target, "panoptic_image", where=f"{_WHERE}, target"))
  return ids == int(target["objects/id"][i])


# --- predictions --------------------------------------------------------------------------------------------------

def canvas_scale(target: Example, size: tuple[int, int]) -> np.ndarray:
  """(2,) pixels of the true image in one canvas, by rows and columns: fractions times this are true pixels."""
  if "valid_size" not in target:
    return np.asarray(size, np.float64)
  return np.asarray(size, np.float64) * canvas_size(target) / np.asarray(target["valid_size"], np.float64)


def found_in(output: Example, target: Example, number: int, size: tuple[int, int], *, kinds: Sequence[str],
             threshold: float, shift: float) -> list[dict[str, Any]]:
  """Detections of one image in COCO's form, every kind in one entry, clipped to the image."""
  boxes, scores, classes = (required(output, key, where=f"{_WHERE}, prediction")
                            for key in ("boxes", "scores", "classes"))
  parts = {key: required(output, key, where=f"{_WHERE}, prediction") for key in kinds if key != "boxes"}
  if not len(boxes) == len(scores) == len(classes) or any(len(part) != len(boxes) for part in parts.values()):
    raise UserError(f"{_WHERE}: boxes, scores, classes and {sorted(parts)} differ in their number of slots")
  scale = canvas_scale(target, size)
  corners = np.clip(np.asarray(boxes, np.float64) * np.tile(scale, 2), 0, np.tile(size, 2))
  whole = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
  entries = []
  for i in np.flatnonzero(whole & (np.asarray(scores) > 0) & (np.asarray(classes) > 0)):
    y0, x0, y1, x1 = corners[i].tolist()
    entry = dict(image_id=number, category_id=int(classes[i]), score=float(scores[i]), bbox=[x0, y0, x1 - x0, y1 - y0])
    if "masks" in parts:
      entry["segmentation"] = ap.encode(paste_mask(parts["masks"][i], corners[i], size, threshold=threshold))
    if "keypoints" in parts:
      points = np.asarray(parts["keypoints"][i], np.float64)
      xy = points[:, 1::-1] * scale[::-1] - shift
      entry["keypoints"] = np.column_stack([xy, points[:, 2]]).ravel().tolist()
    entries.append(entry)
  return entries


def compute(stats: Collected, kinds: Sequence[str], person: int) -> dict[str, float]:
  """{"box_AP": …}, every kind under its prefix, and the number of images."""
  numbers = {}
  for kind in kinds:
    truth, found = stats.truth, stats.found
    if kind == "keypoints":
      truth, found = ([a for a in entries if a["category_id"] == person] for entries in (truth, found))
    values = ap.average_precision(stats.images, [_only(a, kind) for a in truth], [_only(a, kind) for a in found],
                                  kind=KINDS[kind])
    numbers |= {PREFIX[kind] + name: value for name, value in values.items()}
  return numbers | {"images": float(len(stats.images))}


def _only(annotation: Mapping, kind: str) -> dict:
  """Without what another kind brought along: the official code takes areas from whatever it finds."""
  own = {"masks": ("segmentation",), "keypoints": ("keypoints", "num_keypoints")}.get(kind, ())
  other = {"segmentation", "keypoints", "num_keypoints"} - set(own)
  return {key: value for key, value in annotation.items() if key not in other}
