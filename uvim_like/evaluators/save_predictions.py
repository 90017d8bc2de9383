"""Writes predictions to disk, one compressed npz and one picture per image, for other programs to look at or score."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from uvim_like.errors import UserError
from uvim_like.evaluators import panoptic_quality as pq
from uvim_like.evaluators.base import Example, Metric
from uvim_like.evaluators.entries import required
from uvim_like.evaluators.resize import resize_nearest, without_padding
from uvim_like.tasks import classes

MILLIMETRES = 1000.0


class Saved(NamedTuple):
  """Stats: how many images were written and the entries of panoptic.json."""
  count: int = 0
  annotations: tuple[dict, ...] = ()


def make(out_dir: str, *, dataset: str = "coco/2017_panoptic", id_key: str | None = None, size_key: str | None = None,
         categories: Sequence[Mapping[str, Any]] | None = None) -> Metric:
  """Saves what `predict` gives.

  Under `out_dir`: "<id>.npz" with every output as it is; for "depth" (h, w) metres "depth/<id>.png", 16-bit
  millimetres; for "color" (h, w, 3) in [-1, 1] "color/<id>.png"; for "semantics" and "instances" the COCO results
  format, "panoptic/<id>.png" and, at the end, "panoptic.json". With "valid_size" in the batch, pictures show what the
  image fills of its canvas, the npz all of it.

  Args:
    out_dir: folder, made if absent.
    dataset: whose class table panoptic files get; one without a table is for other outputs.
    id_key: raw feature that names an image; None for the batch's "image/id" or else "_index".
    size_key: raw feature whose height and width the pictures get (nearest), e.g. "image"; None to keep the model's.
    categories: instead of `dataset`, a COCO-style list [{id, name, isthing}] in the order of the labels.

  Returns:
    A Metric giving {"saved": n}.
  """
  folder = pathlib.Path(out_dir).expanduser()
  if categories:
    table = classes.from_categories(categories)
  else:
    table = classes.table(dataset) if classes.has_table(dataset) else None

  def update(stats: Saved, output: Example, target: Example) -> Saved:
    name = image_name(target, id_key)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", **{key: as_storable(value) for key, value in output.items()})
    shape = None if size_key is None else required(target, size_key, where="save_predictions, target").shape[:2]
    pictures = {key: without_padding(np.asarray(value), target)
                for key, value in output.items() if key in ("depth", "color", "semantics", "instances")}
    if shape is not None:
      pictures = {key: resize_nearest(value, shape) for key, value in pictures.items()}
    annotations = write_pictures(folder, name, pictures, table)
    return Saved(stats.count + 1, stats.annotations + annotations)

  def compute(stats: Saved) -> dict[str, float]:
    if stats.annotations:
      (folder / "panoptic.json").write_text(json.dumps(dict(annotations=stats.annotations,
                                                            categories=coco_categories(table))))
    return dict(saved=float(stats.count))

  return Metric(
      init=Saved,
      update=update,
      merge=lambda a, b: Saved(a.count + b.count, a.annotations + b.annotations),
      compute=compute,
      target_keys=tuple(key for key in (id_key, size_key) if key),
      protocol=f"predictions saved under {folder}, pictures at "
               + ("the model's size" if size_key is None else f"the size of '{size_key}' (nearest)"))


def as_storable(array: np.ndarray) -> np.ndarray:
  """bfloat16 and its like become float32: an npz would bring them back as raw bytes."""
  array = np.asarray(array)
  return array.astype(np.float32) if array.dtype.kind == "V" else array


def image_name(target: Example, id_key: str | None) -> str:
  """File name of an image: a number as 12 digits like COCO's, a text with "/" and a leading dot made harmless."""
  keys = (id_key,) if id_key else ("image/id", "_index")
  key = next((k for k in keys if k in target), keys[-1])
  value = required(target, key, where="save_predictions, target").reshape(-1)[0]
  if isinstance(value, np.integer):
    return f"{int(value):012d}"
  text = value.decode() if isinstance(value, bytes) else str(value)
  return pathlib.PurePosixPath(text.replace("/", "_").lstrip(".")).stem


def write_pictures(folder: pathlib.Path, name: str, output: Example, table: classes.ClassTable | None
                   ) -> tuple[dict, ...]:
  """Writes the pictures of one image; returns its entries for panoptic.json, none or one.

  Raises UserError for segments without a table of their classes.
  """
  if "depth" in output:
    _write_png(folder / "depth" / f"{name}.png", depth_millimetres(np.squeeze(output["depth"])))
  if "color" in output:
    _write_png(folder / "color" / f"{name}.png", color_bytes(output["color"]))
  if "semantics" not in output or "instances" not in output:
    return ()
  if table is None:
    raise UserError("save_predictions: panoptic files need a list of classes, which the dataset has not: "
                    "metric.categories = [{'id': 1, 'name': 'road', 'isthing': 0}, …] in the evaluator's block")
  ids, segments = pq.two_channel_to_segments(output["semantics"], output["instances"], table)
  _write_png(folder / "panoptic" / f"{name}.png", pq.id_to_rgb(ids))
  return (dict(image_id=int(name) if name.isdigit() else name, file_name=f"{name}.png", segments_info=segments),)


def depth_millimetres(depth: np.ndarray) -> np.ndarray:
  """(H, W) metres -> uint16 millimetres, 0 for what is not finite, at most 65.535 m."""
  depth = np.where(np.isfinite(depth), np.asarray(depth, np.float64), 0.0)
  return np.clip(np.round(depth * MILLIMETRES), 0, np.iinfo(np.uint16).max).astype(np.uint16)


def color_bytes(color: np.ndarray) -> np.ndarray:
  """(H, W, 3) in [-1, 1] -> uint8."""
  return np.clip(np.round((np.asarray(color, np.float64) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def coco_categories(table: classes.ClassTable) -> list[dict]:
  """The "categories" of a COCO panoptic file."""
  return [dict(id=i, name=name, isthing=int(thing)) for i, name, thing in zip(table.ids, table.names, table.isthing)]


def _write_png(path: pathlib.Path, array: np.ndarray) -> None:
  """Writes (H, W) uint16 or (H, W, 3) uint8; UserError for a picture that is neither."""
  if array.ndim not in (2, 3):
    raise UserError(f"save_predictions: a picture must be (H, W) or (H, W, 3), got {array.shape}")
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)
