"""Align-corners resize: values at the corners, exact ramps, whole and broken factors, its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops.resize_align import align_weights, resize_bilinear


def by_weights(x, size):
  return np.einsum("oi,pj,bijc->bopc", align_weights(x.shape[1], size[0]), align_weights(x.shape[2], size[1]), x)


@pytest.mark.parametrize("size", [(9, 13), (5, 4), (7, 7), (3, 25), (1, 1), (2, 3), (3, 4)])
def test_is_the_product_of_two_weight_matrices(size):
  x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
  got = resize_bilinear(jnp.asarray(x), size)
  assert got.shape == (2, *size, 5)
  np.testing.assert_allclose(got, by_weights(x, size), rtol=1e-5, atol=1e-6)


def test_ramps_stay_ramps_and_corners_stay():
  ramp = jnp.linspace(0, 1, 5)[None, :, None, None] + jnp.linspace(0, 10, 3)[None, None, :, None]
  for size in ((17, 9), (11, 8)):
    want = np.linspace(0, 1, size[0])[:, None] + np.linspace(0, 10, size[1])[None, :]
    np.testing.assert_allclose(resize_bilinear(ramp, size)[0, ..., 0], want, atol=1e-5)


def test_single_rows_and_types():
  x = jnp.ones((1, 1, 3, 2), jnp.bfloat16)
  out = resize_bilinear(x, (4, 5))
  assert out.dtype == jnp.bfloat16 and np.all(np.asarray(out, np.float32) == 1)
  assert resize_bilinear(x, (1, 3)) is x


def test_gradient_is_the_transposed_resize():
  x = jnp.zeros((1, 3, 3, 1))
  weight = np.random.default_rng(1).normal(size=(1, 9, 9, 1)).astype(np.float32)
  grad = jax.grad(lambda x: jnp.sum(resize_bilinear(x, (9, 9)) * weight))(x)
  rows = align_weights(3, 9)
  np.testing.assert_allclose(grad[0, ..., 0], rows.T @ weight[0, ..., 0] @ rows, rtol=1e-4, atol=1e-5)
