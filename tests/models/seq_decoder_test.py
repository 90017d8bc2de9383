"""The sequence decoder: what each position may see, and that step by step is the same function as all at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.seq_decoder import SequenceDecoder
from uvim_like.trees import flatten_names

BATCH, LENGTH, WORDS, WIDTH, VOCABULARY = 2, 6, 5, 16, 9
SIZES = dict(vocab_size=VOCABULARY, emb_dim=WIDTH, num_layers=2, num_heads=2, mlp_dim=24)


def inputs():
  keys = jax.random.split(jax.random.key(0), 3)
  tokens = jax.random.randint(keys[0], (BATCH, LENGTH), 0, VOCABULARY).at[:, 0].set(0)
  return tokens, jax.random.normal(keys[1], (1, LENGTH, WIDTH)), jax.random.normal(keys[2], (BATCH, WORDS, WIDTH))


@functools.cache
def params():
  """Parameters with an output layer that is not zero."""
  fresh = jax.jit(SequenceDecoder(**SIZES).init)(jax.random.key(1), *inputs())["params"]
  kernel = jax.random.normal(jax.random.key(2), fresh["LogitsDense"]["kernel"].shape)
  return fresh | {"LogitsDense": fresh["LogitsDense"] | {"kernel": kernel}}


@functools.cache
def decoder(**options):
  model = SequenceDecoder(**SIZES | options)
  apply = functools.partial(model.apply, {"params": params()})
  return jax.jit(apply, static_argnames=("method", "sequences", "length"))


def test_names_and_start():
  fresh = jax.jit(SequenceDecoder(**SIZES, emb_scale=0.02).init)(jax.random.key(1), *inputs())["params"]
  block = {f"{attention}/{part}/kernel" for attention in ("SelfAttn", "CrossAttn")
           for part in ("query", "key", "value", "out")}
  block |= {f"LayerNorm{i}/{leaf}" for i in (1, 2, 3) for leaf in ("scale", "bias")}
  block |= {f"MLP/Dense_{i}/{leaf}" for i in (0, 1) for leaf in ("kernel", "bias")}
  rest = {"EmbedTargets/embedding", "LayerNorm/scale", "LayerNorm/bias", "LogitsDense/kernel", "LogitsDense/bias"}
  blocks = {f"EncDecBlock{i}/{name}" for i in (0, 1) for name in block}
  assert {name for name, _ in flatten_names(fresh)} == rest | blocks
  assert not np.any(fresh["LogitsDense"]["kernel"]) and not np.any(fresh["LogitsDense"]["bias"])
  assert np.std(fresh["EmbedTargets"]["embedding"]) < 0.04
  assert 0.8 < np.std(params()["EmbedTargets"]["embedding"]) < 1.2


def test_logits_are_not_rounded_to_the_compute_type():
  tokens, positions, encoded = inputs()
  logits = np.asarray(decoder(dtype=jnp.bfloat16)(tokens, positions, encoded.astype(jnp.bfloat16)))
  assert logits.dtype == np.float32
  assert np.mean(logits != logits.astype(jnp.bfloat16).astype(np.float32)) > 0.9


def test_no_position_sees_a_later_one():
  """Gradients of the logits at position i with respect to the input at j are exactly zero for j > i only."""
  tokens, positions, encoded = inputs()
  model, weights = SequenceDecoder(**SIZES), params()

  def logits(shift):
    return model.apply({"params": weights}, tokens[:1], positions + shift[None], encoded[:1])[0].sum(-1)

  jacobian = np.abs(jax.jit(jax.jacrev(lambda shift: jnp.square(logits(shift))))(jnp.zeros((LENGTH, WIDTH)))).max(-1)
  assert jacobian.shape == (LENGTH, LENGTH)
  assert not np.any(np.triu(jacobian, 1)), jacobian
  assert np.all(jacobian[np.tril_indices(LENGTH)] > 1e-6), jacobian


def test_later_tokens_do_not_matter():
  tokens, positions, encoded = inputs()
  changed = tokens.at[:, 4:].set((tokens[:, 4:] + 1) % VOCABULARY)
  one, other = (decoder()(x, positions, encoded) for x in (tokens, changed))
  np.testing.assert_array_equal(one[:, :4], other[:, :4])
  assert np.all(np.abs(one - other)[:, 4:].max(-1) > 1e-4)


def test_images_do_not_mix():
  tokens, positions, encoded = inputs()
  one, other = (decoder()(tokens, positions, x) for x in (encoded, encoded.at[1].set(0.0)))
  np.testing.assert_array_equal(one[0], other[0])
  assert np.abs(one - other)[1].max() > 1e-3


def run_steps(sequences, tokens, positions, encoded, **options):
  """Logits (B, S, L, V) of tokens (B, S, L), fed one at a time."""
  call = decoder(**options)
  caches, out = call(encoded, sequences=sequences, length=tokens.shape[-1], method="start"), []
  for i in range(tokens.shape[-1]):
    logits, caches = call(tokens[..., i], jnp.int32(i), positions, caches, method="step")
    out.append(logits)
  return jnp.stack(out, axis=2)


@pytest.mark.parametrize("options", [{}, {"zero_decoder_seq": True}, {"scan": True}, {"remat": "full"}])
def test_step_by_step_is_teacher_forcing(options):
  tokens, positions, encoded = inputs()
  steps = run_steps(1, tokens[:, None], positions, encoded, **options)[:, 0]
  np.testing.assert_allclose(steps, decoder(**options)(tokens, positions, encoded), rtol=1e-5, atol=2e-5)


def test_sequences_of_one_image_share_it():
  _, positions, encoded = inputs()
  tokens = jax.random.randint(jax.random.key(5), (BATCH, 3, LENGTH), 0, VOCABULARY)
  steps = run_steps(3, tokens, positions, encoded)
  for sample in range(3):
    np.testing.assert_allclose(steps[:, sample], decoder()(tokens[:, sample], positions, encoded), rtol=1e-5, atol=2e-5)
  caches = decoder()(encoded, sequences=3, length=LENGTH, method="start")
  assert caches[0].cross_key.shape == (BATCH, 2, WORDS, WIDTH // 2)  # once an image, not once a sequence
  assert caches[0].key.shape == (BATCH * 3, 2, LENGTH, WIDTH // 2)


def test_zeroed_tokens_leave_only_positions():
  tokens, positions, encoded = inputs()
  one, other = (decoder(zero_decoder_seq=True)(x, positions, encoded) for x in (tokens, tokens * 0 + 3))
  np.testing.assert_array_equal(one, other)
  assert not np.allclose(one, decoder()(tokens, positions, encoded))


def test_remat_and_scan_change_nothing():
  tokens, positions, encoded = inputs()

  def result(options):
    model = SequenceDecoder(**SIZES, **options)
    run = lambda p, encoded: jnp.mean(jnp.square(model.apply({"params": p}, tokens, positions, encoded)))  # noqa: E731
    return jax.jit(jax.value_and_grad(run, argnums=(0, 1)))(params(), encoded)

  loss, grads = result({})
  for options in ({"scan": True}, {"remat": "dots", "scan": True}, {"remat": "full"}):
    fresh = jax.eval_shape(SequenceDecoder(**SIZES, **options).init, jax.random.key(1), *inputs())["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params())
    other_loss, other = result(options)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    for (name, got), (_, want) in zip(flatten_names(other), flatten_names(grads), strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6, err_msg=f"{options} {name}")
