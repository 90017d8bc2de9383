"""Foreign weights against the model of a config: what fits is written, everything else is reported."""

import functools

import jax
import numpy as np
import pytest

from tools import import_weights
from uvim_like import config as configs
from uvim_like import weights
from uvim_like.systems.base import Vars

CONFIG = '''
import ml_collections as mlc


def get_config():
  config = mlc.ConfigDict(dict(
      dataset="npz", train_split="train", pp_train="", batch_size=8, total_steps=1, lr=0.1, seed=3))
  planes = dict(semantics=(4, 16), instances=(3, 16))
  base = dict(inputs=planes, outputs=planes, input_size=(8, 12), patch_size=(4, 4), code_len=3, width=8, oracle_depth=1,
              base_model_depth=2, num_heads=2, mlp_dim=12, dict_size=6, with_encoder_ctx=True, with_decoder_ctx=True)
  if STAGE == 1:
    config.task, config.model_name, config.model = "panoptic_segmentation", "proj.uvim.vit", base
  else:
    config.oracle = dict(task="panoptic_segmentation", model_init="nowhere.npz", model_name="proj.uvim.vit", model=base)
    config.model_name = "proj.uvim.lm"
    config.model = dict(vocab_size=7, seq_len=3, input_size=(8, 12), patches=dict(size=(4, 4)), num_layers=2,
                        num_heads=2, mlp_dim=12, emb_dim=8, posemb_type="learn")
  return config
'''


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Configs of both stages, and weights that fit them."""
  folder = tmp_path_factory.mktemp("import")
  for stage in (1, 2):
    (folder / f"stage{stage}.py").write_text(CONFIG.replace("STAGE", str(stage)))
    weights.save_vars(folder / f"stage{stage}.npz", variables(folder / f"stage{stage}.py", seed=stage))
  return folder


def variables(config_file, *, seed):
  """Random numbers for every leaf of a config's model."""
  config = configs.plain(configs.load_file(str(config_file)))
  system = import_weights.make_system(config)
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(system.init, jax.random.key(0), import_weights.batch_spec(config))
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def run(files, src, stage, out, *flags):
  return import_weights.main(["--from=big_vision", f"--src={src}", f"--config={files / f'stage{stage}.py'}",
                              f"--out={out}", *flags])


same = functools.partial(jax.tree.map, np.testing.assert_array_equal)


@pytest.mark.parametrize("stage", [1, 2])
def test_weights_that_fit_pass_bit_for_bit(files, tmp_path, capsys, stage):
  assert run(files, files / f"stage{stage}.npz", stage, tmp_path / "out.npz") == 0
  first, *_, last = capsys.readouterr().out.splitlines()
  assert first.endswith(" taken, 0 kept, 0 missing, 0 extra, 0 mis-shaped") and last == f"wrote {tmp_path / 'out.npz'}"
  same(weights.load(tmp_path / "out.npz"), weights.load(files / f"stage{stage}.npz"))


def test_a_file_below_the_home_folder(files, tmp_path, monkeypatch):
  """A shell leaves the tilde of --out=~/… as it is."""
  monkeypatch.setenv("HOME", str(tmp_path))
  assert run(files, files / "stage1.npz", 1, "~/out.npz") == 0 and (tmp_path / "out.npz").is_file()


def test_old_layouts(files, tmp_path, capsys):
  """Optimizer prefix, towers with capitals, bfloat16, all modules of a block numbered together."""
  numbers = {"LayerNorm_1": "LayerNorm_2", "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
             "MlpBlock_0": "MlpBlock_3", "encoderblock_1": "encoderblock_10"}
  old = {}
  for key, array in weights.read_npz(files / "stage1.npz").items():
    parts = [numbers.get(part, part) for part in key.split("/")]
    if parts[0] == "params":
      parts = ["opt", "target", {"encoder": "Encoder", "decoder": "Decoder"}.get(parts[1], parts[1]), *parts[2:]]
      array = array.astype("bfloat16").view("V2") if parts[-1] == "kernel" else array
    old["/".join(parts)] = array
  np.savez(tmp_path / "old.npz", **old, **{"opt/state/step": np.ones(1), "chrono/epoch": np.ones(())})
  assert run(files, tmp_path / "old.npz", 1, tmp_path / "out.npz") == 0
  block = "params/encoder/encoderblock_0"
  assert f"{block}/MlpBlock_3 -> {block}/MlpBlock_0" in capsys.readouterr().out
  loaded, want = weights.load(tmp_path / "out.npz"), weights.load(files / "stage1.npz")
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2 ** -8), loaded, want)
  same(loaded["state"], want["state"])
  same(loaded["params"]["encoder"]["encoderblock_0"]["LayerNorm_1"],
       want["params"]["encoder"]["encoderblock_0"]["LayerNorm_1"])


