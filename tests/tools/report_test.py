"""The report: robust reading of logs, the table, the page's size, and a whole page from tiny runs of three kinds."""

import json
import math
import pathlib
import re

import jax
import numpy as np
import pytest

from tools import examples, html, report, report_pictures, runs
from uvim_like import config as configs
from uvim_like import scenes, weights
from uvim_like.errors import UserError
from uvim_like.training import setup

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ("model.width=16", "model.mlp_dim=16", "model.num_heads=2", "model.base_model_depth=1", "model.oracle_depth=1",
        "model.codeword_dim=16")
TINY_LM = ("model.emb_dim=16", "model.mlp_dim=16", "model.num_heads=2", "model.num_layers=1")
NAME = "<script>alert(1)<"  # a folder may be called so
LINES = [{"step": 50, "loss": 3.0, "step_seconds": 0.6, "img/s": 100.0},
         {"step": 100, "loss": "nan", "step_seconds": 0.6},
         {"step": 100, "nyu_depth/RMSE": 0.75, "nyu_depth/abs_RE": 0.2, "nyu_depth/delta1": 0.5, "val/loss_depth": 2.0},
         {"step": 150, "loss": 2.0, "step_seconds": 1.2}]


def write_lines(folder, lines=LINES, tail='{"step": 200, "los'):
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail, encoding="utf-8")


def make_run(folder, name, overrides):
  """A folder as training leaves it, with random weights."""
  spec = f"{ROOT}/configs/uvim/{name}.py:scenes,runlocal"
  config = configs.with_defaults(configs.load_file(spec, ["dataset=npz", "batch_size=3", *overrides]))
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(configs.to_json(config), encoding="utf-8")
  shape = (1, *config.model.input_size)
  made = jax.jit(setup.make_system(config).init)(jax.random.key(0), {
      "image": np.zeros((*shape, 3), np.float32), "labels": np.ones((*shape, 1), np.float32)})
  rng = np.random.default_rng(0)  # fresh heads are zero: every prediction would be the same
  params = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(x.dtype), made.params)
  weights.save_npz(folder / "weights.npz", {"params": params, "state": made.state})
  write_lines(folder)
  return folder


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  root = tmp_path_factory.mktemp("runs")
  made = [scenes.example("validation", i, size=64) for i in range(4)]
  np.savez(root / "validation.npz", image=np.stack([e["image"] for e in made]),
           labels=np.stack([e["depth"] for e in made])[..., None])
  place = f"data_dir={root}"
  stage_one = make_run(root / NAME, "depth_stage1", [place, *TINY])
  return [stage_one, make_run(root / "regression", "depth_regression", [place, *TINY]),
          make_run(root / "stage2", "depth_stage2", [
              place, *TINY_LM, *(f"oracle.{text}" for text in TINY), f"oracle.model_init={stage_one}"])]


@pytest.fixture(scope="module")
def seen(workdirs):
  return [report.look(run, print) for run in runs.read(workdirs)]


def test_half_a_line_and_nan_in_the_log(tmp_path):
  write_lines(tmp_path)
  lines, unreadable = runs.read_metrics(tmp_path / "metrics.jsonl")
  assert unreadable == 1 and len(lines) == 4 and math.isnan(lines[1]["loss"])
  steps, values = runs.series(lines, "loss")
  np.testing.assert_array_equal(steps, [50, 100, 150])
  np.testing.assert_array_equal(values, [3, np.nan, 2])
  np.testing.assert_allclose(runs.minutes_at(lines, np.array([0, 50, 100, 150, 999])), [0, 0.5, 1, 2, 2])


@pytest.mark.parametrize("text,good,bad", [
    ("", 0, 0), ("\n\n", 0, 0), ("[1]\n3\nnull\n{}\n", 0, 4), ('{"step": 1}', 1, 0),
    ('{"step": 1, "a": "text", "b": [1]}', 1, 0), ('\xff{"step"', 0, 1)])
