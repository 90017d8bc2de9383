"""SwinV2: sizes of AiT's backbones, cosine attention at its edges, log-spaced offsets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models import swin_v2
from uvim_like.models.backbones import make_backbone
from uvim_like.weights_rules import eval_shapes

SMALL = {"name": "swinv2_b", "width": 8, "depths": (1, 1), "num_heads": (2, 4), "window_size": (3, 2),
         "use_shift": (True, False), "pretrain_window": 0, "position_hidden": 16, "out_norms": (1,)}
RNG = np.random.default_rng(0)


def size_of(name):
  return sum(leaf.size for leaf in jax.tree.leaves(eval_shapes(make_backbone({"name": name}), (1, 64, 64, 3))))


@pytest.mark.parametrize("name, millions", [("swinv2_b", 86.9), ("swinv2_l", 195.2), ("swinv2_t", 27.6),
                                            ("swinv2_s", 49.0)])
def test_published_sizes(name, millions):
  """AiT's B and L; T and S are 28 M and 50 M with their classifiers (SwinV2, table 1 of its code)."""
  assert round(size_of(name) / 1e6, 1) == millions


def test_offsets_are_zero_in_the_middle_and_one_at_the_pretraining_edge():
  table = swin_v2.log_offsets(12, 12)
  assert table.shape == (23, 23, 2)
  np.testing.assert_allclose(table[11, 11], 0)
  # sign(x) log2(|8 x / 11| + 1) / 3: one is log2(8), and 8 itself is a little more
  np.testing.assert_allclose(table[0, 22], [-np.log2(9) / 3, np.log2(9) / 3], rtol=1e-6)
  np.testing.assert_array_equal(table, -table[::-1, ::-1])
  np.testing.assert_allclose(swin_v2.log_offsets(30, 12)[-1, 0, 0], np.log2(8 * 29 / 11 + 1) / 3, rtol=1e-6)
  np.testing.assert_array_equal(swin_v2.log_offsets(5, 0), swin_v2.log_offsets(5, 5))
  np.testing.assert_array_equal(swin_v2.log_offsets(1, 0), np.zeros((1, 1, 2)))


@pytest.mark.parametrize("add", [True, False])
def test_zero_vectors_stay_zero_with_finite_gradients(add):
  x = jnp.zeros((2, 3)).at[1].set(jnp.array([3.0, 0.0, 4.0]))
  value, grads = jax.value_and_grad(lambda x: swin_v2.normalize(x, 5e-5, add=add).sum())(x)
  np.testing.assert_allclose(value, 1.4, atol=1e-4)
  assert np.all(np.isfinite(grads))


def test_factor_on_cosines_is_at_most_100():
  module = swin_v2.CosineAttention(2, 2, 0, 8, 1e-12, False)
  x = jnp.asarray(RNG.normal(size=(1, 1, 4, 6)), jnp.float32)
  params = jax.jit(module.init, static_argnums=2)(jax.random.key(0), x, None)["params"]
  run = jax.jit(lambda scale: module.apply({"params": params | {"logit_scale": scale}}, x, None))
  outs = [run(jnp.full((2,), value))
          for value in (np.log(100.0), 20.0)]
  np.testing.assert_allclose(outs[0], outs[1], atol=1e-6)


def test_position_bias_lies_between_0_and_16():
  module = swin_v2.PositionBias(3, 4, 0, 8)
  params = jax.tree.map(lambda leaf: 1e3 * leaf, module.init(jax.random.key(0)))
  bias = module.apply(params)
  assert bias.shape == (3, 16, 16) and bias.min() >= 0 and bias.max() <= 16
  np.testing.assert_array_equal(jnp.diagonal(bias, axis1=1, axis2=2), np.full((3, 16), 8.0))  # offset 0


def test_training_on_maps_that_need_padding(weights_of):
  model = make_backbone(SMALL | {"drop_path": 0.2})
  image = jnp.asarray(RNG.normal(size=(2, 23, 34, 3)), jnp.float32)

  @jax.jit
  def gradients(params):
    def loss(params):
      features = model.apply({"params": params}, image, train=True, rngs={"dropout": jax.random.key(3)})
      return jnp.sum(jnp.sin(features[1])), features
    return jax.grad(loss, has_aux=True)(params)

  grads, features = gradients(weights_of(model, image)["params"])
  assert [x.shape for x in features] == [(2, 6, 9, 8), (2, 3, 5, 16)]
  assert all(np.all(np.isfinite(leaf)) and np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_bfloat16_is_near_float32(weights_of):
  image = jnp.asarray(RNG.normal(size=(1, 12, 12, 3)), jnp.float32)
  exact, rough = make_backbone(SMALL), make_backbone(SMALL, dtype=jnp.bfloat16)
  variables = weights_of(exact, image)
  got, want = (jax.jit(model.apply)(variables, image)[-1] for model in (rough, exact))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.15)
