"""Decoding over a table of logits that the test can read, and over a real decoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.decoding import autoregressive
from uvim_like.errors import UserError
from uvim_like.models.uvim_lm import Model

BATCH, LENGTH, VOCABULARY = 2, 5, 6
# (B, V, V) logits of the next token by image and last token; the cache counts the steps.
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, VOCABULARY, VOCABULARY)) * 2, jnp.float32)
FAVOUR_START = TABLE.at[..., 0].add(20.0)


def step(tokens, position, cache, *, table=TABLE):
  del position
  return jnp.take_along_axis(table[:, None], tokens[..., None, None], axis=2)[:, :, 0], cache + 1


def decode(table=TABLE, key=0, **options):
  run = jax.jit(lambda key: autoregressive.decode(functools.partial(step, table=table), jnp.int32(0), key, batch=BATCH,
                                                  length=LENGTH, **options))
  return jax.tree.map(np.asarray, run(jax.random.key(key)))


def greedy(table, forbidden=(0,)):
  """By hand: the likeliest allowed token after each token."""
  table = np.array(table)
  table[..., list(forbidden)] = -np.inf
  out = np.zeros((BATCH, LENGTH), int)
  for b in range(BATCH):
    last = 0
    for i in range(LENGTH):
      out[b, i] = last = table[b, last].argmax()
  return out


def test_greedy():
  got = decode()
  np.testing.assert_array_equal(got.tokens[:, 0], greedy(TABLE))
  assert got.tokens.shape == (BATCH, 1, LENGTH) and got.tokens.dtype == np.int32
  cold = decode(temperature=1e-7)
  np.testing.assert_array_equal(cold.tokens, got.tokens)


def test_probabilities_are_those_of_all_tokens():
  got = decode(table=FAVOUR_START)
  logprobs = np.asarray(jax.nn.log_softmax(FAVOUR_START))
  last = np.pad(got.tokens[:, 0], ((0, 0), (1, 0)))[:, :-1]
  want = np.take_along_axis(logprobs[np.arange(BATCH)[:, None], last], got.tokens[:, 0, :, None], -1)[..., 0]
  np.testing.assert_allclose(got.logprobs[:, 0], want, rtol=1e-5)
  np.testing.assert_allclose(got.scores, got.logprobs.sum(-1), rtol=1e-6)
  assert np.all(got.logprobs < -10)  # token 0 is hidden, not left out of the probabilities


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2},
                                     {"temperature": 1.0, "top_p": 0.9}, {"temperature": 50.0, "num_samples": 20}])
def test_start_token_is_never_chosen(options):
  assert np.all(decode(table=FAVOUR_START, **options).tokens > 0)


def test_start_token_is_chosen_when_nothing_is_forbidden():
  for temperature in (0.0, 1.0):
    np.testing.assert_array_equal(decode(table=FAVOUR_START, forbidden=(), temperature=temperature).tokens, 0)


def test_further_tokens_can_be_forbidden():
  got = decode(forbidden=(0, 2, 3), temperature=3.0, num_samples=30)
  assert set(np.unique(got.tokens)) == {1, 4, 5}


def test_prompts():
  prompts = np.zeros((BATCH, LENGTH), np.int32)
  prompts[0, 0], prompts[0, 3], prompts[1, 1] = 5, 2, 3
  for options in ({}, {"temperature": 1.0, "num_samples": 4}):
    tokens = decode(prompts=jnp.asarray(prompts), **options).tokens
    forced = np.broadcast_to(prompts[:, None], tokens.shape)
    np.testing.assert_array_equal(tokens[forced > 0], forced[forced > 0])
  free = decode(prompts=jnp.zeros((BATCH, LENGTH), jnp.int32))
  np.testing.assert_array_equal(free.tokens[:, 0], greedy(TABLE))
  after = decode(prompts=jnp.asarray(prompts)).tokens[0, 0]
  assert after[1] == np.asarray(TABLE)[0, 5, 1:].argmax() + 1  # a free token follows the forced one


def test_end_token():
  prompts = np.zeros((BATCH, LENGTH), np.int32)
  prompts[0, 1] = 4
  table = TABLE.at[..., 4].add(-30.0)  # never by itself
  got = decode(table=table, prompts=jnp.asarray(prompts), eos_token=4)
  np.testing.assert_array_equal(got.tokens[0, 0, 1:], [4, 0, 0, 0])
  np.testing.assert_array_equal(got.logprobs[0, 0, 2:], 0)
  assert np.all(got.tokens[1] > 0) and np.all(got.logprobs[1] < 0)
  np.testing.assert_allclose(got.scores[0, 0], got.logprobs[0, 0, :2].sum(), rtol=1e-6)


def test_ends_early_when_all_have_ended():
  """The step is not run again once every sequence has met the end token."""
  calls = []

  def counted(tokens, position, cache):
    jax.debug.callback(lambda position: calls.append(int(position)), position)
    return step(tokens, position, cache, table=TABLE.at[..., 3].add(50.0))

  out = autoregressive.decode(counted, jnp.int32(0), jax.random.key(0), batch=BATCH, length=LENGTH, eos_token=3)
  jax.effects_barrier()
  np.testing.assert_array_equal(out.tokens, np.broadcast_to([3, 0, 0, 0, 0], (BATCH, 1, LENGTH)))
  assert calls == [0]
  assert np.all(decode(table=TABLE.at[..., 3].add(50.0)).tokens == 3)  # without one, to the full length


def test_samples():
  greedy_once, greedy_thrice = decode(), decode(num_samples=3)
  for sample in range(3):
    np.testing.assert_array_equal(greedy_thrice.tokens[:, sample], greedy_once.tokens[:, 0])
    np.testing.assert_allclose(greedy_thrice.scores[:, sample], greedy_once.scores[:, 0], rtol=1e-6)
  drawn = decode(num_samples=16, temperature=2.0)
  assert len(np.unique(drawn.tokens[0], axis=0)) > 8
  np.testing.assert_array_equal(drawn.tokens, decode(num_samples=16, temperature=2.0).tokens)
  assert np.any(drawn.tokens != decode(num_samples=16, temperature=2.0, key=1).tokens)


def test_first_token_has_the_frequencies_of_the_first_logits():
  draws = 4000
  tokens = decode(num_samples=draws, temperature=1.0, forbidden=()).tokens[..., 0]
  for b in range(BATCH):
    share = np.bincount(tokens[b], minlength=VOCABULARY) / draws
    np.testing.assert_allclose(share, jax.nn.softmax(TABLE[b, 0]), atol=0.04)


def test_top_k_of_one_is_greedy():
  np.testing.assert_array_equal(decode(temperature=5.0, top_k=1).tokens[:, 0], greedy(TABLE))
  np.testing.assert_array_equal(decode(temperature=1.0, top_p=1e-6).tokens[:, 0], greedy(TABLE))


def test_top_k_and_top_p_exclude_each_other():
  with pytest.raises(UserError, match=r"decoding: top_k=2 and top_p=0.5 exclude each other; set one to 0"):
    decode(temperature=1.0, top_k=2, top_p=0.5)


# ---- over a real decoder ----


@functools.cache
def network():
  """(model, variables, image) with an output layer that is not zero."""
  model = Model(vocab_size=9, seq_len=6, input_size=(8, 8), patches={"size": (4, 4)}, num_layers=1, num_heads=2,
                mlp_dim=16, emb_dim=16, posemb_type="learn")
  image = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
  params = jax.jit(model.init)(jax.random.key(1), image, jnp.zeros((3, 6), jnp.int32))["params"]
  kernel = jax.random.normal(jax.random.key(2), params["decoder"]["LogitsDense"]["kernel"].shape)
  decoder = params["decoder"] | {"LogitsDense": params["decoder"]["LogitsDense"] | {"kernel": kernel}}
  return model, {"params": params | {"decoder": decoder}}, image


def decode_network(key=0, **options):
  model, variables, image = network()

  def run(key, **dynamic):
    call = functools.partial(model.apply, variables)
    encoded = call(image, method="encode")
    cache = call(encoded, options.get("num_samples", 1), method="start")
    return autoregressive.decode(functools.partial(call, method="step"), cache, key, batch=3, length=6, **options)

  return jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(key)))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "num_samples": 2}])
def test_logprobs_are_those_of_teacher_forcing(options):
  model, variables, image = network()
  got = decode_network(**options)
  forced = jax.jit(model.apply)
  for sample in range(got.tokens.shape[1]):
    tokens = got.tokens[:, sample]
    logits = forced(variables, image, jnp.asarray(tokens))
    want = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(got.logprobs[:, sample], want, rtol=1e-4, atol=2e-5)
    if not options:
      np.testing.assert_array_equal(tokens, np.asarray(logits)[..., 1:].argmax(-1) + 1)


def test_greedy_samples_of_one_image_are_equal():
  once, thrice = decode_network(), decode_network(num_samples=3)
  for sample in range(3):
    np.testing.assert_array_equal(thrice.tokens[:, sample], once.tokens[:, 0])
    np.testing.assert_allclose(thrice.logprobs[:, sample], once.logprobs[:, 0], rtol=1e-5, atol=1e-5)
