"""Resizing rules against jax and against small pictures."""

import jax
import numpy as np
import pytest

from uvim_like.evaluators import resize


@pytest.mark.parametrize("size, new_size", [(32, 47), (512, 427), (512, 640), (7, 7), (1, 5), (5, 1), (16, 23),
                                            (40, 426), (97, 30), (256, 255)])
def test_nearest_picks_what_jax_picks(size, new_size):
  theirs = np.asarray(jax.image.resize(np.arange(size), (new_size,), "nearest"))
  np.testing.assert_array_equal(resize.nearest_index(size, new_size), theirs)


def test_nearest_of_a_picture_keeps_type_and_channels():
  image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
  np.testing.assert_array_equal(resize.resize_nearest(image, (4, 3)), [[1, 2, 3], [1, 2, 3], [4, 5, 6], [4, 5, 6]])
  both = resize.resize_nearest(np.stack([image, image + 10], -1), (1, 6))
  assert both.dtype == np.uint8 and both.shape == (1, 6, 2)
  np.testing.assert_array_equal(both[0, :, 1], [14, 14, 15, 15, 16, 16])


def test_area_averages_what_a_pixel_covers():
  row = np.array([[0.0, 3.0, 6.0]])[..., None]
  np.testing.assert_allclose(resize.resize_area(row, (1, 2))[0, :, 0], [1.0, 5.0])  # (0 + 3/2) / 1.5, (3/2 + 6) / 1.5
  np.testing.assert_allclose(resize.resize_area(row, (2, 6))[1, :, 0], [0, 0, 3, 3, 6, 6])
  np.testing.assert_allclose(resize.area_weights(47, 32).sum(1), 1.0)


def test_center_square():
  image = np.arange(6 * 3).reshape(6, 3)
  np.testing.assert_array_equal(resize.center_square(image), image[1:4])
  np.testing.assert_array_equal(resize.center_square(image.T), image.T[:, 1:4])
