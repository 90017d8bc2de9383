"""Resizing in numpy with the index and weight rules that published protocols use."""

from collections.abc import Mapping

import numpy as np

from uvim_like.evaluators.entries import required


def nearest_index(size: int, new_size: int) -> np.ndarray:
  """(new_size,) source positions of a nearest resize from `size` pixels.

  The rule of `jax.image.resize(method="nearest")`: floor((i + 1/2) · size / new_size). Its compiled form multiplies by
  the float32 constant size · (1 / new_size); so do we, because any other order of rounding picks another neighbour at
  about one in ten pairs of sizes (compared with jax over 500 random pairs).
  """
  scale = np.float32(size) * (np.float32(1) / np.float32(new_size))
  position = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * scale
  return np.minimum(np.floor(position).astype(np.int64), size - 1)


def resize_nearest(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """image (h, w, …) -> (*shape, …), values only picked, so that class maps stay class maps."""
  rows, columns = nearest_index(image.shape[0], shape[0]), nearest_index(image.shape[1], shape[1])
  return image[rows[:, None], columns[None, :]]


def without_padding(x: np.ndarray, entries: Mapping[str, np.ndarray]) -> np.ndarray:
  """A map (h, w, …) of a canvas, at any size, cut to what the image fills of it; as it is without "valid_size".

  Args:
    x: the map.
    entries: of the batch, one row: "valid_size" (2,) rows and columns, and what `canvas_size` reads.
  """
  if "valid_size" not in entries:
    return x
  canvas = canvas_size(entries)
  rows, columns = np.maximum(np.round(np.asarray(entries["valid_size"]) * x.shape[:2] / canvas), 1).astype(int)
  return x[:rows, :columns]


def canvas_size(entries: Mapping[str, np.ndarray]) -> np.ndarray:
  """(2,) rows and columns of the canvas.

  "canvas_size" says it in a metric's target, whose "image" may be the raw one; else it is the size of "image".
  """
  if "canvas_size" in entries:
    return np.asarray(entries["canvas_size"])
  return np.asarray(required(entries, "image", where="a canvas, its batch").shape[:2])


def area_weights(size: int, new_size: int) -> np.ndarray:
  """(new_size, size) weights of an area resize: the share of each new pixel that an old pixel covers."""
  scale = size / new_size
  start = np.arange(new_size)[:, None] * scale
  old = np.arange(size)[None, :]
  overlap = np.minimum(start + scale, old + 1) - np.maximum(start, old)
  return np.maximum(overlap, 0.0) / scale


def resize_area(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """image (h, w, C) -> (*shape, C) float64, every new pixel the mean over the area that it covers (any ratio)."""
  rows, columns = area_weights(image.shape[0], shape[0]), area_weights(image.shape[1], shape[1])
  return np.einsum("Hh,hwc,Ww->HWc", rows, np.asarray(image, np.float64), columns, optimize=True)


def center_square(image: np.ndarray) -> np.ndarray:
  """image (h, w, …) -> the largest square in its middle; an odd remainder goes to the bottom and right."""
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return image[top:top + side, left:left + side]