def test_odd_logs(tmp_path, text, good, bad):
  (tmp_path / "m").write_bytes(text.encode("latin-1"))
  lines, unreadable = runs.read_metrics(tmp_path / "m")
  assert (len(lines), unreadable) == (good, bad)
  assert all(set(line) == {"step"} for line in lines)
  assert np.isnan(runs.minutes_at(lines, np.array([1.0]))).all()
  assert runs.read_metrics(tmp_path / "none") == ([], 0)


def test_a_resumed_log_counts_the_last_value_of_a_step():
  steps, values = runs.series([{"step": 2, "a": 1.0}, {"step": 1, "a": 5.0}, {"step": 2, "a": 3.0}], "a")
  assert (steps.tolist(), values.tolist()) == ([1, 2], [5, 3])


def test_kinds_and_row(workdirs):
  found = runs.read(workdirs)
  assert [run.kind for run in found] == [examples.STAGE_I, examples.REGRESSION, examples.STAGE_II]
  assert runs.row(found[0]) == {"name": runs.TITLES[examples.STAGE_I], "kind": examples.STAGE_I, "RMSE": 0.75,
                                "abs_RE": 0.2, "delta1": 0.5, "minutes": 2.0, "steps": 150, "run": NAME}


def test_table_puts_the_constant_map_first_and_stage_one_apart():
  own = [{"name": "I", "kind": examples.STAGE_I, "RMSE": 0.1}, {"name": "II", "RMSE": 0.7, "minutes": 9.0}]
  rows = report.joined(own, [{"name": "constant map", "RMSE": 1.4}, {"name": "II", "minutes": 7.0}])
  assert [row["name"] for row in rows] == ["constant map", "I", "II"]
  assert rows[2] == {"name": "II", "RMSE": 0.7, "minutes": 7.0}
  text = report.results_table(rows)
  assert re.findall("<b>(.*?)</b>", text) == ["0.700"] and "<td class=n>7.0</td>" in text


def test_two_runs_of_one_kind_keep_their_rows():
  rows = [{"name": "stage I", "run": "a"}, {"name": "stage I", "run": "b"}]
  assert report.joined(rows, [{"name": "stage I", "RMSE": 1.0}]) == [{"name": "stage I", "RMSE": 1.0}, *rows]


def test_examples_of_each_kind(seen):
  one, regression, two = (s.examples for s in seen)
  assert one.data == regression.data == two.data and one.image.shape == (4, 64, 64, 3)
  for base in (one, regression, two):
    assert base.family == "depth" and base.predicted["depth"].shape == (4, 64, 64) and base.seconds > 0
    np.testing.assert_array_equal(base.truth["depth"], one.truth["depth"])
  assert two.samples["depth"].shape == (4, 3, 64, 64)
  assert two.words["oracle"].shape == two.words["written"].shape == (4, 16)
  assert one.word_use.shape == (64,) and one.word_use.sum() == pytest.approx(1, abs=1e-5)
  assert set(one.corrupted) == {(m, f) for m in examples.CORRUPTIONS for f in examples.FRACTIONS}
  assert not regression.corrupted and not regression.samples and regression.word_use is None


def test_corruption_is_that_of_predict(seen, workdirs):
  config, base = seen[0].run.config, seen[0].examples
  system, loaded = setup.make_system(config), weights.load(workdirs[0])
  batch = {name: x for name, x in examples.first_examples(config, 4).items() if name in setup.DEVICE_KEYS}
  variables = setup.step.Vars(params=loaded["params"], state=loaded["state"])
  out = system.predict["predict"](variables, (), batch, jax.random.key(config.seed), corrupt="random", fraction=0.5,
                                  task_options=examples.task_options(config))
  # Compiled in another program, so equal only to rounding; a bin may flip.
  agree = np.isclose(np.asarray(out["depth"]), base.corrupted["random", 0.5]["depth"], rtol=1e-4)
  assert agree.mean() > 0.999
  assert not np.isclose(np.asarray(out["depth"]), base.predicted["depth"], rtol=1e-4).all(), "nothing was corrupted"
  np.testing.assert_array_equal(base.corrupted["zero", 0.0]["depth"], base.corrupted["word", 0.0]["depth"])


