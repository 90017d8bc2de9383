"""Class maps, surface normals and error maps as PNG pictures; arrays in, pictures out, as in `figures`."""

import numpy as np

from tools.reporting.figures import class_color, fit, hatch, png

WRONG = (0.84, 0.15, 0.16)  # a pixel of a wrong class
_DIM = 0.45  # brightness of the image below an error
_BALL = 96  # pixels of the legend of normals
_ROUND = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)


def semantic_image(semantics: np.ndarray) -> bytes:
  """A class map (H, W) int, 0 = void, in the colours of `figures.class_color`."""
  return png(_class_pixels(fit(np.asarray(semantics, np.int64))))


def _class_pixels(semantics: np.ndarray) -> np.ndarray:
  """(H, W, 3) in [0, 1]; what is below 0 counts as void."""
  numbers, inverse = np.unique(np.maximum(semantics, 0), return_inverse=True)
  return np.array([class_color(int(k)) for k in numbers]).reshape(-1, 3)[inverse.reshape(semantics.shape)]


def normals_image(normals: np.ndarray) -> bytes:
  """Unit vectors (H, W, 3), x right, y up, z towards the camera, as colours (n + 1) / 2; without a vector hatched."""
  normals = fit(np.asarray(normals, np.float32))
  known = has_direction(normals)
  colors = np.where(known[..., None], vector_color(np.where(known[..., None], normals, 1.0)), hatch(known.shape))
  return png(colors)


def has_direction(normals: np.ndarray) -> np.ndarray:
  """(…) bool: the vectors (…, 3) that are finite and not (nearly) zero."""
  finite = np.isfinite(normals).all(axis=-1)
  return finite & (np.linalg.norm(np.where(finite[..., None], normals, 0.0), axis=-1) > 1e-3)


def vector_color(vectors: np.ndarray) -> np.ndarray:
  """Colours (…, 3) in [0, 1] of vectors (…, 3) of any length but 0, the convention of normal maps."""
  length = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return (vectors / np.maximum(length, 1e-6) + 1) / 2


def normals_ball() -> bytes:
  """The legend of `normals_image`: a ball seen from the camera, whose every point shows the colour of its direction."""
  y, x = np.mgrid[1:-1:_BALL * 1j, -1:1:_BALL * 1j]
  inside = x ** 2 + y ** 2 < 0.98
  z = np.sqrt(np.maximum(1 - x ** 2 - y ** 2, 0))
  colors = vector_color(np.stack([x, y, z + 1e-6], axis=-1))
  return png(np.concatenate([np.where(inside[..., None], colors, 0.0), inside[..., None]], axis=-1))


def wrong_pixels_image(image: np.ndarray, wrong: np.ndarray, counted: np.ndarray) -> bytes:
  """The darkened image (H, W, 3) in [-1, 1] with wrong pixels (H, W) bool in red, hatched where nothing counts."""
  grey = _DIM * (np.mean(np.nan_to_num(image), axis=-1, keepdims=True) + 1) / 2
  pixels = np.where(np.asarray(wrong, bool)[..., None], WRONG, np.repeat(grey, 3, axis=-1))
  counted = fit(np.asarray(counted, bool))
  return png(np.where(counted[..., None], fit(pixels), hatch(counted.shape) * _DIM))


def round_up(value: float) -> float:
  """The next round number, e.g. 0.234 -> 0.25, 130 -> 150; 1 for what is no positive number."""
  if not (np.isfinite(value) and value > 0):
    return 1.0
  unit = 10.0 ** np.floor(np.log10(value))
  return float(next(step for step in _ROUND if step * unit >= value * (1 - 1e-9)) * unit)
