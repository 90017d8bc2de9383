"""Cutting pictures into patches, on a picture small enough to write down."""

import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops.patches import from_patches, grid_of, to_patches

PICTURE = np.arange(36).reshape(1, 6, 6)


def test_patches_of_a_six_by_six_picture():
  tokens = to_patches(jnp.asarray(PICTURE), (2, 3))
  assert tokens.shape == (1, 6, 6)  # 3 rows of 2 patches, 2 x 3 pixels each
  np.testing.assert_array_equal(tokens[0, 0], [0, 1, 2, 6, 7, 8])
  np.testing.assert_array_equal(tokens[0, 1], [3, 4, 5, 9, 10, 11])
  np.testing.assert_array_equal(tokens[0, 2], [12, 13, 14, 18, 19, 20])
  np.testing.assert_array_equal(tokens[0, 5], [27, 28, 29, 33, 34, 35])


def test_channels_come_before_pixels():
  picture = np.stack([PICTURE, PICTURE + 100], axis=-1)
  tokens = to_patches(jnp.asarray(picture), (3, 2))
  assert tokens.shape == (1, 6, 2, 6)
  np.testing.assert_array_equal(tokens[0, 4, 0], [20, 21, 26, 27, 32, 33])
  np.testing.assert_array_equal(tokens[0, 4, 1], tokens[0, 4, 0] + 100)


@pytest.mark.parametrize("shape, patch", [((2, 6, 6), (2, 3)), ((2, 4, 10), (4, 5)), ((1, 3, 5), (1, 1)),
                                          ((2, 8, 6, 3), (8, 6)), ((3, 6, 4, 1), (3, 2))])
def test_there_and_back(shape, patch):
  x = np.random.default_rng(0).normal(size=shape)
  tokens = to_patches(jnp.asarray(x), patch)
  grid = grid_of(shape[1:3], patch)
  assert tokens.shape[1] == grid[0] * grid[1] and tokens.shape[-1] == patch[0] * patch[1]
  np.testing.assert_array_equal(from_patches(tokens, grid, patch), jnp.asarray(x))


def test_grid():
  assert grid_of((24, 40), (4, 8)) == (6, 5)
