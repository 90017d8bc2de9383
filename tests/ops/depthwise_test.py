"""Depthwise convolution: the CPU form equals the compiler's grouped convolution, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from uvim_like.ops import depthwise


@pytest.mark.parametrize("size, shape", [((7, 7), (2, 9, 5, 3)), ((5, 3), (1, 2, 7, 4)), ((1, 1), (1, 3, 3, 2))])
def test_equals_the_grouped_convolution(size, shape):
  rng = np.random.default_rng(0)
  x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (shape, (*size, 1, shape[-1])))

  def run(function):
    def objective(x, kernel):
      out = function(x, kernel)
      return jnp.sum(jnp.sin(out)), out
    return jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(x, kernel)

  (got, want) = run(depthwise._shifted), run(depthwise._grouped)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)
  jax.tree.map(np.testing.assert_array_equal, run(depthwise.depthwise_conv), got)


def test_bfloat16_adds_up_in_float32():
  x = jnp.ones((1, 9, 9, 1), jnp.bfloat16)
  out = depthwise.depthwise_conv(x, jnp.full((7, 7, 1, 1), 1 + 2 ** -7, jnp.bfloat16))
  assert out.dtype == jnp.bfloat16 and out[0, 4, 4, 0] == jnp.bfloat16(49 * (1 + 2 ** -7))


def test_lowers_for_other_platforms():
  exported = export.export(jax.jit(depthwise.depthwise_conv), platforms=("cuda", "tpu"))(
      jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32), jax.ShapeDtypeStruct((7, 7, 1, 4), jnp.float32))
  assert "feature_group_count = 4" in exported.mlir_module()


def test_maps_over_further_axes():
  rng = np.random.default_rng(0)
  x, kernel = jnp.asarray(rng.normal(size=(3, 2, 5, 6, 4))), jnp.asarray(rng.normal(size=(3, 3, 1, 4)))
  got = jax.vmap(depthwise.depthwise_conv, (0, None))(x, kernel)
  np.testing.assert_allclose(got[2], depthwise.depthwise_conv(x[2], kernel), rtol=1e-5, atol=1e-6)
