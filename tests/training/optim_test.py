"""The optimiser's conventions on small trees worked out by hand, and its messages for people."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from uvim_like import trees
from uvim_like.errors import UserError
from uvim_like.training import adafactor, optim, schedules

PARAMS = {"encoder": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)}, "head": {"kernel": jnp.full((3, 1), 4.0)}}
ONES = jax.tree.map(jnp.ones_like, PARAMS)
PLAIN = {"optax_name": "identity", "lr": 0.5}


def update(config, *, grads=ONES, total_steps=10, count=1, params=PARAMS):
  """The `count`-th update."""
  tx, _ = optim.make(config, params, total_steps=total_steps)
  state = tx.init(params)
  for _ in range(count):
    updates, state = tx.update(grads, state, params)
  return updates, state


def test_weight_decay_is_not_multiplied_by_lr():
  updates, _ = update(PLAIN | {"wd": 0.1, "lr_mults": [("head/.*", 0.0), (".*", 2.0)]})
  np.testing.assert_allclose(updates["encoder"]["kernel"], -(0.5 * 2 + 0.1 * 2.0), rtol=1e-6)
  np.testing.assert_allclose(updates["encoder"]["bias"], -1.0)
  np.testing.assert_allclose(updates["head"]["kernel"], -0.1 * 4.0, rtol=1e-6)


def test_wd_mults_replace_the_kernel_rule():
  updates, _ = update(PLAIN | {"wd": 0.1, "lr": 0.0, "wd_mults": (("encoder/.*", 3.0),)})
  np.testing.assert_allclose(updates["encoder"]["bias"], -0.3, rtol=1e-6)
  assert not updates["head"]["kernel"].any()


def test_first_match_wins_and_unmatched_is_one():
  rates = optim.rates(PLAIN | {"lr_mults": [("encoder/kernel", 3.0), ("encoder/.*", 0.1)]}, PARAMS)
  assert {name: rate.lr for name, rate in rates.items()} == {
      "encoder/kernel": 3.0, "encoder/bias": 0.1, "head/kernel": 1.0}


def test_warmup_makes_the_first_update_nothing():
  config = PLAIN | {"wd": 0.1, "schedule": {"decay_type": "cosine", "warmup_steps": 2}}
  assert not any(u.any() for u in jax.tree.leaves(update(config)[0]))
  np.testing.assert_allclose(update(config, count=2)[0]["encoder"]["bias"], -0.25)


def test_clipping_is_by_the_global_norm_before_the_rule():
  updates, _ = update(PLAIN | {"lr": 1.0, "grad_clip_norm": 1.0})
  norm = np.sqrt(6 + 3 + 3)
  jax.tree.map(lambda u: np.testing.assert_allclose(u, -1 / norm, rtol=1e-6), updates)


@pytest.mark.parametrize("freeze", [
    [("encoder/.*", None), (".*", {})], (("head/.*", {}), (".*", None)),
    ml_collections.ConfigDict({"s": [("encoder/.*", None), (".*", {})]}).s])
def test_frozen_parameters_have_no_part(freeze):
  config = {"optax_name": "scale_by_adafactor", "optax": {"momentum": 0.9}, "lr": 1.0, "wd": 0.1, "grad_clip_norm": 1.0,
            "schedule": freeze}
  huge = {**ONES, "encoder": jax.tree.map(lambda g: g * 1e6, ONES["encoder"])}
  updates, state = update(config, grads=huge)
  assert not updates["encoder"]["kernel"].any() and updates["head"]["kernel"].any()
  np.testing.assert_array_equal(updates["head"]["kernel"], update(config)[0]["head"]["kernel"])
  assert not [name for name, _ in trees.flatten_names(state) if "encoder" in name]
  assert [name for name, _ in trees.flatten_names(state) if name.endswith("/head/kernel")]


def test_config_dict_runs():
  config = ml_collections.ConfigDict(dict(
      optax_name="big_vision.scale_by_adafactor", optax=dict(beta2_cap=0.95), lr=0.1, wd=0.1,
      lr_mults=[("encoder.*", 0.1)], schedule=dict(decay_type="cosine", warmup_steps=1)))
  for version in (config, ml_collections.FrozenConfigDict(config)):
    updates, _ = update(version, count=2)
    assert np.isfinite(updates["encoder"]["kernel"]).all() and updates["encoder"]["kernel"].any()


@pytest.mark.parametrize("name, options", [
    ("adamw", {"b2": 0.95}), ("scale_by_adam", {"mu_dtype": "bfloat16"}), ("lion", {}), ("sgd", {}), ("momentum", {}),
    ("scale_by_rms", {}), ("adafactor", {"clipping_threshold": 1.0, "momentum": None})])
def test_rules_by_name(name, options):
  updates, _ = update({"optax_name": name, "optax": options, "lr": 0.1}, count=2)
  assert all(np.isfinite(u).all() and u.any() for u in jax.tree.leaves(updates))


def test_adam_is_optax_adam():
  ours, _ = update({"optax_name": "scale_by_adam", "lr": 0.1}, count=3)
  tx = optax.adam(0.1)
  state = tx.init(PARAMS)
  for _ in range(3):
    theirs, state = tx.update(ONES, state)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


@pytest.mark.parametrize("change, message", [
    ({"optax_name": "scale_by_adafacter"}, "did you mean 'scale_by_adafactor'"),
    ({"optax": {"beta2cap": 0.9}, "optax_name": "scale_by_adafactor"}, "did you mean 'beta2_cap'"),
    ({"lr_mults": [("encodr/.*", 0.1)]}, "lr_mults: pattern 'encodr/.*' matches no parameter; did you mean 'encoder"),
    ({"wd_mults": [(".*/kernl", 1.0)]}, "wd_mults: pattern"),
    ({"lr_mults": ["encoder/.*"]}, "a pair"),
    ({"lr_mults": "encoder/.*"}, "a list of"),
    ({"lr": None}, "lr, the learning rate"),
    ({"schedule": [("encoder/.*", {})]}, "no pattern matches parameter 'head/kernel'"),
    ({"schedule": {"decay_type": "cosin"}}, "did you mean 'cosine'"),
    ({"schedule": {"decay_type": "cosine", "warmup": 3}}, "did you mean 'warmup_steps'"),
    ({"schedule": {"decay_type": "step"}}, "needs drop_steps")])
def test_messages(change, message):
  with pytest.raises(UserError, match=message):
    optim.make(PLAIN | change, PARAMS, total_steps=10)


def test_table_works_on_shapes():
  shapes = jax.eval_shape(lambda: PARAMS)
  config = PLAIN | {"lr_mults": [("head/.*", 0.1)], "schedule": [("encoder/bias", None), (".*", {})]}
  assert [tuple(row) for row in optim.table(config, shapes)] == [
      ("encoder/bias", (3,), 1.0, 0.0, None), ("encoder/kernel", (2, 3), 1.0, 1.0, 1),
      ("head/kernel", (3, 1), 0.1, 1.0, 1)]


@pytest.mark.parametrize("shape, axes", [
    ((64,), None), ((64, 31), None), ((32, 64), (0, 1)), ((64, 32), (1, 0)), ((34, 34), (0, 1)),
    ((1, 40, 36), (2, 1)), ((8, 8, 3, 36), None), ((40, 8, 33), (2, 0))])
def test_factored_axes(shape, axes):
  assert adafactor.factored_axes(shape, 32) == axes


def test_factored_moments_equal_optax_without_cap():
  params = {"k": jnp.zeros((40, 5, 36)), "b": jnp.zeros(7)}
  ours = adafactor.scale_by_adafactor(beta2_cap=1.0, momentum=None)
  theirs = optax.scale_by_factored_rms(min_dim_size_to_factor=32)
  mine, other = ours.init(params), theirs.init(params)
  for i in range(3):
    grads = {name: jax.random.normal(jax.random.key(i), p.shape) for name, p in params.items()}
    got, mine = ours.update(grads, mine, params)
    want, other = theirs.update(grads, other, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), got, want)


def values(options, steps=(0, 1, 2, 6, 10, 12), total=10):
  factor = schedules.make(options, total_steps=total)
  return [round(float(factor(step)), 5) for step in steps]


def test_schedule_kinds():
  assert values({}) == [1] * 6
  assert values({"decay_type": "linear", "warmup_steps": 2}) == [0, 0.5, 1, 0.5, 0, 0]
  assert values({"decay_type": "cosine", "warmup_steps": 2}) == [0, 0.5, 1, 0.5, 0, 0]
  assert values({"decay_type": "linear", "end": 0.2, "base": 2.0}) == [2, 1.84, 1.68, 1.04, 0.4, 0.4]
  assert values({"decay_type": "poly", "power": 2}) == [1, 0.81, 0.64, 0.16, 0, 0]
  assert values({"decay_type": "step", "drop_steps": (2, 10), "warmup_steps": 2, "warmup_start": 0.1}) == [
      0.1, 0.55, 0.1, 0.1, 0.01, 0.01]
  assert values({"decay_type": "cosine", "warmup_steps": 4000}, steps=(0,), total=1) == [0]


def test_number_of_steps():
  assert schedules.steps({"total_steps": 7}, 100) == 7
  assert schedules.steps({"num_epochs": 0.01, "batch_size": 64, "total_steps": None}, 100) == 1
  assert schedules.steps({"num_epochs": 3, "batch_size": 64}, 100) == 5
  for config in ({}, {"total_steps": 1, "num_epochs": 1}, {"total_steps": 0}, {"num_epochs": -1}):
    with pytest.raises(UserError, match="total_steps|num_epochs"):
      schedules.steps(config, 100)


def test_training_shorter_than_its_warmup_only_warms_up():
  """A trial of a recipe with 4000 warm-up steps for a few steps is a common first command."""
  factor = schedules.make({"decay_type": "cosine", "warmup_steps": 4000}, total_steps=4)
  assert [float(factor(step)) for step in (0, 1, 3)] == pytest.approx([0, 1 / 4000, 3 / 4000])
