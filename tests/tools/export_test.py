"""Exported weights are the checkpoint's, bit for bit; mistakes end in one line."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest

from tools import export
from tools.exporting import export_hub, export_weights
from uvim_like import config as configs
from uvim_like import weights, weights_hf, weights_rules, weights_torch
from uvim_like.errors import UserError
from uvim_like.models.backbones import make_backbone
from uvim_like.systems import image_backbone
from uvim_like.systems.base import Vars
from uvim_like.training import checkpoint, sharding, step

ROOT = pathlib.Path(__file__).resolve().parents[2]


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
    (["--format=onnx"], "--format: unknown value 'onnx'; valid: hf, npz, safetensors, savedmodel, stablehlo"),
    (["--step=3"], "--step: unknown step '3'; valid: 2, 4"),
    (["--step=last"], "--step: 'last' is no whole number"),
    (["--out=w.pt"], "--out: 'w.pt' is no .npz file name"),
    (["--workdir=/nowhere"], "--workdir: no folder /nowhere"),
    (["--steps=4"], "unknown flag '--steps'; did you mean '--step'"),
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


def test_difference_counts_every_bit():
  want = {"params/a": np.array([1.0, np.nan])}
  have = {"params/a": np.array([1.0, np.nan])}
  assert export_weights.largest_difference(want, have) == 0
  have["params/a"][0] = 1.5
  assert not export_weights.largest_difference(want, have) == 0
  with pytest.raises(UserError, match="1 missing in the checkpoint"):
    export_weights.largest_difference(want, {})


def test_a_file_that_differs_is_removed(workdir, tmp_path, capsys, monkeypatch):
  write = export_weights.write_npz
  monkeypatch.setattr(export_weights, "write_npz", lambda path, variables: write(
      path, variables.replace(params=jax.tree.map(lambda x: x + 1, variables.params))))
  assert export.main([f"--workdir={workdir}", f"--out={tmp_path / 'w.npz'}"]) == 1
  assert "it is removed" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_several_formats_lie_in_a_folder_and_pass_their_check(described, tmp_path, capsys):
  out = tmp_path / "all"
  assert export.main([f"--workdir={described}", "--format=npz,safetensors", f"--out={out}"]) == 0
  assert sorted(path.name for path in out.iterdir()) == ["weights.json", "weights.npz", "weights.safetensors"]
  for name in ("weights.npz", "weights.safetensors"):
    assert export.main([f"--workdir={described}", f"--check={out / name}"]) == 0
    damaged = tmp_path / name
    damaged.write_bytes(flipped((out / name).read_bytes()))
    export_weights.json_path(damaged).write_text((out / "weights.json").read_text())
    assert export.main([f"--workdir={described}", f"--check={damaged}"]) == 1
  assert "export: " in capsys.readouterr().err


def flipped(data):
  """With its last bytes altered: those of the last array."""
  end = data.rfind(b"PK\x01\x02") if data.startswith(b"PK") else len(data)   # an .npz ends in a list of its files
  return data[:end - 5] + bytes(byte ^ 0xFF for byte in data[end - 5:end - 1]) + data[end - 1:]


@pytest.fixture(scope="module")
def described(tmp_path_factory):
  """A workdir with a config; two kept steps."""
  workdir = tmp_path_factory.mktemp("described")
  train(workdir, (2, 4))
  config = configs.load_file(str(ROOT / "configs/uvim/depth_stage1.py:scenes,runlocal"))
  (workdir / "config.json").write_text(configs.to_json(configs.with_defaults(config)))
  return workdir


def test_safetensors_keep_bfloat16_and_hold_the_card(described, tmp_path, capsys):
  out = tmp_path / "w.safetensors"
  assert export.main([f"--workdir={described}", "--format=safetensors", f"--out={out}", "--step=2"]) == 0
  arrays, card = export_weights.read_safetensors(out)
  want = state_at(2).vars
  same_bits(arrays["params/a/bias"], want.params["a"]["bias"])
  assert arrays["params/a/bias"].dtype == jnp.bfloat16
  assert arrays["params/odd"].tobytes() == np.asarray(want.params["odd"]).tobytes()
  assert card["trained"]["step"] == 2 and card["normalisation"]["min"] == -1 and card["task"] == "depth"
  assert configs.from_json(json.dumps(card["config"])).model.width == 128
  assert json.loads((tmp_path / "w.json").read_text()) == card
  done = subprocess.run([sys.executable, "-I", str(ROOT / "examples" / "read_safetensors.py"), str(out)],
                        capture_output=True, text=True)
  assert done.returncode == 0 and "bfloat16  (4,)" in done.stdout, done.stderr
  # The card knows its step, though another is newer.
  assert export.main([f"--workdir={described}", f"--check={out}"]) == 0
  assert "difference from step 2: 0" in capsys.readouterr().out
  assert export.main([f"--workdir={described}", f"--check={out}", "--step=4"]) == 1
  (tmp_path / "w.json").write_text("{}")
  assert export.main([f"--workdir={described}", f"--check={out}"]) == 1
  assert "is not the card in w.safetensors" in capsys.readouterr().err


def test_examples_read_npz(workdir, tmp_path):
  out = tmp_path / "w.npz"
  assert export.main([f"--workdir={workdir}", f"--out={out}"]) == 0
  done = subprocess.run([sys.executable, "-I", str(ROOT / "examples" / "read_npz.py"), str(out)], capture_output=True,
                        text=True)
  assert done.returncode == 0 and "bfloat16  (4,)" in done.stdout and "42 numbers" in done.stdout, done.stderr
  for path in (ROOT / "examples").glob("*.py"):
    assert "uvim_like" not in path.read_text() and len(path.read_text().splitlines()) <= 36, path


BACKBONES = {
    "ResNet": ({"name": "resnet50", "depths": (1, 2), "widths": (16, 32), "stem_width": 8}, "mad.decoder"),
    "kmax": ({"name": "kmax_resnet18", "depths": (1, 1), "widths": (8, 16), "stem_width": 8}, "polymax.kmax"),
    "ConvNeXt": ({"name": "convnext_t", "depths": (1, 2), "widths": (8, 16)}, "polymax.per_pixel"),
    "Swin": ({"name": "swin_b", "width": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4,
              "out_norms": (0, 1)}, "mad.decoder"),
    "SwinV2": ({"name": "swinv2_b", "width": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": (8, 4),
                "use_shift": True, "pretrain_window": 0, "out_norms": (1,), "position_hidden": 8}, "ait.solver"),
    "ViT": ({"name": "vit_b", "width": 16, "depth": 2, "num_heads": 2, "patch": 8, "grid": (4, 4), "class_token": True},
            "mad.decoder")}


def backbone_run(kind):
  """A run's config as far as its backbone is concerned, and random variables of the whole run."""
  fields, system = BACKBONES[kind]
  config = mlc.ConfigDict({"model_name": system, "model": {"backbone": fields, "input_size": (32, 32)}})
  module = make_backbone(fields)
  shapes = weights_rules.eval_shapes(module, (1, 32, 32, 3))
  rng = np.random.default_rng(0)
  tree = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
  name = image_backbone.NAMES[system.split(".")[0]]
  state = tree["state"] if system == "ait.solver" else {name: tree["state"]} if tree["state"] else {}
  return config, Vars({name: tree["params"], "rest": np.zeros(3)}, state), module, tree


