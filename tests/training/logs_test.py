"""Metrics files that stay valid and clean over resumes, TensorBoard events, speed and progress text."""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from uvim_like.errors import UserError
from uvim_like.training import logs


def read(workdir):
  def no_constant(name):
    raise AssertionError(f"{name} is not JSON")

  return [json.loads(line, parse_constant=no_constant) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_events(workdir):
  """All events of all files, by the record framing: length (8 bytes), crc (4), data, crc (4)."""
  events = []
  for path in sorted((workdir / "tensorboard").glob("*tfevents*")):
    data, at = path.read_bytes(), 0
    while at < len(data):
      length = int.from_bytes(data[at:at + 8], "little")
      events.append(event_pb2.Event.FromString(data[at + 12:at + 12 + length]))
      at += 16 + length
  return events


def make(workdir, **kwargs):
  return logs.Logger(workdir, total_steps=100, batch_size=8, terminal=False, **kwargs)


def test_lines_and_events(tmp_path):
  with make(tmp_path, resume_step=0) as logger:
    logger.write(1, {"loss": jnp.float32(0.5), "n": np.int64(3), "bad": float("nan"), "worse": -np.inf})
    logger.write(2, {"val/loss": 0.25})
  assert read(tmp_path) == [
      {"step": 1, "loss": 0.5, "n": 3, "bad": "nan", "worse": "-inf"}, {"step": 2, "val/loss": 0.25}]
  assert math.isnan(float(read(tmp_path)[0]["bad"]))
  scalars = [(e.step, v.tag, v.simple_value) for e in read_events(tmp_path) for v in e.summary.value]
  assert (1, "loss", 0.5) in scalars and (2, "val/loss", 0.25) in scalars


def test_resume_leaves_one_clean_file(tmp_path):
  with make(tmp_path, resume_step=0) as logger:
    for step in (1, 2, 3, 4):
      logger.write(step, {"loss": float(step)})
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 5, "lo')  # killed while writing
  with make(tmp_path, resume_step=2) as logger:
    logger.write(3, {"loss": 30.0})
  assert [(line["step"], line["loss"]) for line in read(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
  assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
  assert any(e.HasField("session_log") and e.step == 3 for e in read_events(tmp_path))
  with make(tmp_path) as logger:  # evaluation only: appends
    logger.write(2, {"pq": 1.0})
  assert len(read(tmp_path)) == 4
  with make(tmp_path, resume_step=0):
    pass
  assert read(tmp_path) == []


def test_foreign_line_is_named(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n{"step": 2}\n')
  with pytest.raises(UserError, match="metrics.jsonl:2"):
    make(tmp_path, resume_step=1)


def test_arrays_are_no_metrics(tmp_path):
  with make(tmp_path) as logger, pytest.raises(ValueError, match="scalar"):
    logger.write(1, {"loss": np.ones(3)})


def test_inactive_process_writes_nothing(tmp_path, capsys):
  with make(tmp_path / "run", active=False) as logger:
    logger.write(1, {"loss": 1.0})
    logger.progress(1, 1.0)
  assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


def test_speed():
  speed = logs.rates(steps=10, seconds=5.0, batch_size=64, flops_per_step=1e12, peak=8e12)
  assert speed == {"img/s": 128.0, "step_seconds": 0.5, "mfu": 0.25}
  assert "mfu" not in logs.rates(steps=1, seconds=1.0, batch_size=1, flops_per_step=1e12, peak=logs.peak_flops("cpu"))
  text = logs.progress_text(100, 700, 1.23456, speed)
  assert text == "step 100/700  loss 1.235  128 img/s  0.5 s/step  ETA 5m 00s  MFU 25.0%"
  assert logs.progress_text(1, 2, 0.5, {}) == "step 1/2  loss 0.5"


@pytest.mark.parametrize("kind, peak", [
    ("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v5p", 459e12), ("TPU v6 lite", 918e12),
    ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989e12), ("cpu", None)])
def test_peak_flops(kind, peak):
  assert logs.peak_flops(kind) == peak


@pytest.mark.parametrize("seconds, text", [(7.4, "7s"), (200, "3m 20s"), (3900, "1h 05m"), (183600, "2d 03h")])
def test_duration(seconds, text):
  assert logs.duration(seconds) == text


def test_progress_prints_and_returns_speed(tmp_path, capsys):
  with make(tmp_path) as logger:
    assert logger.progress(1, 2.0) == {}
    speed = logger.progress(3, jnp.float32(1.0))
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "step 1/100  loss 2" and lines[1].startswith("step 3/100  loss 1  ")
  assert set(speed) == {"img/s", "step_seconds"}


def test_bar_on_a_terminal(tmp_path, capsys):
  with logs.Logger(tmp_path, total_steps=10, batch_size=1, terminal=True) as logger:
    logger.say("[not markup]")
    logger.progress(10, 0.5)
  out = capsys.readouterr().out
  assert "[not markup]" in out and "step 10/10" in out


def test_overviews():
  shapes = jax.eval_shape(lambda: {"enc": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}})
  text = logs.parameter_overview(shapes)
  assert "enc/kernel" in text and "16" in text
  text = logs.table_text(("name", "shape"), [("a/kernel", (3,)), ("b", ())])
  assert text == "name      shape\na/kernel  (3,)\nb         ()"


def test_no_tensorflow():
  code = ("import sys; sys.modules['tensorflow'] = None\nimport tempfile\nfrom uvim_like.training import logs\n"
          "with logs.Logger(tempfile.mkdtemp(), total_steps=1, batch_size=1) as l: l.write(1, {'a': 1.0})\n"
          "print(logs.parameter_overview({'a': __import__('numpy').ones(3)}))\n"
          "assert not [m for m in sys.modules if m.startswith('tensorflow.')]")
  subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
