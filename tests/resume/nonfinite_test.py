"""Numbers that go wrong: the step, the part and the examples are named, replayed, and skipped where that is wanted."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like import config as configs
from uvim_like.systems.base import LossOut, System, Vars
from uvim_like.training import batches, replay, setup

BAD = 13  # the example that is not finite


@pytest.fixture(scope="module")
def poisoned(experiment, tmp_path_factory):
  """The data with one picture that is not a number."""
  folder = tmp_path_factory.mktemp("poisoned")
  with np.load(experiment.data / "train.npz") as arrays:
    image = arrays["image"].astype(np.float32) / 127.5 - 1
    image[BAD] = np.nan
    np.savez(folder / "train.npz", image=image, labels=arrays["labels"])
  (folder / "validation.npz").symlink_to(experiment.data / "validation.npz")
  return folder


def steps_with(index: int, *, size: int = 20, count: int = 30) -> list[int]:
  """The steps, counted from 1, whose batch holds an example."""
  return [step + 1 for step in range(count) if index in batches.step_positions(step, size, batch_size=8, seed=3)]


def test_stops_names_and_replays(experiment, poisoned, tmp_path):
  workdir = tmp_path / "run"
  child = experiment.start(workdir, f"data_dir={poisoned}")
  first = steps_with(BAD)[0]
  assert child.wait() == 2
  line = child.words()[1].strip().splitlines()[-1]
  positions = batches.step_positions(first - 1, 20, batch_size=8, seed=3).tolist()
  assert f"step {first}: 'loss_" in line and "is nan" in line and f"--replay_step={first}" in line
  assert f"examples {', '.join(map(str, positions))} of npz train" in line
  noted = json.loads((workdir / "nonfinite.json").read_text())
  assert noted["step"] == first and noted["examples"] == positions and noted["split"] == "train"
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
  said = experiment.complete(workdir, f"data_dir={poisoned}", flags=(f"--replay_step={first}",))
  assert f"not finite: {BAD}" in said.splitlines()
  row, = (text for text in said.splitlines() if text.startswith(f"{BAD} "))
  assert "nan" in row and row.endswith("<- not finite") and said.count("<- not finite") == 1
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_skips_counts_and_then_stops(experiment, poisoned, tmp_path):
  workdir, wrong = tmp_path / "run", steps_with(BAD)
  child = experiment.start(workdir, f"data_dir={poisoned}", "skip_nonfinite=2")
  assert child.wait() == 2
  logged = {line["step"]: line for line in experiment.lines(workdir) if "loss" in line}
  assert max(logged) == wrong[2] - 1  # the third is one too many
  for step, line in logged.items():
    assert (line["loss"] == "nan") == (step in wrong[:2])
    assert line["nonfinite_skipped"] == sum(w <= step for w in wrong)
  for step in wrong[:2]:  # what was learned stands still
    assert logged[step + 1]["loss"] != "nan"
  assert "the update is left out, 1 of 2" in child.words()[0] and f"step {wrong[2]}: " in child.words()[1]


# ---- a gradient alone, on a system of one parameter ----


def root_loss(variables, frozen, batch, key, train):
  """sqrt(|w · mean of the image|): finite everywhere, its gradient at 0 is not."""
  del frozen, key, train
  values = jnp.sqrt(jnp.abs(variables.params["net"]["w"] * jnp.mean(batch["image"], axis=(1, 2, 3))))
  return LossOut(jnp.mean(values), variables.state, {"loss_root": values})


ROOT_SYSTEM = System(init=lambda key, batch: Vars({"net": {"w": jnp.float32(1)}}, {}), loss=root_loss, predict={})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_replay_takes_examples_alone_for_a_gradient(accumulate, experiment):
  config = configs.load_file(str(experiment.folder / "stage1.py"), [])
  config.update(batch_size=16, grad_accum_steps=accumulate, wd_mults=[])
  config = configs.with_defaults(config)
  image = np.random.RandomState(0).uniform(0.5, 1, (16, 4, 4, 3)).astype(np.float32)
  image[5] = 0
  batch = {"image": image, "labels": np.ones((16, 4, 4, 1), np.float32), "_index": np.arange(100, 116)}
  run = setup.prepare(config, num_examples=16, batch={key: batch[key] for key in ("image", "labels")}, system=ROOT_SYSTEM)
  state, _ = setup.init_state(run, {key: batch[key] for key in ("image", "labels")})
  found = replay.replay(run, state, iter([batch, batch]), number=1, say=lambda *_: None)
  assert all(np.isfinite(values).all() for values in found.parts.values())
  np.testing.assert_allclose(found.parts["loss_root"], np.sqrt(image.mean((1, 2, 3))), rtol=1e-5)
  assert not np.isfinite(found.metrics["grad_norm"])
  assert np.flatnonzero(found.bad()).tolist() == [5]
  text = replay.text(found, where="npz train")
  assert "'grad_norm/net' is" in text and text.endswith("not finite: 105")


# ---- the update that is left out, bit for bit ----


def test_a_skipped_update_changes_only_the_counters():
  from uvim_like.training import optim
  from uvim_like.training import step as steps

  def loss(variables, frozen, batch, key, train):
    values = variables.params["net"]["w"] * batch["x"]
    return LossOut(jnp.mean(values), {"seen": variables.state["seen"] + jnp.sum(batch["x"])}, {"loss_x": values})

  tx, _ = optim.make({"optax_name": "scale_by_adam", "lr": 0.1, "wd_mults": []}, {"net": {"w": jnp.zeros(())}}, total_steps=9)
  state = steps.start_from(Vars({"net": {"w": jnp.float32(1)}}, {"seen": jnp.float32(0)}), tx=tx, ema_decay=0.5)
  step = jax.jit(functools.partial(steps.train_step, system=System(init=None, loss=loss, predict={}), tx=tx, ema_decay=0.5,
                                   skip_nonfinite=True))
  good, bad = {"x": jnp.array([1.0, 2.0])}, {"x": jnp.array([1.0, jnp.nan])}
  once, metrics = step(state, (), good, jax.random.key(0))
  assert int(metrics["nonfinite_skipped"]) == 0 and float(once.vars.params["net"]["w"]) != 1
  skipped, metrics = step(once, (), bad, jax.random.key(0))
  assert int(metrics["nonfinite_skipped"]) == 1 and int(skipped.step) == 2 and not np.isfinite(metrics["loss"])
  for before, after in zip(jax.tree.leaves((once.vars, once.opt, once.ema)),
                           jax.tree.leaves((skipped.vars, skipped.opt, skipped.ema))):
    assert np.asarray(before).tobytes() == np.asarray(after).tobytes()
