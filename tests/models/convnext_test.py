"""ConvNeXt: published sizes, kMaX's padding by hand, layer scale, stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.backbones import make_backbone
from uvim_like.models.convnext import Block
from uvim_like.weights_rules import eval_shapes

SMALL = {"name": "convnext_t", "depths": (1, 1, 2, 1), "widths": (8, 12, 16, 24)}


@pytest.mark.parametrize("name, parameters", [("kmax_convnext_t", 27_818_592), ("convnext_s", 49_453_152),
                                              ("convnext_b", 87_564_416), ("kmax_convnext_l", 196_227_264)])
def test_published_sizes(name, parameters):
  params = eval_shapes(make_backbone({"name": name}), (1, 65, 65, 3))["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


@pytest.mark.parametrize("size", [(65, 97), (33, 129)])
def test_sides_of_32k_plus_1_stay_one_more_than_a_multiple(size):
  model = make_backbone(SMALL | {"pad_odd": True, "with_stem": True})
  features = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0],
                            jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
  assert model.strides == (4, 4, 8, 16, 32)
  assert [x.shape[1:3] for x in features] == [tuple((n - 1) // s + 1 for n in size) for s in model.strides]


def test_usual_form_cuts_off_what_is_over():
  model = make_backbone(SMALL)
  features = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.ones((1, 43, 70, 3)))[0])
  assert [x.shape[1:3] for x in features] == [(10, 17), (5, 8), (2, 4), (1, 2)]


def test_padding_before_a_norm_becomes_its_bias(weights_of):
  model = make_backbone(SMALL | {"pad_odd": True, "depths": (1, 1), "widths": (8, 12)})
  image = jax.random.normal(jax.random.key(1), (1, 33, 33, 3))
  variables = weights_of(model, image)
  variables["params"]["downsample1"]["norm"]["scale"] = jnp.ones(8)
  bias = jnp.arange(8.0)
  variables["params"]["downsample1"]["norm"]["bias"] = bias
  (before, _), captured = jax.jit(lambda v: model.apply(
      v, image, capture_intermediates=lambda m, method: m.name == "downsample1", mutable=["intermediates"]))(variables)
  down = captured["intermediates"]["downsample1"]["__call__"][0]
  kernel, offset = (variables["params"]["downsample1"]["conv"][name] for name in ("kernel", "bias"))
  corner = before[0, -1, -1]
  normed = (corner - corner.mean()) / jnp.sqrt(corner.var() + 1e-6) + bias
  want = normed @ kernel[0, 0] + bias @ (kernel[0, 1] + kernel[1, 0] + kernel[1, 1]) + offset
  np.testing.assert_allclose(down[0, -1, -1], want, atol=1e-4)


def test_layer_scale_starts_small_and_can_be_left_out():
  x = jnp.ones((1, 4, 4, 3))
  params = Block(1e-6).init(jax.random.key(0), x)["params"]
  np.testing.assert_array_equal(params["layer_scale"], np.full(3, 1e-6, np.float32))
  assert "layer_scale" not in eval_shapes(Block(0.0), x.shape)["params"]


def test_stochastic_depth_acts_in_training_only(weights_of):
  model = make_backbone(SMALL | {"drop_path": 0.5, "depths": (1, 1), "widths": (8, 12)})
  image = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
  variables = weights_of(model, image)
  run = jax.jit(lambda train, key: model.apply(variables, image, train=train, rngs={"dropout": key}), static_argnums=0)
  one, two = jax.random.key(0), jax.random.key(1)
  np.testing.assert_array_equal(run(False, one)[-1], run(False, two)[-1])
  assert not np.allclose(run(True, one)[-1], run(True, two)[-1])
  np.testing.assert_allclose(run(True, one)[0], run(False, one)[0], atol=1e-5)  # the first block is never dropped


def test_recomputation_changes_nothing_with_dropped_paths(weights_of):
  image = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  fields = SMALL | {"drop_path": 0.5, "depths": (2,), "widths": (8,)}

  def gradients(model):
    def loss(params):
      features = model.apply({"params": params}, image, train=True, rngs={"dropout": jax.random.key(2)})
      return jnp.mean(jnp.square(features[-1]))
    return jax.jit(jax.grad(loss))(weights_of(model, image)["params"])

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
               gradients(make_backbone(fields)), gradients(make_backbone(fields, remat="full")))
