"""Exported programs of every system: equal to the run, without this code base; damage and differences are refused."""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tools import export
from tools.exporting import export_card, export_check, export_function
from uvim_like import config as configs
from uvim_like import weights
from uvim_like.errors import UserError
from uvim_like.systems.base import Vars
from uvim_like.training import setup, trained

ROOT = pathlib.Path(__file__).resolve().parents[2]
STAGE_I = ["width=16", "num_heads=2", "mlp_dim=16", "oracle_depth=1", "base_model_depth=1", "codeword_dim=8",
           "dict_size=8", "code_len=4"]
NARROW = ["model.backbone.widths=(8,8,8,8)", "model.backbone.stem_width=8", "model.dims=(8,8,8,8)",
          "model.layers=(1,0,0)", "model.width=16", "model.key_dim=8", "model.mlp_dim=16", "model.hidden_dim=8",
          "model.mask_dim=8", "model.branch_dim=8"]
# name -> config and overrides; {folder} is that of all runs.
RUNS = {
    "uvim1": ("uvim/depth_stage1.py:scenes,runlocal,res=16", [f"model.{text}" for text in STAGE_I]),
    "uvim": ("uvim/depth_stage2.py:scenes,runlocal,res=16", [
        "oracle.model_init={folder}/uvim1", *(f"oracle.model.{text}" for text in STAGE_I), "model.num_layers=1",
        "model.num_heads=2", "model.mlp_dim=16", "model.emb_dim=16", "model.vocab_size=9", "model.seq_len=4"]),
    "polymax": ("polymax/semantic.py:scenes,runlocal,res=32", NARROW),
    "polymax_depth": ("polymax/depth.py:scenes,runlocal,res=32", [*NARROW, "model.num_queries=4"]),
    "mad": ("mad/r50.py:scenes,runlocal,task=boxes", [
        "model.encoder_layers=1", "model.decoder_layers=1", "model.width=16", "model.num_heads=2", "model.mlp_dim=16",
        "model.backbone.widths=(8,8,16)", "sequences.queries=4", "sequences.bins=16"]),
    "tokenizer": ("ait/vqvae_depth.py:scenes,runlocal", [
        "model.first_width=4", "model.num_res_blocks=1", "model.codeword_dim=8"]),
    "ait": ("ait/depth.py:scenes,runlocal", [
        "tokenizers.depth.model_init={folder}/tokenizer", "tokenizers.depth.model.first_width=4",
        "tokenizers.depth.model.num_res_blocks=1", "tokenizers.depth.model.codeword_dim=8",
        "model.width=16", "model.num_heads=2", "model.mlp_dim=16", "model.num_decoder_layers=1",
        "model.backbone.width=16", "model.backbone.depths=(1,)", "model.backbone.num_heads=(2,)",
        "model.backbone.position_hidden=8"]),
}
NEEDS = {"uvim": "uvim1", "ait": "tokenizer"}


