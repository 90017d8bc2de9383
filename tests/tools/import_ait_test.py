"""AiT's state dicts through the import: every array in its place, the numbers of the authors' code, mistakes named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tools import import_weights
from uvim_like import config as configs
from uvim_like import weights
from uvim_like.systems.ait import vqvae
from uvim_like.systems.ait.parts import make_parts
from uvim_like.systems.base import Vars

CONFIG = '''
import ml_collections as mlc


def get_config():
  config = mlc.ConfigDict(dict(
      dataset="npz", train_split="train", pp_train="", batch_size=8, total_steps=1, lr=0.1, seed=3))
  config.update(CONTENT)
  return config
'''


def stored(golden_dir, name):
  """(config, state dict, all arrays) of a stored run."""
  [path] = sorted(golden_dir.rglob(f"{name}.json"))
  with np.load(path.with_suffix(".npz")) as data:
    arrays = dict(data)
  return (json.loads(path.read_text())["config"],
          {key.removeprefix("sd/"): value for key, value in arrays.items() if key.startswith("sd/")}, arrays)


def write_config(folder, name, content):
  (folder / name).write_text(CONFIG.replace("CONTENT", repr(content)))
  return folder / name


def tokenizer_block(sizes, size):
  """A tokenizer's `model` block from the authors' sizes."""
  return dict(input_size=size, ratio=sizes["downsample_ratio"], first_width=sizes["hidden_dim"],
              num_res_blocks=sizes["num_resnet_blocks"], dict_size=sizes["num_tokens"],
              codeword_dim=sizes["codebook_dim"], signed=sizes["use_norm"])


@pytest.fixture(scope="module")
def files(tmp_path_factory, golden_dir):
  """Configs and state dicts: both tokenizers, and a solver of the stored backbone and the stored transformer."""
  folder = tmp_path_factory.mktemp("ait")
  for task, name in (("depth", "depth"), ("instance_segmentation", "mask")):
    config, state, arrays = stored(golden_dir, f"ait_vqvae_{name}")
    write_config(folder, f"{name}.py", dict(task=task, model_name="ait.vqvae", model=tokenizer_block(
        config["vae_class"], arrays["in/img"].shape[2:])))
    safetensors.numpy.save_file({f"module.{key}": value for key, value in state.items()}, folder / f"{name}.safetensors")
  swin, body, arrays = stored(golden_dir, "ait_swinv2")
  head, transformer, _ = stored(golden_dir, "ait_transformer")
  size = arrays["in/img"].shape[2:]
  words = head["num_embeddings_depth"]
  write_config(folder, "solver.py", dict(
      task="depth", model_name="ait.solver", solver=dict(tasks=("depth",), parallel=True),
      tokenizers=dict(depth=dict(model=dict(input_size=size, ratio=32, dict_size=words, codeword_dim=4, first_width=2))),
      model=dict(
          input_size=size, width=head["d_model"], num_encoder_layers=head["num_encoder_layers"],
          num_decoder_layers=head["num_decoder_layers"], num_heads=head["nhead"], mlp_dim=head["dim_feedforward"],
          max_len=head["dec_length"], num_tasks=len(transformer["det_embed"]),
          vocabulary=dict(num_bins=head["num_bins"], num_classes=head["num_classes"], mask_codes=head["num_embeddings"],
                          depth_codes=words, other_codes=head["num_vocal"] - head["offsets"]["depth_offset"] - words),
          backbone=dict(name="swinv2_b", width=swin["embed_dim"], depths=swin["depths"], num_heads=swin["num_heads"],
                        window_size=swin["window_size"], use_shift=swin["use_shift"],
                        pretrain_window=swin["pretrain_window_size"], position_hidden=swin["rpe_hidden_dim"],
                        out_norms=swin["out_indices"]))))
  # The two were stored apart: the seam between them has the channels of the one and the width of the other.
  channels = swin["embed_dim"] * 2 ** (len(swin["depths"]) - 1)
  transformer["input_proj.weight"] = np.random.default_rng(0).normal(size=(head["d_model"], channels)).astype(np.float32)
  solver = {f"backbone.{key}": value for key, value in body.items()}
  solver |= {f"{prefix}transformer.{key}": value for key, value in transformer.items() for prefix in ("", "depth_head.")}
  solver |= {f"depth_head.vqvae.{key}": value for key, value in stored(golden_dir, "ait_vqvae_depth")[1].items()}
  solver["insseg_head.loss_seq.weight"] = np.ones(3, np.float32)
  np.savez(folder / "solver.npz", **solver)
  np.savez(folder / "simmim.npz", **{f"encoder.{key}": value for key, value in body.items()},
           **{"encoder.mask_token": np.ones((1, 1, 8))})
  return folder


def run(files, src, config, out, *flags):
  return import_weights.main(["--from=ait", f"--src={files / src}", f"--config={files / config}", f"--out={out}", *flags])


def change(files, target, **changes):
  """The solver's file with arrays replaced, None to leave one out."""
  with np.load(files / "solver.npz") as data:
    arrays = dict(data)
  arrays |= {name.replace("__", "."): value for name, value in changes.items()}
  np.savez(target, **{name: value for name, value in arrays.items() if value is not None})
  return target


