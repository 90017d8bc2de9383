"""Staged masked decoding on a toy model whose every step is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.decoding import masked
from uvim_like.errors import UserError

B, S, L, V = 2, 3, 6, 5
KEY = jax.random.key(0)


class Toy:
  """Logits are constant but for a call's number; keeps what it was asked."""

  def __init__(self):
    self.calls = []
    self.base = jnp.asarray(np.random.default_rng(0).normal(size=(B, S, L, V)), jnp.float32)

  def __call__(self, tokens, hidden):
    self.calls.append((np.asarray(tokens), np.asarray(hidden)))
    return self.base * len(self.calls)


def decode(toy, **options):
  return masked.decode(toy, KEY, shape=(B, S, L), **options)


def test_one_stage_hides_everything():
  toy = Toy()
  found = decode(toy)
  assert len(toy.calls) == 1 and toy.calls[0][1].all()
  np.testing.assert_array_equal(found.tokens, np.argmax(toy.base, -1))
  np.testing.assert_allclose(jnp.exp(found.logprobs), jax.nn.softmax(toy.base).max(-1), rtol=1e-6)


def test_counts_are_exact_and_shown_tokens_are_the_present_ones():
  toy = Toy()
  decode(toy, ratios=(1.0, 0.7, 0.34, 0.0))
  assert [hidden.sum(-1).min() for _, hidden in toy.calls] == [6, 4, 2, 0]
  assert [hidden.sum(-1).max() for _, hidden in toy.calls] == [6, 4, 2, 0]
  np.testing.assert_array_equal(toy.calls[1][0], np.argmax(toy.base, -1))


def test_running_average_only_where_hidden():
  toy = Toy()
  draws = [jnp.broadcast_to(jnp.arange(L), (B, S, L)), jnp.broadcast_to(jnp.arange(L)[::-1], (B, S, L))]
  found = decode(toy, ratios=(1.0, 0.5, 0.5), draws=draws)
  factor = np.array([1.5, 1.5, 1.5, 2.0, 2.0, 2.0])  # (1 + 2) / 2 first, (1 + 3) / 2 in the last stage
  np.testing.assert_allclose(found.logits, toy.base * factor[:, None], rtol=1e-6)
  replaced = decode(Toy(), ratios=(1.0, 0.5, 0.5), draws=draws, combine="replace")
  np.testing.assert_allclose(replaced.logits, toy.base * np.array([2, 2, 2, 3, 3, 3.])[:, None], rtol=1e-6)


def test_by_confidence_the_least_sure_are_hidden():
  toy = Toy()
  decode(toy, ratios=(1.0, 0.5), order="confidence")
  sure = np.asarray(jax.nn.softmax(toy.base).max(-1))
  for hidden, value in zip(toy.calls[1][1].reshape(-1, L), sure.reshape(-1, L)):
    assert value[hidden].max() <= value[~hidden].min()


def test_confidence_of_ones_own():
  toy = Toy()
  decode(toy, ratios=(1.0, 0.5, 0.5), order="confidence",
         confidence=lambda p, stage: jnp.arange(L) * (3 - 2 * stage) + p)
  assert toy.calls[1][1][0, 0].tolist() == [True] * 3 + [False] * 3
  assert toy.calls[2][1][0, 0].tolist() == [False] * 3 + [True] * 3


def test_illegal_tokens_are_never_chosen_but_count_in_probabilities():
  legal = jnp.arange(V) < 2
  toy = Toy()
  found = decode(toy, legal=legal)
  assert np.asarray(found.tokens).max() < 2
  want = np.asarray(jax.nn.softmax(toy.base))[..., :2].max(-1)
  np.testing.assert_allclose(jnp.exp(found.logprobs), want, rtol=1e-6)


def test_random_places_differ_between_sequences_and_keys():
  toy = Toy()
  decode(toy, ratios=(1.0, 0.5))
  masked.decode(toy, jax.random.key(1), shape=(B, S, L), ratios=(1.0, 0.5))
  first, second = toy.calls[1][1], toy.calls[3][1]
  assert (first != second).any() and (first[0] != first[1]).any()


def test_lowest_with_ties_is_exact():
  assert masked.lowest(jnp.zeros(5), 3).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(("options", "message"), [
    (dict(ratios=(0.5,)), "must begin with 1.0"), (dict(ratios=()), "must begin with 1.0"),
    (dict(ratios=(1.0, 1.2)), "0..1"), (dict(order="confident"), "did you mean 'confidence'"),
    (dict(combine="mean"), "average, replace")])
def test_mistakes_are_named(options, message):
  with pytest.raises(UserError, match=message):
    decode(Toy(), **options)
