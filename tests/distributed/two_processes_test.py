"""Two processes of four virtual devices are one training of eight; when one is gone, the other says so and ends."""

import pathlib
import re
import shutil
import signal
import time

import numpy as np
import pytest

from uvim_like import weights
from uvim_like.training import distributed
from uvim_like.trees import flatten_names

MEETING = (str(pathlib.Path(__file__).with_name("meeting.py")),)
QUIET = ("val_split=None", "evals=[]")
GONE_SECONDS = 10  # from a kill to the other's exit; the watch needs two


def losses(lines):
  return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_the_same_losses_as_one_process(two, data, tmp_path):
  for status, _, err in two.run_together(two.words(tmp_path / "two", data, *QUIET, steps=2)):
    assert status == 0, err[-2000:]
  status, _, err = two.run_alone(two.words(tmp_path / "one", data, *QUIET, steps=2))
  assert status == 0, err[-2000:]
  both = [losses(two.metrics(tmp_path / name)) for name in ("two", "one")]
  assert both[0].keys() == both[1].keys() == {1, 2}
  np.testing.assert_allclose(list(both[0].values()), list(both[1].values()), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(), ("mesh=[('data', 4), ('fsdp', 2)]", "sharding=[('.*', 'fsdp')]")],
                         ids=["replicated", "split"])
def test_evaluation_checkpoint_and_weights_are_those_of_one_process(two, data, tmp_path, layout):
  arguments = {name: two.words(tmp_path / name, data, *layout) for name in ("two", "one")}
  for status, _, err in two.run_together(arguments["two"], timeout=600):
    assert status == 0, err[-2000:]
  status, _, err = two.run_alone(arguments["one"], timeout=600)
  assert status == 0, err[-2000:]
  lines = {name: two.metrics(tmp_path / name) for name in arguments}
  np.testing.assert_allclose(list(losses(lines["two"]).values()), list(losses(lines["one"]).values()), rtol=1e-5)
  scores = {name: {key: value for line in found for key, value in line.items()
                   if key.startswith(("nyu_depth/", "val/"))}
            for name, found in lines.items()}
  assert scores["two"].keys() == scores["one"].keys() and "nyu_depth/RMSE" in scores["two"]
  assert scores["two"]["nyu_depth/images"] == 3
  np.testing.assert_allclose(list(scores["two"].values()), list(scores["one"].values()), rtol=1e-5, atol=1e-7)
  first, second = (dict(flatten_names(weights.load_npz(tmp_path / name / "weights.npz"))) for name in arguments)
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_allclose(first[name], second[name], rtol=1e-4, atol=1e-5, err_msg=name)
  # The state of step 2, written by two processes, read by one: the same steps 3 and 4.
  shutil.rmtree(tmp_path / "two" / "checkpoints" / "4")
  (tmp_path / "two" / "finished.json").unlink()
  for path in (tmp_path / "two").glob("checkpoints*.json"):
    path.unlink()
  status, out, err = two.run_alone(arguments["two"], timeout=600)
  assert status == 0 and "resumed from step 2" in out, err[-2000:]
  resumed = losses(two.metrics(tmp_path / "two"))
  np.testing.assert_allclose([resumed[3], resumed[4]], [losses(lines["one"])[3], losses(lines["one"])[4]], rtol=1e-5)


def meet(two, *flags, count=2):
  """Processes of `meeting` that have met."""
  port = two.free_port()
  running = [two.start(flags, index=i, count=count, port=port, module=MEETING) for i in range(count)]
  for process in running:
    line = ""
    while not line.startswith("READY"):
      line = process.stdout.readline()
      assert line, process.stderr.read()[-2000:]
  return running


@pytest.mark.parametrize("victim, flags", [(0, []), (1, []), pytest.param(0, ["--idle"], marks=pytest.mark.slow),
                                           pytest.param(1, ["--idle"], marks=pytest.mark.slow)])
def test_one_is_killed_and_the_other_says_so(two, victim, flags):
  running = meet(two, *flags)
  running[victim].send_signal(signal.SIGKILL)
  began = time.monotonic()
  status, _, err = two.finish(running[1 - victim], GONE_SECONDS)
  two.finish(running[victim], 5)
  print(f"{time.monotonic() - began:.1f} s")
  assert status == distributed.EXIT_PEER_LOST, err[-2000:]
  assert f"train: process {victim} is gone: killed, or its machine failed. This one stops too" in err


@pytest.mark.slow
@pytest.mark.parametrize("end, own_status, own_line", [
    ("error", 2, "train: this process has a mistake of its own"), ("bug", 1, "ZeroDivisionError: a bug")])
@pytest.mark.parametrize("who", [0, 1])
def test_one_ends_with_an_error_and_the_other_says_so(two, end, own_status, own_line, who):
  port = two.free_port()
  running = [two.start([f"--end={end}"] if i == who else [], index=i, count=2, port=port, module=MEETING)
             for i in (0, 1)]
  ended = [two.finish(process, 60) for process in running]
  assert ended[who][0] == own_status and own_line in ended[who][2], ended[who]
  assert ended[1 - who][0] == distributed.EXIT_PEER_LOST, ended[1 - who]
  assert f"train: process {who} stopped after an error, which its own output names" in ended[1 - who][2]


@pytest.mark.slow
def test_all_end_with_the_same_error_in_their_own_words(two):
  port = two.free_port()
  running = [two.start(["--end=error"], index=i, count=2, port=port, module=MEETING) for i in (0, 1)]
  for process in running:
    assert two.finish(process, 60)[::2] == (2, "train: this process has a mistake of its own\n")


@pytest.mark.slow
def test_the_regular_end(two):
  port = two.free_port()
  running = [two.start(["--end=done"], index=i, count=3, port=port, module=MEETING) for i in range(3)]
  for process in running:
    status, out, err = two.finish(process, 60)
    assert status == 0 and "READY [0, 1, 2] 12 devices" in out, err


@pytest.mark.slow
def test_a_process_that_does_not_come(two):
  began = time.monotonic()
  process = two.start(["--start_timeout=4"], index=0, count=2, port=two.free_port(), module=MEETING)
  status, _, err = two.finish(process, 60)
  assert status == 2 and "--num_processes: not all 2 processes came together within 4 s" in err, err
  assert time.monotonic() - began < 40


@pytest.mark.slow
def test_numbers_of_processes_that_differ(two):
  """The one that knows of fewer processes would start; the other says why it does not."""
  port = two.free_port()
  running = [two.start(["--start_timeout=8"], index=i, count=2 + i, port=port, module=MEETING) for i in (0, 1)]
  for process in running:
    status, _, err = two.finish(process, 60)
    assert status == 2 and re.search(r"train: --num_processes: (2 in process 0, but 3 in process 1|"
                                     r"3 in process 1, but 2 in process 0)", err), err


@pytest.mark.slow
def test_a_training_is_stopped_by_a_signal_to_one_of_its_processes(two, data, tmp_path):
  port, flags = two.free_port(), two.words(tmp_path / "run", data, *QUIET, steps=100_000)
  running = [two.start(flags, index=i, count=2, port=port) for i in (0, 1)]
  until = time.monotonic() + 300
  log = tmp_path / "run" / "metrics.jsonl"
  while not (log.exists() and log.stat().st_size) and time.monotonic() < until:  # a step is done
    time.sleep(0.2)
  running[1].send_signal(signal.SIGTERM)
  for process in running:
    status, _, err = two.finish(process, 120)
    assert status == 75 and "everything is saved; the same command goes on" in err, (status, err[-2000:])
  steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
  assert max(steps) % 10 == 0
