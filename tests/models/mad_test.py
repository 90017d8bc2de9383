"""MAD's network: causality, caches, masks, sliced vocabularies, backbones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.models import mad
from uvim_like.models.mad_layers import sine_positions

B, S, L, V = 2, 3, 7, 19
FIELDS = dict(vocab_size=V, max_length=9, backbone={"name": "stem", "widths": (8, 12)}, width=16, num_heads=2,
              mlp_dim=24, encoder_layers=1, decoder_layers=2, dropout=0.1)
QUICK = {"xla_backend_optimization_level": 0}  # these programs run once


def compiled(function, *args):
  return jax.jit(function).lower(*args).compile(compiler_options=QUICK)(*args)


@pytest.fixture(scope="module")
def model():
  return mad.Model(**FIELDS)


@pytest.fixture(scope="module")
def data():
  rng = np.random.default_rng(0)
  return {"image": rng.uniform(-1, 1, (B, 16, 24, 3)).astype(np.float32),
          "size": np.array([[16, 20], [9, 24]], np.int32), "tokens": rng.integers(0, V, (B, S, L)).astype(np.int32)}


@pytest.fixture(scope="module")
def variables(model, data):
  one = [data[name][:1] for name in ("image", "size", "tokens")]
  return compiled(lambda key: model.init(key, *one), jax.random.key(0))


@pytest.fixture(scope="module")
def picture(model, data, variables):
  return compiled(functools.partial(model.apply, method="encode"), variables, data["image"], data["size"])


@pytest.fixture(scope="module")
def forward(model, variables):
  """Jitted (tokens, picture, causal) -> outputs of all layers (K, B, S, L, D)."""
  run = jax.jit(lambda tokens, picture, causal: jnp.stack(
      model.apply(variables, tokens, picture, causal=causal, method="decode")), static_argnums=2)
  return run


def test_steps_are_the_causal_forward_pass(model, data, variables, picture, forward):
  tokens, rows = data["tokens"], ((2, 9), (11, 15))
  want = model.apply(variables, forward(tokens, picture, True)[-1], rows, method="logits")

  def step(caches, tokens, start):
    return model.apply(variables, tokens, start, caches, picture, rows, method="step")

  caches = model.apply(variables, B, S, L, method="start")
  logits, caches = jax.jit(step)(caches, tokens[..., :3], jnp.int32(0))  # three at once, then one by one
  np.testing.assert_allclose(logits, want[:, :, 2], atol=2e-5)
  one = jax.jit(step)
  for i in range(3, L):
    logits, caches = one(caches, tokens[..., i:i + 1], jnp.int32(i))
    np.testing.assert_allclose(logits, want[:, :, i], atol=2e-5)


def test_causal_or_not(data, picture, forward):
  changed = data["tokens"].copy()
  changed[..., 4] = (changed[..., 4] + 1) % V
  for causal, untouched in ((True, 4), (False, 0)):
    before, after = (np.asarray(forward(x, picture, causal)[-1]) for x in (data["tokens"], changed))
    same = np.isclose(before, after, atol=1e-6).all((0, 1, 3))
    assert same[:untouched].all() and not same[untouched:].any()


def test_sequences_do_not_see_each_other(data, picture, forward):
  changed = data["tokens"].copy()
  changed[:, 1] = (changed[:, 1] + 1) % V
  before, after = (np.asarray(forward(x, picture, False)) for x in (data["tokens"], changed))
  np.testing.assert_allclose(before[:, :, [0, 2]], after[:, :, [0, 2]], atol=1e-6)
  assert not np.isclose(before[:, :, 1], after[:, :, 1], atol=1e-4).all()


def test_padding_of_the_picture_is_never_seen(model, data, variables, picture, forward):
  valid = np.asarray(mad.inside(jnp.asarray(data["size"]), (16, 24)))
  image = np.where(valid[..., None], data["image"], 7.0)
  other = compiled(functools.partial(model.apply, method="encode"), variables, image, data["size"])
  np.testing.assert_allclose(forward(data["tokens"], picture, False), forward(data["tokens"], other, False), atol=1e-6)


def test_sliced_logits_are_the_columns(model, variables):
  x = jax.random.normal(jax.random.key(1), (2, 5, 16))
  everything = model.apply(variables, x, ((0, V),), method="logits")
  some = model.apply(variables, x, ((3, 5), (10, 14)), method="logits")
  np.testing.assert_allclose(some, np.asarray(everything)[..., [3, 4, 10, 11, 12, 13]], atol=1e-5)
  scale = float(jnp.exp(variables["params"]["logit_scale"]))
  assert scale == pytest.approx(1 / mad.TEMPERATURE) and np.abs(everything).max() <= scale * (1 + 1e-5)


def test_linear_head_has_a_bias(data):
  model = mad.Model(**FIELDS | dict(head="linear"))
  params = jax.eval_shape(model.init, jax.random.key(0), data["image"], data["size"], data["tokens"])["params"]
  assert params["logit_bias"].shape == (V,) and "logit_scale" not in params


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_keeps_names_and_values(model, data, variables, picture, forward, remat):
  other = model.clone(remat=remat)
  shapes = jax.eval_shape(other.init, jax.random.key(0), data["image"], data["size"], data["tokens"])
  assert jax.tree.structure(shapes) == jax.tree.structure(variables)
  got = jnp.stack(other.apply(variables, data["tokens"], picture, method="decode"))
  np.testing.assert_allclose(got, forward(data["tokens"], picture, False), atol=1e-5)


def test_bfloat16_keeps_parameters_and_logits_in_float32(model, data):
  half = model.clone(dtype=jnp.bfloat16)
  shapes = jax.eval_shape(half.init_with_output, jax.random.key(0), data["image"], data["size"], data["tokens"])
  assert shapes[0].dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes[1])} == {jnp.dtype("float32")}


def test_dropout_draws_and_only_in_training(model, data, variables, picture):
  run = jax.jit(lambda key, train: model.apply(variables, data["tokens"], picture, train=train, method="decode",
                                               rngs={"dropout": key})[-1], static_argnums=1)
  one, other = (run(jax.random.key(i), True) for i in range(2))
  assert not np.allclose(one, other) and np.isfinite(np.asarray(one)).all()
  np.testing.assert_array_equal(run(jax.random.key(0), False), run(jax.random.key(1), False))


def test_masks_shrink_to_the_nearest_pixel():
  valid = mad.inside(jnp.array([[3, 5]]), (6, 8))
  assert np.asarray(valid[0]).sum() == 15
  small = mad.shrink_mask(valid, (3, 2))  # rows 0, 2, 4; columns 0, 4
  assert np.asarray(small[0]).tolist() == [[True, True], [True, True], [False, False]]


def test_positions_count_over_the_picture_alone():
  full = sine_positions(jnp.ones((1, 3, 4), bool), 8)
  padded = sine_positions(mad.inside(jnp.array([[3, 4]]), (5, 6)), 8)
  np.testing.assert_allclose(padded[:, :3, :4], full, atol=1e-6)


@pytest.mark.parametrize(("fields", "message"), [
    ({"name": "resnet5"}, "did you mean"), ({"name": "stem", "width": 3}, "did you mean 'widths'"),
    ({}, "'name' is missing")])
def test_wrong_backbones_are_named(fields, message):
  with pytest.raises(UserError, match=message):
    mad.make_backbone(fields, jnp.float32, "none")


def test_decoder_cost_is_linear_in_the_number_of_sequences(model, variables, picture):
  def flops(count):
    tokens = jax.ShapeDtypeStruct((B, count, L), jnp.int32)
    run = jax.jit(lambda tokens: model.apply(variables, tokens, picture, method="decode")[-1])
    return run.lower(tokens).cost_analysis()["flops"]

  one, two, four = map(flops, (10, 20, 40))
  assert four - two == pytest.approx(2 * (two - one), rel=0.02) and four == pytest.approx(4 * one, rel=0.1)
