"""kMaX's network: published sizes, the k-means layer at its start, what the assignment lets through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.models.kmax import Model
from uvim_like.models.kmax_decoder import KMeansLayer
from uvim_like.models.kmax_pixel_decoder import AxialAttention, PixelDecoder
from uvim_like.models.kmax_predictor import MaskPredictor, void_offset
from uvim_like.ops.clusters import areas, assigned_sums, sums_by_one_hot, sums_by_segment

KEY = jax.random.key(0)


def count(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes_of(**fields):
  model = Model(**fields)
  return jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 33, 33, 3))))["params"]


# Millions, with COCO's 133 classes and "no object", K = 128, without the semantic branch (fact sheet, sections 1 to 3).
@pytest.mark.parametrize(("backbone", "total", "decoder"), [
    ("kmax_resnet50", 56.58, 21.15), ("kmax_convnext_t", 60.94, 21.20), ("kmax_convnext_s", 82.57, 21.20),
    ("kmax_convnext_b", 121.51, 22.03), ("kmax_convnext_l", 231.84, 23.69)])
def test_published_sizes(backbone, total, decoder):
  params = shapes_of(backbone={"name": backbone}, num_queries=128, num_classes=133)
  assert round(count(params) / 1e6, 2) == total
  assert round(count(params["pixel_decoder"]) / 1e6, 2) == decoder
  assert count(params["transformer_decoder"]) == 11_747_472 and count(params["predictor"]) == 173_576


@pytest.mark.parametrize(("backbone", "size"), [("kmax_resnet50", 15.86), ("kmax_convnext_t", 6.33)])
def test_size_of_the_semantic_branch(backbone, size):
  params = shapes_of(backbone={"name": backbone}, num_queries=8, semantic_classes=134)
  assert round(count(params["semantic_branch"]) / 1e6, 2) == size


def test_shapes_of_the_levels():
  decoder = PixelDecoder()
  sides = [161, 81, 41, 21]
  levels = [jax.ShapeDtypeStruct((1, side, side, width), jnp.float32) for side, width in zip(sides, (256, 512, 1024, 2048))]
  made = jax.eval_shape(lambda levels: decoder.init_with_output(KEY, levels)[0], levels)
  assert [x.shape for x in made] == [(1, 21, 21, 2048), (1, 41, 41, 1024), (1, 81, 81, 512), (1, 161, 161, 256)]


def test_no_parameter_depends_on_the_image():
  model = Model(backbone={"name": "kmax_resnet18"}, num_queries=4, value_dim=3, semantic_classes=2)
  sizes = [jax.eval_shape(lambda x: model.init(KEY, x), jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
           for size in ((33, 33), (65, 97))]
  assert jax.tree.map(jnp.shape, sizes[0]) == jax.tree.map(jnp.shape, sizes[1])


def layer_variables(layer, queries, pixels):
  """Fresh variables by numpy: norms as they start, everything else random."""
  shapes = jax.eval_shape(lambda: layer.init(KEY, queries, pixels))
  fresh = {"params": {"scale": 1.0, "bias": 0.0}, "state": {"mean": 0.0, "var": 1.0}}
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    names = [key.key for key in path]
    if names[-1] == "scale" and names[-3] in ("kmeans_memory_conv3_bn", "memory_conv3_bn", "memory_ffn_conv2_bn"):
      return jnp.zeros(leaf.shape)  # as BN0 starts
    constant = fresh[names[0]].get(names[-1])
    return jnp.full(leaf.shape, constant) if constant is not None else jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def test_a_fresh_layer_only_activates_its_queries():
  layer = KMeansLayer(width=16, key_dim=8, mlp_dim=24, drop_path=0.0, predictor=dict(hidden_dim=8, mask_dim=8))
  rng = np.random.default_rng(1)
  queries, pixels = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 5, 16), (2, 3, 4, 6)))
  variables = layer_variables(layer, queries, pixels)
  zero_init = jax.eval_shape(lambda: layer.init(KEY, queries, pixels))
  assert zero_init["params"]["memory_conv3_bn"]["batch_norm"]["scale"].shape == (16,)
  out, prediction = jax.jit(layer.apply)(variables, queries, pixels)
  gelu = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731
  np.testing.assert_allclose(out, gelu(gelu(queries)), rtol=1e-5, atol=1e-6)
  assert prediction.logits.shape == (2, 3, 4, 5) and prediction.logits.dtype == jnp.float32


def test_the_axis_must_be_within_the_relative_tables():
  attention = AxialAttention(8, 16)
  with pytest.raises(UserError, match="256 positions; the relative tables cover 255"):
    jax.eval_shape(lambda: attention.init(KEY, jnp.zeros((1, 256, 4))))


def test_prior_of_no_object():
  chance = jax.nn.softmax(void_offset(9))
  np.testing.assert_allclose(chance[-1], 0.9, rtol=1e-6)
  np.testing.assert_allclose(chance[:-1], 0.1 / 9, rtol=1e-5)


def test_bfloat16_keeps_logits_in_float32():
  predictor = MaskPredictor(8, 8, value_dim=1, dtype=jnp.bfloat16)
  arguments = jnp.zeros((1, 3, 3, 4), jnp.bfloat16), jnp.zeros((1, 2, 4), jnp.bfloat16), jnp.zeros((1, 2, 4), jnp.bfloat16)
  out = jax.eval_shape(lambda: predictor.init_with_output(KEY, *arguments)[0])
  assert (out.logits.dtype, out.features.dtype, out.values.dtype) == (jnp.float32,) * 3


@pytest.mark.parametrize("sums", [sums_by_one_hot, sums_by_segment])
def test_sums_over_clusters(sums):
  values = jnp.arange(24.0).reshape(2, 4, 3)
  index = jnp.array([[0, 2, 0, -1], [5, 1, 1, 1]])
  want = np.zeros((2, 3, 3))
  want[0, 0], want[0, 2], want[1, 1] = values[0, 0] + values[0, 2], values[0, 1], values[1, 1:].sum(0)
  np.testing.assert_allclose(sums(values, index, 3), want)
  np.testing.assert_allclose(assigned_sums(values.reshape(2, 2, 2, 3), index.reshape(2, 2, 2), 3), want)
  np.testing.assert_allclose(areas(index, 3), [[2, 0, 1], [0, 3, 0]])