@pytest.mark.parametrize("name", ["depth", "mask"])
def test_tokenizers_give_the_authors_codes(files, tmp_path, capsys, golden_dir, name):
  assert run(files, f"{name}.safetensors", f"{name}.py", tmp_path / "out.npz") == 0
  assert capsys.readouterr().out.splitlines()[0].endswith(" taken, 0 kept, 0 missing, 0 extra, 0 mis-shaped")
  loaded = weights.load(tmp_path / "out.npz")
  model = vqvae.make_model(configs.plain(configs.load_file(str(files / f"{name}.py")))["model"], {}, where="model")
  _, _, arrays = stored(golden_dir, f"ait_vqvae_{name}")
  variables = Vars(loaded["params"], loaded["state"])
  code = vqvae.apply(model, variables, jnp.asarray(arrays["in/img"].transpose(0, 2, 3, 1)), method="encode").code
  np.testing.assert_array_equal(code, arrays["out/indices"])


def test_the_tokenizer_inside_a_solver_is_the_same(files, tmp_path):
  assert run(files, "solver.npz", "depth.py", tmp_path / "a.npz") == 0
  assert run(files, "depth.safetensors", "depth.py", tmp_path / "b.npz") == 0
  jax.tree.map(np.testing.assert_array_equal, weights.load(tmp_path / "a.npz"), weights.load(tmp_path / "b.npz"))


def test_a_solver(files, tmp_path, capsys, golden_dir):
  """All arrays are taken, what belongs to the heads is passed over, and the backbone gives the authors' features."""
  assert run(files, "solver.npz", "solver.py", tmp_path / "out.npz") == 0
  assert capsys.readouterr().out.splitlines()[0].endswith(" taken, 0 kept, 0 missing, 0 extra, 0 mis-shaped")
  params = weights.load(tmp_path / "out.npz")["params"]
  _, state, _ = stored(golden_dir, "ait_transformer")
  np.testing.assert_array_equal(params["transformer"]["voc_embed"], state["voc_embed"])
  np.testing.assert_array_equal(params["transformer"]["decoder"]["block0"]["mlp"]["fc1"]["kernel"],
                                state["decoder.blocks.0.mlp.fc1.weight"].T)
  parts = make_parts(configs.plain(configs.load_file(str(files / "solver.py"))))
  _, _, arrays = stored(golden_dir, "ait_swinv2")
  run_backbone = jax.jit(lambda image: parts.backbone.apply({"params": params["backbone"]}, image)[-1])
  features = run_backbone(jnp.asarray(arrays["in/img"].transpose(0, 2, 3, 1)))
  want = arrays["out/stage3"].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(features, want, atol=3e-5)


