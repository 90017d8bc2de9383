"""Windows, shifts and position tables against plain loops; Swin's published sizes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models import window
from uvim_like.models.backbones import make_backbone
from uvim_like.models.swin import Block, WindowAttention
from uvim_like.weights_rules import eval_shapes

SMALL = {"name": "swin_b", "width": 8, "depths": (2, 1), "num_heads": (2, 4), "window_size": 3, "out_norms": (1,)}
RNG = np.random.default_rng(0)


def test_partition_shows_rows_of_windows():
  x = jnp.arange(24).reshape(1, 4, 6, 1)
  windows = window.partition(x, 2)[0, :, :, 0]
  np.testing.assert_array_equal(windows[:4], [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19]])
  np.testing.assert_array_equal(window.unpartition(window.partition(x, 2), 2, (4, 6)), x)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_table_over_offsets_is_indexed_by_query_minus_key(side):
  table = jnp.asarray(RNG.normal(size=(3, 2 * side - 1, 2 * side - 1)))
  got = window.expand_table(table)
  places = list(itertools.product(range(side), repeat=2))
  want = [[table[:, qy - ky + side - 1, qx - kx + side - 1] for ky, kx in places] for qy, qx in places]
  np.testing.assert_array_equal(got, np.transpose(want, (2, 0, 1)))


def test_gradient_of_a_table_counts_its_pairs():
  grads = jax.grad(lambda table: window.expand_table(table).sum())(jnp.zeros((1, 5, 5)))
  np.testing.assert_array_equal(grads[0], np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1]))


def test_regions_are_the_parts_that_the_shift_brought_together():
  regions = window.shift_regions((4, 4), 2, 1)
  np.testing.assert_array_equal(regions, [[0, 0, 0, 0], [1, 2, 1, 2], [3, 3, 6, 6], [4, 5, 7, 8]])
  np.testing.assert_array_equal(window.shift_regions((3, 3), 3, 1), [[4, 4, 5, 4, 4, 5, 7, 7, 8]])


def test_shifted_windows_see_neighbours_in_the_image_only():
  """Each token's attention reaches, in the image, the tokens of its shifted window and no others."""
  size, side, shift = (6, 9), 3, 1
  module = WindowAttention(2, side)
  x = jnp.asarray(RNG.normal(size=(1, *size, 4)), jnp.float32)
  params = jax.jit(module.init, static_argnums=(2, 3))(jax.random.key(0), x.reshape(1, 6, 9, 4), side, None)

  @jax.jit
  @jax.jacobian
  def reach_of(x):
    return window.in_windows(lambda windows, regions: module.apply(params, windows, side, regions), x, window=side,
                             shift=shift)[..., 0]

  reach = reach_of(x)[0, :, :, 0]  # (H, W, H, W, C)
  seen = np.abs(reach).max(-1) > 1e-12
  cell = lambda y, x: ((y - shift) // side, (x - shift) // side)  # noqa: E731
  for y, x in itertools.product(*map(range, size)):
    for v, u in itertools.product(*map(range, size)):
      assert seen[y, x, v, u] == (cell(y, x) == cell(v, u)), (y, x, v, u)


def test_padding_takes_part_as_zero_tokens():
  """A 2x2 map in a 3x3 window is the 3x3 map with zeros, cut back."""
  module = WindowAttention(2, 3)
  x = jnp.asarray(RNG.normal(size=(1, 2, 2, 4)), jnp.float32)
  padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
  params = module.init(jax.random.key(0), padded.reshape(1, 1, 9, 4), 3, None)
  params["params"]["qkv"]["bias"] = jnp.asarray(RNG.normal(size=12), jnp.float32)
  call = lambda windows, regions: module.apply(params, windows, 3, regions)  # noqa: E731
  got = window.in_windows(call, x, window=3, shift=0)
  np.testing.assert_allclose(got[0], call(padded.reshape(1, 1, 9, 4), None).reshape(3, 3, 4)[:2, :2], atol=1e-6)


def test_merging_takes_neighbours_column_by_column():
  module = window.Merge(False, 1e-5)
  x = jnp.asarray(RNG.normal(size=(1, 3, 4, 2)), jnp.float32)
  variables = module.init(jax.random.key(0), x)
  padded = np.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)))
  parts = [padded[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)]
  y = np.concatenate(parts, -1) @ variables["params"]["reduction"]["kernel"]
  want = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(module.apply(variables, x), want, atol=1e-5)


def test_shrinking_uses_the_middle_of_the_table():
  x = jnp.asarray(RNG.normal(size=(2, 2, 2, 4)), jnp.float32)
  large, small = (Block(2, side, 1, 8, True, 1e-5) for side in (4, 2))
  params = large.init(jax.random.key(0), x)["params"]
  cut = jax.tree.map(lambda leaf: leaf, params)
  cut["attn"]["position_bias"] = params["attn"]["position_bias"][2:5, 2:5]
  np.testing.assert_array_equal(large.apply({"params": params}, x), small.apply({"params": cut}, x))


@pytest.mark.parametrize("size", ["t", "b"])
def test_published_sizes(size):
  """28 M and 88 M with classifier (table 1 of the paper): 27.5 M and 86.7 M without, at a window of 7."""
  model = make_backbone({"name": f"swin_{size}", "window_size": 7})
  params = eval_shapes(model, (1, 64, 64, 3))["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == {"t": 27_519_354, "b": 86_743_224}[size]


def test_maps_strides_and_training(weights_of):
  model = make_backbone(SMALL | {"drop_path": 0.2}, remat="full")
  image = jnp.asarray(RNG.normal(size=(2, 23, 34, 3)), jnp.float32)
  variables = weights_of(model, image)
  variables["params"]["norm1"] = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
  features = jax.jit(lambda v, x: model.apply(v, x, train=True, rngs={"dropout": jax.random.key(1)}))(variables, image)
  assert model.strides == (4, 8)
  assert [x.shape for x in features] == [(2, 6, 9, 8), (2, 3, 5, 16)]
  np.testing.assert_allclose(features[1].mean(-1), 0.0, atol=1e-5)  # out_norms


def test_bfloat16_is_near_float32(weights_of):
  image = jnp.asarray(RNG.normal(size=(1, 12, 12, 3)), jnp.float32)
  exact, rough = make_backbone(SMALL), make_backbone(SMALL, dtype=jnp.bfloat16)
  variables = weights_of(exact, image)
  got, want = (jax.jit(model.apply)(variables, image)[-1] for model in (rough, exact))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.15)
