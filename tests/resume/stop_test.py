"""Signals beyond the plain SIGTERM: Ctrl-C once and twice, before the first step, and in several processes."""

import os
import signal
import time

import pytest

from uvim_like.training import signals

# A checkpoint forced by a signal takes for ever, so that there is time for a second signal.
SLOW_SAVE = """
import time
from uvim_like.training import checkpoint
old = checkpoint.Checkpoints.save
def save(self, *args, force=False, **kwargs):
  if force:
    print("saving", flush=True)
    time.sleep(100)
  return old(self, *args, force=force, **kwargs)
checkpoint.Checkpoints.save = save
"""
# The signal comes while step 9 is reported, when step 10 has run: where an evaluation is due.
CTRL_C = """
import os, signal
from uvim_like.training import logs
old = logs.Logger.write
def write(self, step, values):
  old(self, step, values)
  if step == 9:
    os.kill(os.getpid(), signal.SIGINT)
logs.Logger.write = write
"""


def test_second_ctrl_c_stops_at_once(experiment, tmp_path):
  workdir = tmp_path / "run"
  child = experiment.start(workdir, before=SLOW_SAVE)
  assert child.wait_until(lambda: experiment.steps(workdir))
  child.send(signal.SIGINT)
  assert child.wait_until(lambda: "saving" in child.words()[0].splitlines())
  child.send(signal.SIGINT)
  assert child.wait(10) == -signal.SIGINT
  steps = experiment.steps(workdir)
  assert steps and all(step % 6 == 0 for step in steps)  # the regular ones: the one that the signal asked for is not there


@pytest.mark.slow
def test_ctrl_c_where_an_evaluation_is_due(experiment, finished, tmp_path):
  """The stopped run saves instead of evaluating, the next one makes up for it."""
  workdir = tmp_path / "run"
  child = experiment.start(workdir, before=CTRL_C)
  assert child.wait() == signals.EXIT_STOPPED
  assert child.words()[1].count("SIGINT") == 2
  assert experiment.steps(workdir) == [6, 10]
  assert not any("val/loss_depth" in line for line in experiment.lines(workdir))
  experiment.complete(workdir)
  experiment.assert_same(workdir, finished)


def test_before_the_first_step(capfd):
  # A shell starts what runs in its background with SIGINT ignored: what counts is that the old handlers come back.
  before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  with pytest.raises(signals.Stopped, match="SIGTERM before the first step"), signals.StopRequest():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
  with signals.StopRequest() as stop:
    stop.armed = True
    assert not stop.agreed(1)
    for _ in range(3):  # a scheduler may repeat itself
      os.kill(os.getpid(), signal.SIGTERM)
    assert stop.agreed(1) and stop.name == "SIGTERM"
  assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
  assert capfd.readouterr().err.count("SIGTERM: stopping") == 1


def test_several_processes_agree_at_fixed_steps(monkeypatch):
  """Only at multiples of the interval, and as soon as any process was asked to stop."""
  asked = []

  def gather(flag):
    asked.append(bool(flag))
    return signals.np.array([False, flag, len(asked) > 2])

  monkeypatch.setattr(signals.jax, "process_count", lambda: 3)
  monkeypatch.setattr(signals.multihost_utils, "process_allgather", gather)
  stop = signals.StopRequest()
  found = [step for step in range(1, 41) if stop.agreed(step)]
  assert len(asked) == 4 and found == [30, 40]
