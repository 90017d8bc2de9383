"""Pictures and charts decode, say what their arrays say, and survive empty, constant and non-finite input."""

import io

import numpy as np
import pytest
from PIL import Image

from tools.reporting import figures


def decode(png: bytes) -> np.ndarray:
  assert png.startswith(b"\x89PNG")
  image = Image.open(io.BytesIO(png))
  image.load()
  return np.asarray(image.convert("RGB"))


def test_small_pictures_are_repeated_and_large_ones_thinned_out():
  small = np.arange(6).reshape(2, 3)
  big = figures.fit(small, low=9, high=20)
  np.testing.assert_array_equal(big, small.repeat(3, 0).repeat(3, 1))
  assert figures.fit(np.zeros((64, 640, 3))).shape == (32, 320, 3)
  assert figures.fit(np.zeros((200, 100))).shape == (200, 100)
  assert figures.fit(np.zeros((0, 0))).size == 0


def test_depth_is_ordered_near_to_far_and_missing_is_grey():
  depth = np.array([[1.0, 2.0, 3.0], [0.0, np.nan, np.inf]])
  pixels = decode(figures.depth_image(depth, vmin=1, vmax=3))
  cell = pixels.shape[0] // 2
  near, middle, far = (pixels[2, cell * i + 2].astype(int) for i in range(3))
  assert near.sum() > middle.sum() > far.sum()
  missing = pixels[cell:].reshape(-1, 3).astype(int)
  assert (np.ptp(missing, axis=1) < 12).all() and len(np.unique(missing[:, 0])) == 2  # two greys: hatched


def test_depth_range_is_shared_and_ignores_what_was_not_measured():
  assert figures.depth_range(np.array([0, 2.0, np.nan]), np.array([[5.0]])) == (2.0, 5.0)
  assert figures.depth_range(np.zeros((2, 2))) == (0.0, 1.0)
  low, high = figures.depth_range(np.full((2, 2), 3.0))
  assert low == 3 < high


def test_values_beyond_the_scale_take_its_ends():
  ends = decode(figures.depth_image(np.array([[1.0, 2.0]]), vmin=1, vmax=2))
  beyond = decode(figures.depth_image(np.array([[0.5, 9.0]]), vmin=1, vmax=2))
  np.testing.assert_array_equal(ends, beyond)


def test_error_and_color_images():
  error = decode(figures.error_image(np.array([[0.0, 1.0], [np.nan, 5.0]]), vmax=1))
  assert error[0, 0].sum() < 40 < 300 < error[0, -1].sum()
  color = decode(figures.color_image(np.array([[[-1, 0, 1], [2, np.nan, -3]]], np.float32)))
  np.testing.assert_array_equal(color[0, 0], [0, 128, 255])
  np.testing.assert_array_equal(color[0, -1], [255, 0, 0])


def test_panoptic_tells_classes_instances_and_borders():
  semantics = np.kron([[1, 1, 2, 0]], np.ones((16, 16), int))
  instances = np.kron([[1, 2, 0, 0]], np.ones((16, 16), int))
  pixels = decode(figures.panoptic_image(semantics, instances))
  step = pixels.shape[1] // 4
  inside = [tuple(pixels[5, step * i + step // 2]) for i in range(4)]
  assert len(set(inside)) == 4
  assert tuple(pixels[5, step - 1]) == (255, 255, 255)  # between the two instances of class 1
  assert inside[3] == tuple(round(255 * c) for c in figures.VOID_COLOR)


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (64, 48)])
def test_panoptic_of_one_segment_has_no_border(shape):
  pixels = decode(figures.panoptic_image(np.full(shape, 3), np.full(shape, -1)))
  assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 1


def test_edges_by_eye():
  labels = np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]])
  np.testing.assert_array_equal(figures.edges(labels), [[0, 1, 0], [1, 1, 1], [0, 0, 0]])


def test_code_tiles_in_reading_order_and_faded_where_they_differ():
  code = np.array([0, 1, 2, 3, 4, 5])
  pixels = decode(figures.code_image(code, reference=np.array([0, 1, 2, 3, 4, 9])))
  cell = pixels.shape[1] // 3
  assert pixels.shape == (2 * cell, 3 * cell, 3)
  first, last = pixels[4, 4].astype(int), pixels[-5, -5].astype(int)
  assert np.ptp(first) > 60 and np.ptp(last) < 40
  assert decode(figures.code_image(np.arange(256))).shape[0] <= figures.MAX_SIDE


@pytest.mark.parametrize("length,grid", [(16, (4, 4)), (6, (2, 3)), (7, (1, 7)), (256, (16, 16)), (1, (1, 1))])
def test_square_grid(length, grid):
  assert figures.square_grid(length) == grid


@pytest.mark.parametrize("values", [[np.nan, 1.0, 2.0], [np.nan, np.inf], [], [0.0, -1.0], [1.0], [3.0] * 50])
@pytest.mark.parametrize("log", [False, True])
def test_curves_draw_whatever_comes(values, log, recwarn):
  png = figures.curves({"a $x_$ <b>": (range(len(values)), values)}, log=log, smooth=True, title="t$")
  assert decode(png).shape[0] > 100
  assert not recwarn.list


def test_a_gap_is_a_gap_and_the_line_goes_on_behind_it():
  smooth = figures.running_median(np.array([1.0, 1, np.nan, 1, 9, 1, 1, 1]), share=0.5)
  np.testing.assert_array_equal(smooth, np.ones(8))
  assert np.isnan(figures.running_median(np.full(4, np.nan))).all()


def test_charts_differ_in_ink_and_leave_no_figure_open():
  import matplotlib.pyplot as plt
  before = plt.get_fignums()
  series = {"a": ([1, 2], [3.0, 4.0])}
  assert figures.curves(series, ink=figures.INK) != figures.curves(series, ink=figures.INK_DARK)
  assert plt.get_fignums() == before


def test_code_use_counts():
  assert figures.perplexity(np.full(8, 1 / 8)) == pytest.approx(8)
  assert figures.perplexity(np.array([1.0, 0, 0])) == pytest.approx(1)
  assert np.isnan(figures.perplexity(np.zeros(3)))
  decode(figures.code_use(np.array([0.5, 0.25, 0.25, 0])))
  decode(figures.code_use(np.zeros(4)))