def random_vars(shapes):
  """Every parameter at random, none zero; running variances are positive."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    around = 1.0 if "scale" in name or "var" in name or "counts" in name else 0.0
    return (around + 0.3 * rng.uniform(-1, 1, leaf.shape)).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def make_run(folder, name):
  """A workdir as a finished training leaves it: config and final weights."""
  spec, overrides = RUNS[name]
  config = configs.load_file(str(ROOT / "configs" / spec), [text.format(folder=folder) for text in overrides])
  configs.check(config)
  config = configs.with_defaults(config)
  side = config.model.get("input_size", (32, 32))
  batch = {"image": jax.ShapeDtypeStruct((1, *side, 3), jnp.float32),
           "labels": jax.ShapeDtypeStruct((1, *side, 1), jnp.float32)}
  variables = random_vars(jax.eval_shape(setup.make_system(config).init, jax.random.key(0), batch))
  weights.save_vars(folder / name / "weights.npz", Vars(variables.params, variables.state))
  (folder / name / "config.json").write_text(configs.to_json(config))
  return folder / name


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
  """Makes a run, and the frozen stage that it needs, once."""
  folder, made = tmp_path_factory.mktemp("runs"), {}

  def get(name):
    if name not in made:
      if name in NEEDS:
        get(NEEDS[name])
      made[name] = make_run(folder, name)
    return made[name]
  return get


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
  """Pictures that are there at once, and compiled programs that the other process finds again."""
  rng = np.random.default_rng(3)
  drawn = [rng.integers(0, 256, (48, 64, 3)).astype(np.uint8) for _ in range(2)]
  monkeypatch.setattr(export_check, "pictures_of", lambda *_, **__: (drawn, "noise"))
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir or "")
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
  return drawn


def export_as(kind, workdir, out, *flags):
  return export.main([f"--workdir={workdir}", f"--format={kind}", f"--out={out}", *flags])


@pytest.fixture(scope="module")
def artefact(run_of, tmp_path_factory):
  """UViM's stage II as StableHLO, made once; tests that alter it copy it."""
  made = []

  def get():
    if not made:
      out = tmp_path_factory.mktemp("out") / "model"
      assert export_as("stablehlo", run_of("uvim"), out) == 0
      made.append(out)
    return made[0]
  return get


@pytest.mark.parametrize("name, flags, shape, outputs", [
    ("polymax", (), ["b", "h", "w", 3], {"semantics": ["b", 32, 32]}),
    pytest.param("polymax_depth", ("--full_size",), ["b", "h", "w", 3], {"depth": ["b", "h", "w"]},
                 marks=pytest.mark.slow),
    ("mad", (), ["b", "h", "w", 3],
     {"boxes": ["b", 4, 4], "scores": ["b", 4], "classes": ["b", 4], "valid_size": ["b", 2]}),
    ("ait", (), ["b", 48, 64, 3], {"depth": ["b", 48, 64]}),
])
def test_every_system_equals_its_run(run_of, tmp_path, capsys, monkeypatch, name, flags, shape, outputs):
  calls_of = export_check.calls_of   # one call, to compile once; UViM below makes all of them
  monkeypatch.setattr(export_check, "calls_of", lambda *args: calls_of(*args)[-1:])
  out = tmp_path / "model"
  assert export_as("stablehlo", run_of(name), out, *flags) == 0, capsys.readouterr()
  said, card = capsys.readouterr().out, json.loads((out / "card.json").read_text())
  assert card["inputs"]["pixels"]["shape"] == shape
  assert {key: value["shape"] for key, value in card["outputs"].items()} == outputs
  assert "FAILED" not in said and "compared in a process of its own" in said and f"wrote {out}\n" in said
  assert all(result["share"] == 1.0 for result in card["compared"]), said
  assert card["config"]["model_name"] == configs.from_json(json.dumps(card["config"])).model_name
  assert [path.name for path in tmp_path.iterdir()] == ["model"]   # nothing half written is left
  if name == "polymax":
    assert card["classes"]["semantics"][:2] == ["box", "sphere"] and len(card["classes"]["semantics"]) == 10
    assert card["normalisation"] == {"min": -1, "max": 1, "in_min": 0, "in_max": 255}


BLOCKER = """
import importlib.abc, importlib.machinery, runpy, sys
BLOCKED = {"flax", "tensorflow", "uvim_like", "tools", "train", "pp_ops", "orbax", "optax", "ml_collections",
           "einops", "PIL"}
class Blocker(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in BLOCKED:
      raise ImportError(f"{name} is blocked")
    if name == "flatbuffers":
      return importlib.machinery.PathFinder.find_spec(name, [sys.argv[1]])
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
sys.argv.insert(0, sys.argv[0] + "/run.py")
runpy.run_path(sys.argv[0])
import flatbuffers
assert flatbuffers.__file__.startswith(sys.argv[1]), flatbuffers.__file__
"""


