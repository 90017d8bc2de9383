"""A run evaluated at its kept steps, and the same numbers from the files that it predicts."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from tools import evaluate, make_data, predict
from tools.evaluating import evaluate_run
from uvim_like import config as configs
from uvim_like import weights
from uvim_like.training import setup

CONFIG = "configs/uvim/depth_regression.py:folder,runlocal,res=16,patch=8"
SMALL = ["model.width=16", "model.num_heads=2", "model.mlp_dim=16", "model.base_model_depth=1", "model.oracle_depth=1",
         "batch_size=8", "model.codeword_dim=8", "compilation_cache="]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(workdir, folder): a depth model of random weights beside own data of three pictures a split."""
  out, data = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("data")
  assert make_data.main(["scenes", f"--out={data}", "--format=folder", "--num=train:3,validation:3", "--size=24x40",
                         "--workers=1"]) == 0
  config = configs.with_defaults(configs.load_file(CONFIG, [f"data_dir={data}", *SMALL]))
  batch = {"image": np.zeros((1, 16, 16, 3), np.float32), "labels": np.zeros((1, 16, 16, 1), np.float32)}
  variables = jax.device_get(jax.jit(setup.make_system(config).init)(jax.random.key(0), batch))
  draw = np.random.RandomState(1)   # a fresh head is zero, which would predict one depth
  params = traverse_util.path_aware_map(lambda _, x: draw.normal(size=x.shape).astype(x.dtype) * 0.3, variables.params)
  (out / "config.json").write_text(configs.to_json(config))
  weights.save_npz(out / "weights.npz", {"params": params, "state": variables.state})
  (out / "finished.json").write_text(json.dumps({"step": 7}))
  return out, data


def test_both_forms_agree_to_the_last_digit(run, tmp_path, capsys):
  workdir, data = run
  assert evaluate.main([f"--workdir={workdir}"]) == 0
  out = capsys.readouterr().out
  assert f"{workdir}: proj.uvim.vit after 7 steps" in out and "protocol: plain: no crop" in out
  document = json.loads((workdir / "evaluation_7.json").read_text())
  by_name = {one["name"]: one for one in document["evaluations"]}
  assert set(by_name) == {"val", "depth_val"} and by_name["val"]["values"]["loss_depth"] > 0
  assert by_name["depth_val"]["data"] == f"folder 'validation' in {data}"
  assert predict.main([f"--workdir={workdir}", f"--image={data}/validation/images", f"--out={tmp_path}",
                       "--batch_size=8", "--overlay=false"]) == 0
  assert evaluate.main(["--task=depth", f"--pred={tmp_path}", f"--gt={data}", "--split=validation"]) == 0
  (files,) = json.loads((tmp_path / "evaluation.json").read_text())["evaluations"]
  assert files["values"] == by_name["depth_val"]["values"] and files["values"]["RMSE"] > 0


def test_data_that_has_moved(run, tmp_path):
  workdir, data = run
  (tmp_path / "elsewhere").symlink_to(data)
  before, after = (evaluate_run.evaluate(workdir, only=["depth_val"], overrides=moved)[1][0]
                   for moved in ([], [f"data_dir={tmp_path}/elsewhere"]))
  assert after.data == f"folder 'validation' in {tmp_path}/elsewhere" and after.values == before.values


def test_one_evaluation_and_the_wrong_name(run, capsys):
  workdir, _ = run
  found, measured = evaluate_run.evaluate(workdir, only=["depth_val"])
  assert [one.name for one in measured] == ["depth_val"] and found.step == 7
  assert evaluate.main([f"--workdir={workdir}", "--evals=depth"]) == 2
  assert capsys.readouterr().err == "evaluate: --evals: unknown evaluation 'depth'; did you mean 'depth_val'?\n"
  full = workdir / "evaluation_7.json"
  full.write_text("{}")   # that of all evaluations stays
  words = [f"--workdir={workdir}", "--evals=depth_val", "--config.depth_val.metric.max_depth=3.0"]
  assert evaluate.main(words) == 0 and full.read_text() == "{}"
  document = json.loads((workdir / "evaluation_7_depth_val_changed.json").read_text())
  assert document["overrides"] == ["depth_val.metric.max_depth=3.0"]
  assert [one["name"] for one in document["evaluations"]] == ["depth_val"]
  capsys.readouterr()
  assert evaluate.main([f"--workdir={workdir}", "--step=3"]) == 2
  assert "no checkpoints" in capsys.readouterr().err
