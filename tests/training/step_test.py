"""One training step: accumulation, moving average, metrics, naming of what is not finite."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uvim_like.systems.base import LossOut, System, Vars
from uvim_like.systems.uvim import vit
from uvim_like.training import step as steps

KEY = jax.random.key(0)


# ---- a linear model with a state: the mean of what it has seen ----


def toy_init(key, batch):
  kernel = jax.random.normal(key, (batch["image"].shape[-1],))
  return Vars({"body": {"kernel": kernel}, "head": {"bias": jnp.zeros(())}}, {"sum": jnp.zeros(())})


def toy_loss(variables, frozen, batch, key, train):
  del key
  out = batch["image"] @ variables.params["body"]["kernel"] + variables.params["head"]["bias"] + frozen
  error = jnp.square(out - batch["labels"])
  stats = {"sum": jnp.sum(batch["labels"])}
  state = toy_advance(variables.state, stats, None) if train else variables.state
  return LossOut(jnp.mean(error), state, {"loss_square": error, "label": batch["labels"]}, stats)


def toy_advance(state, stats, key):
  del key
  return {"sum": 0.5 * state["sum"] + stats["sum"]}


TOY = System(toy_init, toy_loss, {}, advance=toy_advance)
BATCH = {"image": np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32),
         "labels": np.arange(12, dtype=np.float32)}
FROZEN = jnp.float32(0.25)


def run(system=TOY, tx=None, count=3, batch=BATCH, frozen=FROZEN, variables=None, **options):
  """(state, [metrics]) after `count` steps."""
  tx = tx or optax.sgd(0.05, momentum=0.9)
  ema = options.get("ema_decay")
  start = steps.start_from(variables, tx=tx, ema_decay=ema) if variables else steps.init_state(
      KEY, batch, system=system, tx=tx, ema_decay=ema)
  step = jax.jit(functools.partial(steps.train_step, system=system, tx=tx, **options))
  state, history = start, []
  for _ in range(count):
    state, metrics = step(state, frozen, batch, KEY)
    history.append({name: float(value) for name, value in metrics.items()})
  return state, history


def test_a_step_is_the_optimizers():
  state, (metrics,) = run(count=1, tx=optax.sgd(0.1))
  start = toy_init(KEY, BATCH)
  loss, grads = jax.value_and_grad(
      lambda params: toy_loss(start.replace(params=params), FROZEN, BATCH, KEY, True).loss)(start.params)
  want = jax.tree.map(lambda p, g: p - 0.1 * g, start.params, grads)
  for got, expected in zip(jax.tree.leaves(state.vars.params), jax.tree.leaves(want)):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  assert int(state.step) == 1 and state.vars.state["sum"] == 66
  norm = lambda tree: math.sqrt(sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(tree)))  # noqa: E731
  expected = {"loss": float(loss), "loss_square": float(loss), "label": 5.5, "grad_norm": norm(grads),
              "grad_norm/body": norm(grads["body"]), "grad_norm/head": norm(grads["head"]),
              "update_norm": 0.1 * norm(grads), "param_norm": norm(want)}
  assert metrics.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_loss_falls_and_steps_count():
  state, history = run(count=20)
  assert int(state.step) == 20 and history[-1]["loss"] < 0.5 * history[0]["loss"]


@pytest.mark.parametrize("accumulate", [2, 3, 12])
def test_accumulation_is_one_big_batch(accumulate):
  (state, history), (want, want_history) = run(accumulate=accumulate), run()
  for got, expected in zip(jax.tree.leaves(state), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
  for got, expected in zip(history, want_history):
    assert got.keys() == expected.keys()
    for name in got:
      np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, err_msg=name)


def test_micro_batches_take_every_nth_example():
  """So that the rows of a device stay on it; seen in the order of a state that depends on it."""
  seen = []

  def loss(variables, frozen, batch, key, train):
    jax.debug.callback(lambda rows: seen.append(tuple(map(float, rows))), batch["labels"])
    return toy_loss(variables, frozen, batch, key, train)

  run(system=TOY._replace(loss=loss), accumulate=3, count=1)
  jax.effects_barrier()
  assert sorted(seen) == [(0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11)]


def test_accumulation_without_a_learning_state():
  state, _ = run(system=TOY._replace(advance=None), accumulate=2)
  assert state.vars.state["sum"] == 0


def test_keys_differ_by_step_and_micro_batch():
  keys = []

  def loss(variables, frozen, batch, key, train):
    jax.debug.callback(lambda data: keys.append(tuple(map(int, data))), jax.random.key_data(key))
    return toy_loss(variables, frozen, batch, key, train)

  run(system=TOY._replace(loss=loss), accumulate=2, count=2)
  jax.effects_barrier()
  assert len(keys) == len(set(keys)) == 4


def test_moving_average():
  tx = optax.sgd(0.05)
  state, _ = run(tx=tx, count=2, ema_decay=0.9)
  first, _ = run(tx=tx, count=1)
  start = toy_init(KEY, BATCH).params
  for got, p0, p1, p2 in zip(*map(jax.tree.leaves, (state.ema, start, first.vars.params, state.vars.params))):
    np.testing.assert_allclose(got, 0.81 * p0 + 0.09 * p1 + 0.1 * p2, rtol=1e-5, atol=1e-6)
  chosen = state.eval_vars()
  assert chosen.params is state.ema and chosen.state is state.vars.state
  plain, _ = run(tx=tx, count=2)
  assert plain.ema == () and plain.eval_vars() is plain.vars
  for got, want in zip(jax.tree.leaves(state.vars), jax.tree.leaves(plain.vars)):
    np.testing.assert_array_equal(got, want)


def test_average_is_a_copy_that_survives_donation():
  tx = optax.sgd(0.1)
  state = steps.init_state(KEY, BATCH, system=TOY, tx=tx, ema_decay=0.5)
  step = jax.jit(functools.partial(steps.train_step, system=TOY, tx=tx, ema_decay=0.5), donate_argnums=0)
  state, _ = step(state, FROZEN, BATCH, KEY)
  state, _ = step(state, FROZEN, BATCH, KEY)
  assert int(state.step) == 2


def test_state_in_shapes():
  tx = optax.adam(0.1)
  shapes = jax.eval_shape(functools.partial(steps.init_state, system=TOY, tx=tx, ema_decay=0.9), KEY, BATCH)
  real = steps.init_state(KEY, BATCH, system=TOY, tx=tx, ema_decay=0.9)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), real)


# ---- what is not finite ----


FINE = {"loss": 1.0, "loss_a": 0.5, "loss_b": 0.5, "grad_norm": 1.0, "grad_norm/body": 1.0, "grad_norm/head": 0.1,
        "update_norm": 1.0, "param_norm": 1.0}


@pytest.mark.parametrize("bad, name", [
    ((), None), (("loss", "loss_b", "grad_norm", "grad_norm/body", "grad_norm/head", "param_norm"), "loss_b"),
    (("grad_norm", "grad_norm/head", "update_norm", "param_norm"), "grad_norm/head"),
    (("grad_norm", "update_norm"), "grad_norm"), (("param_norm",), "param_norm"), (("loss",), "loss")])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_first_non_finite(bad, name, value):
  assert steps.first_non_finite(FINE | dict.fromkeys(bad, value)) == name


def test_name_of_an_overflow_in_training():
  _, (metrics,) = run(count=1, batch=BATCH | {"labels": np.full(12, 1e30, np.float32)})
  assert steps.first_non_finite(metrics) == "loss_square"

  def loss(variables, frozen, batch, key, train):
    bias = variables.params["head"]["bias"]
    out = toy_loss(variables, frozen, batch, key, train)
    return out._replace(loss=out.loss + jnp.sqrt(jnp.abs(bias)))  # finite, its gradient at 0 is not

  _, (metrics,) = run(system=TOY._replace(loss=loss), count=1)
  assert math.isfinite(metrics["loss"]) and steps.first_non_finite(metrics) == "grad_norm/head"


# ---- UViM's codebook under accumulation ----


def uvim_config(**model):
  fields = {"input_size": [8, 8], "patch_size": [4, 4], "code_len": 3, "width": 8, "oracle_depth": 1,
            "base_model_depth": 1, "mlp_dim": 8, "num_heads": 2, "dict_size": 8, "with_encoder_ctx": True, "with_decoder_ctx": True,
            "inputs": {"depth": [6, 16]}, "outputs": {"depth": [6, 16]}}
  return {"task": "depth", "model": fields | model, "w_commitment": 0.25}


@pytest.mark.parametrize("min_count", [0.1, pytest.param(1.1, marks=pytest.mark.slow)])
def test_codebook_accumulates_as_with_one_big_batch(min_count):
  """The statistics add up and the dictionary advances once; unused words split in the second case."""
  rng = np.random.default_rng(0)
  batch = {"image": rng.uniform(-1, 1, (6, 8, 8, 3)).astype(np.float32),
           "labels": rng.uniform(0, 11, (6, 8, 8, 1)).astype(np.float32)}
  system = vit.make(uvim_config(dict_min_count=min_count))
  fresh = jax.jit(system.init)(KEY, batch)
  params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), fresh.params)
  splits = min_count > 1
  # Copies of split words carry a random factor within 1e-3, drawn from another key: a second step would see it.
  (state, history), (want, want_history) = (
      run(system=system, batch=batch, frozen=(), variables=fresh.replace(params=params), tx=optax.sgd(0.01),
          count=1 if splits else 2, accumulate=n) for n in (3, 1))
  for got, expected in zip(history, want_history):
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-6)
  for got, expected in zip(jax.tree.leaves(state.vars.params), jax.tree.leaves(want.vars.params)):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(state.vars.state["counts"], want.vars.state["counts"], rtol=1e-6)
  np.testing.assert_allclose(state.vars.state["dictionary"], want.vars.state["dictionary"],
                             rtol=2.1e-3 if splits else 1e-6, atol=2e-6)
  assert np.any(0.995 * fresh.state["counts"] < min_count) == splits
  assert not splits or np.all(state.vars.state["counts"] >= min_count)
