"""Colour planes: layout, squared error, clamping."""

import jax.numpy as jnp
import numpy as np

from uvim_like.ops.planes import Planes
from uvim_like.tasks import colorization as task


def head(values):
  batch, patches, channels, pixels = values.shape
  kernel = jnp.asarray(values).reshape(batch * patches, channels, pixels)
  return {"color": Planes(jnp.eye(batch * patches).reshape(batch, patches, -1), kernel, jnp.zeros((channels, pixels)))}


def picture():
  return np.random.default_rng(0).uniform(-1, 1, (2, 4, 9, 3)).astype(np.float32)


def test_there_and_back():
  planes = task.to_planes(jnp.asarray(picture()), patch=(2, 3), spec={"color": (3, 6)})["color"]
  assert planes.shape == (2, 6, 3, 6) and planes.dtype == jnp.float32
  got = task.from_planes(head(np.asarray(planes)), grid=(2, 3), patch=(2, 3))
  assert set(got) == set(task.OUTPUTS)
  np.testing.assert_allclose(got["color"], picture(), atol=1e-6)


def test_clamping():
  got = task.from_planes(head(np.full((1, 1, 3, 6), 7.0, np.float32)), grid=(1, 1), patch=(2, 3))["color"]
  np.testing.assert_array_equal(got, 1)


def test_loss():
  planes = task.to_planes(jnp.asarray(picture()), patch=(2, 3), spec={"color": (3, 6)})
  error = np.random.default_rng(1).normal(size=planes["color"].shape).astype(np.float32)
  loss = task.losses(head(np.asarray(planes["color"]) + error), planes)["loss_color"]
  np.testing.assert_allclose(loss.per_example, np.square(error).mean((1, 2, 3)), rtol=1e-5)
  np.testing.assert_allclose(loss.mean, np.square(error).mean(), rtol=1e-5)
