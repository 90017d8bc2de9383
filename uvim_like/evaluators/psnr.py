"""Peak signal-to-noise ratio of colour predictions, per image and then averaged."""

import numpy as np

from uvim_like.errors import UserError
from uvim_like.evaluators.base import Example, Metric
from uvim_like.evaluators.entries import required


def peak_signal_to_noise(a: np.ndarray, b: np.ndarray, dynamic_range: float) -> float:
  """20 log10(range) - 10 log10(mean squared difference) in dB of two (H, W, C) images; inf when they are equal."""
  error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
  with np.errstate(divide="ignore"):
    return float(20 * np.log10(dynamic_range) - 10 * np.log10(error))


def make(*, dynamic_range: float = 2.0, target_key: str | None = None) -> Metric:
  """PSNR of output "color" (H, W, 3) in [-1, 1] against the batch's "labels" in [-1, 1].

  Args:
    dynamic_range: distance between black and white, 2 for [-1, 1].
    target_key: instead of "labels", a raw feature to compare with; bytes are mapped to [-1, 1].

  Returns:
    A Metric giving {"psnr", "images"}; an image that is reproduced exactly makes the mean inf. UserError when sizes
    differ, since any resizing would change the number.
  """

  def update(stats: np.ndarray, output: Example, target: Example) -> np.ndarray:
    pred = required(output, "color", where="psnr, prediction")
    truth = as_signed(required(target, target_key or "labels", where="psnr, target"))
    if pred.shape != truth.shape:
      raise UserError(f"psnr: prediction {pred.shape} and '{target_key or 'labels'}' {truth.shape} differ in size")
    return stats + [peak_signal_to_noise(pred, truth, dynamic_range), 1]

  return Metric(
      init=lambda: np.zeros(2),
      update=update,
      merge=np.add,
      compute=lambda stats: dict(psnr=float(stats[0] / stats[1]) if stats[1] else float("nan"), images=float(stats[1])),
      target_keys=() if target_key is None else (target_key,),
      protocol=f"PSNR in dB, dynamic range {dynamic_range:g}, at the prediction's size, mean over images")


def as_signed(image: np.ndarray) -> np.ndarray:
  """Bytes 0..255 -> [-1, 1]; anything else is taken to be there already."""
  return image / 127.5 - 1.0 if image.dtype == np.uint8 else image
