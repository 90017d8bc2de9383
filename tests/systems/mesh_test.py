"""Eight devices train as one does: both stages, data parallel and with split weights, dictionary splits included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops.constraint import use_mesh
from uvim_like.systems.uvim import lm, vit
from uvim_like.training import optim, sharding
from uvim_like.training.step import start_from, train_step

OPTIMIZER = {"optax_name": "scale_by_adafactor", "optax": {"beta2_cap": 0.95}, "lr": 1e-3, "wd": 1e-5,
             "grad_clip_norm": 1.0}
STEPS, BATCH = 3, 8


def randomized(variables):
  """Every parameter plus noise: gradients everywhere from the first step on."""
  leaves, tree = jax.tree.flatten(variables.params)
  rng = np.random.default_rng(0)
  params = tree.unflatten([np.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), np.float32) for leaf in leaves])
  return jax.tree.map(np.asarray, variables).replace(params=params)


def train(system, variables, frozen, batch, mesh, rules):
  """([metrics of each step], last state on the host) of a training on a mesh."""
  tx, _ = optim.make(OPTIMIZER, variables.params, total_steps=STEPS)

  def step(state, frozen, batch, key):
    with use_mesh(mesh):
      return train_step(state, frozen, batch, key, system=system, tx=tx)

  state = start_from(jax.tree.map(jnp.asarray, variables), tx=tx)
  placed = sharding.state_shardings(mesh, state, rules, min_size=16)
  state = jax.device_put(state, placed)
  frozen, key = jax.device_put((frozen, jax.random.key(0)), sharding.replicated(mesh))
  run = jax.jit(step, out_shardings=(placed, sharding.replicated(mesh)))
  history, batch = [], sharding.to_global(mesh, batch)
  for _ in range(STEPS):
    state, metrics = run(state, frozen, batch, key)
    history.append(jax.device_get(metrics))
  return history, state


@pytest.fixture(scope="module")
def stages(stage_one_config, stage_two_config, make_batch):
  """{stage: (system, variables, frozen, batch)}; the batch is the same, the dictionary splits in stage I."""
  batch = make_batch(BATCH)
  # A word that is not used falls to 0.995 at once: below this threshold.
  one = vit.make(stage_one_config(model__dict_min_count=1.2, model__code_dropout="random"))
  oracle = randomized(jax.jit(one.init)(jax.random.key(0), batch))
  two = lm.make(stage_two_config())
  language_model = randomized(jax.jit(two.init)(jax.random.key(1), batch))
  return {"one": (one, oracle, (), batch), "two": (two, language_model, oracle, batch)}


@pytest.fixture(scope="module")
def single(stages):
  """{stage: result} on one device."""
  mesh = sharding.make_mesh({"data": 1}, devices=jax.devices()[:1])
  return {stage: train(*parts, mesh, None) for stage, parts in stages.items()}


def test_dictionary_splits_in_this_training(stages, single):
  system, variables, _, batch = stages["one"]
  out = jax.jit(lambda: system.loss(variables, (), batch, jax.random.key(0), True))()
  assert np.any(0.995 * variables.state["counts"] + out.stats.counts < 1.2)
  assert np.all(single["one"][1].vars.state["counts"] >= 1.2)


@pytest.mark.parametrize("stage", ["one", "two"])
@pytest.mark.parametrize("axes, rules", [({"data": 8}, None), ({"data": 4, "fsdp": 2}, [(".*", "fsdp")])])
def test_as_on_one_device(stages, single, stage, axes, rules):
  assert len(jax.devices()) == 8
  history, state = train(*stages[stage], sharding.make_mesh(axes), rules)
  want_history, want = single[stage]
  losses, want_losses = ([float(metrics["loss"]) for metrics in run] for run in (history, want_history))
  assert want_losses[0] > want_losses[-1]
  np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
  for metrics, expected in zip(history, want_history):
    assert metrics.keys() == expected.keys()
    for name in metrics:
      np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
  if stage == "one":
    np.testing.assert_allclose(state.vars.state["counts"], want.vars.state["counts"], rtol=1e-5)
    np.testing.assert_allclose(state.vars.state["dictionary"], want.vars.state["dictionary"], rtol=1e-3, atol=1e-4)
  split = [leaf for leaf in jax.tree.leaves(state.vars.params) if not leaf.sharding.is_fully_replicated]
  assert bool(split) == bool(rules)