def test_a_backbone_alone(files, tmp_path, capsys):
  assert run(files, "simmim.npz", "solver.py", tmp_path / "out.npz", "--part=encoder") == 0
  assert " 0 missing, 0 extra, 0 mis-shaped" in capsys.readouterr().out
  assert run(files, "solver.npz", "solver.py", tmp_path / "all.npz") == 0
  some, whole = (weights.load(tmp_path / name)["params"] for name in ("out.npz", "all.npz"))
  jax.tree.map(np.testing.assert_array_equal, some["backbone"], whole["backbone"])
  assert np.ptp(some["transformer"]["voc_embed"]) > 0  # the values of the config's seed
  assert np.any(some["transformer"]["voc_embed"] != whole["transformer"]["voc_embed"])


def test_what_does_not_fit_is_reported_and_not_written(files, tmp_path, capsys):
  width = 48
  source = change(files, tmp_path / "other.npz", transformer__voc_embed=np.ones((9, width), np.float32),
                  transformer__outp_bias=None, transformer__novel=np.ones(2), backbone__head_2__weight=np.ones(2),
                  other__thing=np.ones(2))
  assert run(files, source, "solver.py", tmp_path / "out.npz") == 2
  captured = capsys.readouterr()
  assert captured.out.splitlines()[0].endswith(" taken, 0 kept, 1 missing, 3 extra, 1 mis-shaped")
  for text in ("params/transformer/outp_bias", "transformer.novel", "backbone.head_2.weight", "other.thing",
               f"params/transformer/voc_embed: file (9, {width})"):
    assert text in captured.out
  assert captured.err.count("\n") == 1 and not (tmp_path / "out.npz").exists()
  flags = "--dont_load=transformer/voc_embed,transformer/outp_bias,transformer\\.novel,backbone\\..*,other.*"
  assert run(files, source, "solver.py", tmp_path / "out.npz", flags) == 0


def test_a_tokenizer_with_a_hole(files, tmp_path, capsys):
  flat = safetensors.numpy.load_file(files / "depth.safetensors")
  for change_of, message in (({"encoder.2.bias": None}, "'encoder.2.bias' is missing"),
                             ({"encoder.2.weight": np.ones(3, np.float32)}, "a convolution's has four sides"),
                             ({"_vq_vae._ema_w": None}, "_vq_vae")):
    other = {key.removeprefix("module."): value for key, value in flat.items()} | change_of
    np.savez(tmp_path / "a.npz", **{key: value for key, value in other.items() if value is not None})
    assert run(files, tmp_path / "a.npz", "depth.py", tmp_path / "out.npz") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("src, config, flags, message", [
    ("depth.safetensors", "solver.py", (), "no AiT solver"),
    ("simmim.npz", "solver.py", (), "--part=encoder"),
    ("simmim.npz", "depth.py", (), "no AiT tokenizer"),
    ("depth.safetensors", "solver.py", ("--part=encoder",), "none of its names is one of the config's backbone; it begins with"),
    ("solver.npz", "solver.py", ("--part=base_model",), "no part 'base_model'"),
    ("solver.npz", "depth.py", ("--part=encoder",), "a tokenizer has no parts"),
    ("nowhere.pth", "solver.py", (), "no file"),
    ("solver.npz", "solver.py", ("--config.model.width=60", "--config.model.num_heads=5"),
     "does not divide into config.model.num_heads 5")])
def test_mistakes_are_one_line(files, tmp_path, capsys, src, config, flags, message):
  assert run(files, src, config, tmp_path / "out.npz", *flags) == 2
  error = capsys.readouterr().err
  assert error.startswith("import_weights: ") and error.count("\n") == 1 and message in error
  assert not (tmp_path / "out.npz").exists()
