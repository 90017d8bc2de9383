"""Losses of maps: by hand, what they are blind to, and finite gradients whatever is invalid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops import dense_losses as losses

RNG = np.random.default_rng(0)
DEPTH = RNG.uniform(1, 5, (2, 9, 12)).astype(np.float32)
OTHER = RNG.uniform(1, 5, (2, 9, 12)).astype(np.float32)
VALID = RNG.uniform(size=(2, 9, 12)) < 0.7


def all_terms():
  return {"silog": losses.silog, "relative": losses.relative_squared, "gradient": losses.gradient_matching,
          "charbonnier": lambda *a: losses.charbonnier(*a, scale=0.1)}


def test_by_hand():
  pred, target = jnp.array([[1.0, 4.0]]), jnp.array([[2.0, 4.0]])
  every = jnp.ones((1, 2), bool)
  g = np.log(0.5)
  np.testing.assert_allclose(losses.silog(pred, target, every), [g ** 2 / 2 - (g / 2) ** 2], rtol=1e-5)
  np.testing.assert_allclose(losses.relative_squared(pred, target, every), [np.sqrt(0.125)], rtol=1e-5)
  np.testing.assert_allclose(losses.charbonnier(pred, target, every, scale=0.5), [(np.sqrt(5) - 1) / 2], rtol=1e-5)


def test_blindness():
  pred, target = DEPTH, OTHER
  np.testing.assert_allclose(losses.silog(3 * pred, target, VALID), losses.silog(pred, target, VALID), rtol=1e-4)
  assert not np.allclose(losses.relative_squared(3 * pred, target, VALID), losses.relative_squared(pred, target, VALID))
  np.testing.assert_allclose(losses.gradient_matching(2 * target, target, VALID), 0, atol=1e-5)
  assert np.all(losses.gradient_matching(pred, target, VALID) > 0)


def test_gradient_loss_counts_only_pairs_of_valid_pixels():
  residual = np.ones((1, 1, 4), np.float32)
  pred = np.exp(np.array([[[0.0, 1.0, 0.0, 5.0]]], np.float32))
  valid = np.array([[[True, True, True, False]]])
  np.testing.assert_allclose(losses.gradient_matching(pred, residual, valid, scales=1), [2 / 3], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(all_terms()))
@pytest.mark.parametrize("case", ["no valid pixel", "perfect", "zeros", "infinite truth"])
def test_finite_values_and_gradients(name, case):
  term = all_terms()[name]
  pred, target, valid = jnp.asarray(DEPTH), jnp.asarray(OTHER), jnp.asarray(VALID)
  if case == "no valid pixel":
    target, valid = jnp.zeros_like(target), jnp.zeros_like(valid)
  if case == "perfect":
    pred = target
  if case == "zeros":
    pred = jnp.where(valid, pred, 0.0)
  if case == "infinite truth":
    target = jnp.where(valid, target, jnp.inf)
  value, grad = jax.value_and_grad(lambda p: jnp.sum(term(p, target, valid)))(pred)
  assert np.isfinite(value) and np.all(np.isfinite(grad))
  if case in ("no valid pixel", "perfect"):
    assert value == pytest.approx(0.0, abs=1e-5)
  if case == "no valid pixel":
    assert not np.any(grad)


def test_normals():
  z, x, none = jnp.array([0.0, 0, 1]), jnp.array([1.0, 0, 0]), jnp.zeros(3)
  pred, target = jnp.stack([z, x, x])[None, None], jnp.stack([z, z, none])[None, None]
  np.testing.assert_allclose(losses.normals_l2(pred, target, losses.valid_normals(target)), [1.0])
  np.testing.assert_array_equal(losses.valid_normals(target), [[[True, True, False]]])
  grad = jax.grad(lambda v: jnp.sum(losses.unit(v) * jnp.array([1.0, 2, 3])))(jnp.zeros((1, 3)))
  assert np.all(np.isfinite(grad))
  np.testing.assert_allclose(jnp.linalg.norm(losses.unit(jnp.array([[3.0, 4.0, 0.0]]))), 1.0, rtol=1e-6)


def test_valid_depth_is_strict_and_takes_no_nan():
  depth = jnp.array([0.0, 1e-3, 0.5, 10.0, jnp.nan, jnp.inf])
  np.testing.assert_array_equal(losses.valid_depth(depth, min_depth=1e-3, max_depth=10.0), [False, False, True] + [False] * 3)
