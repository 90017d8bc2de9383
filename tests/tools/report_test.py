"""The report: robust reading of logs, the table, the page's size, and a whole page from tiny runs of every system."""

import math
import re
import shutil

import jax
import numpy as np
import pytest

from tests.tools.report_runs import COUNT, NAME, write_lines
from tools import report
from tools.reporting import examples, html, report_training, report_uvim, runs
from uvim_like.errors import UserError

UVIM = ("stage1", "regression", "stage2")


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
  found = dict(zip(workdirs, runs.read(list(workdirs.values()))))
  assert {name: run.kind for name, run in found.items()} == {
      "stage1": examples.STAGE_I, "regression": examples.REGRESSION, "stage2": examples.STAGE_II,
      "tokenizer": examples.TOKENIZER, "solver": examples.SOLVER, "mad": examples.MAD, "polymax": examples.POLYMAX}
  assert runs.row(found["stage1"]) == {
      "name": runs.TITLES[examples.STAGE_I], "kind": examples.STAGE_I, "RMSE": 0.75, "abs_RE": 0.2, "delta1": 0.5,
      "minutes": 2.0, "steps": 150, "run": NAME}
  assert {"box_AP": 0.1, "BLEU4": 0.2}.items() <= runs.row(found["mad"]).items(), "two evaluators, different metrics"
  assert runs.row(found["polymax"])["mean"] == 30.0 and "RMSE" not in runs.row(found["polymax"])


def test_the_same_metric_of_two_evaluators_keeps_their_names(workdirs):
  run = runs.read([workdirs["stage1"]])[0]
  run.config.evals = [("a", "nyu_depth"), ("b", "nyu_depth")]
  run.config.a, run.config.b = {"prefix": "a/"}, {"prefix": "b/"}
  run = run._replace(lines=[{"step": 1.0, "a/RMSE": 1.0, "b/RMSE": 2.0, "b/delta1": 0.5}])
  assert runs.headlines(run) == {"a: RMSE": ("a/RMSE", "min"), "b: RMSE": ("b/RMSE", "min"), "delta1": ("b/delta1", "max")}


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


def test_examples_of_uvim(seen):
  one, regression, two = (seen[name].examples[0] for name in UVIM)
  assert one.data == regression.data == two.data and one.image.shape == (COUNT, 64, 64, 3)
  for base in (one, regression, two):
    assert base.family == "depth" and base.predicted["depth"].shape == (COUNT, 64, 64) and base.seconds > 0
    np.testing.assert_array_equal(base.truth["depth"], one.truth["depth"])
  code = {name: seen[name].extras.get("code") for name in UVIM}
  assert seen["stage2"].extras["samples"]["depth"].shape == (COUNT, 3, 64, 64)
  assert code["stage2"].oracle.shape == code["stage2"].written.shape == (COUNT, 16)
  assert code["stage1"].use.shape == (64,) and code["stage1"].use.sum() == pytest.approx(1, abs=1e-5)
  assert set(seen["stage1"].extras["corrupted code"]) == {
      (m, f) for m in report_uvim.CORRUPTIONS for f in report_uvim.FRACTIONS}
  assert not seen["regression"].extras and not any(seen[name].problems for name in seen)


def test_corruption_is_that_of_predict(seen, workdirs):
  run, base = examples.load(workdirs["stage1"]), seen["stage1"].examples[0]
  made = seen["stage1"].extras["corrupted code"]
  out, _ = examples.predict(run, base.batch, **base.options | {"corrupt": "random", "fraction": 0.5})
  # Compiled in another program, so equal only to rounding; a bin may flip.
  assert np.isclose(out["depth"], made["random", 0.5]["depth"], rtol=1e-4).mean() > 0.999
  assert not np.isclose(out["depth"], base.predicted["depth"], rtol=1e-4).all(), "nothing was corrupted"
  np.testing.assert_array_equal(made["zero", 0.0]["depth"], made["word", 0.0]["depth"])


def test_chunks_are_the_whole(workdirs, seen):
  """Three examples in chunks of two, the last one filled up: as all at once."""
  run, base = examples.load(workdirs["tokenizer"]), seen["tokenizer"].examples[0]
  assert run.config.batch_size == 2
  whole = jax.jit(run.system.predict["predict"])(run.variables, run.frozen, base.batch, run.key)
  np.testing.assert_array_equal(base.predicted["semantics"], whole["semantics"])


def test_the_page_of_all_systems(seen):
  text = report.fitting(list(seen.values()), rows=2, extra=[{"name": "constant <b>map</b>", "RMSE": 1.4}])
  assert len(text) < html.MAX_BYTES and "<script" not in text and "<b>map" not in text
  assert "&lt;script&gt;alert(1)&lt;" in text
  for words in ("Runs of UViM, AiT, MAD and PolyMaX", "Predictions: depth", "Predictions: semantic segmentation",
                "Predictions: objects", "Predictions: captions", "Predictions: surface normals", "What the code carries",
                "The guiding code", "sample 3, T = 1", "per-pixel regression", "75% replaced", "of 16 agree",
                "valid 0.001 &lt; truth &lt; 10 m", "Soft against hard", "codebooks", "Stages of masked inference",
                "Cluster maps", "perplexity of the words", "box AP", "BLEU-4", "mean angle",
                "1 line(s) of metrics.jsonl could not be read", "of the config differ"):
    assert words in text, words
  assert "Runs without pictures" not in text and not re.search(r"(src|href|srcset)=\"(?!data:)", text)


