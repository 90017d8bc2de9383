"""Choosing tokens: the sets that top-k and nucleus keep, against numpy, and the frequencies of what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops import sampling

LOGITS = np.random.default_rng(3).normal(size=(2, 3, 11)).astype(np.float32) * 2


def kept(logits):
  return np.asarray(logits) > -1e29


def nucleus(row, p):
  """Smallest set of likeliest tokens whose probabilities reach p."""
  probabilities = np.exp(row.astype(np.float64) - row.max())
  probabilities /= probabilities.sum()
  order, total, chosen = np.argsort(-row), 0.0, np.zeros(len(row), bool)
  for token in order:
    if total >= p:
      break
    chosen[token] = True
    total += probabilities[token]
  return chosen


@pytest.mark.parametrize("k", [1, 2, 5, 11, 40])
def test_top_k(k):
  got = sampling.keep_top_k(jnp.asarray(LOGITS), k)
  rank = np.argsort(np.argsort(-LOGITS, axis=-1), axis=-1)
  np.testing.assert_array_equal(kept(got), rank < k)
  np.testing.assert_array_equal(np.asarray(got)[kept(got)], LOGITS[rank < k])


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.7, 0.95, 0.9999])
def test_nucleus(p):
  got = kept(sampling.keep_top_p(jnp.asarray(LOGITS), p))
  want = np.apply_along_axis(lambda row: nucleus(row, p), -1, LOGITS)
  np.testing.assert_array_equal(got, want)
  assert got.any(-1).all()


def test_hidden_tokens():
  np.testing.assert_array_equal(sampling.hide_tokens(jnp.asarray(LOGITS), ()), LOGITS)
  hidden = sampling.hide_tokens(jnp.asarray(LOGITS), (0, 4))
  np.testing.assert_array_equal(kept(hidden), ~np.isin(np.arange(11), (0, 4)) & np.ones((2, 3, 1), bool))
  everything = sampling.hide_tokens(jnp.asarray(LOGITS), tuple(range(11)))
  token = sampling.choose(jax.random.key(0), everything, temperature=1.0)
  assert np.all(np.isfinite(everything)) and token.shape == (2, 3)


def test_greedy():
  for temperature in (0, 0.0):
    token = sampling.choose(jax.random.key(0), jnp.asarray(LOGITS), temperature=temperature)
    assert token.dtype == jnp.int32
    np.testing.assert_array_equal(token, LOGITS.argmax(-1))


@pytest.mark.parametrize("options, probabilities", [
    ({"temperature": 1.0}, lambda row: np.exp(row)),
    ({"temperature": 2.0}, lambda row: np.exp(row / 2)),
    ({"temperature": 1.0, "top_k": 3}, lambda row: np.exp(row) * (row >= np.sort(row)[-3])),
    ({"temperature": 0.5, "top_k": 3}, lambda row: np.exp(row / 0.5) * (row >= np.sort(row)[-3])),
    ({"temperature": 1.0, "top_p": 0.7}, lambda row: np.exp(row) * nucleus(row, 0.7)),
    ({"temperature": 2.0, "top_p": 0.7}, lambda row: np.exp(row / 2) * nucleus(row / 2, 0.7))])
def test_frequencies(options, probabilities):
  row, draws = LOGITS[0, 0], 20_000
  tokens = sampling.choose(jax.random.key(1), jnp.tile(row, (draws, 1)), **options)
  share = np.bincount(tokens, minlength=len(row)) / draws
  want = probabilities(row) / probabilities(row).sum()
  assert np.all(share[want == 0] == 0)
  np.testing.assert_allclose(share, want, atol=5 * 0.5 / np.sqrt(draws))


def test_temperature_may_be_an_array():
  token = jax.jit(lambda t: sampling.choose(jax.random.key(0), jnp.asarray(LOGITS), temperature=t))(1e-7)
  np.testing.assert_array_equal(token, LOGITS.argmax(-1))
