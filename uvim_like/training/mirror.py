"""Left and right exchanged in finished numpy batches, with everything that describes the picture."""

from collections.abc import Mapping

import numpy as np

from uvim_like import joints
from uvim_like.errors import UserError
from uvim_like.training.stored import MIRRORED_CAPTIONS

_COLUMNS = {"image": 2, "image_ctx": 2, "labels": 2, "masks": 3, "box_masks": 3}   # axis of the columns, batch first


def mirror(batch: Mapping[str, np.ndarray], chosen: np.ndarray, *, normals: bool) -> dict[str, np.ndarray]:
  """The batch with the chosen examples mirrored.

  Args:
    batch: as `stored.to_batch` gives it; images must fill their canvas.
    chosen: (B,) bool.
    normals: labels are unit vectors, whose x changes its sign.

  Raises:
    UserError: padded images, keypoints of another number of joints than COCO's.
  """
  if "valid_size" in batch and (batch["valid_size"] != batch["image"].shape[1:3]).any():
    raise UserError("flip_lr: padded images cannot be mirrored after padding; leave 'flip_lr' out of pp_train")
  return {key: _chosen(chosen, _mirrored(key, array, batch, normals), array) for key, array in batch.items()}


def _chosen(chosen: np.ndarray, mirrored: np.ndarray, array: np.ndarray) -> np.ndarray:
  return np.where(chosen.reshape(-1, *[1] * (array.ndim - 1)), mirrored, array)


def _mirrored(key: str, array: np.ndarray, batch: Mapping[str, np.ndarray], normals: bool) -> np.ndarray:
  """The whole array of a key, mirrored."""
  if key in _COLUMNS:
    turned = np.flip(array, _COLUMNS[key])
    return turned * np.array([-1, 1, 1], turned.dtype) if key == "labels" and normals else turned
  if key == "boxes":
    return mirror_boxes(array, batch["box_labels"])
  if key == "keypoints":
    return mirror_keypoints(array)
  if key == "captions" and MIRRORED_CAPTIONS in batch:
    return batch[MIRRORED_CAPTIONS]
  return array


def mirror_boxes(boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """(B, N, 4) [y0, x0, y1, x1] fractions mirrored; empty slots (label 0) stay zeros."""
  y0, x0, y1, x1 = np.moveaxis(boxes, -1, 0)
  return np.where((labels > 0)[..., None], np.stack([y0, 1 - x1, y1, 1 - x0], -1), boxes)


def mirror_keypoints(points: np.ndarray) -> np.ndarray:
  """(B, N, J, 3) = (y, x, visibility) mirrored, left joints in the places of right ones; unlabelled ones stay zeros."""
  if points.shape[2] != len(joints.MIRROR):
    raise UserError(f"flip_lr: keypoints have {points.shape[2]} joints; what a mirror swaps is known for COCO's "
                    f"{len(joints.MIRROR)} only")
  points = points[:, :, list(joints.MIRROR)]
  y, x, seen = np.moveaxis(points, -1, 0)
  return np.stack([y, np.where(seen > 0, 1 - x, x), seen], -1)
