"""A disk that takes no more, in the middle of a training: one clear line, and the last good checkpoint goes on."""

import contextlib
import subprocess

import pytest

from uvim_like.errors import UserError
from uvim_like.training import checkpoint

# From step 10 on no file of this process may grow beyond what a checkpoint needs: a system error like a full disk's.
NO_ROOM = """
import resource
from uvim_like.training import checkpoint
old = checkpoint.Checkpoints.save
def save(self, step, *args, **kwargs):
  if step > 10:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
  return old(self, step, *args, **kwargs)
checkpoint.Checkpoints.save = save
"""


@contextlib.contextmanager
def small_disk(folder, size: str):
  """A file system in memory. Mounting needs rights that not every machine gives; the limit of file sizes, which takes the
  same way through the code, is tested everywhere."""
  folder.mkdir()
  done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True)
  if done.returncode:
    pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def one_line(child) -> str:
  """What a person gets to read, logged warnings of libraries aside."""
  found = [line for line in child.words()[1].splitlines() if line.startswith("train: ")]
  assert len(found) == 1 and "Traceback" not in child.words()[1], child.words()[1][-3000:]
  return found[0]


def test_no_room_for_a_checkpoint(experiment, finished, tmp_path):
  workdir = tmp_path / "run"
  child = experiment.start(workdir, before=NO_ROOM)
  assert child.wait() == 2, child.words()[1][-2000:]
  line = one_line(child)
  assert "the limit of file sizes is reached" in line and str(workdir) in line
  assert "the last complete one is of step 6" in line or "what was saved stays" in line
  assert experiment.steps(workdir) == [6]
  experiment.complete(workdir)
  experiment.assert_same(workdir, finished)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["400k", "700k", "1100k"])
def test_a_full_disk(size, experiment, finished, tmp_path):
  """Wherever it fills up: a checkpoint, the log, the events."""
  disk = tmp_path / "disk"
  with small_disk(disk, size):
    workdir = disk / "run"
    child = experiment.start(workdir)
    if child.wait() == 0:
      pytest.fail(f"{size} is enough for this training")
    assert "the disk is full" in one_line(child)
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    before = experiment.steps(workdir)
    said = experiment.complete(workdir)
    assert ("resumed from step" in said) == bool(before)
    experiment.assert_same(workdir, finished)


def test_a_failed_write_keeps_the_checkpoint_before(tmp_path, monkeypatch):
  """With one checkpoint to keep: the old one goes only when the new one is complete."""
  state = {"x": checkpoint.jax.numpy.ones((8, 8))}
  with checkpoint.Checkpoints(tmp_path, every=1, keep_last=1) as saver:
    saver.save(1, state)
    saver.wait()
    assert saver.recorded() == 1
    monkeypatch.setattr(saver._orbax, "save_checkpointables_async",
                        lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="step 2 could not be written: the disk is full; the last complete one is of step 1"):
      saver.save(2, state)
    assert saver.recorded() == 1 and saver.steps() == [1]
    monkeypatch.undo()
    assert saver.save(3, state)
    saver.wait()
    assert saver.steps() == [3] and saver.recorded() == 3
