"""SIGKILL at random moments, saving included: the restarted run ends with the bits of one that was never stopped."""

import random
import signal
import time

import numpy as np
import pytest

from uvim_like import weights
from uvim_like.training import signals

STEPS = 30


def last_step(workdir) -> int:
  """The newest whole line of the log; 0 before there is one."""
  path = workdir / "metrics.jsonl"
  text = path.read_text() if path.exists() else ""
  steps = [line.split(",")[0].rpartition(" ")[2] for line in text.splitlines(keepends=True) if line.endswith("}\n")]
  return int(steps[-1]) if steps else 0


def saving(workdir) -> bool:
  """Whether a checkpoint is being written right now."""
  folder = workdir / "checkpoints"
  return folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())


def stop_once(child, workdir, moment: str, chance: random.Random, *, until: int) -> bool:
  """Ends a run at a moment of a kind; False when it had ended before."""
  if moment == "start":
    time.sleep(chance.uniform(0.2, 3))
  else:
    goal = chance.randint(min(last_step(workdir) + 1, until), until)
    child.wait_until(lambda: last_step(workdir) >= goal)
    if moment == "saving":
      child.wait_until(lambda: saving(workdir))
    time.sleep(chance.uniform(0, 0.02))
  if not child.alive():
    return False
  child.send(signal.SIGTERM if moment == "SIGTERM" else signal.SIGKILL)
  status = child.wait()
  if moment == "SIGTERM":
    assert status == signals.EXIT_STOPPED == 75, child.words()[1]
    assert "SIGTERM: stopping after this step and saving" in child.words()[1]
    assert "everything is saved; the same command goes on" in child.words()[1]
  return True


def check(experiment, workdir, want, *settings, stage: int, moments: list[str], seed: int) -> None:
  """As many ends as moments, then a run to the end, compared with the uninterrupted one.

  The goals climb slowly, so that the last kill still finds steps to interrupt.
  """
  chance, hits = random.Random(seed), 0
  for i, moment in enumerate(moments):
    child = experiment.start(workdir, *settings, stage=stage)
    hits += stop_once(child, workdir, moment, chance, until=max(1, (STEPS - 2) * (i + 1) // len(moments)))
  experiment.complete(workdir, *settings, stage=stage)
  print(f"stage {stage}: {hits} of {len(moments)} ends hit a live run")
  assert hits >= len(moments) - 1
  experiment.assert_same(workdir, want)
  assert len(experiment.steps(workdir)) == 2 and experiment.steps(workdir)[-1] == experiment.steps(want)[-1] == STEPS
  evaluations = [line["step"] for line in experiment.lines(workdir) if f"val/loss_{'depth' if stage == 1 else 'code'}" in line]
  assert evaluations == [10, 20, 30]


@pytest.mark.slow
def test_stage_one(experiment, finished, tmp_path):
  """Two kills and a SIGTERM."""
  check(experiment, tmp_path / "run", finished, stage=1, moments=["training", "saving", "SIGTERM"], seed=0)
  # A batch writes 32 words and counts fade by 0.9, from 1 each; a split discards what was left of the unused word.
  without_splits = 0.9 ** STEPS * 32 + 32 * (1 - 0.9 ** STEPS) / (1 - 0.9)
  assert weights.load_npz(finished / "weights.npz")["state"]["counts"].sum() < without_splits - 10, "hardly any splits"


def test_stage_two(experiment, finished, finished_two, tmp_path):
  """One kill."""
  check(experiment, tmp_path / "run", finished_two, f"oracle.model_init={finished}", stage=2, moments=["training"], seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_twenty_kills(stage, experiment, finished, finished_two, tmp_path):
  kinds = np.random.RandomState(stage).permutation(["training"] * 9 + ["saving"] * 7 + ["start"] * 4).tolist()
  settings = (f"oracle.model_init={finished}",) if stage == 2 else ()
  want = finished if stage == 1 else finished_two
  check(experiment, tmp_path / "run", want, *settings, stage=stage, moments=kinds, seed=stage)
