"""A training read back from its folder: any kept step, averaged parameters, final weights alone, a moved stage I."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like import config as configs
from uvim_like import weights
from uvim_like.errors import UserError
from uvim_like.training import checkpoint, checksums, setup, sharding, step, trained
from uvim_like.training import workdir as workdirs
from uvim_like.trees import flatten_names

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = {"width": 16, "num_heads": 2, "mlp_dim": 16, "oracle_depth": 1, "base_model_depth": 1, "codeword_dim": 8,
         "code_len": 4, "dict_size": 8}


def settings(stage, *overrides):
  """A small config of stage I or II."""
  prefix = "oracle.model" if stage == 2 else "model"
  small = [f"{prefix}.{key}={value}" for key, value in SMALL.items()]
  return configs.load_file(f"{ROOT}/configs/uvim/depth_stage{stage}.py:scenes,runlocal,res=16,patch=8", [
      "dataset=npz", "data_dir=/nowhere", "evals=[]", "total_steps=2", *small, *overrides])


def leave(config, workdir, *, averaged):
  """A workdir as two steps of training leave it, with numbers in place of what is learned."""
  config = configs.with_defaults(config)
  system = setup.make_system(config)
  batch = {"image": np.zeros((1, 16, 16, 3), np.float32), "labels": np.zeros((1, 16, 16, 1), np.float32)}
  shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
  workdirs.write_text(workdir / "config.json", configs.to_json(config))
  mesh = sharding.make_mesh()
  with checkpoint.Checkpoints(workdir, every=1, keep_last=5) as saved:
    for number in (1, 2):
      variables = jax.tree.map(lambda leaf: np.full(leaf.shape, number, leaf.dtype), shapes)  # noqa: B023
      ema = jax.tree.map(lambda leaf: leaf / 2, variables.params) if averaged else ()
      state = step.TrainState(step=jnp.int32(number), vars=variables, opt=(), ema=ema)
      saved.save(number, jax.device_put(state, sharding.replicated(mesh)), {"frozen": checksums.digest(system.frozen)})
      saved.wait()
  weights.save_npz(workdir / "weights.npz", {"params": ema if averaged else variables.params, "state": variables.state})
  workdirs.note_finished(workdir, config, 2)
  return workdir


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
  """(workdir of stage I with averaged weights, workdir of its stage II)."""
  folder = tmp_path_factory.mktemp("runs")
  one = leave(settings(1, "ema_decay=0.5"), folder / "stage1", averaged=True)
  two = settings(2, f"oracle.model_init={one}", "model.num_layers=1", "model.num_heads=2", "model.mlp_dim=16",
                 "model.emb_dim=16")
  return one, leave(two, folder / "stage2", averaged=False)


def same(tree, other):
  left, right = (dict(flatten_names(t)) for t in (tree, other))
  return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def test_newest_and_given_steps(stages):
  newest, first = trained.restore(stages[0]), trained.restore(stages[0], step=1)
  assert (newest.step, first.step) == (2, 1) and not same(newest.vars.params, first.vars.params)
  final = weights.load_npz(stages[0] / "weights.npz")   # what the training evaluated last: averaged
  assert same(newest.vars.params, final["params"]) and same(newest.vars.state, final["state"])
  assert trained.read_variables(stages[0]).averaged and not trained.read_variables(stages[1]).averaged
  assert newest.config.total_steps == 2 and newest.workdir == stages[0] and set(newest.system.predict) == {"predict"}


def test_stage_two_brings_its_stage_one(stages):
  found = trained.restore(stages[1])
  assert same(found.frozen.params, weights.load_npz(stages[0] / "weights.npz")["params"])
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found.vars))


def test_final_weights_alone_and_their_file(stages, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(stages[0], copy, ignore=shutil.ignore_patterns("checkpoints", "last_checkpoint.json"))
  found = trained.restore(copy)
  assert found.step == 2 and same(found.vars.params, trained.restore(stages[0]).vars.params)
  assert same(trained.restore(copy / "weights.npz").vars.params, found.vars.params)
  with pytest.raises(UserError, match="no checkpoints in"):
    trained.restore(copy, step=1)


def test_a_moved_or_exchanged_stage_one_is_told(stages, tmp_path):
  moved = tmp_path / "stage2"
  shutil.copytree(stages[1], moved)
  values = json.loads((moved / "config.json").read_text())
  values["oracle"]["model_init"] = str(tmp_path / "gone")
  (moved / "config.json").write_text(json.dumps(values))
  with pytest.raises(UserError, match="config.oracle.model_init"):
    trained.restore(moved)
  found = trained.restore(moved, overrides=[f"oracle.model_init={stages[0]}"])
  assert same(found.vars.params, trained.restore(stages[1]).vars.params)
  other = weights.load_npz(stages[0] / "weights.npz")
  weights.save_npz(tmp_path / "other.npz", jax.tree.map(lambda leaf: leaf + 1, other))
  with pytest.raises(UserError, match="not the stage I weights"):
    trained.restore(moved, overrides=[f"oracle.model_init={tmp_path / 'other.npz'}"])


def test_mistakes(stages, tmp_path):
  for workdir, options, message in ((tmp_path / "none", {}, "no such folder"), (tmp_path, {}, "no config.json in it"),
                                    (stages[0], {"step": 7}, "unknown step '7'; valid: 1, 2"),
                                    (stages[0], {"overrides": ["seeed=1"]}, "did you mean 'seed'")):
    with pytest.raises(UserError, match=message):
      trained.restore(workdir, **options)
