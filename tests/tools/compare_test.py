"""The comparison of systems: rows and what they need, the baselines that look at no image, the table."""

import json
import pathlib

import numpy as np
import pytest

from tools import compare, make_data
from tools.comparing import comparisons
from uvim_like import config as configs
from uvim_like.errors import UserError
from uvim_like.training import batches

ROWS = [(suite, row) for suite, rows in comparisons.SUITES.items() for row in rows]


@pytest.mark.parametrize(("suite", "row"), ROWS, ids=[f"{suite}-{row.name}" for suite, row in ROWS])
def test_rows_are_configs_that_hold(suite, row):
  words = compare.arguments(row, pathlib.Path("out"), 3)
  spec = words[0].removeprefix("--config=")
  config = configs.load_file(spec, [word.removeprefix("--config.") for word in words[2:]])
  configs.check(config)
  assert config.dataset == "npz" and config.total_steps == 3 and row.data in comparisons.DATA
  for name, kind in config.evals:
    assert kind in compare.COLUMNS and config[name].split
  for key, needed in row.needs.items():
    block = config
    for part in key.split("."):
      block = block[part]
    assert block == str(pathlib.Path("out") / needed)


@pytest.mark.parametrize("suite", comparisons.SUITES)
def test_rows_stand_behind_what_they_need(suite):
  names = [row.name for row in comparisons.SUITES[suite]]
  assert len(set(names)) == len(names)
  for i, row in enumerate(comparisons.SUITES[suite]):
    assert set(row.needs.values()) <= set(names[:i])


def test_a_row_brings_what_it_needs():
  assert [row.name for row in compare.chosen("ait", "solver_aux")] == ["tokenizer_mask0.5", "solver_aux"]
  assert len(compare.chosen("polymax", "")) == len(comparisons.SUITES["polymax"])
  with pytest.raises(UserError, match="unknown row 'depth_k5'; did you mean 'depth_k"):
    compare.chosen("polymax", "depth_k5")


def test_a_mistake_is_one_line(capsys):
  assert compare.main(["polymx"]) == 2
  assert capsys.readouterr().err == "compare: unknown suite 'polymx'; did you mean 'polymax'?\n"


def test_whole_numbers_are_asked_for(capsys):
  for word in ("--jobs=0", "--steps=-1", "--images=few"):
    assert compare.main(["polymax", word]) == 2
    flag, _, value = word.partition("=")
    assert capsys.readouterr().err == f"compare: {flag}: '{value}' is no whole number from 1 on\n"


def test_constant_maps():
  depth = np.array([[[[1.0]], [[0.0]]], [[[3.0]], [[0.0]]]])  # the second pixel was never measured
  np.testing.assert_array_equal(compare.mean_depth(depth)["depth"], [[2.0], [0.0]])
  classes = np.array([[[[2]]], [[[2]]], [[[1]]], [[[0]]], [[[0]]], [[[0]]]])  # void does not vote
  np.testing.assert_array_equal(compare.commonest_class(classes)["semantics"], [[2]])
  normals = np.array([[[[0.0, 1, 0]]], [[[1.0, 0, 0]]], [[[0.0, 0, 0]]]])
  np.testing.assert_allclose(compare.mean_normal(normals)["normals"], [[[0.5 ** 0.5, 0.5 ** 0.5, 0]]], rtol=1e-6)


def test_sizes_of_objects(tmp_path):
  words = ["scenes", f"--out={tmp_path}", "--format=npz", "--config=mini", "--num=train:2", "--workers=1"]
  assert make_data.main([*words, *comparisons.DATA["objects_mad"]]) == 0
  arrays = batches.load_split(dataset="npz", split="train", data_dir=tmp_path).inputs
  assert arrays["boxes"].shape == (2, 12, 4) and arrays["box_masks"].shape == (2, 12, 8, 8)


def test_table():
  lines = [{"task": "depth", "name": "constant map", "form": "", "RMSE": 1.25},
           {"task": "depth", "name": "k4", "form": "soft", "RMSE": 0.5, "s/image": 0.01},
           {"task": "surface_normals", "name": "k8", "form": "", "mean": 12.0}]
  depth, normals = compare.text(lines).split("\n\n")
  assert depth.split()[:5] == ["depth", "name", "form", "RMSE", "s/image"] and "1.25" in depth and "mean" not in depth
  assert normals.startswith("surface_normals") and "12" in normals


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
  """Two trainings of a few steps, one of which needs the other, and the table."""
  words = ["ait", f"--out={tmp_path}", "--rows=solver_parallel", "--images=64", "--steps=3", "--jobs=2"]
  assert compare.main(words) == 0
  assert "solver_parallel" in capsys.readouterr().out
  lines = json.loads((tmp_path / "table.json").read_text())
  assert [line["name"] for line in lines] == ["constant map", "tokenizer_mask0.5", "solver_parallel"]
  assert all(np.isfinite(line["RMSE"]) for line in lines) and lines[-1]["s/image"] > 0