def test_runs_with_jax_and_numpy_alone(artefact, run_of, pictures, tmp_path):
  """Only what pip installs with jax: not even flatbuffers, which the artefact brings along."""
  folder = artefact()
  np.save(tmp_path / "one.npy", pictures[0])
  np.save(tmp_path / "wide.npy", np.stack(pictures)[:, :20])
  command = [sys.executable, "-I", "-c", BLOCKER, folder, tmp_path / "out", tmp_path / "one.npy", tmp_path / "wide.npy"]
  done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
  assert done.returncode == 0, done.stderr
  assert np.load(tmp_path / "out" / "one.npz")["depth"].shape == (1, 16, 16)
  assert np.load(tmp_path / "out" / "wide.npz")["depth"].shape == (2, 16, 16)
  lines = (ROOT / "examples" / "run_stablehlo.py").read_text().splitlines()
  assert (folder / "run.py").read_text().splitlines() == lines and len([line for line in lines if line.strip()]) <= 30


def test_check_of_an_artefact(artefact, run_of, capsys):
  assert export.main([f"--check={artefact()}", f"--workdir={run_of('uvim')}"]) == 0
  assert "equals the run" in capsys.readouterr().out


def flip(path, count=6):
  """Alters bytes in the middle of a file."""
  data = bytearray(path.read_bytes())
  for place in range(len(data) // 2, len(data) // 2 + count):
    data[place] ^= 0xFF
  path.write_bytes(data)


@pytest.mark.parametrize("name, message", [
    ("weights.npz", "weights.npz was changed"), ("model.stablehlo", "model.stablehlo was changed"),
    ("card.json", ""), ("run.py", "run.py was changed"), ("flatbuffers/table.py", "flatbuffers/table.py was changed")])
def test_damaged_bytes_fail_the_check(artefact, run_of, tmp_path, capsys, name, message):
  copy = tmp_path / "copy"
  shutil.copytree(artefact(), copy)
  flip(copy / name)
  assert export.main([f"--check={copy}", f"--workdir={run_of('uvim')}"]) == 1
  captured = capsys.readouterr()
  assert message in captured.err and captured.err.count("\n") == 1 and "equals" not in captured.out
  (copy / name).unlink()
  assert export.main([f"--check={copy}", f"--workdir={run_of('uvim')}"]) == (2 if name == "card.json" else 1)


def test_other_weights_under_right_checksums_fail_the_check(artefact, run_of, tmp_path, capsys):
  copy = tmp_path / "copy"
  shutil.copytree(artefact(), copy)
  stored = dict(np.load(copy / "weights.npz"))
  np.savez(copy / "weights.npz", **{key: -x if key.endswith("kernel") else x for key, x in stored.items()})
  card = {key: value for key, value in export_card.read(copy).items() if key not in ("digest", "files")}
  export_card.write(copy, card, [str(p.relative_to(copy)) for p in copy.rglob("*.*") if p.name != "card.json"])
  assert export.main([f"--check={copy}", f"--workdir={run_of('uvim')}"]) == 1
  assert "'depth' differs from the run's own prediction: max abs difference" in capsys.readouterr().err


def test_an_artefact_that_differs_is_removed(run_of, tmp_path, capsys, monkeypatch):
  """The program turns channels round, as a slip between RGB and BGR would."""
  right = export_function.inputs.run
  monkeypatch.setattr(export_function.inputs, "run", lambda program, pixels: right(program, pixels[..., ::-1]))
  assert export_as("stablehlo", run_of("uvim"), tmp_path / "model") == 1
  captured = capsys.readouterr()
  assert "FAILED" in captured.out and "max abs difference" in captured.err and "it is removed" in captured.err
  assert not list(tmp_path.iterdir())


def test_a_script_that_fails_is_told(run_of, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(export_check, "run_alone", _fails)
  assert export_as("stablehlo", run_of("uvim"), tmp_path / "model") == 1
  assert "does not run: boom" in capsys.readouterr().err and not list(tmp_path.iterdir())


def _fails(*_, **__):
  raise export_check.NotRunning("boom")


@pytest.mark.parametrize("flags, message", [
    (["--view=depth_test"], "--view: unknown evaluation 'depth_test'; did you mean 'depth_val'"),
    (["--input_size=64x"], "--input_size: '64x' is no HEIGHTxWIDTH"),
    (["--tolerance=small"], "--tolerance: 'small' is no number"),
    (["--config=configs/uvim/depth_stage2.py"], "--config: the run's own config is taken"),
    (["--config.oracle.model_init=/nowhere"], "/nowhere"),
    (["--check=x"], "--out: give the file or folder to write, or --check=PATH"),
])
def test_mistakes(run_of, tmp_path, capsys, flags, message):
  assert export_as("stablehlo", run_of("uvim"), tmp_path / "model", *flags) == 2
  captured = capsys.readouterr()
  assert message in captured.err and captured.err.startswith("export: ") and captured.err.count("\n") == 1
  assert not list(tmp_path.iterdir())


def test_places_that_hold_something_else_are_left_alone(run_of, tmp_path, capsys):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "notes.txt").write_text("x")
  assert export_as("stablehlo", run_of("uvim"), tmp_path / "mine") == 2
  assert "exists and is no export" in capsys.readouterr().err and (tmp_path / "mine" / "notes.txt").is_file()
  (tmp_path / "mine" / "model.safetensors").write_text("x")   # somebody's model from the hub
  (tmp_path / "mine" / "config.json").write_text('{"model_type": "vit"}')
  assert export_as("hf", run_of("uvim"), tmp_path / "mine") == 2 and (tmp_path / "mine" / "notes.txt").is_file()
  shutil.rmtree(tmp_path / "mine")
  (tmp_path / "mine").mkdir()
  assert export.main([f"--check={tmp_path / 'mine'}", f"--workdir={run_of('uvim')}"]) == 2
  assert "is no export" in capsys.readouterr().err


def test_stage_one_has_no_program(run_of, tmp_path, capsys):
  assert export_as("stablehlo", run_of("uvim1"), tmp_path / "model") == 2
  assert "UViM stage I cannot predict from a picture" in capsys.readouterr().err
  assert export_as("npz", run_of("uvim1"), tmp_path / "model.npz") == 0


@pytest.mark.slow
def test_savedmodel(run_of, tmp_path, capsys, pictures):
  """TensorFlow runs the same program, from pixels and from an encoded picture."""
  import io

  import tensorflow as tf
  from PIL import Image
  out = tmp_path / "model"
  assert export_as("savedmodel", run_of("uvim"), out) == 0, capsys.readouterr()
  assert "a PNG file" in capsys.readouterr().out
  file = io.BytesIO()
  Image.fromarray(pictures[0]).save(file, "PNG")
  model = tf.saved_model.load(str(out))
  encoded = model.signatures["encoded"](encoded=tf.constant(file.getvalue()))["depth"].numpy()
  pixels = model.signatures["serving_default"](pixels=tf.constant(pictures[0][None]))["depth"].numpy()
  np.testing.assert_allclose(encoded, pixels, atol=1e-5)
  assert export.main([f"--check={out}", f"--workdir={run_of('uvim')}"]) == 0


def test_data_that_has_moved(run_of):
  run = export.restored(argparse.Namespace(workdir=run_of("polymax")), ["data_dir=/moved"], None)
  (name, _), *_ = run.config.evals
  assert run.config[name].data_dir == run.config.data_dir == "/moved"


def test_sizes_that_the_preprocessing_asks_for(run_of):
  run = trained.restore(run_of("mad"))
  assert export_function.make(run).size is None and export_function.make(run).largest == (64, 64)
  assert export_function.make(run, size=(20, 30)).size == (20, 30)
  with pytest.raises(UserError, match="--input_size: 65x10 is larger than the canvas; nearest: 64x64"):
    export_function.make(run, size=(65, 10))
