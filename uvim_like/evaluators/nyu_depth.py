"""Depth metrics under named protocols: two papers crop NYU Depth v2 differently, so the crop goes beside the number."""

from typing import NamedTuple

import numpy as np

from uvim_like.errors import UserError, unknown
from uvim_like.evaluators.base import Example, Metric
from uvim_like.evaluators.depth_metrics import ALL_METRICS, UVIM_METRICS, depth_metrics, depth_sums
from uvim_like.evaluators.entries import add_counts, required
from uvim_like.evaluators.resize import resize_nearest, without_padding

Crop = tuple[int, int, int, int]


class Preset(NamedTuple):
  """What a protocol fixes.

  Attributes:
    crop: (top, bottom, left, right) of the label that counts, or None for all of it.
    label_shape: the only full size for which the crop was meant, or None.
    crop_prediction: True when the model sees the whole image and its prediction is cropped like the label; False when
      preprocessing crops the image, so that the prediction is already of the crop.
    replace_nonfinite: prediction inf -> max_depth, nan -> min_depth.
    metrics: what is reported.
  """
  crop: Crop | None
  label_shape: tuple[int, int] | None
  crop_prediction: bool
  replace_nonfinite: bool
  metrics: tuple[str, ...]


# nyu_uvim: rows of the code behind UViM's published numbers (its own comment says 45:471). nyu_eigen: Eigen's crop as
# AiT applies it.
PRESETS = {
    "nyu_uvim": Preset((54, 480, 41, 601), (480, 640), False, False, UVIM_METRICS),
    "nyu_eigen": Preset((45, 471, 41, 601), (480, 640), True, True, ALL_METRICS),
    "plain": Preset(None, None, True, False, ALL_METRICS),
}
AVERAGES = ("image", "pixel")


def make(preset: str = "nyu_uvim", *, min_depth: float = 1e-3, max_depth: float = 10.0,
         crop: Crop | None | str = "preset", clip_prediction: bool = False, average: str = "image",
         target_key: str | None = "depth") -> Metric:
  """Depth metrics over valid pixels, min_depth < truth < max_depth strictly.

  The truth is the batch's "ground_truth" (what preprocessing kept of the label at the size of the view; the preset
  nyu_uvim takes it as already cropped), else the raw feature `target_key`, else the batch's "labels"; (H, W) or
  (H, W, 1) metres. The prediction "depth" (h, w) is nearest-resized to it; with "valid_size" in the batch, to a raw
  feature only what the image fills of its canvas.

  Args:
    preset: "nyu_uvim", "nyu_eigen" or "plain" (no crop, any size).
    min_depth: metres.
    max_depth: metres.
    crop: (top, bottom, left, right) instead of the preset's, for labels of any size; None for no crop.
    clip_prediction: clip predictions to [min_depth, max_depth] first; no preset does.
    average: "image" for metrics per image and their mean, "pixel" to pool all pixels.
    target_key: raw feature to read, or None when the batch holds the truth.

  Returns:
    A Metric; besides the metrics it gives "images" and "images_without_valid", the latter left out of every mean.
    UserError for an unknown preset or average.
  """
  if preset not in PRESETS:
    raise unknown("preset", preset, PRESETS, where="nyu_depth")
  if average not in AVERAGES:
    raise unknown("average", average, AVERAGES, where="nyu_depth")
  rules = PRESETS[preset]
  if crop != "preset":
    rules = rules._replace(crop=None if crop is None else tuple(crop), label_shape=None)

  def update(stats: dict, output: Example, target: Example) -> dict:
    pred, gt = view(output, target, rules, target_key)
    pred, gt = valid_pixels(pred, gt, min_depth, max_depth, replace_nonfinite=rules.replace_nonfinite,
                            clip_prediction=clip_prediction)
    return add_image(stats, pred, gt, average)

  return Metric(
      init=lambda: dict(sums={}, images=0, images_without_valid=0),
      update=update,
      merge=lambda a, b: dict(sums=add_counts(a["sums"], b["sums"]), images=a["images"] + b["images"],
                              images_without_valid=a["images_without_valid"] + b["images_without_valid"]),
      compute=lambda stats: finish(stats, rules.metrics, average),
      target_keys=() if target_key is None else (target_key,),
      protocol=describe(preset, rules, min_depth, max_depth, clip_prediction, average))


