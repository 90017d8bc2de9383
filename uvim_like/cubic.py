"""Cubic interpolation of position tables, as the published code does it."""

import numpy as np

SHAPE = -0.75  # parameter of the cubic kernel (PyTorch's bicubic; Keys' own is -0.5)


def cubic_matrix(old: int, new: int) -> np.ndarray:
  """(new, old) float32 weights of cubic interpolation between pixel centres, edges repeated, no smoothing.

  The identity when the lengths agree.
  """
  centre = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(centre).astype(int)
  matrix = np.zeros((new, old))
  for tap in range(-1, 3):
    t = np.abs(centre - first - tap)
    near = ((SHAPE + 2) * t - (SHAPE + 3)) * t * t + 1
    far = ((SHAPE * t - 5 * SHAPE) * t + 8 * SHAPE) * t - 4 * SHAPE
    np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(t <= 1, near, far))
  return matrix.astype(np.float32)


def resize_grid(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """(h, w, D) resized to (*size, D) in float32."""
  h, w = grid.shape[:2]
  return np.einsum("yh,xw,hwd->yxd", cubic_matrix(h, size[0]), cubic_matrix(w, size[1]), grid.astype(np.float32))
