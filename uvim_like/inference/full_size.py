"""From what a network gives for its view of a picture to results at the picture's own size, as evaluators resize."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from uvim_like.evaluators import coco_instances
from uvim_like.evaluators.resize import center_square, resize_nearest, without_padding
from uvim_like.evaluators.save_predictions import color_bytes
from uvim_like.inference.views import View
from uvim_like.tasks import text
from uvim_like.tasks.classes import ClassTable

Size = tuple[int, int]
# Where a view shows less than the picture: nothing measured, nothing labelled.
FILL = {"depth": 0.0, "semantics": 0, "instances": 0, "normals": 0.0}
LUMA = np.array([0.2989, 0.587, 0.114])   # of tf.image, which makes a colouring's input grey


class Names(NamedTuple):
  """The classes of a run's maps and of its objects, and the label (1..C) of persons; None where it has none."""
  semantic: ClassTable | None
  objects: ClassTable | None
  person: int | None = None


def full_size(output: Mapping[str, np.ndarray], entries: Mapping[str, np.ndarray], image: np.ndarray, *, view: View,
              names: Names, square: bool) -> dict[str, Any]:
  """The results of one picture.

  Args:
    output: of the network, one row; with several samples a further first axis.
    entries: of the batch, one row.
    image: uint8 (H, W, 3), the picture.
    view: how it was looked at.
    names: classes.
    square: the view shows the central square of the picture.

  Returns:
    As far as the run predicts them, with the picture's H and W:
    "depth" (H, W) float32 metres; "semantics" (H, W) int32, 0 = void, class k of the table is k; "instances" (H, W)
    int32; "normals" (H, W, 3) float32 unit vectors; "color" (H, W, 3) uint8; all of them (S, …) with several samples;
    "objects", a list of dicts in COCO's form of results with the class's "name"; "caption", a sentence.
  """
  size, out = image.shape[:2], {}
  for key in (key for key in FILL if key in output):
    out[key] = _each(output, key, 3 if key == "normals" else 2, lambda x, key=key: map_to(
        x, entries, size, fill=FILL[key], square=square))
  if "semantics" in out:
    out["semantics"] = without_strangers(out["semantics"], names.semantic).astype(np.int32)
  if "color" in output:
    out["color"] = _each(output, "color", 3, lambda x: coloured(x, image, square=square))
  if "boxes" in output:
    out["objects"] = objects(output, entries, size, view=view, names=names)
  if "captions" in output:
    out["caption"] = text.decode(text.load(view.metric.get("model", text.SCENES)), output["captions"])
  return out


def _each(output: Mapping[str, np.ndarray], key: str, axes: int, function) -> np.ndarray:
  """A function of one map over the samples, where there are several."""
  x = np.asarray(output[key])
  x = x.astype(np.float32) if x.dtype.kind not in "iufb" else x   # bfloat16
  return function(x) if x.ndim == axes else np.stack([function(sample) for sample in x])


def map_to(x: np.ndarray, entries: Mapping[str, np.ndarray], size: Size, *, fill: float, square: bool) -> np.ndarray:
  """A map (h, w, …) of a view as (H, W, …): the canvas's padding cut off, nearest-resized, set into its place."""
  x = without_padding(x, entries)
  if not square or size[0] == size[1]:
    return resize_nearest(x, size)
  out = np.full((*size, *x.shape[2:]), fill, x.dtype)
  center_square(out)[:] = resize_nearest(x, (min(size),) * 2)
  return out


def without_strangers(semantics: np.ndarray, table: ClassTable | None) -> np.ndarray:
  """Semantic values beyond the table are void: a head may have more classes than the dataset."""
  return semantics if table is None else np.where(semantics > len(table.ids), 0, semantics)


def coloured(x: np.ndarray, image: np.ndarray, *, square: bool) -> np.ndarray:
  """Predicted colours (h, w, 3) in [-1, 1] as a picture uint8 (H, W, 3), bicubic; grey where they do not reach."""
  size = image.shape[:2]
  side = (min(size),) * 2 if square else size
  found = np.asarray(Image.fromarray(color_bytes(x)).resize(side[::-1], Image.Resampling.BICUBIC))
  if side == size:
    return found
  out = np.repeat(np.round(image @ LUMA).astype(np.uint8)[..., None], 3, axis=-1)
  center_square(out)[:] = found
  return out


def objects(output: Mapping[str, np.ndarray], entries: Mapping[str, np.ndarray], size: Size, *, view: View,
            names: Names) -> list[dict[str, Any]]:
  """Detections as the evaluator of COCO's average precision reads them, best first; ids and names from the table."""
  kinds = ("boxes", *(kind for kind in ("masks", "keypoints") if kind in output))
  found = coco_instances.found_in(
      output, entries, 0, size, kinds=kinds, threshold=view.metric.get("threshold", 0.5),
      shift=coco_instances.joint_shift(str(view.metric["dataset"])))
  return sorted((_named(entry, names.objects, names.person) for entry in found), key=lambda entry: -entry["score"])


def _named(entry: dict[str, Any], table: ClassTable, person: int | None) -> dict[str, Any]:
  label = entry["category_id"]
  named = {key: value for key, value in entry.items() if key != "image_id"}
  named |= {"category_id": table.ids[label - 1], "name": table.names[label - 1]}
  if label != person:   # only of persons a network learned what their joints are
    named.pop("keypoints", None)
  if "segmentation" in named:
    counts = named["segmentation"]["counts"]
    named["segmentation"] = {"size": [int(side) for side in named["segmentation"]["size"]],
                             "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
  return named
