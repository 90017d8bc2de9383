"""Mean intersection over union of class maps: one confusion matrix over the whole dataset."""

import functools

import numpy as np

from uvim_like.errors import UserError
from uvim_like.evaluators.base import Example, Metric
from uvim_like.evaluators.entries import required
from uvim_like.evaluators.resize import resize_nearest, without_padding
from uvim_like.tasks import classes

VOID = 0  # in predictions and labels, whose class k is k + 1
_PROTOCOL = ("IoU as fractions over the {count} classes of {name}: one confusion matrix over the dataset, pixels whose truth is "
             "void left out, a void prediction is a miss; mean over classes that occur in truth or prediction; "
             "prediction nearest-resized to the truth")


def make(*, dataset: str | None = None, num_classes: int | None = None, target_key: str | None = None,
         raw_offset: int = 1, ignore: int | None = 255) -> Metric:
  """Mean IoU of the output "semantics" (h, w): 0 = void, 1..C.

  The truth is the batch's "ground_truth" (a label map that kept its own size), else its "labels"; or the raw feature
  `target_key`, beside which a canvas ("valid_size" in the batch) is cut to what the image fills. (H, W), (H, W, 1), or
  the first channel of panoptic labels (H, W, 2).

  Args:
    dataset: whose class table gives the number of classes (set by the config's own dataset); or
    num_classes: C itself, which goes first.
    target_key: raw feature to read instead of the batch's labels.
    raw_offset: added to the raw feature's values; 1 where its classes start at 0. What lies outside 1..C then is void.
    ignore: the raw feature's value that is void even among C classes, as `semantic_labels` has it; None without one.

  Raises:
    UserError: neither a known dataset nor a number of classes.
  """
  name = "the config" if num_classes else str(dataset)
  if num_classes is None:
    if dataset is None:
      raise UserError("mean_iou: neither 'num_classes' nor 'dataset' says how many classes there are")
    num_classes = len(classes.table(dataset, where="metric.dataset").ids)
  if num_classes < 1:
    raise UserError(f"mean_iou: num_classes {num_classes}; at least 1 is needed")
  return Metric(
      init=lambda: np.zeros((num_classes, num_classes + 1), np.int64),
      update=functools.partial(update, num_classes=num_classes, target_key=target_key, raw_offset=raw_offset,
                               ignore=ignore),
      merge=np.add, compute=compute, target_keys=(target_key,) if target_key else (),
      protocol=describe(num_classes, name))


def describe(count: int, name: str) -> str:
  """The line that stands beside the numbers; `name` says whose classes they are."""
  return _PROTOCOL.format(count=count, name=name)


def update(stats: np.ndarray, output: Example, target: Example, *, num_classes: int, target_key: str | None,
           raw_offset: int, ignore: int | None) -> np.ndarray:
  """The matrix with one more image."""
  key = target_key or ("ground_truth" if "ground_truth" in target else "labels")
  truth = class_map(required(target, key, where="mean_iou, target"))
  pred = class_map(required(output, "semantics", where="mean_iou, prediction"))
  if target_key:
    truth = np.where(truth == ignore, VOID, truth + raw_offset)
    pred = without_padding(pred, target)
  return stats + confusion(resize_nearest(pred, truth.shape) - 1, truth - 1, num_classes)


def class_map(x: np.ndarray) -> np.ndarray:
  """(H, W), (H, W, C) -> (H, W) int64, the first channel; values that are no whole numbers become -1."""
  x = np.asarray(x)
  x = x[..., 0] if x.ndim == 3 else x
  if x.ndim != 2:
    raise UserError(f"mean_iou: a class map must be (H, W) or (H, W, C), got {x.shape}")
  if x.dtype.kind == "f":
    whole = np.isfinite(x) & (x == np.round(x)) & (np.abs(x) < 2 ** 31)
    return np.where(whole, x, -1).astype(np.int64)
  return x.astype(np.int64)


def confusion(pred: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
  """(C, C + 1) int64 counts of (truth, prediction), the last column for predictions that are no class.

  Args:
    pred: int, any shape; a value outside 0..C-1 is void.
    truth: int, same shape; pixels outside 0..C-1 are left out.
    num_classes: C.
  """
  pred, truth = np.asarray(pred).astype(np.int64), np.asarray(truth).astype(np.int64)
  known = (truth >= 0) & (truth < num_classes)
  pred = np.where((pred >= 0) & (pred < num_classes), pred, num_classes)[known]
  cells = np.bincount(truth[known] * (num_classes + 1) + pred, minlength=num_classes * (num_classes + 1))
  return cells.reshape(num_classes, num_classes + 1)


def per_class(matrix: np.ndarray) -> np.ndarray:
  """(C,) IoU of every class, nan where it occurs in neither truth nor prediction."""
  hit = np.diagonal(matrix).astype(np.float64)
  union = matrix.sum(1) + matrix[:, :-1].sum(0) - hit
  return np.divide(hit, union, out=np.full(hit.shape, np.nan), where=union > 0)


def compute(matrix: np.ndarray) -> dict[str, float]:
  """Fractions; nan where nothing was measured.

  Returns:
    {"mIoU", "pixel_acc", "mean_acc" (over classes in the truth), "fw_iou" (IoU weighted by the truth's pixels),
    "classes_counted"}.
  """
  iou, hit, truth = per_class(matrix), np.diagonal(matrix), matrix.sum(1)
  counted, present, total = ~np.isnan(iou), truth > 0, truth.sum()
  nan = float("nan")
  return {
      "mIoU": float(iou[counted].mean()) if counted.any() else nan,
      "pixel_acc": float(hit.sum() / total) if total else nan,
      "mean_acc": float((hit[present] / truth[present]).mean()) if total else nan,
      "fw_iou": float((truth[present] / total * iou[present]).sum()) if total else nan,
      "classes_counted": float(counted.sum())}
