"""ResNet: sizes of the published ones, what freezing freezes, and kMaX's form beside the usual one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.backbones import make_backbone
from uvim_like.trees import flatten_names
from uvim_like.weights_rules import eval_shapes

SMALL = {"name": "resnet50", "depths": (1, 1), "widths": (16, 32), "stem_width": 8}
IMAGE = np.random.default_rng(0).normal(size=(2, 37, 50, 3)).astype(np.float32)


def count(name, **fields):
  params = eval_shapes(make_backbone({"name": name, **fields}), (1, 64, 64, 3))["params"]
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def gradients(model, variables):
  def loss(params):
    features, updates = model.apply({"params": params, "state": variables["state"]}, IMAGE, train=True,
                                    mutable=["state"])
    return sum(jnp.sum(jnp.square(x)) for x in features), updates["state"]

  return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])


@pytest.mark.parametrize("name, size", [("resnet50", 23_508_032), ("resnet101", 42_500_160),
                                        ("kmax_resnet50", 23_508_032), ("resnet18", 11_176_512)])
def test_published_sizes(name, size):
  """Those of torchvision without the classifier; the fact sheet's 23.51 M."""
  assert count(name) == size


def test_maps_and_strides(weights_of):
  for form in ({}, {"max_pool": False, "first_stride": 2, "with_stem": True, "activate": False}):
    model = make_backbone(SMALL | form)
    features = jax.jit(model.apply)(weights_of(model, IMAGE), IMAGE)
    sizes = [tuple(-(-side // stride) for side in IMAGE.shape[1:3]) for stride in model.strides]
    assert [x.shape[1:3] for x in features] == sizes
    assert (min(x.min() for x in features) < 0) == (not model.activate)


def test_activation_at_the_end_is_all_that_activate_changes(weights_of):
  usual, kmax = make_backbone(SMALL), make_backbone(SMALL | {"activate": False})
  variables = weights_of(usual, IMAGE)
  for a, b in zip(*(jax.jit(model.apply)(variables, IMAGE) for model in (usual, kmax))):
    np.testing.assert_allclose(a, kmax.activation(b), atol=1e-5)


def test_zero_last_scale_starts_each_block_as_its_shortcut():
  model = make_backbone(SMALL | {"zero_last_scale": True})
  variables = jax.jit(model.init)(jax.random.key(0), IMAGE)
  zeros = [name for name, leaf in flatten_names(variables["params"]) if name.endswith("scale") and not np.any(leaf)]
  assert sorted(zeros) == [f"stage{s}_block{b}/conv2/norm/scale" for s, b in ((0, 0), (1, 0))]


@pytest.mark.parametrize("freeze_at, still", [(0, ()), (1, ("stem",)), (2, ("stem", "stage0"))])
def test_freeze_at(freeze_at, still, weights_of):
  model = make_backbone(SMALL | {"freeze_at": freeze_at})
  variables = weights_of(model, IMAGE)
  grads, state = gradients(model, variables)
  for name, leaf in flatten_names(grads):
    assert np.any(leaf) != name.startswith(still or ("nothing",)), name
  for (name, after), (_, before) in zip(flatten_names(state), flatten_names(variables["state"])):
    assert np.array_equal(after, before) == name.startswith(still or ("nothing",)), name


def test_frozen_norms_never_change_while_the_convolutions_learn(weights_of):
  model = make_backbone(SMALL | {"frozen": True})
  variables = weights_of(model, IMAGE)
  grads, state = gradients(model, variables)
  jax.tree.map(np.testing.assert_array_equal, state, variables["state"])
  for name, leaf in flatten_names(grads):
    assert np.any(leaf) == name.endswith("kernel"), name


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputation_changes_nothing(remat, weights_of):
  plain, again = make_backbone(SMALL), make_backbone(SMALL, remat=remat)
  variables = weights_of(plain, IMAGE)
  assert jax.tree.structure(variables) == jax.tree.structure(weights_of(again, IMAGE))
  want, got = gradients(plain, variables), gradients(again, variables)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * max(1.0, np.abs(a).max())),
               want, got)


def test_bfloat16_compute_keeps_float32_parameters():
  model = make_backbone(SMALL, dtype=jnp.bfloat16)
  features, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), IMAGE))
  assert all(x.dtype == jnp.bfloat16 for x in features)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
