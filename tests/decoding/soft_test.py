"""Soft tokens: mixtures, and their feedback in cached decoding over a table that the test can read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.decoding import autoregressive, soft
from uvim_like.errors import UserError

BATCH, LENGTH, WORDS = 2, 4, 5
RNG = np.random.default_rng(0)
EMBEDDING = jnp.asarray(RNG.normal(size=(WORDS, 3)), jnp.float32)
OUTPUT = jnp.asarray(RNG.normal(size=(3, WORDS)), jnp.float32)
START = jnp.asarray(RNG.normal(size=(BATCH, 1, 3)), jnp.float32)


def step(last, position, cache, *, is_soft):
  """Logits of the last input's embedding, which the cache hands on for the test."""
  x = last @ EMBEDDING if is_soft else EMBEDDING[last]
  x = jnp.where(position == 0, START, x)
  return x @ OUTPUT, cache


def decode(factor=None, **options):
  return autoregressive.decode(
      lambda *args: step(*args, is_soft=factor is not None), jnp.int32(0), jax.random.key(0), batch=BATCH, length=LENGTH,
      soft=factor, keep_logits=True, vocab_size=WORDS, **{"forbidden": ()} | options)


def by_hand(factor, hidden=()):
  x, out = START[:, 0], []
  for _ in range(LENGTH):
    logits = x @ OUTPUT
    out.append(logits)
    allowed = logits.at[:, list(hidden)].set(-1e30) if hidden else logits
    x = EMBEDDING[jnp.argmax(allowed, -1)] if factor is None else jax.nn.softmax(factor * allowed) @ EMBEDDING
  return jnp.stack(out, 1)


@pytest.mark.parametrize("factor", [None, 1.0, 0.8, 0.0])
def test_feedback_is_the_mean_embedding(factor):
  out = decode(factor)
  np.testing.assert_allclose(out.logits[:, 0], by_hand(factor), atol=1e-5)
  np.testing.assert_array_equal(out.tokens[:, 0], jnp.argmax(by_hand(factor), -1))


def test_a_large_factor_is_hard():
  np.testing.assert_allclose(decode(1e5).logits, decode().logits, atol=1e-4)


def test_forbidden_words_are_not_mixed_in():
  np.testing.assert_allclose(decode(1.0, forbidden=(2,)).logits[:, 0], by_hand(1.0, (2,)), atol=1e-5)


def test_a_forced_word_is_fed_back_whole():
  prompts = jnp.zeros((BATCH, LENGTH), jnp.int32).at[:, 1].set(3)
  out = decode(1.0, prompts=prompts)
  np.testing.assert_allclose(out.logits[:, 0, 2], jnp.broadcast_to(EMBEDDING[3] @ OUTPUT, (BATCH, WORDS)), atol=1e-5)


def test_size_of_the_vocabulary_is_needed():
  with pytest.raises(UserError, match="vocab_size"):
    autoregressive.decode(step, 0, jax.random.key(0), batch=1, length=1, soft=1.0)


def test_mixture():
  logits = jnp.asarray([[1.0, 2.0, 4.0]])
  np.testing.assert_allclose(soft.mixture(logits, 0.0), 1 / 3)
  np.testing.assert_allclose(soft.expected(logits, jnp.eye(3), 2.0), jax.nn.softmax(2 * logits), rtol=1e-6)
  np.testing.assert_array_equal(soft.one_hot_of(jnp.asarray([2]), 3), [[0, 0, 1]])
