"""Depth errors over a set of valid pixels, as sums that can be finished per image or pooled over a dataset."""

import numpy as np

DELTA_BASE = 1.25
# SILog here is sqrt(mean d² - 0.5 mean(d)²), unscaled (AiT); KITTI's uses 1 and a factor 100.
SILOG_VARIANCE_FOCUS = 0.5

UVIM_METRICS = ("RMSE", "abs_RE", "log10", "delta1", "delta2", "delta3")
ALL_METRICS = UVIM_METRICS + ("sq_rel", "rmse_log", "silog")


def depth_sums(pred: np.ndarray, gt: np.ndarray) -> dict[str, float]:
  """Sums over pixels, float64.

  Args:
    pred: (n,) metres. A value that is not positive gives nan or inf in the logarithmic sums: nothing is clipped here.
    gt: (n,) metres, positive.

  Returns:
    {"n" and the sums that `depth_metrics` finishes}; add two of these to pool them.
  """
  pred, gt = np.asarray(pred, np.float64), np.asarray(gt, np.float64)
  error = pred - gt
  with np.errstate(divide="ignore", invalid="ignore"):
    log_error = np.log(pred) - np.log(gt)
    ratio = np.maximum(pred / gt, gt / pred)
  sums = dict(n=float(gt.size), sq=np.sum(error ** 2), abs_rel=np.sum(np.abs(error) / gt),
              sq_rel=np.sum(error ** 2 / gt), log=np.sum(log_error), abs_log=np.sum(np.abs(log_error)),
              sq_log=np.sum(log_error ** 2))
  deltas = {f"delta{k}": np.sum(ratio < DELTA_BASE ** k) for k in (1, 2, 3)}
  return {key: float(value) for key, value in {**sums, **deltas}.items()}


def depth_metrics(sums: dict[str, float]) -> dict[str, float]:
  """The metrics of ALL_METRICS from `depth_sums`: metres for RMSE and sq_rel, shares for delta; nan without pixels."""
  n = sums["n"]
  if not n:
    return dict.fromkeys(ALL_METRICS, float("nan"))
  mean = {key: value / n for key, value in sums.items()}
  # Rounding can push the difference of two equal numbers just below zero.
  variance = mean["sq_log"] - SILOG_VARIANCE_FOCUS * mean["log"] ** 2
  return dict(RMSE=float(np.sqrt(mean["sq"])), abs_RE=mean["abs_rel"], log10=mean["abs_log"] / float(np.log(10.0)),
              delta1=mean["delta1"], delta2=mean["delta2"], delta3=mean["delta3"], sq_rel=mean["sq_rel"],
              rmse_log=float(np.sqrt(mean["sq_log"])), silog=float(np.sqrt(np.maximum(variance, 0.0))))
