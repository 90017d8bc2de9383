"""BatchNorm against flax's and by hand, frozen and scalar forms; stochastic depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.norms import BatchNorm, DropPath, drop_rates

X = np.random.default_rng(0).normal(3.0, 2.0, (4, 5, 6, 7)).astype(np.float32)


def variables_of(module, x=X):
  return module.init(jax.random.key(0), x, True)


def train(module, variables, x=X):
  out, updates = module.apply(variables, x, True, mutable=["state"])
  return out, updates["state"]


def test_equals_flax_in_training_and_evaluation():
  ours, theirs = BatchNorm(0.9, 1e-5), nn.BatchNorm(momentum=0.9, epsilon=1e-5)
  variables = variables_of(ours)
  stats = variables["state"]
  for _ in range(3):
    out, stats = train(ours, {"params": variables["params"], "state": stats})
  reference = theirs.init(jax.random.key(0), X, use_running_average=False)
  batch_stats = reference["batch_stats"]
  for _ in range(3):
    want, updates = theirs.apply({"params": reference["params"], "batch_stats": batch_stats}, X,
                                 use_running_average=False, mutable=["batch_stats"])
    batch_stats = updates["batch_stats"]
  np.testing.assert_allclose(out, want, atol=2e-5)
  for name in ("mean", "var"):
    np.testing.assert_allclose(stats[name], batch_stats[name], rtol=1e-5)
  np.testing.assert_allclose(
      ours.apply({"params": variables["params"], "state": stats}, X),
      theirs.apply({"params": reference["params"], "batch_stats": batch_stats}, X, use_running_average=True), atol=2e-5)


def test_initialisation_leaves_the_statistics_alone():
  state = variables_of(BatchNorm())["state"]
  np.testing.assert_array_equal(state["mean"], np.zeros(7))
  np.testing.assert_array_equal(state["var"], np.ones(7))


@pytest.mark.parametrize("axis, shape", [(-1, (7,)), ((), ()), (1, (5,)), ((1, -1), (5, 7))])
def test_any_feature_axes(axis, shape):
  module = BatchNorm(axis=axis, epsilon=0.0)
  variables = variables_of(module)
  assert variables["params"]["scale"].shape == variables["state"]["mean"].shape == shape
  axes = (axis,) if isinstance(axis, int) else axis
  reduced = tuple(a for a in range(4) if a not in [b % 4 for b in axes])
  out, _ = train(module, variables)
  want = (X - X.mean(reduced, keepdims=True)) / X.std(reduced, keepdims=True)
  np.testing.assert_allclose(out, want, atol=2e-5)


def test_frozen_uses_and_keeps_the_running_statistics_without_gradient():
  module = BatchNorm(frozen=True, epsilon=0.0)
  variables = {"params": {"scale": jnp.full((7,), 2.0), "bias": jnp.ones((7,))},
               "state": {"mean": jnp.full((7,), 3.0), "var": jnp.full((7,), 4.0)}}
  out, state = train(module, variables)
  np.testing.assert_allclose(out, (X - 3.0) / 2.0 * 2.0 + 1.0, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, state, variables["state"])
  grads = jax.grad(lambda p: module.apply({"params": p, "state": variables["state"]}, X).sum())(variables["params"])
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_large_mean_keeps_its_digits_once_the_running_mean_is_near():
  x = X + 1000.0
  module = BatchNorm(0.5, 1e-5)
  variables = variables_of(module, x)
  state = {"mean": jnp.full((7,), 1000.0), "var": jnp.ones((7,))}
  out, _ = train(module, {"params": variables["params"], "state": state}, x)
  axes = (0, 1, 2)
  np.testing.assert_allclose(out, (x - x.mean(axes)) / np.sqrt(x.astype(np.float64).var(axes) + 1e-5), atol=2e-3)


def test_statistics_are_float32_for_bfloat16_inputs():
  x = jnp.asarray(X, jnp.bfloat16)
  out, state = train(BatchNorm(), variables_of(BatchNorm(), x), x)
  assert out.dtype == jnp.bfloat16 and state["mean"].dtype == state["var"].dtype == jnp.float32
  assert BatchNorm(dtype=jnp.float32).apply(variables_of(BatchNorm(), x), x).dtype == jnp.float32


def test_zero_scale_makes_nothing_and_parts_can_be_left_out():
  assert not np.any(BatchNorm(scale_init=nn.initializers.zeros).init_with_output(jax.random.key(0), X)[0])
  assert "params" not in BatchNorm(use_scale=False, use_bias=False).init(jax.random.key(0), X)


def test_global_batch_statistics_on_a_mesh():
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  module = BatchNorm()
  variables = variables_of(module)
  split = jax.device_put(X, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
  want = train(module, variables)
  got = jax.jit(lambda v, x: train(module, v, x))(variables, split)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
  x = jnp.ones((4000, 2, 3))
  out = np.asarray(DropPath(0.3).apply({}, x, True, rngs={"dropout": jax.random.key(1)}))
  assert all(len(np.unique(example)) == 1 for example in out)
  assert set(np.unique(out).round(5)) == {0.0, np.float32(1 / 0.7).round(5)}
  assert abs(out.mean() - 1.0) < 0.05
  for module, training in ((DropPath(0.3), False), (DropPath(0.0), True)):
    np.testing.assert_array_equal(module.apply({}, x, training), x)


def test_drop_rates_rise_over_all_blocks():
  rates = drop_rates((2, 2, 18, 2), 0.3)
  assert [len(stage) for stage in rates] == [2, 2, 18, 2]
  np.testing.assert_allclose(sum(rates, []), np.linspace(0, 0.3, 24))
  assert drop_rates((1,), 0.5) == [[0.0]]
