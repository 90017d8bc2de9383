"""Corrupted checkpoint folders: the newest intact state comes back bit for bit, or a refusal; never a wrong tensor."""

import collections
import os
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.training import checkpoint, sharding

STEPS = (3, 6, 9, 12)


def state_of(step: int) -> dict:
  """Leaves of many sizes and types; some equal in shape, so that they could be taken for each other."""
  numbers = np.random.RandomState(step)
  leaf = lambda *shape: jnp.asarray(numbers.standard_normal(shape), jnp.float32)  # noqa: E731
  return {"step": jnp.int32(step), "params": {"a": {"kernel": leaf(64, 96)}, "b": {"kernel": leaf(64, 96), "bias": leaf(24)}},
          "opt": {"mu": leaf(16, 24).astype(jnp.bfloat16), "counts": jnp.arange(7, dtype=jnp.int32) * step},
          "flags": jnp.array([True, step % 2 == 0])}


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> pathlib.Path:
  """A workdir with four checkpoints."""
  workdir = tmp_path_factory.mktemp("intact")
  with checkpoint.Checkpoints(workdir, every=3, keep_last=len(STEPS)) as saver:
    for step in STEPS:
      assert saver.save(step, jax.device_put(state_of(step), sharding.replicated(sharding.make_mesh())), {"frozen": "0"})
  return workdir


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in folder.rglob("*") if path.is_file())


def exchange(a: pathlib.Path, b: pathlib.Path) -> None:
  if a == b:
    return
  aside = a.with_name(f"{a.name}.aside")
  os.replace(a, aside)
  os.replace(b, a)
  os.replace(aside, b)


def corrupt(folder: pathlib.Path, chance: random.Random) -> tuple[str, set[int]]:
  """One corruption of a folder of checkpoints: its kind, and the steps that it touched."""
  kind = chance.choice(["truncate", "flip", "flip", "zero", "delete", "delete folder", "swap in a step", "swap steps' files",
                        "swap steps", "swap steps' states"])
  present = [step for step in STEPS if files_of(folder / str(step))]
  # The newest are hit most often: those are what a run would take.
  step = chance.choice(present + present[-1:] * 4)
  files = files_of(folder / str(step))
  # Half of the time by size: bytes of tensors, which no checksum of the storage format covers.
  path = chance.choice(files) if chance.random() < 0.5 else max(files, key=lambda file: file.stat().st_size)
  if kind == "truncate":
    os.truncate(path, chance.randint(0, max(0, path.stat().st_size - 1)))
  elif kind in ("flip", "zero"):
    data = bytearray(path.read_bytes() or b"\0")
    at = chance.randrange(len(data))
    if kind == "flip":
      data[at] ^= 1 << chance.randrange(8)
    else:
      data[at:at + 64] = bytes(len(data[at:at + 64]))
    path.write_bytes(data)
  elif kind == "delete":
    path.unlink()
  elif kind == "delete folder":
    shutil.rmtree(chance.choice([p for p in (folder / str(step)).rglob("*") if p.is_dir()] or [path.parent]))
  elif kind == "swap in a step":
    exchange(path, chance.choice(files_of(folder / str(step))))
  else:
    other = chance.choice([s for s in present if s != step] or [step])
    twin = folder / str(other) / path.relative_to(folder / str(step))
    if kind == "swap steps":
      exchange(folder / str(step), folder / str(other))
    elif kind == "swap steps' states" and all((folder / str(s) / "state").is_dir() for s in (step, other)):
      exchange(folder / str(step) / "state", folder / str(other) / "state")
    elif twin.is_file():
      exchange(path, twin)
    return kind, {step, other}
  return kind, {step}


def outcome(workdir: pathlib.Path, touched: set[int]) -> str:
  """What a restore makes of it; an assertion fails on a wrong tensor, or on an intact state passed by."""
  untouched = max(set(STEPS) - touched, default=None)
  state = state_of(0)
  abstract = checkpoint.abstract(state, jax.tree.map(lambda _: sharding.replicated(sharding.make_mesh()), state))
  with checkpoint.Checkpoints(workdir, every=3, keep_last=len(STEPS)) as saver:
    try:
      restored = saver.restore(abstract)
    except UserError as error:
      assert untouched is None, f"refused although step {untouched} is intact: {error}"
      assert "no readable checkpoint" in str(error) or "is gone" in str(error)
      return "refused"
  assert restored is not None, "a silent restart"
  assert untouched is None or restored.step >= untouched
  want = state_of(restored.step)
  assert jax.tree.structure(restored.state) == jax.tree.structure(want)
  for got, leaf in zip(jax.tree.leaves(restored.state), jax.tree.leaves(want)):
    assert got.dtype == leaf.dtype and np.asarray(got).tobytes() == np.asarray(leaf).tobytes()
  return "no harm" if restored.step == STEPS[-1] else "passed over"


def survey(intact, tmp_path, seeds) -> collections.Counter:
  counts = collections.Counter()
  for seed in seeds:
    chance = random.Random(seed)
    workdir = tmp_path / str(seed)
    shutil.copytree(intact, workdir)
    kinds, touched = [], set()
    for _ in range(chance.choice([1, 1, 2, 5])):
      kind, steps = corrupt(workdir / checkpoint.FOLDER, chance)
      kinds.append(kind)
      touched |= steps
    try:
      counts[outcome(workdir, touched)] += 1
    except BaseException as error:
      raise AssertionError(f"seed {seed}: {kinds} of steps {sorted(touched)}") from error
    shutil.rmtree(workdir)
  print(f"{sum(counts.values())} corruptions: {dict(counts)}, 0 wrong")
  return counts


@pytest.mark.slow
def test_twelve_corruptions(intact, tmp_path):
  counts = survey(intact, tmp_path, range(12))
  assert counts["passed over"] >= 3


@pytest.mark.slow
def test_sixty_corruptions(intact, tmp_path):
  counts = survey(intact, tmp_path, range(100, 160))
  assert counts["passed over"] >= 20 and counts["refused"] >= 1


@pytest.mark.parametrize("what", ["all deleted", "folder deleted", "all emptied"])
def test_no_silent_restart(what, intact, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(intact, workdir)
  folder = workdir / checkpoint.FOLDER
  for path in [folder] if what == "folder deleted" else list(folder.iterdir()):
    shutil.rmtree(path)
    if what == "all emptied":
      path.mkdir()
  with checkpoint.Checkpoints(workdir, every=3) as saver, pytest.raises(UserError) as error:
    saver.restore(checkpoint.abstract(state_of(0)))
  assert ("no readable checkpoint" if what == "all emptied" else "step 12 was saved here and is gone") in str(error.value)
