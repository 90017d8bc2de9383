"""UViM's language model with masked training and masked decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.systems.base import Vars
from uvim_like.systems.uvim import lm, vit

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def run(stage_one_config, stage_two_config, make_batch):
  """(system, variables, stage I, batch) of a masked language model."""
  batch = make_batch(2)
  oracle = jax.jit(vit.make(stage_one_config()).init)(KEY, batch)
  system = lm.make(stage_two_config(model__masked=True))
  fresh = jax.jit(system.init)(KEY, batch)
  rng = np.random.default_rng(1)
  noisy = jax.tree.map(lambda x: jnp.asarray(x + 0.2 * rng.normal(size=x.shape), jnp.float32), fresh.params)
  return system, Vars(noisy), oracle, batch


def test_parameters_are_those_of_the_causal_model(run, stage_two_config):
  system, variables, _, batch = run
  causal = jax.eval_shape(lm.make(stage_two_config()).init, KEY, batch)
  assert jax.tree.map(jnp.shape, variables.params) == jax.tree.map(lambda x: x.shape, causal.params)


def test_loss_teaches_the_hidden_words(run):
  system, variables, oracle, batch = run
  loss, grads = jax.jit(jax.value_and_grad(lambda params, key: system.loss(
      variables.replace(params=params), oracle, batch, key, True).loss))(variables.params, KEY)
  assert np.isfinite(loss) and all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["decoder"]))
  out = system.loss(variables, oracle, batch, KEY, False)
  assert out.parts["loss_code"].shape == out.parts["accuracy"].shape == (2,)


def test_every_word_sees_all_that_are_shown(run):
  system, variables, _, batch = run
  model = system.predict["predict"].keywords["parts"].model
  encoded = model.apply({"params": variables.params}, batch["image"], method="encode")
  fill = jax.jit(lambda tokens: model.apply({"params": variables.params}, tokens, encoded, method="fill"))
  before, after = fill(jnp.array([[0, 0, 3, 0]] * 2)), fill(jnp.array([[0, 0, 5, 0]] * 2))
  assert not np.isclose(before, after, atol=1e-5).all(-1).any()


def test_decoding_in_stages(run):
  system, variables, oracle, batch = run
  out = jax.jit(functools.partial(system.predict["sequences"], num_samples=2))(variables, oracle, batch, KEY)
  assert out["tokens"].shape == out["logprobs"].shape == (2, 2, 4) and out["scores"].shape == (2, 2)
  assert np.asarray(out["tokens"]).min() >= 1 and np.asarray(out["tokens"]).max() <= 12  # never the hidden one
  model = system.predict["predict"].keywords["parts"].model
  one = system.predict["sequences"](variables, oracle, batch, KEY, stages=(1.0,))
  encoded = model.apply({"params": variables.params}, batch["image"], method="encode")
  logits = model.apply({"params": variables.params}, jnp.zeros((2, 4), jnp.int32), encoded, method="fill")
  np.testing.assert_array_equal(one["tokens"][:, 0], jnp.argmax(logits.at[..., 0].set(-jnp.inf), -1))
  maps = jax.eval_shape(system.predict["predict"], variables, oracle, batch, KEY)
  assert maps["semantics"].shape == (2, 8, 12)


def test_a_model_decodes_as_it_was_trained(run, stage_two_config):
  system, variables, oracle, batch = run
  with pytest.raises(UserError, match="the language model is masked"):
    system.predict["sequences"](variables, oracle, batch, KEY, decode="cached")
  with pytest.raises(UserError, match="temperature, top_p: a masked language model takes the likeliest words"):
    system.predict["sequences"](variables, oracle, batch, KEY, temperature=1.0, top_p=0.5)
  causal = lm.make(stage_two_config())
  with pytest.raises(UserError, match="the language model is cached"):
    causal.predict["sequences"](variables, oracle, batch, KEY, decode="masked")
