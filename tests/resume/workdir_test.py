"""One live run, one config, a finished run, and disks that take no more: one clear line each, nothing lost."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import train
from uvim_like import weights
from uvim_like.errors import UserError
from uvim_like.training import setup
from uvim_like.training import workdir as workdirs

ROOT = pathlib.Path(__file__).resolve().parents[2]


def one_line(capsys) -> str:
  error = capsys.readouterr().err.strip()
  assert error.startswith("train: ") and "\n" not in error, error
  return error


# ---- one live run ----


def test_held_by_a_live_run(experiment, tmp_path, capsys):
  workdir = tmp_path / "run"
  with workdirs.hold(workdir):
    assert experiment.run(workdir, "total_steps=2") == 2
    line = one_line(capsys)
  assert f"{workdir} is held by a live run: process {os.getpid()} on " in line
  assert not (workdir / "metrics.jsonl").exists()


def test_a_dead_run_holds_nothing(tmp_path):
  code = ("import pathlib, sys, time; from uvim_like.training import workdir\n"
          "with workdir.hold(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(100)")
  with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {other.pid} on "), workdirs.hold(tmp_path):
      pass
    other.kill()
  with workdirs.hold(tmp_path):
    pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
  def refuse(*_):
    raise OSError(workdirs.errno.ENOLCK, "No locks available")

  monkeypatch.setattr(workdirs.fcntl, "flock", refuse)
  with workdirs.hold(tmp_path):
    assert "has no locks" in caplog.text


@pytest.mark.parametrize("place", ["/proc/run", "file/run"])
def test_where_nothing_can_be_written(place, experiment, tmp_path, capsys):
  (tmp_path / "file").touch()
  assert experiment.run(tmp_path / place) == 2
  assert "cannot be written" in one_line(capsys)


def test_a_read_only_workdir(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise OSError(workdirs.errno.EROFS, "Read-only file system", str(tmp_path))

  monkeypatch.setattr("builtins.open", refuse)
  with pytest.raises(UserError, match="cannot be written: the file system is read-only"), workdirs.hold(tmp_path):
    pass


# ---- one config ----


REFUSED = {
    "lr=0.002": "lr: 0.001 → 0.002", "model.dict_size=16": "model.dict_size: 32 → 16", "batch_size=16": "batch_size: 8 → 16",
    "seed=4": "seed: 3 → 4", "total_steps=20": "total_steps: 30 → 20", "optax_name=scale_by_lion": "'scale_by_lion'",
    "train_split=train[:16]": "'train' → 'train[:16]'", "dtype=bfloat16": "dtype: 'float32' → 'bfloat16'",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_another_config_is_refused(setting, experiment, finished, capsys):
  before = (finished / "config.json").read_bytes()
  assert experiment.run(finished, setting) == 2
  line = one_line(capsys)
  assert "was trained with another config: " in line and REFUSED[setting] in line
  assert f"--accept={setting.split('=')[0].split('.')[0]}" in line
  assert (finished / "config.json").read_bytes() == before


def test_all_differing_keys_are_named(experiment, finished, capsys):
  assert experiment.run(finished, "lr=0.002", "wd=0.5", "model.width=32", "prefetch=1") == 2
  line = one_line(capsys)
  assert all(text in line for text in ("lr: ", "wd: ", "model.width: 16 → 32", "--accept=lr,model,wd"))
  assert "prefetch" not in line


def cut_back(finished: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
  """A copy of a finished run that knows nothing of its last steps."""
  shutil.copytree(finished, workdir)
  shutil.rmtree(workdir / "checkpoints" / "30")
  for name in ("weights.npz", workdirs.FINISHED_FILE):
    (workdir / name).unlink()
  return workdir


def test_harmless_changes_another_mesh_among_them(experiment, finished, tmp_path):
  """From one device to four times two, with split parameters: the same training but for the order of sums."""
  workdir = cut_back(finished, tmp_path / "run")
  moved = tmp_path / "moved"
  moved.symlink_to(experiment.data)
  said = experiment.complete(
      workdir, "checkpoint_steps=4", "keep_last_checkpoints=1", "prefetch=1", f"data_dir={moved}",
      "mesh=[('data', 4), ('fsdp', 2)]", "sharding=[('.*', 'fsdp')]", devices=8)
  assert "resumed from step 24" in said and "changed since the last start: checkpoint_steps: 6 → 4" in said
  assert experiment.steps(workdir) == [30]
  got, want = ([line["loss"] for line in experiment.lines(folder) if "loss" in line] for folder in (workdir, finished))
  assert got[:24] == want[:24]
  np.testing.assert_allclose(got[24:], want[24:], rtol=1e-3)


def test_what_may_change_and_what_was_accepted(finished):
  stored = workdirs.configs.from_json((finished / "config.json").read_text())
  stored.update(total_steps=60, lr=0.5, prefetch=7, evals=[("extra", "nyu_depth")],
                extra=dict(split="validation", pp="decode"), val_split=None)
  config = workdirs.configs.with_defaults(stored)
  assert "total_steps: 30 → 60" in workdirs.check_same_config(finished, config, accept=["lr"])
  with pytest.raises(UserError, match=r"another config: lr: 0.001 → 0.5\. "):
    workdirs.check_same_config(finished, config)
  with pytest.raises(UserError, match="did you mean 'lr'"):
    workdirs.check_same_config(finished, config, accept=["lrr"])


def test_every_key_that_may_change_is_a_key():
  known = {*workdirs.configs.SCHEMA, "oracle.model_init", "tokenizers.*.model_init"}
  assert {*workdirs.MAY_CHANGE, *workdirs.MAY_GROW, *workdirs.LENGTH_KEYS} <= known


def test_tokenizers_may_have_moved(tmp_path):
  load = lambda *overrides: workdirs.configs.with_defaults(workdirs.configs.load_file(  # noqa: E731
      "configs/ait/joint.py:scenes,runlocal", overrides))
  (tmp_path / workdirs.CONFIG_FILE).write_text(workdirs.configs.to_json(load()))
  changes = workdirs.check_same_config(tmp_path, load("tokenizers.depth.model_init=elsewhere.npz"))
  assert changes == ["tokenizers.depth.model_init: 'depth.npz' → 'elsewhere.npz'"]
  with pytest.raises(UserError, match="another config: tokenizers.depth.model.dict_size: 64 → 32"):
    workdirs.check_same_config(tmp_path, load("tokenizers.depth.model.dict_size=32"))
  assert sorted(setup.frozen_keys(load())) == ["config.tokenizers.depth.model_init",
                                               "config.tokenizers.instances.model_init"]


def test_other_weights_of_stage_one(experiment, finished, finished_two, tmp_path, capsys):
  arrays = weights.load_npz(finished / "weights.npz")
  arrays["params"]["encoder_head"]["bias"] = arrays["params"]["encoder_head"]["bias"] + 1
  weights.save_npz(tmp_path / "other.npz", arrays)
  assert experiment.run(finished_two, f"oracle.model_init={tmp_path / 'other.npz'}", "total_steps=50", stage=2) == 2
  assert "config.oracle.model_init: these are not the stage I weights" in capsys.readouterr().err
  assert experiment.run(finished_two, f"oracle.model_init={tmp_path / 'other.npz'}", stage=2, flags=("--eval_only",)) == 2
  assert "config.oracle.model_init: these are not the stage I weights" in capsys.readouterr().err
  moved = tmp_path / "moved"
  moved.symlink_to(finished)
  assert experiment.run(finished_two, f"oracle.model_init={moved}", stage=2) == 0
  assert "is finished" in capsys.readouterr().out


# ---- a finished run ----


def test_a_finished_run_does_nothing_and_says_so(experiment, finished, monkeypatch, capsys):
  for name in ("training_batches", "data_provider"):
    monkeypatch.setattr(train, name, None)  # no data, and so no compilation
  before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != "lock"}
  began = time.perf_counter()
  assert experiment.run(finished) == 0
  assert time.perf_counter() - began < 2
  assert "is finished: 30 steps" in capsys.readouterr().out
  assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != "lock"} == before


def test_killed_between_the_last_checkpoint_and_the_end(experiment, finished, tmp_path):
  """The log of the last evaluation, the weights and the note are missing: only they are made."""
  workdir = tmp_path / "run"
  shutil.copytree(finished, workdir)
  for name in ("weights.npz", workdirs.FINISHED_FILE):
    (workdir / name).unlink()
  log = workdir / "metrics.jsonl"
  kept = log.read_text().splitlines(keepends=True)
  assert '"val/loss_depth"' in kept[-1]
  log.write_text("".join(kept[:-1]))
  experiment.complete(workdir)
  experiment.assert_same(workdir, finished)


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(experiment, finished, tmp_path):
  """Steps 25 to 30 are made again, on the batches of steps 25 to 30."""
  workdir = tmp_path / "run"
  shutil.copytree(finished, workdir)
  for name in ("weights.npz", workdirs.FINISHED_FILE):
    (workdir / name).unlink()
  files = [path for path in (workdir / "checkpoints" / "30").rglob("*") if path.is_file()]
  os.truncate(max(files, key=lambda path: path.stat().st_size), 1)
  assert "resumed from step 24" in experiment.complete(workdir)
  experiment.assert_same(workdir, finished)


def test_length_in_epochs(tmp_path):
  config = workdirs.configs.mlc.ConfigDict(dict(total_steps=None, num_epochs=2.0, batch_size=8, dataset="npz",
                                                 data_dir=None, train_split="train"))
  assert workdirs.finished_step(tmp_path, config) is None
  workdirs.note_finished(tmp_path, config, 5)
  assert workdirs.finished_step(tmp_path, config) is None  # somebody removed the weights: they are written again
  (tmp_path / "weights.npz").touch()
  assert workdirs.finished_step(tmp_path, config) == 5
  config.num_epochs = 3.0
  assert workdirs.finished_step(tmp_path, config) is None
  config.total_steps = 5
  assert workdirs.finished_step(tmp_path, config) == 5


# ---- small files ----


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
  workdirs.write_text(tmp_path / "a" / "x", "old")

  def full(*_):
    raise OSError(workdirs.errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(workdirs.os, "fsync", full)
  with pytest.raises(OSError):
    workdirs.write_text(tmp_path / "a" / "x", "new")
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"] and (tmp_path / "a" / "x").read_text() == "old"
  (tmp_path / "torn").write_text("{")
  with pytest.raises(UserError, match="no JSON"):
    workdirs.read_json(tmp_path / "torn")
  assert workdirs.read_json(tmp_path / "absent") is None


@pytest.mark.parametrize("error, reason", [
    (OSError(28, "No space left on device"), "the disk is full"), (OSError(27, "File too large"), "the limit of file sizes"),
    (ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device [OS error 28: ENOSPC]"), "the disk is full"),
    (OSError(2, "No such file or directory"), None), (ValueError("no idea"), None)])
def test_reasons(error, reason):
  found = workdirs.disk_reason(error)
  assert found is None if reason is None else found.startswith(reason)
  wrapped = KeyError("wrapped")
  wrapped.__cause__ = error
  assert workdirs.disk_reason(wrapped) == found
