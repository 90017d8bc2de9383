"""Exported weights are the checkpoint's, bit for bit; mistakes end in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tools import export
from uvim_like import weights
from uvim_like.systems.base import Vars
from uvim_like.training import checkpoint, sharding, step


def state_at(number, *, ema=False):
  """A small state whose numbers depend on the step."""
  params = {"a": {"kernel": jnp.full((8, 4), number + 0.5), "bias": jnp.arange(4, dtype=jnp.bfloat16) + number},
            "odd": jnp.array([jnp.nan, -0.0, jnp.inf])}
  return step.TrainState(
      step=jnp.int32(number), vars=Vars(params, {"counts": jnp.arange(3.0) * number}),
      opt=({"mu": jax.tree.map(jnp.zeros_like, params)}, ()),
      ema=jax.tree.map(lambda x: x + 1, params) if ema else ())


def train(workdir, steps, **options):
  """Checkpoints as the loop writes them, from eight devices."""
  mesh = sharding.make_mesh({"data": 8})
  with checkpoint.Checkpoints(workdir, every=1, keep_last=9) as saved:
    for number in steps:
      saved.save(number, jax.device_put(state_at(number, **options), sharding.replicated(mesh)), {"seed": 0})
      saved.wait()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  train(workdir, (2, 4))
  return workdir


def same_bits(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for x, y in zip(jax.tree.leaves(got), map(np.asarray, jax.tree.leaves(want))):
    assert x.dtype == y.dtype and x.tobytes() == y.tobytes()


@pytest.mark.parametrize("flags, number", [((), 4), (("--step=2",), 2)])
def test_newest_or_a_given_step(workdir, tmp_path, capsys, flags, number):
  out = tmp_path / "new" / "w.npz"
  assert export.main([f"--workdir={workdir}", "--format=npz", f"--out={out}", *flags]) == 0
  want = state_at(number).vars
  same_bits(weights.load(out), {"params": want.params, "state": want.state})
  said = capsys.readouterr().out
  assert f"step {number}, 39 parameters in 3 arrays, 1 arrays of state" in said
  assert "maximal difference after reading it back: 0\n" in said
  assert [path.name for path in out.parent.iterdir()] == ["w.npz"]


def test_averaged_parameters_and_sources(tmp_path, capsys):
  train(tmp_path, (1,), ema=True)
  assert export.main([f"--workdir={tmp_path}", f"--out={tmp_path / 'weights.npz'}"]) == 0
  assert "39 averaged parameters" in capsys.readouterr().out
  state = state_at(1, ema=True)
  same_bits(weights.load(tmp_path), {"params": state.ema, "state": state.vars.state})


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capsys):
  train(tmp_path, (1, 2))
  for path in (tmp_path / checkpoint.FOLDER / "2").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:-7])
  out = tmp_path / "w.npz"
  assert export.main([f"--workdir={tmp_path}", f"--out={out}"]) == 0
  assert "step 1," in capsys.readouterr().out
  assert (tmp_path / checkpoint.FOLDER / "2").is_dir()  # a reader moves nothing
  out.unlink()
  assert export.main([f"--workdir={tmp_path}", f"--out={out}", "--step=2"]) == 2
  assert not out.exists() and capsys.readouterr().err.startswith("export: ")


@pytest.mark.parametrize("flags, message", [
    (["--format=onnx"], "--format: unknown value 'onnx'; valid: npz"),
    (["--step=3"], "--step: unknown step '3'; valid: 2, 4"),
    (["--step=last"], "--step: 'last' is no whole number"),
    (["--out=w.pt"], "--out: 'w.pt' is no .npz file name"),
    (["--workdir=/nowhere"], "--workdir: no folder /nowhere"),
    (["--steps=4"], "unrecognized arguments: --steps=4"),
])
def test_mistakes(workdir, tmp_path, capsys, flags, message):
  out = tmp_path / "w.npz"
  assert export.main([f"--workdir={workdir}", f"--out={out}", *flags]) == 2
  captured = capsys.readouterr()
  assert captured.err.startswith("export: ") and message in captured.err and captured.err.count("\n") == 1
  assert not out.exists()


def test_no_checkpoints_and_no_file_name(workdir, tmp_path, capsys):
  assert export.main([f"--workdir={tmp_path}", f"--out={tmp_path / 'w.npz'}"]) == 2
  assert "no checkpoints in" in capsys.readouterr().err
  (tmp_path / "d.npz").mkdir()
  assert export.main([f"--workdir={workdir}", f"--out={tmp_path / 'd.npz'}"]) == 2
  assert "is a folder" in capsys.readouterr().err


def test_difference_counts_every_bit(tmp_path):
  variables = Vars({"a": np.array([1.0, np.nan])}, {})
  loaded = {"params": {"a": np.array([1.0, np.nan])}, "state": {}}
  assert export.largest_difference(variables, loaded) == 0
  loaded["params"]["a"][0] = 1.5
  assert not export.largest_difference(variables, loaded) == 0
  with pytest.raises(export.UserError, match="1 missing in the checkpoint"):
    export.largest_difference(variables, {"params": {}, "state": {}})
