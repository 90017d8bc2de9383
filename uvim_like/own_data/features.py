"""Annotations of a picture as arrays: the features "objects/…" and "captions/…" of all sources over COCO's tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from uvim_like.own_data.tables import Picture, Table, Thing, draw, fractions


def feature(table: Table, picture: Picture, key: str) -> Any:
  """The value of one feature for a picture; masks are drawn here."""
  if key.startswith("captions/"):
    entries = table.captions.get(picture.id, ())
    return (np.array([i for i, _ in entries], np.int64) if key == "captions/id" else
            np.array([text.encode() for _, text in entries], object))
  fixed = {"image/id": np.int64(picture.id), "image/filename": picture.file.encode(),
           "image/size": np.array([picture.height, picture.width], np.int64)}
  if key in fixed:
    return fixed[key]
  things, size = table.things.get(picture.id, ()), (picture.height, picture.width)
  return _objects(things, size, key.partition("/")[2], table.joints)


def _objects(things: Sequence[Thing], size: tuple[int, int], name: str, joints: int) -> np.ndarray:
  if name == "masks":
    return np.stack([draw(t.shape, size) for t in things]) if things else np.zeros((0, *size), np.uint8)
  if name == "bbox":
    return np.array([fractions(t.box, size) for t in things], np.float32).reshape(-1, 4)
  if name == "keypoints":
    none = np.zeros((joints, 3), np.float32)
    return np.array([none if t.points is None else t.points for t in things], np.float32).reshape(-1, *none.shape)
  if name == "num_keypoints":
    return np.array([0 if t.points is None else (t.points[:, 2] > 0).sum() for t in things], np.int64)
  values = {"id": ([t.id for t in things], np.int64), "area": ([t.area for t in things], np.float64),
            "is_crowd": ([t.crowd for t in things], bool), "label": ([t.label for t in things], np.int64)}
  return np.array(*values[name])