@pytest.mark.parametrize("kind", BACKBONES)
def test_backbone_in_the_hubs_layout_and_back(kind, tmp_path):
  config, variables, module, tree = backbone_run(kind)
  assert export_weights.write_hf(tmp_path, config, variables) == ()
  want, have = export_weights.read_hf(tmp_path, config, variables)
  assert len(want) == len(jax.tree.leaves(tree)) and export_weights.largest_difference(want, have) == 0
  back, report = weights_rules.merge(tree, weights_torch.read_state_dict(tmp_path / "model.safetensors"),
                                     weights_hf.table(module))
  assert report.fits
  jax.tree.map(np.testing.assert_array_equal, back, tree)
  if not kind.startswith("kmax"):   # the hub has no words for kMaX's stem
    described = json.loads((tmp_path / "config.json").read_text())
    again = make_backbone(weights_hf.model_fields(described))
    fields = export_hub.config_of(module, (32, 32))
    assert {key: value for key, value in export_hub.config_of(again, (32, 32)).items() if key != "uvim_like"} == {
        key: value for key, value in fields.items() if key != "uvim_like"}


def test_a_config_that_describes_another_backbone_is_refused(tmp_path):
  config, variables, _, _ = backbone_run("ViT")
  export_weights.write_hf(tmp_path, config, variables)
  path = tmp_path / "config.json"
  said = json.loads(path.read_text())
  for text, message in ((json.dumps(said | {"num_attention_heads": 4}), "'num_attention_heads' is 4, of the run"),
                        (json.dumps(said | {"more": 1}), "'more' is 1"), ("[]", "an object is expected"),
                        ("{", "cannot be read")):
    path.write_text(text)
    with pytest.raises(UserError, match=f"config.json: {message}"):
      export_weights.read_hf(tmp_path, config, variables)
  path.unlink()
  with pytest.raises(UserError, match="config.json: cannot be read"):
    export_weights.read_hf(tmp_path, config, variables)


def test_arrays_that_the_hub_does_not_know_are_told(tmp_path):
  config, variables, _, _ = backbone_run("ViT")
  variables.params["features"]["level8"] = {"conv": {"kernel": np.ones((2, 2, 4, 4), np.float32)}}
  assert export_weights.write_hf(tmp_path, config, variables) == ("params/level8/conv/kernel",)
  want, have = export_weights.read_hf(tmp_path, config, variables)
  assert export_weights.largest_difference(want, have) == 0 and "params/level8/conv/kernel" not in want


@pytest.mark.parametrize("system, backbone, message", [
    ("uvim.lm", None, "'uvim.lm' has no image backbone"), ("mad.decoder", {"name": "stem", "widths": (8,)}, "'stem'")])
def test_systems_without_a_backbone_of_the_hub(system, backbone, message, tmp_path):
  config = mlc.ConfigDict({"model_name": system, "model": {"backbone": backbone} if backbone else {}})
  with pytest.raises(UserError, match=message):
    export_weights.write_hf(tmp_path, config, Vars({"features": {}}, {}))
