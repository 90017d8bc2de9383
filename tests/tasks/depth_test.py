"""Depth in bins: edges, clamping, missing measurements, and the regression baseline beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops.planes import Planes
from uvim_like.tasks import depth, depth_regression
from uvim_like.tasks.base import bind


def head(values):
  """Planes whose values are the given (B, N, C, P): features are the patch's number, one image after the other."""
  batch, patches, channels, pixels = values.shape
  kernel = jnp.asarray(values).reshape(batch * patches, channels, pixels)
  return Planes(jnp.eye(batch * patches).reshape(batch, patches, -1), kernel, jnp.zeros((channels, pixels)))


def test_bins():
  values = jnp.array([-1.0, 0.0, 0.001, 2.5, 5.0, 9.999, 10.0, 80.0, jnp.inf, -jnp.inf])
  np.testing.assert_array_equal(depth.to_bins(values, 4, min_depth=0.0), [0, 0, 0, 1, 2, 3, 3, 3, 3, 0])
  np.testing.assert_array_equal(depth.to_bins(values[:8], 256), [0, 0, 0, 63, 127, 255, 255, 255])
  assert depth.to_bins(values, 4).dtype == jnp.int32
  assert depth.to_bins(values.astype(jnp.float16), 4).dtype == jnp.int32


@pytest.mark.parametrize("bins", [1, 7, 256])
def test_centre_of_a_bin_is_in_it(bins):
  index = jnp.arange(bins)
  metres = depth.from_bins(index, bins)
  np.testing.assert_array_equal(depth.to_bins(metres, bins), index)
  np.testing.assert_allclose(metres, depth.MIN_DEPTH + (np.arange(bins) + 0.5) * (10 - 1e-3) / bins, rtol=1e-6)


def test_labels_come_back_within_half_a_bin():
  metres = np.random.default_rng(0).uniform(depth.MIN_DEPTH, depth.MAX_DEPTH, (2, 4, 6, 1)).astype(np.float32)
  planes = depth.to_planes(jnp.asarray(metres), patch=(2, 3), spec={"depth": (256, 6)})["depth"]
  assert planes.shape == (2, 4, 6)
  logits = np.moveaxis(np.eye(256, dtype=np.float32)[np.asarray(planes)], -1, -2)
  got = depth.from_planes({"depth": head(logits)}, grid=(2, 2), patch=(2, 3))["depth"]
  assert got.shape == (2, 4, 6) and got.dtype == jnp.float32
  assert np.abs(got - metres[..., 0]).max() <= 10 / 256 / 2 + 1e-4


def test_missing_depth_has_no_loss_but_counts():
  logits = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
  bins = np.random.default_rng(1).integers(0, 5, (2, 4, 6))
  loss = depth.losses({"depth": head(logits)}, {"depth": jnp.asarray(bins)})["loss_depth"]
  logprobs = np.asarray(jax.nn.log_softmax(jnp.asarray(logits), axis=-2))
  picked = -np.take_along_axis(logprobs, bins[:, :, None], axis=2)[:, :, 0]
  want = np.where(bins > 0, picked, 0).mean((1, 2))
  np.testing.assert_allclose(loss.per_example, want, rtol=1e-5)
  np.testing.assert_allclose(loss.mean, want.mean(), rtol=1e-5)
  none = depth.losses({"depth": head(logits)}, {"depth": jnp.zeros((2, 4, 6), jnp.int32)})["loss_depth"]
  assert none.mean == 0


def test_range_of_the_config():
  task = bind("depth", {"min_depth": 2.0, "max_depth": 4.0})
  labels = jnp.array([1.0, 2.0, 2.9, 3.0, 3.9, 9.0]).reshape(1, 2, 3, 1)
  planes = task.to_planes(labels, patch=(2, 3), spec={"depth": (2, 6)})
  np.testing.assert_array_equal(planes["depth"], [[[0, 0, 0, 1, 1, 1]]])
  logits = np.moveaxis(np.eye(2, dtype=np.float32)[np.asarray(planes["depth"])], -1, -2)
  got = task.from_planes({"depth": head(logits)}, grid=(1, 1), patch=(2, 3))["depth"]
  np.testing.assert_allclose(got[0], [[2.5, 2.5, 2.5], [3.5, 3.5, 3.5]])


def test_regression():
  metres = np.random.default_rng(0).uniform(0.5, 9.5, (2, 4, 6, 1)).astype(np.float32)
  metres[0, 0, 0] = 0  # missing
  planes = depth_regression.to_planes(jnp.asarray(metres), patch=(2, 3), spec={"depth": (1, 6)})
  assert planes["depth"].shape == (2, 4, 1, 6) and planes["depth"].dtype == jnp.float32
  raw = planes["depth"] / ((depth.MIN_DEPTH + depth.MAX_DEPTH) / 2) - 1
  outputs = {"depth": head(np.asarray(raw) + 0.1)}
  got = depth_regression.from_planes(outputs, grid=(2, 2), patch=(2, 3))["depth"]
  error = 0.1 * (depth.MIN_DEPTH + depth.MAX_DEPTH) / 2
  np.testing.assert_allclose(got, np.minimum(metres[..., 0] + error, depth.MAX_DEPTH), rtol=1e-4, atol=1e-4)
  loss = depth_regression.losses(outputs, planes)["loss_depth"]
  np.testing.assert_allclose(loss.per_example, error ** 2 * np.array([23, 24]) / 24, rtol=1e-4)
  start = depth_regression.from_planes({"depth": head(np.zeros((2, 4, 1, 6), np.float32))}, grid=(2, 2), patch=(2, 3))
  np.testing.assert_allclose(start["depth"], 5.0005, rtol=1e-5)  # the middle of the range
  for sign, limit in ((-1, depth.MIN_DEPTH), (1, depth.MAX_DEPTH)):
    far = {"depth": head(np.full((1, 1, 1, 6), 100.0 * sign, np.float32))}
    np.testing.assert_allclose(depth_regression.from_planes(far, grid=(1, 1), patch=(2, 3))["depth"], limit, rtol=1e-6)
