"""One pass against step by step: the same logits where every input is the same vector; objects with parallel masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.decoding import autoregressive, objects, parallel
from uvim_like.errors import UserError
from uvim_like.models.ait_transformer import Transformer
from uvim_like.ops import sampling

LENGTH, WORDS = 6, 12
HEAD = Transformer(vocab_size=WORDS, width=16, num_encoder_layers=1, num_decoder_layers=2, num_heads=2, mlp_dim=24,
                   num_tasks=3, max_len=30, parallel=True)
TASK = jnp.asarray([2, 1])


@functools.cache
def network():
  """(call, memory): the head with parameters that are not small, so that every input matters."""
  features = jax.random.normal(jax.random.key(0), (2, 2, 3, 8))
  shapes = jax.eval_shape(HEAD.init, jax.random.key(1), features, jnp.zeros((2, 1), jnp.int32), TASK)["params"]
  rng = np.random.default_rng(2)
  params = jax.tree.map(lambda x: jnp.asarray((x.ndim == 1) + 0.2 * rng.normal(size=x.shape), jnp.float32), shapes)
  call = functools.partial(HEAD.apply, {"params": params})
  return call, jax.jit(functools.partial(call, method="encode"))(features)


@jax.jit
def forced(tokens, hidden=None):
  """Logits (B, L, V) under teacher forcing; hidden positions read the parallel token."""
  call, memory = network()
  return call(call(call(tokens, TASK, hidden, method="inputs"), memory, method="decode"), method="logits")


def one_pass():
  return forced(jnp.zeros((2, LENGTH - 1), jnp.int32), jnp.ones((2, LENGTH - 1), bool))


def test_one_pass_is_the_loop():
  call, memory = network()

  def step(last, position, cache):
    del last
    x = jnp.where(position == 0, call(TASK, method="task_token"), call(2, 1, method="fill"))
    hidden, cache = call(x, TASK, position, cache, method="step")
    return call(hidden, method="logits"), cache

  looped = jax.jit(lambda: autoregressive.decode(
      step, call(memory, LENGTH, method="start"), jax.random.key(0), batch=2, length=LENGTH, forbidden=(),
      keep_logits=True, vocab_size=WORDS))()
  out = jax.jit(lambda: parallel.decode(one_pass(), jax.random.key(0), keep_logits=True))()
  np.testing.assert_allclose(out.logits, looped.logits, atol=2e-5)
  np.testing.assert_array_equal(out.tokens, looped.tokens)
  np.testing.assert_allclose(out.scores, looped.scores, atol=2e-4)


def test_cached_steps_are_teacher_forcing():
  call, memory = network()
  tokens = jax.random.randint(jax.random.key(5), (2, LENGTH - 1), 0, WORDS)
  x = jnp.concatenate([call(TASK, method="task_token"), call(tokens, method="embed")], axis=1)

  def stepped(widths):
    cache, at, got = call(memory, LENGTH, method="start"), 0, []
    for width in widths:
      hidden, cache = call(x[:, at:at + width], TASK, jnp.int32(at), cache, method="step")
      got.append(call(hidden, method="logits"))
      at += width
    return jnp.concatenate(got, 1)

  for widths in ((1,) * 3 + (3,), (2, 1, 3), (LENGTH,)):  # one or several tokens a step
    np.testing.assert_allclose(jax.jit(stepped, static_argnums=0)(widths), forced(tokens), atol=2e-5)


def test_no_position_sees_a_later_one():
  call, memory = network()
  x = jax.random.normal(jax.random.key(3), (2, LENGTH, 16))
  jacobian = jax.jit(jax.jacobian(lambda x: call(x, memory, method="decode").sum(-1)))(x)  # (B, L, B, L, D)
  seen = np.abs(jacobian).sum((0, 2, 4)) > 1e-9
  np.testing.assert_array_equal(seen, np.tril(np.ones((LENGTH, LENGTH), bool)))


def test_a_slice_of_the_vocabulary_is_computed_alone():
  call, _ = network()
  hidden = jax.random.normal(jax.random.key(3), (2, 3, 16))
  np.testing.assert_allclose(call(hidden, 3, 5, method="logits"), call(hidden, method="logits")[..., 3:8], atol=1e-6)


def test_samples():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
  out = parallel.decode(logits, jax.random.key(0), num_samples=500, temperature=1.0)
  assert out.tokens.shape == (2, 500, 3) and out.logits is None
  share = np.mean(np.asarray(out.tokens)[..., None] == np.arange(4), axis=1)
  np.testing.assert_allclose(share, jax.nn.softmax(logits), atol=0.1)
  assert not np.any(parallel.decode(logits, jax.random.key(0), forbidden=(1, 2)).tokens % 3)
  with pytest.raises(UserError, match="exclude each other"):
    parallel.decode(logits, jax.random.key(0), top_k=1, top_p=0.5)


# ---- objects ----

GROUPS = (objects.Group("box", 2, 0, 5), objects.Group("class", 1, 5, 3, legal=2, keep_logits=True))
MASK = objects.Group("mask", 3, 8, 4, keep_logits=True)


def write(feedback, **options):
  call, memory = network()
  decoder = objects.Decoder(
      step=lambda x, position, cache: call(x, TASK, position, cache, method="step"),
      logits=functools.partial(call, method="logits"), embed=functools.partial(call, method="embed"),
      mix=functools.partial(call, method="mix"), fill=functools.partial(call, method="fill"))
  run = jax.jit(lambda: objects.decode(
      decoder, call(memory, 12, method="start"), call(TASK, method="task_token"), jax.random.key(7), num_objects=2,
      groups=(*GROUPS, MASK._replace(feedback=feedback)), **options))
  return run()


@pytest.mark.parametrize("feedback", ["hard", "parallel"])
def test_objects_are_those_of_teacher_forcing(feedback):
  """The greedy tokens, fed back under the parallel rule, are the likeliest again at every position."""
  written = write(feedback)
  starts = np.array([0, 0, 5, 8, 8, 8])
  tokens = np.concatenate([np.asarray(written[name].tokens) for name in ("box", "class", "mask")], -1) + starts
  assert tokens.shape == (2, 2, 6)
  flat = jnp.asarray(tokens.reshape(2, -1))
  hidden = (jnp.tile(jnp.asarray(starts), 2) == 8)[None, :-1] if feedback == "parallel" else None
  logits = forced(flat[:, :-1], hidden)
  for i, (start, size) in enumerate(zip(np.tile(starts, 2), np.tile([5, 5, 2, 4, 4, 4], 2))):
    np.testing.assert_array_equal(flat[:, i], start + jnp.argmax(logits[:, i, start:start + size], -1))
  np.testing.assert_allclose(written["mask"].logits.reshape(2, 2, 3, 4), logits.reshape(2, 2, 6, -1)[:, :, 3:, 8:12],
                             atol=2e-5)


def test_soft_masks_change_what_follows_them_only():
  hard, mixed = write("hard"), write("soft")
  np.testing.assert_allclose(hard["mask"].logits[:, 0, 0], mixed["mask"].logits[:, 0, 0], atol=2e-5)
  np.testing.assert_array_equal(hard["box"].tokens[:, 0], mixed["box"].tokens[:, 0])
  assert np.max(np.abs(hard["mask"].logits[:, 0, 1] - mixed["mask"].logits[:, 0, 1])) > 1e-4


def test_sampling_stays_in_range():
  written = write("parallel", temperature=50.0, top_p=0.99)
  assert np.all(written["class"].tokens < 2) and np.all(written["mask"].tokens < 4)
  assert written["class"].logits.shape == (2, 2, 1, 3) and written["box"].logits is None
  assert np.all(sampling.keep_top_p(written["class"].logits, 0.5).max(-1) > -1e9)


def test_unknown_feedback():
  with pytest.raises(UserError, match="feedback 'firm' of 'mask' is none of hard, soft, parallel"):
    write("firm")
