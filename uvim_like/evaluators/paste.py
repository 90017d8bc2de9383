"""A mask known inside its box, drawn into the image at full size."""

import numpy as np


def weights(begin: float, end: float, cells: int, first: int, last: int) -> np.ndarray:
  """(last - first, cells) bilinear weights of `cells` samples over [begin, end] at the centres of pixels first..last-1.

  Samples stand in the middle of their cells; beyond the outermost the mask falls to 0 within one cell. This is
  grid sampling with half-pixel centres and zero padding, as detectron2 and mmdetection paste masks.
  """
  centre = (np.arange(first, last) + 0.5 - begin) / (end - begin) * cells - 0.5
  return np.maximum(1 - np.abs(centre[:, None] - np.arange(cells)), 0)


def paste_mask(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], *, threshold: float = 0.5) -> np.ndarray:
  """uint8 (H, W): 1 where the mask, stretched over its box, is at least `threshold`.

  Args:
    mask: (S, T) probabilities inside the box.
    box: [y0, x0, y1, x1] in pixels of the image; may reach beyond it. Without area, or outside: nothing is drawn.
    size: (H, W) of the image.
    threshold: 0.5 in all papers here.
  """
  out = np.zeros(size, np.uint8)
  y0, x0, y1, x1 = map(float, box)
  if not (np.isfinite([y0, x0, y1, x1]).all() and y1 > y0 and x1 > x0):
    return out
  top, bottom = max(int(np.floor(y0)) - 1, 0), min(int(np.ceil(y1)) + 1, size[0])
  left, right = max(int(np.floor(x0)) - 1, 0), min(int(np.ceil(x1)) + 1, size[1])
  if bottom <= top or right <= left:
    return out
  rows = weights(y0, y1, mask.shape[0], top, bottom)
  columns = weights(x0, x1, mask.shape[1], left, right)
  out[top:bottom, left:right] = rows @ np.asarray(mask, np.float64) @ columns.T >= threshold
  return out