def describe(preset: str, rules: Preset, min_depth: float, max_depth: float, clip_prediction: bool,
             average: str) -> str:
  """The line that stands beside the numbers."""
  crop = "no crop" if rules.crop is None else "crop rows {}:{}, columns {}:{}".format(*rules.crop)
  pred = f"clipped to [{min_depth:g}, {max_depth:g}]" if clip_prediction else "not clipped"
  pred += f", inf -> {max_depth:g}, nan -> {min_depth:g}" if rules.replace_nonfinite else ""
  mean = "metrics per image, then their mean" if average == "image" else "all pixels pooled"
  return (f"{preset}: {crop}; valid {min_depth:g} < truth < {max_depth:g} m; prediction nearest-resized to the truth, "
          f"{pred}; {mean}; images without a valid pixel left out and counted")


def _plane(depth: np.ndarray, what: str) -> np.ndarray:
  """(H, W) or (H, W, 1) -> (H, W) float32: the bounds of validity are compared in single precision, as published."""
  depth = np.asarray(depth, np.float32)
  depth = depth[..., 0] if depth.ndim == 3 and depth.shape[-1] == 1 else depth
  if depth.ndim != 2:
    raise UserError(f"nyu_depth: {what} must be (H, W) or (H, W, 1), got {depth.shape}")
  return depth


def view(output: Example, target: Example, rules: Preset, target_key: str | None) -> tuple[np.ndarray, np.ndarray]:
  """(prediction, truth), both (H, W) float32 over the pixels that the protocol looks at."""
  key = next((k for k in ("ground_truth", target_key) if k is not None and k in target), "labels")
  gt = _plane(required(target, key, where="nyu_depth, target"), f"'{key}'")
  pred = _plane(required(output, "depth", where="nyu_depth, prediction"), "the prediction")
  pred = without_padding(pred, target) if key == target_key else pred
  cropped_before = key == "ground_truth" and not rules.crop_prediction
  if rules.crop is None or cropped_before:
    return resize_nearest(pred, gt.shape), gt
  top, bottom, left, right = rules.crop
  fits = 0 <= top < bottom <= gt.shape[0] and 0 <= left < right <= gt.shape[1]
  if not fits or rules.label_shape not in (None, gt.shape):
    raise UserError(f"nyu_depth: '{key}' is {gt.shape}, but the crop {rules.crop} is for "
                    f"{rules.label_shape or 'larger labels'}; preset 'plain' takes any size")
  window = np.s_[top:bottom, left:right]
  if rules.crop_prediction:
    return resize_nearest(pred, gt.shape)[window], gt[window]
  return resize_nearest(pred, gt[window].shape), gt[window]


def valid_pixels(pred: np.ndarray, gt: np.ndarray, min_depth: float, max_depth: float, *, replace_nonfinite: bool,
                 clip_prediction: bool) -> tuple[np.ndarray, np.ndarray]:
  """(prediction, truth) -> both (n,), where the truth lies strictly between the bounds."""
  valid = (gt > min_depth) & (gt < max_depth)
  pred, gt = pred[valid], gt[valid]
  if replace_nonfinite:
    pred = np.where(np.isinf(pred), np.float32(max_depth), np.where(np.isnan(pred), np.float32(min_depth), pred))
  return (np.clip(pred, min_depth, max_depth) if clip_prediction else pred), gt


def add_image(stats: dict, pred: np.ndarray, gt: np.ndarray, average: str) -> dict:
  """Stats with one more image, given its valid pixels (n,)."""
  if not gt.size:
    return {**stats, "images_without_valid": stats["images_without_valid"] + 1}
  sums = depth_sums(pred, gt)
  new = sums if average == "pixel" else depth_metrics(sums)
  return {**stats, "sums": add_counts(stats["sums"], new), "images": stats["images"] + 1}


def finish(stats: dict, names: tuple[str, ...], average: str) -> dict[str, float]:
  """{metric: value} with the counts of images; nan when no image had a valid pixel."""
  if not stats["images"]:
    values = dict.fromkeys(names, float("nan"))
  elif average == "pixel":
    values = depth_metrics(stats["sums"])
  else:
    values = {name: total / stats["images"] for name, total in stats["sums"].items()}
  counts = {key: float(stats[key]) for key in ("images", "images_without_valid")}
  return {**{name: float(values[name]) for name in names}, **counts}