def test_errors_by_hand():
  truth = {"depth": np.array([[[1.0, 3.0, 0.0]], [[0, 0, 0]]])}
  error = examples.errors("depth", {"depth": np.array([[[2.0, 3.0, 9.0]], [[1, 1, 1]]])}, truth)
  np.testing.assert_allclose(error, [np.sqrt(0.5), np.nan])
  truth = {"semantics": np.array([[[1, 2, 0, 0]]])}
  np.testing.assert_allclose(examples.errors("panoptic", {"semantics": np.array([[[1, 1, 1, 1]]])}, truth), [50])
  gray = {"color": np.zeros((1, 2, 2, 3))}
  np.testing.assert_allclose(examples.errors("colour", {"color": gray["color"] + 2 / 255}, gray), [1])


def test_the_whole_page(seen, tmp_path):
  text = report.fitting(seen, rows=2, extra=[{"name": "constant <b>map</b>", "RMSE": 1.4}])
  assert len(text) < html.MAX_BYTES and "<script" not in text and "<b>map" not in text
  assert "&lt;script&gt;alert(1)&lt;" in text
  for words in ("What the code carries", "The guiding code", "sample 3, T = 1", "per-pixel regression", "75% replaced",
                "of 16 agree", "1 line(s) of metrics.jsonl could not be read"):
    assert words in text, words
  assert not re.search(r"(src|href|srcset)=\"(?!data:)", text)


def test_rows_are_cut_and_the_page_says_so(seen):
  one = [seen[1]]
  full = report.fitting(one, rows=4)
  cut = report.fitting(one, rows=4, limit=len(full.encode()) - 1)
  assert len(cut) < len(full) and "4 were asked for" in cut and "4 were asked for" not in full
  assert "The first 1 validation images" in report.fitting(one, rows=4, limit=10)


def test_the_command(workdirs, tmp_path, capsys):
  out = tmp_path / "page.html"
  (tmp_path / "t.json").write_text('[{"name": "constant map", "RMSE": 1.5}]')
  flags = [f"--workdir={workdirs[1]}", f"--out={out}", "--rows=1"]
  assert report.main([*flags, f"--table={tmp_path / 't.json'}"]) == 0
  assert "constant map" in out.read_text(encoding="utf-8") and "MB" in capsys.readouterr().out
  for wrong in ([flags[0] + "x", *flags[1:]], [*flags[:2], "--rows=0"], ["--workdir=,", flags[1]],
                [*flags, f"--table={tmp_path / 'none.json'}"]):
    assert report.main(wrong) == 2
    message = capsys.readouterr().err
    assert message.startswith("report: ") and message.count("\n") == 1


def test_a_run_without_weights_says_so_on_the_page(workdirs, tmp_path):
  folder = tmp_path / "running"
  folder.mkdir()
  (folder / "config.json").write_text((workdirs[0] / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
  found = [report.look(run, print) for run in runs.read([folder])]
  assert found[0].examples is None and found[0].problem
  assert "Runs without pictures" in report.fitting(found, rows=2)


def test_other_tasks_draw():
  rng = np.random.default_rng(0)
  for family, outputs in (("panoptic", {k: rng.integers(0, 5, (2, 12, 20)) for k in ("semantics", "instances")}),
                          ("colour", {"color": rng.uniform(-1, 1, (2, 12, 20, 3))})):
    image, data = rng.uniform(-1, 1, (2, 12, 20, 3)), ("d", None, "s", (12, 20))
    base = examples.Examples("x", family, data, image, outputs, outputs, {}, {}, {}, None, None, 0.0)
    label, cells = report_pictures.picture_row(family, base, 1, [("model", outputs)])
    assert label == "2" and [cell.caption for cell in cells][2].startswith("0.0")
    assert all(cell.png.startswith(b"\x89PNG") for cell in cells)


def test_unknown_workdir_names_the_folder(tmp_path):
  with pytest.raises(UserError, match="config.json"):
    runs.read([tmp_path])
