"""ViT backbone: sizes, positions for other grids, windows with global blocks, the pyramid."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.cubic import cubic_matrix, resize_grid
from uvim_like.models.backbones import make_backbone
from uvim_like.models.vit import PyramidLevel, resize_positions
from uvim_like.weights_rules import eval_shapes

SMALL = {"name": "vit_b", "width": 16, "depth": 2, "num_heads": 2, "patch": 4, "grid": (4, 6)}
RNG = np.random.default_rng(0)


def image_of(*size):
  return jnp.asarray(RNG.normal(size=(2, *size, 3)), jnp.float32)


def test_published_size():
  """86 M without classifier and pooler (ViT-B/16 of the paper, with its class token)."""
  params = eval_shapes(make_backbone({"name": "vit_b", "class_token": True}), (1, 224, 224, 3))["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 85_798_656


def test_cubic_matrix():
  np.testing.assert_allclose(cubic_matrix(5, 5), np.eye(5), atol=1e-7)
  for old, new in ((4, 7), (7, 4), (1, 3)):
    np.testing.assert_allclose(cubic_matrix(old, new).sum(1), 1.0, atol=1e-6)
  # In the middle of [0, 0, 1, 1], halfway between two pixels: -0.09375, 0.59375, 0.59375, -0.09375.
  np.testing.assert_allclose(cubic_matrix(4, 2)[0], [0.59375 - 0.09375, 0.59375, -0.09375, 0], atol=1e-6)
  # PyTorch's kernel: at a quarter of a pixel from a row of 0, 1, 2, 3 … it gives 1.703125, not 1.75.
  line = np.arange(8.0)[:, None, None] * np.ones((8, 3, 1))
  np.testing.assert_allclose(resize_grid(line, (16, 3))[4, 0, 0], 1.703125, atol=1e-6)


def test_positions_of_another_grid_keep_rows_and_columns():
  table = jnp.asarray(RNG.normal(size=(1, 24, 5)), jnp.float32)
  assert resize_positions(table, (4, 6), (4, 6)) is table
  got = resize_positions(table, (4, 6), (8, 3))
  np.testing.assert_allclose(got.reshape(8, 3, 5), resize_grid(np.asarray(table).reshape(4, 6, 5), (8, 3)), atol=1e-5)


@pytest.mark.parametrize("size, class_token", [((16, 24), True), ((18, 30), False)])
def test_maps_of_any_size(size, class_token, weights_of):
  model = make_backbone(SMALL | {"class_token": class_token, "drop_path": 0.3}, remat="full")
  image = image_of(*size)
  variables = weights_of(model, image)
  assert variables["params"]["position_embedding"].shape == (1, 24 + class_token, 16)
  features = jax.jit(lambda v: model.apply(v, image, train=True, rngs={"dropout": jax.random.key(1)}))(variables)
  assert [x.shape for x in features] == [(2, -(-size[0] // 4), -(-size[1] // 4), 16)] and model.strides == (4,)


def reach(model, image, variables):
  """Which patches each patch's feature depends on: bool (gh, gw, gh, gw)."""
  jacobian = jax.jit(jax.jacobian(lambda x: model.apply(variables, x)[0][0, :, :, 0]))(image)  # (gh, gw, B, H, W, 3)
  gh, gw = jacobian.shape[:2]
  return np.abs(jacobian[:, :, 0].reshape(gh, gw, gh, 4, gw, 4, 3)).max((3, 5, 6)) > 1e-9


def test_windows_confine_attention_and_global_blocks_do_not(weights_of):
  image = image_of(16, 24)
  variables = weights_of(make_backbone(SMALL), image)
  windowed = reach(make_backbone(SMALL | {"window": 2}), image, variables)
  y, x = np.mgrid[:4, :6]
  cell = (y // 2) * 3 + x // 2
  np.testing.assert_array_equal(windowed, cell[:, :, None, None] == cell)
  assert reach(make_backbone(SMALL | {"window": 2, "global_blocks": (1,)}), image, variables).all()


def test_one_window_as_large_as_the_map_is_global_attention(weights_of):
  image = image_of(16, 16)
  plain, windowed = (make_backbone(SMALL | {"window": window}) for window in (0, 4))
  variables = weights_of(plain, image)
  got, want = (jax.jit(model.apply)(variables, image)[0] for model in (windowed, plain))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_pyramid_sizes():
  model = make_backbone(SMALL | {"pyramid": (1, 2, 4, 8), "pyramid_width": 8, "final_norm": False})
  image = image_of(16, 24)
  features = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], image)
  assert model.strides == (1, 2, 4, 8)
  assert [x.shape for x in features] == [(2, 16 // s, 24 // s, 8) for s in model.strides]


def test_coarse_level_pools_then_convolves():
  module = PyramidLevel(4, -1)
  x = jnp.asarray(RNG.normal(size=(1, 4, 6, 3)), jnp.float32)
  variables = module.init(jax.random.key(0), x)
  assert set(variables["params"]) == {"conv1", "norm1", "conv2", "norm2"}
  assert all("bias" not in variables["params"][name] for name in ("conv1", "conv2"))
  pooled = np.asarray(x).reshape(1, 2, 2, 3, 2, 3).max((2, 4))
  norm = nn.LayerNorm(epsilon=1e-6)
  y = pooled @ variables["params"]["conv1"]["kernel"][0, 0]
  y = norm.apply({"params": variables["params"]["norm1"]}, y)
  y = nn.Conv(4, (3, 3), use_bias=False).apply({"params": variables["params"]["conv2"]}, y)
  want = norm.apply({"params": variables["params"]["norm2"]}, y)
  np.testing.assert_allclose(module.apply(variables, x), want, atol=1e-5)
