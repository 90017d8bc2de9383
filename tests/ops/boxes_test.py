"""Box forms and bins, on numbers that a reader checks by eye."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops import boxes


def test_swap_axes():
  assert boxes.swap_axes(jnp.array([1, 2, 3, 4])).tolist() == [2, 1, 4, 3]


def test_centres_and_back():
  box = jnp.array([0.1, 0.2, 0.5, 0.8])
  np.testing.assert_allclose(boxes.to_centres(box), [0.3, 0.5, 0.4, 0.6], rtol=1e-6)
  np.testing.assert_allclose(boxes.from_centres(boxes.to_centres(box)), box, rtol=1e-6)


def test_rescale_takes_one_factor_an_axis_and_image():
  both = jnp.tile(jnp.array([0.1, 0.2, 0.3, 0.4]), (2, 1, 1))
  scaled = boxes.rescale(both, jnp.array([[2.0, 1.0], [1.0, 0.5]]))
  np.testing.assert_allclose(scaled, [[[0.2, 0.2, 0.6, 0.4]], [[0.1, 0.1, 0.3, 0.2]]], rtol=1e-6)


@pytest.mark.parametrize("bins", [1, 7, 20, 500, 1000])
def test_bins(bins):
  every = jnp.arange(bins + 1)
  values = jax.jit(lambda x: boxes.dequantise(x, bins))(every)
  np.testing.assert_array_equal(values, np.arange(bins + 1, dtype=np.float32) / np.float32(bins))
  middle = boxes.dequantise(every, bins, half_bin=True)
  np.testing.assert_array_equal(boxes.quantise(middle, bins), every)  # the middle of a bin always comes back
  np.testing.assert_allclose(middle[:-1] - values[:-1], 0.5 / bins, rtol=1e-3)
  assert boxes.quantise(jnp.array([-1.0, 0.0, 1.0, 2.0]), bins).tolist() == [0, 0, bins, bins]


def test_two_bins_of_500_lose_one_in_floats():
  every = jnp.arange(501)
  back = boxes.quantise(boxes.dequantise(every, 500), 500)
  assert np.flatnonzero(np.asarray(back != every)).tolist() == [251, 253]