def test_titles(seen):
  def title(*names):
    return report.title_of([seen[name] for name in names])

  assert title(*UVIM) == title("regression") == "UViM: predictions from a guiding code"
  assert title("polymax") == "PolyMaX: maps from clusters of pixels"
  assert title("mad", "stage1", "mad") == "Runs of MAD and UViM"
  assert title("solver", "tokenizer") == "AiT: maps and objects as tokens"


def test_rows_are_cut_and_the_page_says_so(seen, monkeypatch):
  monkeypatch.setattr(report_training, "section", lambda found: html.Section("Training", []))
  one = [seen["regression"]]
  full = report.fitting(one, rows=3)
  cut = report.fitting(one, rows=3, limit=len(full.encode()) - 1)
  assert len(cut) < len(full) and "3 were asked for" in cut and "3 were asked for" not in full
  assert "The first 1 validation images" in report.fitting(one, rows=3, limit=10)


def test_the_command(workdirs, tmp_path, capsys, quick):
  out = tmp_path / "page.html"
  (tmp_path / "t.json").write_text('[{"name": "constant map", "RMSE": 1.5}]')
  flags = [f"--workdir={workdirs['regression']}", f"--out={out}", "--rows=1"]
  assert report.main([*flags, f"--table={tmp_path / 't.json'}", "--title=Depth & more"]) == 0
  page = out.read_text(encoding="utf-8")
  assert "constant map" in page and "<h1>Depth &amp; more</h1>" in page and "MB" in capsys.readouterr().out
  for wrong in ([flags[0] + "x", *flags[1:]], [*flags[:2], "--rows=0"], ["--workdir=,", flags[1]],
                [*flags, f"--table={tmp_path / 'none.json'}"], [*flags, "--rows=many"], [*flags, "--row=2"],
                [flags[0], f"--out={tmp_path}"]):
    assert report.main(wrong) == 2
    message = capsys.readouterr().err
    assert message.startswith("report: ") and message.count("\n") == 1


def test_a_run_without_weights_gives_a_page(workdirs, tmp_path):
  """A training that has only begun: a config, half a line of a log, no checkpoint."""
  folder = tmp_path / "running"
  folder.mkdir()
  shutil.copy(workdirs["polymax"] / "config.json", folder)
  for tail in ("", '{"step": 1, "lo'):
    write_lines(folder, lines=(), tail=tail)
    found = [report.look(run, print) for run in runs.read([folder])]
    assert not found[0].examples and "no checkpoints" in found[0].problems[0]
    text = report.fitting(found, rows=2)
    assert "Runs without pictures" in text and "nothing is logged yet" in text and "PolyMaX" in text


def test_what_hinders_the_pictures_is_said(workdirs, tmp_path):
  folder = tmp_path / "moved"
  shutil.copytree(workdirs["tokenizer"], folder)
  text = (folder / "config.json").read_text(encoding="utf-8")
  (folder / "config.json").write_text(text.replace('"data_dir": "', '"data_dir": "/nowhere'), encoding="utf-8")
  assert "/nowhere" in report.look(runs.read([folder])[0], print).problems[0]
  (folder / "config.json").write_text(text.replace('"dict_size": 8', '"dict_size": 9'), encoding="utf-8")
  assert "does not fit the model" in report.look(runs.read([folder])[0], print).problems[0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}', "\x00"])
def test_a_folder_that_is_no_run(tmp_path, capsys, text):
  (tmp_path / "config.json").write_text(text)
  assert report.main([f"--workdir={tmp_path}", f"--out={tmp_path / 'page.html'}"]) == 2
  message = capsys.readouterr().err
  assert message.count("\n") == 1 and str(tmp_path) in message and not (tmp_path / "page.html").exists()


def test_unknown_workdir_names_the_folder(tmp_path):
  with pytest.raises(UserError, match="config.json"):
    runs.read([tmp_path])
  with pytest.raises(UserError, match="there is no folder"):
    runs.read([tmp_path / "gone"])


def test_losses_of_runs_of_one_kind_lie_over_each_other(seen):
  run = seen["polymax"].run
  assert len(report_training.overlaid_losses([run, run._replace(name="twin")])) == 1
  assert report_training.overlaid_losses([run, seen["mad"].run]) == [] == report_training.overlaid_losses([run])


def test_a_line_for_every_run_that_logs_a_number(seen):
  listed = [run.run for run in seen.values()]
  assert {picture.alt.split(" of the runs")[0] for picture in report_training.comparison(listed[:4])} == {
      "RMSE", "abs_RE", "delta1", "mIoU"}
  assert len(report_training.codebooks([listed[0]])) == 3 and report_training.codebooks([listed[0]._replace(lines=[])]) == []
  row = report_training.speed_row(seen["tokenizer"])
  assert row["steps"] == 150 and row["state"] == "25%" and row["code_dead"] == 3 and row["milliseconds"] > 0
