"""Properties of the two quantisers: codes and words, moving averages, splitting, code dropout, the finite grid."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops import quantize

LEVELS = [(8, 5, 5, 5), (3,), (2, 2), (4, 3), (7, 6, 5), (2, 3, 4, 5)]


def test_standardize():
  x = jax.random.normal(jax.random.key(0), (2, 3, 16)) * 5 + 2
  y = np.asarray(quantize.standardize(x))
  np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)
  np.testing.assert_allclose(y.std(-1), 1, atol=1e-5)
  assert not np.any(quantize.standardize(jnp.ones((1, 4))))


def test_words_have_unit_norm():
  dictionary, counts = jax.random.normal(jax.random.key(0), (5, 3)), jnp.array([1.0, 2.0, 0.5, 9.0, 1e-3])
  words = quantize.codewords(dictionary, counts)
  np.testing.assert_allclose(np.linalg.norm(words, axis=-1), 1, rtol=1e-6)
  np.testing.assert_allclose(words, dictionary / np.linalg.norm(dictionary, axis=-1, keepdims=True), rtol=1e-5)


def test_nearest_is_the_first_of_equals():
  words = jnp.array([[1.0, 0], [0, 1], [0, 1], [-1, 0]])
  np.testing.assert_array_equal(quantize.nearest(jnp.array([[[0.0, 3], [1, 1], [-2, 0.1]]]), words), [[1, 0, 3]])
  x = jax.random.normal(jax.random.key(0), (2, 7, 5))
  words = jax.random.normal(jax.random.key(1), (11, 5))
  distance = np.square(np.asarray(x)[..., None, :] - np.asarray(words)).sum(-1)
  np.testing.assert_array_equal(quantize.nearest(x, words), distance.argmin(-1))


def test_lookup_of_minus_one_is_the_last_word():
  words = jnp.arange(6.0).reshape(3, 2)
  got = quantize.lookup(words, jnp.array([[-1, 0], [2, 1]]))
  np.testing.assert_array_equal(got, [[[4, 5], [0, 1]], [[4, 5], [2, 3]]])


def test_straight_through():
  value, pullback = jax.vjp(lambda x: quantize.straight_through(x, jnp.sin(x)), jnp.array([0.3, 2.0]))
  np.testing.assert_allclose(value, np.sin([0.3, 2.0]), rtol=1e-6)
  np.testing.assert_array_equal(pullback(jnp.array([2.0, 3.0]))[0], [2, 3])


def test_statistics_of_a_batch():
  rng = np.random.default_rng(0)
  x, code = rng.normal(size=(3, 4, 5)).astype(np.float32), rng.integers(0, 6, (3, 4))
  stats = quantize.code_stats(jnp.asarray(x), jnp.asarray(code), 7)
  np.testing.assert_array_equal(stats.counts, np.bincount(code.ravel(), minlength=7))
  np.testing.assert_allclose(stats.sums, [x[code == k].sum(0) if (code == k).any() else np.zeros(5) for k in range(7)],
                             rtol=1e-5, atol=1e-6)
  halves = [quantize.code_stats(jnp.asarray(x[rows]), jnp.asarray(code[rows]), 7) for rows in ([0], [1, 2])]
  for whole, a, b in zip(stats, *halves):
    np.testing.assert_allclose(whole, a + b, rtol=1e-5, atol=1e-6)
  gradient = jax.grad(lambda x: quantize.code_stats(x, jnp.asarray(code), 7).sums.sum())(jnp.asarray(x))
  assert not np.any(gradient)


def test_moving_average_has_no_one_minus_momentum():
  stats = quantize.CodebookStats(jnp.array([2.0, 0.0]), jnp.array([[1.0, 1], [0, 0]]))
  dictionary, counts = quantize.ema_update(jnp.ones((2, 2)), jnp.array([1.0, 4.0]), stats, momentum=0.5)
  np.testing.assert_allclose(counts, [2.5, 2.0])
  np.testing.assert_allclose(dictionary, [[1.5, 1.5], [0.5, 0.5]])


# ---- splitting ----


def test_split_shares_the_most_used_word():
  dictionary, counts = jnp.array([[8.0, 4], [1, 1], [2, 6]]), jnp.array([6.0, 0.01, 2.0])
  new, new_counts, key = quantize.split_unused(dictionary, counts, jax.random.key(0))
  np.testing.assert_array_equal(new_counts, [3, 3, 2])
  np.testing.assert_array_equal(new[0], [4, 2])
  np.testing.assert_array_equal(new[2], [2, 6])
  np.testing.assert_allclose(new[1], [4, 2], rtol=1e-3)
  assert np.any(new[1] != new[0])
  assert not np.array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(0)))


def test_split_of_nothing_changes_nothing():
  dictionary, counts = jnp.ones((3, 2)), jnp.array([0.1, 1.0, 5.0])
  new, new_counts, key = quantize.split_unused(dictionary, counts, jax.random.key(3))
  np.testing.assert_array_equal(new, dictionary)
  np.testing.assert_array_equal(new_counts, counts)
  np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(3)))


@pytest.mark.parametrize("counts", [np.zeros(4), np.full(4, 0.05), np.array([0.099, 0.0, 0.02, 0.01]),
                                    np.array([0.15, 0.0, 0.0, 0.0]), np.full(1, 0.01), np.full(4, np.nan)])
def test_split_ends_when_there_is_nothing_to_share(counts):
  size = len(counts)
  split = jax.jit(quantize.split_unused)
  dictionary, new_counts, _ = split(jnp.ones((size, 3)), jnp.asarray(counts, jnp.float32), jax.random.key(0))
  np.testing.assert_allclose(new_counts.sum(), counts.sum(), rtol=1e-6)
  assert np.all(np.isfinite(dictionary))
  if not np.max(counts) >= 0.1:
    np.testing.assert_array_equal(new_counts, counts.astype(np.float32))
    np.testing.assert_array_equal(dictionary, 1)


def test_split_leaves_no_unused_word():
  counts = jnp.zeros(64).at[5].set(1000.0)
  _, counts, _ = quantize.split_unused(jax.random.normal(jax.random.key(0), (64, 3)), counts, jax.random.key(1))
  assert counts.min() >= 0.1
  np.testing.assert_allclose(counts.sum(), 1000, rtol=1e-5)


# ---- code dropout ----


def test_importance_falls_from_one_to_zero_without_the_ends():
  np.testing.assert_allclose(quantize.dropout_importance(3), [0.75, 0.5, 0.25])
  np.testing.assert_allclose(quantize.dropout_importance(1), [0.5])


@pytest.mark.parametrize("mode", ["ordered", "random"])
def test_number_of_kept_words_is_uniform(mode):
  mask = np.asarray(quantize.keep_mask(jax.random.key(0), 9000, 8, mode))
  share = np.bincount(mask.sum(-1), minlength=9) / len(mask)
  np.testing.assert_allclose(share, 1 / 9, atol=0.02)
  prefixes = (mask == (np.arange(8) < mask.sum(-1, keepdims=True))).all(-1)
  assert prefixes.all() if mode == "ordered" else prefixes.mean() < 0.5


def test_modes_keep_as_many():
  ordered, shuffled = (quantize.keep_mask(jax.random.key(7), 50, 6, mode) for mode in ("ordered", "random"))
  np.testing.assert_array_equal(ordered.sum(-1), shuffled.sum(-1))


# ---- the finite grid ----


@pytest.mark.parametrize("levels", LEVELS)
def test_grid_words_are_their_own_codes(levels):
  """Every code has a vector near which the quantiser writes it, and its value there is the looked-up word."""
  size = quantize.fsq_size(levels)
  assert size == math.prod(levels)
  words = np.asarray(quantize.fsq_lookup(jnp.arange(size), levels))
  assert len(np.unique(words, axis=0)) == size and np.abs(words).max() <= 1
  x = inputs_for(words, levels)
  value, code = quantize.fsq_quantize(x, levels)
  np.testing.assert_array_equal(code, np.arange(size))
  assert code.dtype == jnp.int32
  np.testing.assert_allclose(value, words, atol=1e-6)


def inputs_for(words, levels):
  """Vectors that the bounding function sends to the given words."""
  count = np.asarray(levels, np.float64)
  half = (count - 1) * (1 + 1e-3) / 2
  offset = np.where(count % 2 == 0, 0.5, 0.0)
  return jnp.asarray(np.arctanh((words * (count // 2) + offset) / half) - np.arctanh(offset / half), jnp.float32)


@pytest.mark.parametrize("levels", LEVELS)
def test_value_and_code_agree_everywhere(levels):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 500, len(levels))) * 4, jnp.float32)
  value, code = quantize.fsq_quantize(x, levels)
  assert code.min() >= 0 and code.max() < quantize.fsq_size(levels)
  np.testing.assert_allclose(quantize.fsq_lookup(code, levels), value, atol=1e-6)


def test_levels_of_one_coordinate():
  even, odd = (np.unique(quantize.fsq_lookup(jnp.arange(n), (n,))) for n in (4, 5))
  np.testing.assert_allclose(even, [-1, -0.5, 0, 0.5])
  np.testing.assert_allclose(odd, [-1, -0.5, 0, 0.5, 1])


def test_first_level_is_the_fastest():
  words = quantize.fsq_lookup(jnp.arange(6), (3, 2))
  np.testing.assert_allclose(words, [(a, b) for b, a in itertools.product((-1, 0), (-1, 0, 1))])
  np.testing.assert_array_equal(quantize.fsq_lookup(jnp.array([-1]), (3, 2)), words[-1:])


@pytest.mark.parametrize("levels", LEVELS)
def test_far_inputs_stay_on_the_grid(levels):
  for sign in (-1, 1):
    value, code = quantize.fsq_quantize(jnp.full((1, len(levels)), sign * 1e4), levels)
    assert code[0] == (0 if sign < 0 else quantize.fsq_size(levels) - 1)
    assert np.abs(value).max() <= 1


@pytest.mark.parametrize("levels", LEVELS)
def test_gradient_passes(levels):
  x = jnp.asarray(np.random.default_rng(1).normal(size=(20, len(levels))), jnp.float32)
  gradient = jax.grad(lambda x: quantize.fsq_quantize(x, levels)[0].sum())(x)
  assert np.all(gradient > 0)
