"""The optimiser chain and the schedules against updates computed by the authors' code."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uvim_like import trees
from uvim_like.training import optim, schedules

pytestmark = pytest.mark.parity

# Released recipes, as the fact sheet prints them: epochs, training examples, batch.
RECIPES = {
    "panoptic1": (1000, 114_191, 1024), "panoptic2": (200, 114_191, 512), "color1": (100, 1_277_071, 1024),
    "color2": (50, 1_277_071, 512), "depth1": (200, 47_584, 1024), "depth2": (50, 47_584, 512)}


def optimiser_files(golden_dir):
  """(inputs, outputs) of every stored optimiser run in the folder."""
  found = []
  for path in sorted(golden_dir.rglob("*.npz")):
    with np.load(path) as data:
      if any(key.startswith("grad0/") for key in data.files) and "total_steps" in data.files:
        with np.load(path.with_name(path.stem + "_out.npz")) as out:
          found.append((dict(data), dict(out)))
  assert found, f"no optimiser golden under {golden_dir}"
  return found


def tree_of(flat, prefix):
  return trees.unflatten_names(
      {name.removeprefix(prefix): jnp.asarray(leaf) for name, leaf in flat.items() if name.startswith(prefix)})


def replay(data, config):
  """(parameters after each update, optimiser state)."""
  params = tree_of(data, "in/")
  tx, _ = optim.make(config, params, total_steps=int(data["total_steps"]))
  state = jax.jit(tx.init)(params)
  update = jax.jit(lambda g, s, p: (lambda u, s: (optax.apply_updates(p, u), s))(*tx.update(g, s, p)))
  history = []
  for step in range(len({key.split("/")[0] for key in data if re.match(r"grad\d+/", key)})):
    params, state = update(tree_of(data, f"grad{step}/"), state, params)
    history.append(params)
  return history, state


def test_updates(golden_dir):
  for data, out in optimiser_files(golden_dir):
    names = [key.removeprefix("config/") for key in data if key.startswith("config/")]
    assert names
    for name in names:
      history, state = replay(data, json.loads(str(data[f"config/{name}"])))
      stored = sorted({int(re.match(rf"{name}/step(\d+)/", key)[1]) for key in out if key.startswith(f"{name}/step")})
      assert stored, f"no stored step of {name}"
      for step in stored:
        expected = tree_of(out, f"{name}/step{step}/")
        assert jax.tree.structure(expected) == jax.tree.structure(history[step])
        for (leaf, want), (_, got) in zip(trees.flatten_names(expected), trees.flatten_names(history[step])):
          np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7, err_msg=f"{name}, step {step}, {leaf}")
      dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(state)})
      assert dtypes == sorted(data[f"{name}/opt_state_dtypes"].tolist())


def test_schedule_values(golden_dir):
  for data, _ in optimiser_files(golden_dir):
    for key in data:
      if key.startswith("config/"):
        name = key.removeprefix("config/")
        config = json.loads(str(data[key]))
        _, pairs = optim.make(config, tree_of(data, "in/"), total_steps=int(data["total_steps"]))
        factor = pairs[-1][1]
        got = [float(factor(step)) for step in range(len(data[f"{name}/sched"]))]
        np.testing.assert_allclose(got, data[f"{name}/sched"], atol=1e-6)


def test_released_schedules(golden_dir):
  for data, _ in optimiser_files(golden_dir):
    recipes = sorted({key.split("/")[1] for key in data if key.startswith("sched/")})
    assert recipes
    for name in recipes:
      total = int(data[f"sched/{name}/total_steps"])
      if name in RECIPES:
        epochs, examples, batch = RECIPES[name]
        assert schedules.steps({"num_epochs": epochs, "batch_size": batch}, examples) == total
      factor = schedules.make({"decay_type": "cosine", "warmup_steps": 4000}, total_steps=total)
      got = [float(factor(step)) for step in data[f"sched/{name}/steps"]]
      np.testing.assert_allclose(got, data[f"sched/{name}/values"], rtol=1e-6, atol=2e-7, err_msg=name)
