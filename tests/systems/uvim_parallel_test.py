"""UViM's language model with AiT's parallel token: one pass gives the words that decoding step by step gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.systems.base import Vars
from uvim_like.systems.uvim import lm

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def trained(stage_two_config, make_batch):
  """(system, variables, frozen, batch) of a parallel language model with weights that are not small."""
  system, batch = lm.make(stage_two_config(model__parallel=True)), make_batch(2)
  rng = np.random.default_rng(0)
  fill = lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3 + 0.1, jnp.float32)  # noqa: E731
  variables = jax.tree.map(fill, jax.eval_shape(system.init, KEY, batch))
  frozen = Vars(*(jax.tree.map(fill, tree) for tree in (system.frozen.params, system.frozen.state)))
  return system, variables, frozen, batch


def write(trained, **options):
  system, variables, frozen, batch = trained
  run = jax.jit(lambda b: system.predict["sequences"](variables, frozen, b, KEY, **options))
  return run({"image": jnp.asarray(batch["image"])})


def test_one_pass_is_the_loop(trained):
  at_once, looped = write(trained), write(trained, decode="cached")
  np.testing.assert_array_equal(at_once["tokens"], looped["tokens"])
  np.testing.assert_allclose(at_once["logprobs"], looped["logprobs"], atol=1e-4)
  assert np.all(at_once["tokens"] > 0)  # the start token is never chosen


def test_no_word_is_read_and_the_token_learns(trained):
  system, variables, frozen, batch = trained
  call = functools.partial(lm.Model.apply, system.predict["sequences"].keywords["parts"].model,
                           {"params": variables.params})
  encoded = jnp.ones((2, 4, 16))
  words = [jnp.full((2, 4), word) for word in (1, 5)]
  np.testing.assert_array_equal(*(jax.jit(lambda w: call(w, encoded, method="decode"))(w) for w in words))
  loss = lambda p, b: system.loss(Vars(p, variables.state), frozen, b, KEY, True).loss  # noqa: E731
  assert np.any(jax.jit(jax.grad(loss))(variables.params, batch)["mask_embed"] != 0)


def test_messages(trained, stage_two_config):
  with pytest.raises(UserError, match="knows no prompts"):
    write(trained, prompts=jnp.zeros((2, 4), jnp.int32))
  plain = lm.make(stage_two_config())
  with pytest.raises(UserError, match="decode='parallel', but the language model is cached"):
    plain.predict["sequences"](Vars({}), (), {"image": jnp.zeros((1, 8, 12, 3))}, KEY, decode="parallel")
