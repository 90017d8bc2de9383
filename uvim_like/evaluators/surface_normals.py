"""Angles between predicted and true surface normals, all valid pixels of all images pooled."""

import functools

import numpy as np

from uvim_like.errors import UserError
from uvim_like.evaluators.base import Example, Metric
from uvim_like.evaluators.entries import required
from uvim_like.evaluators.resize import resize_nearest, without_padding

# PolyMaX's text says 11.5, a slip: the protocol that it cites, and its own leaderboard entry, use 11.25.
THRESHOLDS = (5.0, 7.5, 11.25, 22.5, 30.0)
BINS_A_DEGREE = 4096  # of the histogram that the median is read from: exact to 1/8192 of a degree
_PROTOCOL = ("angles in degrees over all valid pixels of all images together (median of pixels, not of images); shares "
             "below thresholds in percent, strict; whole image, valid where the truth is not (0, 0, 0); "
             "{crop}prediction nearest-resized to the truth")


def make(*, target_key: str | None = None, crop: tuple[int, int, int, int] | None = None) -> Metric:
  """Errors of the output "normals" (h, w, 3), of any length.

  The truth is the batch's "ground_truth", else its "labels", (H, W, 3) float vectors with zeros where there is none;
  or the raw feature `target_key`, uint8 with (n + 1) / 2 · 255, beside which a canvas ("valid_size" in the batch) is cut
  to what the image fills.

  Args:
    target_key: raw feature to read instead of the batch's labels.
    crop: (top, bottom, left, right) of the truth that counts; some papers cut NYU's border: (45, 471, 41, 601).
  """
  return Metric(init=init, update=functools.partial(update, target_key=target_key, crop=crop), merge=merge,
                compute=compute, target_keys=(target_key,) if target_key else (),
                protocol=_PROTOCOL.format(crop="rows {}:{}, columns {}:{} only; ".format(*crop) if crop else ""))


def init() -> dict:
  """Nothing measured: sums, and a histogram of angles."""
  return {"sums": np.zeros(2 + len(THRESHOLDS)), "histogram": np.zeros(180 * BINS_A_DEGREE + 1, np.int64)}


def update(stats: dict, output: Example, target: Example, *, target_key: str | None,
           crop: tuple[int, int, int, int] | None) -> dict:
  """The sums with one more image."""
  key = target_key or ("ground_truth" if "ground_truth" in target else "labels")
  truth, valid = decode(required(target, key, where="surface_normals, target"))
  pred = np.asarray(required(output, "normals", where="surface_normals, prediction"))
  if pred.ndim != 3 or pred.shape[-1] != 3:
    raise UserError(f"surface_normals: the prediction must be (h, w, 3), got {pred.shape}")
  pred = resize_nearest(without_padding(pred, target) if target_key else pred, truth.shape[:2])
  if crop is not None:
    top, bottom, left, right = crop
    window = np.s_[top:bottom, left:right]
    pred, truth, valid = pred[window], truth[window], valid[window]
  return add_angles(stats, angles(pred[valid], truth[valid]))


def decode(truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(H, W, 3) uint8 or float to (vectors float64, valid (H, W)).

  Vectors are not normalised: the angle divides by both lengths. Invalid: (0, 0, 0) as stored, and what is not finite.
  """
  truth = np.asarray(truth)
  if truth.ndim != 3 or truth.shape[-1] != 3:
    raise UserError(f"surface_normals: the truth must be (H, W, 3), got {truth.shape}")
  valid = np.any(truth != 0, axis=-1) & np.all(np.isfinite(truth), axis=-1)
  vectors = truth.astype(np.float64)
  return (vectors / 255 * 2 - 1 if truth.dtype.kind in "ui" else vectors), valid


def angles(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """(n, 3), (n, 3) of any lengths -> (n,) float64 degrees; 90 for a prediction without direction (zero, not finite)."""
  pred, truth = np.asarray(pred, np.float64), np.asarray(truth, np.float64)
  pred = np.where(np.all(np.isfinite(pred), axis=-1, keepdims=True), pred, 0.0)
  length = np.linalg.norm(pred, axis=-1) * np.linalg.norm(truth, axis=-1)
  dot = np.sum(pred * truth, axis=-1)
  cosine = np.divide(dot, length, out=np.zeros_like(dot), where=length > 0)
  return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def add_angles(stats: dict, theta: np.ndarray) -> dict:
  """Stats with (n,) more angles."""
  below = [np.sum(theta < threshold) for threshold in THRESHOLDS]
  sums = stats["sums"] + np.array([theta.sum(), np.square(theta).sum(), *below], np.float64)
  bins = np.bincount(np.round(theta * BINS_A_DEGREE).astype(np.int64), minlength=stats["histogram"].size)
  return {"sums": sums, "histogram": stats["histogram"] + bins}


def merge(a: dict, b: dict) -> dict:
  """Both together."""
  return {key: a[key] + b[key] for key in a}


def compute(stats: dict) -> dict[str, float]:
  """{"mean", "median", "rms" in degrees, "pct_5", "pct_7_5", "pct_11_25", "pct_22_5", "pct_30", "pixels"}; nan without."""
  count = int(stats["histogram"].sum())
  names = [f"pct_{threshold:g}".replace(".", "_") for threshold in THRESHOLDS]
  if not count:
    return dict.fromkeys(("mean", "median", "rms", *names), float("nan")) | {"pixels": 0.0}
  total, square, *below = stats["sums"]
  return {"mean": float(total / count), "median": median(stats["histogram"]), "rms": float(np.sqrt(square / count)),
          **{name: float(100 * number / count) for name, number in zip(names, below)}, "pixels": float(count)}


def median(histogram: np.ndarray) -> float:
  """The middle angle, or the mean of the middle two."""
  upto = np.cumsum(histogram)
  middle = ((upto[-1] - 1) // 2, upto[-1] // 2)
  return float(np.mean([np.searchsorted(upto, rank, side="right") for rank in middle]) / BINS_A_DEGREE)
