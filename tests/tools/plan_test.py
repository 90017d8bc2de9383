"""The training step compiled ahead of time: sizes that can be counted by hand, whether it fits, mistakes."""

import pathlib
import re
import subprocess
import sys

import jax
import pytest

from tools import plan
from uvim_like import config as configs
from uvim_like.errors import UserError
from uvim_like.ops import constraint
from uvim_like.training import setup

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ("model.width=16", "model.mlp_dim=16", "model.num_heads=2", "model.base_model_depth=1", "model.oracle_depth=1",
        "model.codeword_dim=16", "batch_size=16")
WORDS = ["--config=configs/uvim/depth_stage1.py:scenes,runlocal", *(f"--config.{text}" for text in TINY)]


@pytest.mark.parametrize("mesh, share", [("[('data', 8)]", 1), ("[('data', 2), ('fsdp', 4)]", 4)])
def test_eight_virtual_devices(mesh, share, capsys):
  """The same step as in training; a parameter that is split over four devices has a quarter of its bytes on each."""
  words = [*WORDS, f"--config.mesh={mesh}", "--devices=8", "--memory=1GiB"]
  words += ["--config.sharding=[('encoder/.*MlpBlock.*kernel', (None, 'fsdp')), ('.*', 'replicate')]"] * (share > 1)
  assert plan.main(words) == 0
  told = capsys.readouterr().out
  row = re.search(r"^encoder/encoderblock_0/MlpBlock_0/Dense_0/kernel +16x16 +(\S.*\S) +([\d,]+)$", told, re.MULTILINE)
  assert int(row[2].replace(',', '')) == 16 * 16 * 4 // share and ("fsdp" in row[1]) == (share > 1)
  config = configs.with_defaults(configs.load_file(WORDS[0].removeprefix("--config="), TINY))
  rows, said = plan.batch_shapes(config)
  shapes = setup.shapes_of(setup.make_system(config), rows, config)
  assert f"{sum(leaf.size for leaf in jax.tree.leaves(shapes.params)):,} parameters; batch 16 over 8 x cpu" in told
  assert not said and rows["image"].shape == (16, 64, 64, 3) and set(rows) == {"image", "labels"}
  # Two images of 64x64x3 and 64x64x1 float32 numbers on each device.
  assert f"batch {plan.text_of(2 * 64 * 64 * 4 * 4)}" in told
  assert re.search(r"temporaries \d.* MiB; together \d.* MiB", told) and re.search(r"FLOPs a step: \d\.\d+e\+\d+", told)
  assert re.search(r"\nfits in 1.00 GiB: \d+% of it\n$", told)


def test_a_device_that_is_too_small(capsys):
  assert plan.main([*WORDS, "--devices=1", "--config.batch_size=2", "--memory=1MiB"]) == 1
  assert re.search(r"does not fit in 1.00 MiB: \d+% of it\n$", capsys.readouterr().out)


@pytest.mark.slow
def test_a_process_of_its_own_makes_its_devices():
  done = subprocess.run([sys.executable, "-m", "tools.plan", *WORDS, "--devices=4"], cwd=ROOT, capture_output=True,
                        text=True, check=False)
  assert done.returncode == 0 and "over 4 x cpu, mesh {'data': 4}" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uvim/panoptic_stage2", "ait/joint", "mad/r50", "polymax/semantic", "polymax/panoptic"])
def test_shapes_of_recipes_whose_data_are_not_at_hand(name, tmp_path):
  """The paper's sizes come from the preprocessing string; frozen stages that nobody has trained stay in shapes."""
  config = configs.with_defaults(configs.load_file(f"configs/{name}.py", [f"data_dir={tmp_path}"]))
  rows, said = plan.batch_shapes(config)
  assert "the preprocessing string alone, since " in said and rows["image"].shape[0] == config.batch_size
  run = setup.prepare(config, num_examples=config.batch_size, batch=rows, devices=jax.devices()[:1], in_shapes=True)
  out = jax.eval_shape(setup.step_function(run), run.abstract, run.frozen, rows, run.key)
  assert out[1]["loss"].shape == () and constraint._mesh.get() is None


@pytest.mark.parametrize("words, message", [
    ((), "one of --devices=8 and --topology=v5e:4x4 is needed, and not both"),
    (("--devices=8", "--topology=v5e:4x4"), "one of --devices=8 and --topology=v5e:4x4 is needed, and not both"),
    (("--devices=0",), "--devices=0: at least 1 is needed"),
    (("--devices=64",), "--devices=64: this process has 8 CPU devices"),
    (("--devices=8", "--memory=16G"), "--memory: '16G' is no size; sizes are written 16GiB"),
    (("--devices=8", "--config.mesh=[('data', 3)]"), "config.mesh: {'data': 3} needs 3 devices, but there are 8"),
    (("--devices=8", "--config.batch_size=12"), "config.batch_size: 12 does not divide among 8 devices"),
    (("--devices=8", "--config.pp_train=decode|rezise(8)"), "unknown op 'rezise'; did you mean 'resize'"),
    (("--devcies=8",), "unknown flag '--devcies'; did you mean '--devices'")])
def test_mistakes_are_one_line(words, message, capsys):
  assert plan.main([*WORDS, *words]) == 2
  error = capsys.readouterr().err
  assert error.startswith("plan: ") and message in error


def test_without_a_compiler_for_the_topology(monkeypatch):
  topologies = pytest.importorskip("jax.experimental.topologies")

  def missing(*args, **options):
    raise RuntimeError("no libtpu")

  monkeypatch.setattr(topologies, "get_topology_desc", missing)
  monkeypatch.setattr(plan, "TPU_SETTINGS", {})
  with pytest.raises(UserError, match="--topology=v5e:4x4: jax cannot compile for it here .no libtpu.; it needs `pip inst"):
    plan.topology_devices("v5e:4x4")


def test_sizes():
  assert plan.bytes_of("1.5MiB") == 1.5 * 2 ** 20 and plan.text_of(3 * 2 ** 29) == "1.50 GiB"
