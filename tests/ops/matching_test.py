"""The assignment solver against scipy on random, tied, oblong and empty problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from uvim_like.errors import UserError
from uvim_like.ops import matching

SHAPES = [(5, 5), (12, 4), (4, 9), (1, 1), (20, 20), (16, 1), (1, 6), (7, 3), (9, 8), (30, 12)]
solve = jax.jit(matching.assign, static_argnames="solver")


def scipy_slots(cost):
  rows, columns = linear_sum_assignment(cost)
  slots = np.full(cost.shape[1], matching.NONE)
  slots[columns] = rows
  return slots


def problems(kind, shape, rng, count=50):
  """(count, N, G) costs; ties everywhere for "tied", whole columns of equals for "flat"."""
  if kind == "tied":
    return rng.integers(0, 4, (count, *shape)).astype(np.float32)
  if kind == "flat":
    return np.repeat(rng.integers(-3, 3, (count, 1, shape[1])), shape[0], axis=1).astype(np.float32)
  return rng.normal(size=(count, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_scipy_slot_for_slot(shape):
  """150 problems a shape, 1,500 in all; ties are broken alike."""
  rng = np.random.default_rng(sum(shape))
  cost = np.concatenate([problems(kind, shape, rng) for kind in ("normal", "tied", "flat")])
  want = np.stack([scipy_slots(one) for one in cost])
  np.testing.assert_array_equal(solve(cost), want)


def test_scipy_solver_is_the_same_function():
  rng = np.random.default_rng(0)
  cost, valid = problems("normal", (9, 6), rng).reshape(5, 10, 9, 6), rng.random((5, 10, 6)) < 0.6
  np.testing.assert_array_equal(solve(cost, valid), solve(cost, valid, solver="scipy"))


def test_missing_objects_take_no_slot():
  rng = np.random.default_rng(1)
  cost, valid = problems("tied", (8, 6), rng), rng.random((50, 6)) < 0.5
  valid[0] = False
  slots = np.asarray(solve(cost, valid))
  for one, exists, found in zip(cost, valid, slots):
    assert (found[~exists] == matching.NONE).all()
    rows, columns = linear_sum_assignment(one[:, exists])
    np.testing.assert_array_equal(found[exists][columns], rows)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
def test_empty(shape):
  assert np.asarray(solve(np.zeros((2, *shape), np.float32))).tolist() == [[matching.NONE] * shape[1]] * 2


def test_not_a_number_ends():
  cost = np.full((1, 4, 3), np.nan, np.float32)
  slots = np.asarray(solve(cost))[0]
  assert sorted(set(slots)) == sorted(slots) and set(slots) <= set(range(4))


def test_invert():
  slots = jnp.array([[3, matching.NONE, 0]])
  assert matching.invert(slots, 5).tolist() == [[2, -1, -1, 0, -1]]
  assert matching.invert(jnp.zeros((1, 0), jnp.int32), 2).tolist() == [[-1, -1]]


def test_too_many_padded_objects_are_named():
  with pytest.raises(UserError, match="5 object slots but only 3 predictions"):
    matching.assign(jnp.zeros((3, 5)), jnp.ones(5, bool))


def test_no_gradient_flows():
  grads = jax.grad(lambda cost: jnp.sum(matching.assign(cost) * jnp.sum(cost)))(jnp.eye(3))
  assert grads.shape == (3, 3)
