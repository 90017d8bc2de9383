"""Fréchet distance between two sets of activations, and the image arithmetic of ColTran's FID-5k protocol."""

import numpy as np

from uvim_like.errors import UserError
from uvim_like.evaluators.resize import center_square, resize_area


def _root(covariance: np.ndarray) -> np.ndarray:
  """Symmetric square root of a (D, D) covariance; eigenvalues below zero are rounding and count as zero."""
  values, vectors = np.linalg.eigh(covariance)
  return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def frechet_distance(act1: np.ndarray, act2: np.ndarray) -> float:
  """|μ1-μ2|² + tr(S1 + S2 - 2 (S1 S2)^½) of two sets of activations (n, D) and (m, D), in float64.

  Covariances are unbiased (n-1). The root is taken of the symmetric S1^½ S2 S1^½, which has the eigenvalues of S1 S2
  but stays real where there are fewer samples than dimensions. UserError for fewer than two samples.
  """
  act1, act2 = np.asarray(act1, np.float64), np.asarray(act2, np.float64)
  if act1.ndim != 2 or act2.ndim != 2 or act1.shape[1] != act2.shape[1] or min(len(act1), len(act2)) < 2:
    raise UserError(f"FID needs two sets (n >= 2, D) of activations, got {act1.shape} and {act2.shape}")
  cov1, cov2 = (np.atleast_2d(np.cov(act, rowvar=False)) for act in (act1, act2))
  root1 = _root(cov1)
  eigenvalues = np.linalg.eigvalsh(root1 @ cov2 @ root1)
  mean_term = np.sum((act1.mean(0) - act2.mean(0)) ** 2)
  return float(mean_term + np.trace(cov1) + np.trace(cov2) - 2 * np.sum(np.sqrt(np.maximum(eigenvalues, 0.0))))


def quantise(color: np.ndarray) -> np.ndarray:
  """[-1, 1] -> whole numbers 0..255 as float32: round((y + 1) · 128), clipped."""
  return np.clip(np.round((np.asarray(color, np.float64) + 1.0) * 128.0), 0, 255).astype(np.float32)


def normalise(image: np.ndarray) -> np.ndarray:
  """0..255 -> x / 128 - 1 as float32, the range that ColTran feeds its models and Inception."""
  return (np.asarray(image, np.float32) / 128.0 - 1.0).astype(np.float32)


def square_image(image: np.ndarray, size: int) -> np.ndarray:
  """(H, W, 3) bytes -> (size, size, 3) int32: centre square, area resize, rounding."""
  return np.round(resize_area(center_square(image), (size, size))).astype(np.int32)


def reference_image(image: np.ndarray, size: int) -> np.ndarray:
  """(H, W, 3) bytes -> (size, size, 3) float32 for Inception."""
  return normalise(square_image(image, size))


def predicted_image(color: np.ndarray, size: int) -> np.ndarray:
  """(h, w, 3) prediction in [-1, 1] -> (size, size, 3) float32 for Inception: area resize, quantise, normalise."""
  return normalise(quantise(resize_area(color, (size, size))))
