"""Saving, resuming on other meshes, keeping, and what happens with damaged or foreign checkpoints."""

import logging
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uvim_like.errors import UserError
from uvim_like.systems.base import Vars
from uvim_like.training import checkpoint, optim, sharding

CONFIG = {"optax_name": "scale_by_adafactor", "lr": 0.1, "wd": 0.01, "schedule": [("a/.*", None), (".*", {})]}


def make_state(seed=0):
  """Parameters, a state, and optimiser moments with frozen and bfloat16 leaves."""
  keys = jax.random.split(jax.random.key(seed), 3)
  params = {"a": {"kernel": jax.random.normal(keys[0], (8, 8))}, "b": {"kernel": jax.random.normal(keys[1], (64, 128)),
                                                                      "bias": jnp.arange(8.0)}}
  tx, _ = optim.make(CONFIG, params, total_steps=5)
  opt = tx.init(params)
  grads = jax.tree.map(lambda p: p + 1.0, params)
  updates, opt = tx.update(grads, opt, params)
  return {"vars": Vars(optax.apply_updates(params, updates), {"counts": jnp.arange(16, dtype=jnp.int32)}), "opt": opt,
          "step": jnp.int32(7), "flag": jnp.array([True, False])}


def place(state, mesh, rules=((".*", "replicate"),)):
  return jax.device_put(state, sharding.state_shardings(mesh, state, rules, min_size=1))


def assert_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), got, want)


@pytest.mark.parametrize("axes, devices", [
    pytest.param({"data": 4, "fsdp": 2}, 8, marks=pytest.mark.slow), ({"data": 1}, 1)])
def test_restore_on_another_mesh(tmp_path, axes, devices):
  state = make_state()
  with checkpoint.Checkpoints(tmp_path, every=1) as saver:
    assert saver.restore(checkpoint.abstract(state)) is None
    assert saver.save(3, place(state, sharding.make_mesh({"data": 8})), {"seed": 0, "note": None})
  mesh = sharding.make_mesh(axes, devices=jax.devices()[:devices])
  rules = [(".*", "fsdp")] if "fsdp" in axes else None
  placed = sharding.state_shardings(mesh, state, rules, min_size=1)
  with checkpoint.Checkpoints(tmp_path) as reader:
    restored = reader.restore(checkpoint.abstract(state, placed))
  assert (restored.step, restored.metadata) == (3, {"seed": 0, "note": None})
  assert_same(restored.state, state)
  kernel = restored.state["vars"].params["b"]["kernel"]
  assert kernel.sharding == placed["vars"].params["b"]["kernel"]


def test_interval_force_and_keeping(tmp_path):
  state = {"x": jnp.ones(3)}
  with checkpoint.Checkpoints(tmp_path, every=2, keep_every=4, keep_last=2) as saver:
    done = [step for step in range(1, 12) if saver.save(step, state)]
    assert done == [2, 4, 6, 8, 10]
    assert saver.save(11, state, force=True) and not saver.save(11, state, force=True)
    saver.wait()
    assert saver.steps() == [4, 8, 10, 11] and saver.latest() == 11
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "11", "4", "8"]


def two_checkpoints(workdir):
  with checkpoint.Checkpoints(workdir, every=1) as saver:
    for step in (5, 6):
      saver.save(step, {"x": jnp.full((64, 64), float(step)), "n": jnp.int32(step)})
      saver.wait()
  return pathlib.Path(workdir) / "checkpoints" / "6"


def largest_file(folder):
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def zero_tail(path):
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


DAMAGE = {
    "truncated data": lambda folder: truncate(largest_file(folder)),
    "zeroed data": lambda folder: zero_tail(largest_file(folder)),
    "lost data": lambda folder: largest_file(folder).unlink(),
    "lost state": lambda folder: shutil.rmtree(folder / "state"),
    "truncated tree": lambda folder: truncate(folder / "state" / "_METADATA"),
    "lost tree": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "truncated metadata": lambda folder: truncate(folder / "_CHECKPOINT_METADATA"),
    "empty folder": empty,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_latest_is_passed_over(tmp_path, caplog, damage):
  DAMAGE[damage](two_checkpoints(tmp_path))
  wanted = {"x": jax.ShapeDtypeStruct((64, 64), jnp.float32), "n": jax.ShapeDtypeStruct((), jnp.int32)}
  with caplog.at_level(logging.WARNING), checkpoint.Checkpoints(tmp_path, every=1) as saver:
    restored = saver.restore(checkpoint.abstract(wanted, jax.tree.map(
        lambda _: sharding.replicated(sharding.make_mesh()), wanted)))
    assert restored.step == 5 and float(restored.state["x"][0, 0]) == 5.0
    assert "checkpoints/6 is damaged" in caplog.text
    assert (tmp_path / "checkpoints_damaged" / "6").is_dir()
    assert saver.save(6, restored.state)
    saver.wait()
    assert saver.steps() == [5, 6]


def test_unfinished_save_does_not_count(tmp_path):
  folder = two_checkpoints(tmp_path)
  shutil.copytree(folder, folder.with_name("7.orbax-checkpoint-tmp"))
  with checkpoint.Checkpoints(tmp_path, every=1) as saver:
    assert saver.latest() == 6


def test_never_starts_anew_silently(tmp_path):
  folder = two_checkpoints(tmp_path)
  empty(folder)
  empty(folder.with_name("5"))
  state = {"x": jnp.ones((64, 64)), "n": jnp.int32(0)}
  with checkpoint.Checkpoints(tmp_path) as reader, pytest.raises(UserError, match="no readable checkpoint"):
    reader.restore(checkpoint.abstract(state))
  assert folder.is_dir()  # read only


def test_mismatch_is_readable(tmp_path):
  two_checkpoints(tmp_path)
  with checkpoint.Checkpoints(tmp_path) as reader:
    with pytest.raises(UserError, match=r"1 of another shape: x: stored float32\[64, 64\], wanted float32\[64, 32\]"):
      reader.restore(checkpoint.abstract({"x": jnp.ones((64, 32)), "n": jnp.int32(0)}))
    with pytest.raises(UserError, match="1 missing in the checkpoint: nn .did you mean 'n'.*1 extra"):
      reader.restore(checkpoint.abstract({"x": jnp.ones((64, 64)), "nn": jnp.int32(0)}))
    with pytest.raises(UserError, match="no checkpoint of step 4"):
      reader.restore(checkpoint.abstract({"x": jnp.ones((64, 64)), "n": jnp.int32(0)}), step=4)
    assert reader.restore(checkpoint.abstract({"x": jnp.ones((64, 64)), "n": jnp.int32(0)}), step=5).step == 5


def test_reading_an_absent_folder(tmp_path):
  with checkpoint.Checkpoints(tmp_path / "none") as reader:
    assert reader.latest() is None and reader.restore({}) is None
  assert not (tmp_path / "none").exists()