def test_what_does_not_fit_is_reported_and_not_written(files, tmp_path, capsys):
  flat = weights.read_npz(files / "stage1.npz")
  flat["params/decoder_stem/kernel"] = np.ones((5, 8))
  flat["params/cls"] = np.ones(1)
  del flat["state/counts"]
  np.savez(tmp_path / "other.npz", **flat)
  assert run(files, tmp_path / "other.npz", 1, tmp_path / "out.npz") == 2
  captured = capsys.readouterr()
  assert captured.out.splitlines()[0].endswith(" taken, 0 kept, 1 missing, 1 extra, 1 mis-shaped")
  assert "    params/decoder_stem/kernel: file (5, 8), model (8, 8)" in captured.out
  assert captured.err.startswith("import_weights: ") and captured.err.count("\n") == 1
  assert "missing state/counts; extra params/cls; mis-shaped params/decoder_stem/kernel" in captured.err
  assert not (tmp_path / "out.npz").exists()
  # Names as in a config (below params/) or in full; the values of the config's seed stand in.
  flags = ("--dont_load=decoder_stem/.*,cls,state/counts",)
  assert run(files, tmp_path / "other.npz", 1, tmp_path / "out.npz", *flags) == 0
  loaded = weights.load(tmp_path / "out.npz")
  np.testing.assert_array_equal(loaded["state"]["counts"], np.ones(6))
  assert loaded["params"]["decoder_stem"]["kernel"].shape == (8, 8) and "cls" not in loaded["params"]
  assert np.ptp(loaded["params"]["decoder_stem"]["kernel"]) > 0
  same(loaded["params"]["decoder"], weights.load(files / "stage1.npz")["params"]["decoder"])


def vit_file(path, lm):
  """The image side of a language model as a ViT with a class token on a 2 x 2 grid."""
  flat = {"cls": np.ones((1, 1, 8)), "head/bias": np.ones(3), "Transformer/posembed_input/pos_embedding": np.arange(
      40.0).reshape(1, 5, 8)}
  for name, leaf in weights.trees.flatten_names(lm):
    if name.startswith("encoder/"):
      flat["Transformer/" + name.removeprefix("encoder/")] = leaf
    elif name.startswith("EmbedPatches/"):
      flat["embedding/" + name.removeprefix("EmbedPatches/")] = leaf
  np.savez(path, **flat)


def test_parts_of_a_language_model(files, tmp_path, capsys):
  lm = weights.load(files / "stage2.npz")["params"]
  vit_file(tmp_path / "vit.npz", lm)
  assert run(files, tmp_path / "vit.npz", 2, tmp_path / "lm.npz", "--part=encoder") == 0
  assert " 0 missing, 0 extra, 0 mis-shaped" in capsys.readouterr().out
  loaded = weights.load(tmp_path / "lm.npz")["params"]
  same(loaded["encoder"], lm["encoder"])
  same(loaded["EmbedPatches"], lm["EmbedPatches"])
  # The class token's row is gone; three columns come from two, the middle one is their mean.
  corners = np.arange(8.0, 40.0).reshape(2, 2, 8)
  want = np.stack([corners[:, 0], corners.mean(1), corners[:, 1]], axis=1).reshape(1, 6, 8)
  np.testing.assert_allclose(loaded["pos_embedding_encoder"], want)
  assert not loaded["decoder"]["LogitsDense"]["kernel"].any() and loaded["decoder"]["EmbedTargets"]["embedding"].any()
  # The written file is a whole language model of this config.
  assert run(files, tmp_path / "lm.npz", 2, tmp_path / "again.npz") == 0
  same(weights.load(tmp_path / "again.npz"), weights.load(tmp_path / "lm.npz"))
  assert run(files, files / "stage1.npz", 2, tmp_path / "base.npz", "--part=base_model") == 0
  base = weights.load(files / "stage1.npz")["params"]
  same(weights.load(tmp_path / "base.npz")["params"]["encoder"], base["decoder"])


@pytest.mark.parametrize("flags, message", [
    (["--from=onnx"], "--from: unknown value 'onnx'; valid: ait, big_vision, deeplab2, detectron, hf"),
    (["--resample"], "--resample: --from=big_vision has no tables to resize; forms that have: hf, detectron"),
    (["--part=decoder"], "--part: unknown value 'decoder'; did you mean 'encoder'"),
    (["--part=encoder"], "--part=encoder: only the language model"),
    (["--src=nowhere.npz"], "--src: no weights file or workdir nowhere.npz"),
    (["--src=howto-i21k-L/16"], "--src: no weights for 'howto-i21k-L/16': expected"),
    (["--dont_load=haed_.*"], "dont_load: pattern 'haed_.*' matches no parameter"),
    (["--dont_load=(a"], "'(a' is no regular expression"),
    (["--config.model.widht=4"], "config.model: unknown key 'widht'; did you mean 'width'"),
    (["--config.model_name=uvim.vitt"], "unknown name 'uvim.vitt'; did you mean 'uvim.vit'"),
    (["--out=o"], "--out: 'o' is no .npz file name; did you mean 'o.npz'?"),
    (["--sorce=x"], "unknown flag '--sorce'; did you mean '--src'?"),
])
def test_mistakes_are_one_line(files, tmp_path, capsys, monkeypatch, flags, message):
  monkeypatch.setenv("UVIM_LIKE_WEIGHTS", str(tmp_path))
  assert run(files, files / "stage1.npz", 1, tmp_path / "out.npz", *flags) == 2
  error = capsys.readouterr().err
  assert error.startswith("import_weights: ") and error.count("\n") == 1 and message in error
  assert not (tmp_path / "out.npz").exists()


def test_no_config(tmp_path, capsys):
  assert import_weights.main(["--from=big_vision", "--src=a.npz", f"--out={tmp_path / 'o.npz'}"]) == 2
  assert "--config is missing" in capsys.readouterr().err


def test_frozen_stage_is_not_read(files):
  """Only shapes of the oracle are needed to import weights for the language model."""
  system = import_weights.make_system(configs.plain(configs.load_file(str(files / "stage2.py"))))
  assert isinstance(system.frozen, Vars)
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(system.frozen))
