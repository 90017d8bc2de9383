"""Backbones of other programs through the import: out by the export and in again, bit for bit; whose names they are."""

import json

import jax
import ml_collections as mlc
import numpy as np
import pytest
import safetensors.numpy

from tools import import_weights
from tools.exporting import export_weights
from tools.importing import import_backbone
from uvim_like import config as configs
from uvim_like import trees, weights, weights_hf, weights_peers, weights_rules
from uvim_like.models.vit import ViT
from uvim_like.systems import image_backbone
from uvim_like.systems.base import Vars
from uvim_like.systems.uvim import pretrained

FOUR = {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32)}
# {kind: (config, its backbone)}
FAMILIES = {
    "ResNet": ("mad/r50", {"name": "resnet50", "depths": (1, 2), "widths": (16, 32), "stem_width": 8}),
    "Swin": ("mad/swin_b", {"name": "swin_b", "width": 8, "depths": (1, 2, 1), "num_heads": (1, 2, 2),
                            "window_size": 4, "out_norms": (2,)}),
    "ViT": ("mad/vit_b", {"name": "vit_b", "width": 16, "depth": 2, "num_heads": 2, "patch": 8, "grid": (4, 4),
                          "pyramid": (16,), "pyramid_width": 8}),
    "SwinV2": ("ait/depth", {"name": "swinv2_b", "width": 8, "depths": (1, 1, 2), "num_heads": (1, 2, 2),
                             "window_size": (8, 4, 2), "use_shift": True, "pretrain_window": 0, "out_norms": (2,),
                             "position_hidden": 8}),
    "ConvNeXt": ("polymax/depth", {"name": "kmax_convnext_t", **FOUR}),
    "kmax": ("polymax/semantic", {"name": "kmax_resnet18", "stem_width": 8, **FOUR})}


def config_of(kind):
  name, fields = FAMILIES[kind]
  config = configs.load_file(f"configs/{name}.py:scenes,runlocal")
  config.model.backbone = mlc.ConfigDict(fields)
  return config


def random(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def variables_of(config):
  """Random numbers for every leaf of a config's model, as {"params", "state"}."""
  plain = configs.plain(config)
  system = import_weights.make_system(plain)
  shapes = jax.eval_shape(system.init, jax.random.key(0), import_weights.batch_spec(plain))
  return random(import_weights.as_tree(shapes))


def exported(kind, folder):
  """(config, its variables) of a run whose backbone stands in the hub's layout in a folder."""
  config = config_of(kind)
  tree = variables_of(config)
  export_weights.write_hf(folder, config, Vars(tree["params"], tree["state"]))
  return config, tree


def fit(source, config, **options):
  """(the loaded tree, the report)."""
  _, loaded, report, _ = import_weights.fit(str(source), configs.plain(config), form="hf", **options)
  return loaded, report


def same(got, want):
  for (name, a), (other, b) in zip(trees.flatten_names(got), trees.flatten_names(want), strict=True):
    assert name == other and np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


@pytest.mark.parametrize("kind", FAMILIES)
def test_out_and_in_again(kind, tmp_path):
  config, tree = exported(kind, tmp_path)
  loaded, report = fit(tmp_path, config)
  found = image_backbone.find(config, where="")
  want = found.of(tree)
  if kind == "ViT":  # of whose pyramid the hub knows nothing
    want = {"params": {name: leaf for name, leaf in want["params"].items() if name != "pyramid16"}, "state": {}}
    assert "params/features/pyramid16/conv1/kernel" in report.kept
  same(found.of(loaded), want)
  assert report.fits and len(report.taken) == len(jax.tree.leaves(want))
  assert len(report.kept) == len(jax.tree.leaves(tree)) - len(report.taken)
  # A leaf that is missing, and one that nobody knows, are told by name.
  flat = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  lost = sorted(name for name in flat if name.endswith("bias"))[0]
  flat = {name: array for name, array in flat.items() if name != lost} | {"neck.weight": np.ones(2, np.float32)}
  safetensors.numpy.save_file(flat, tmp_path / "other.safetensors")
  report = fit(tmp_path / "other.safetensors", config)[1]
  assert len(report.missing) == 1 and "neck.weight" in report.extra and not report.misshaped


@pytest.mark.parametrize("kind, form", [(kind, form) for kind in FAMILIES for form in import_backbone.HUB
                                        if form == "hf" or kind in weights_peers.TABLES[form]])
def test_whose_names_they_are_is_found_out(kind, form, tmp_path):
  config = config_of(kind)
  found = image_backbone.find(config, where="")
  like = weights_rules.eval_shapes(found.module, (1, 64, 64, 3))
  table = weights_hf.table(found.module) if form == "hf" else weights_peers.table(found.module, form)
  tree = {part: {name: leaf for name, leaf in random(like)[part].items() if not name.startswith("pyramid")}
          for part in like}
  np.savez(tmp_path / "a.npz", **weights_rules.to_theirs(tree, table))
  loaded, report = fit(tmp_path / "a.npz", config)
  assert report.fits, report.text()
  same(found.of(loaded), tree)


LM = dict(vocab_size=7, seq_len=3, input_size=(8, 12), patches=dict(size=(4, 4)), num_layers=2, num_heads=2, mlp_dim=12,
          emb_dim=8, posemb_type="learn")


def language_model():
  planes = {"depth": (1, 16)}
  base = dict(inputs=planes, outputs=planes, input_size=(8, 12), patch_size=(4, 4), code_len=3, width=8, oracle_depth=1,
              base_model_depth=2, num_heads=2, mlp_dim=12, dict_size=6)
  return mlc.ConfigDict(dict(model_name="uvim.lm", model=LM, dataset="npz", oracle=dict(
      task="depth", model_name="uvim.vit", model=base)))


@pytest.mark.parametrize("form", ["hf", "timm"])
def test_a_vit_into_the_language_model(form, tmp_path):
  vit = ViT(width=8, depth=2, num_heads=2, mlp_dim=12, patch=4, grid=(2, 2), class_token=True)
  tree = random(weights_rules.eval_shapes(vit, (1, 8, 8, 3)))
  table = weights_hf.table(vit) if form == "hf" else weights_peers.table(vit, form)
  np.savez(tmp_path / "vit.npz", **weights_rules.to_theirs(tree, table))
  loaded, report = fit(tmp_path / "vit.npz", language_model())
  assert report.fits and all(name.startswith(("params/decoder", "params/pos_embedding_decoder")) for name in report.kept)
  params, block = loaded["params"], tree["params"]["block1"]
  encoder = params["encoder"]["encoderblock_1"]
  same(encoder["MultiHeadDotProductAttention_0"], block["attn"])
  same(encoder["MlpBlock_0"], {"Dense_0": block["mlp"]["fc1"], "Dense_1": block["mlp"]["fc2"]})
  same([encoder["LayerNorm_0"], encoder["LayerNorm_1"]], [block["norm1"], block["norm2"]])
  same([params["EmbedPatches"], params["encoder"]["encoder_norm"]], [tree["params"]["patch_embed"]["proj"],
                                                                    tree["params"]["norm"]])
  np.testing.assert_array_equal(params["pos_embedding_encoder"], pretrained.resample_positions(
      tree["params"]["position_embedding"], (2, 3)))


def test_tables_of_another_window_are_resized_when_asked(tmp_path):
  config, _ = exported("Swin", tmp_path)
  config.model.backbone.window_size = 6
  report = fit(tmp_path, config)[1]
  assert {name.rpartition("/")[2] for name, _, _ in report.misshaped} == {"position_bias"}
  assert fit(tmp_path, config, resample=True)[1].fits


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A small ResNet in the hub's layout, and the config of the MAD that it is for."""
  folder = tmp_path_factory.mktemp("backbone")
  exported("ResNet", folder / "resnet")
  (folder / "empty").mkdir()
  np.savez(folder / "other.npz", weight=np.ones(2))
  (folder / "mad.py").write_text("from tests.tools.import_backbone_test import config_of\n\n\n"
                                 "def get_config():\n  return config_of('ResNet')\n")
  return folder


def run(files, src, out, *flags, config="mad.py"):
  return import_weights.main(["--from=hf", f"--src={files / src}", f"--config={config if '/' in config else files / config}",
                              f"--out={out}", *flags])


def test_the_command_writes_a_whole_model(files, tmp_path, capsys):
  """What the source says nothing about has the values of the config's seed; a hole is an error, unless it is allowed."""
  assert run(files, "resnet", tmp_path / "out.npz") == 0
  assert " 0 missing, 0 extra, 0 mis-shaped" in capsys.readouterr().out
  loaded = weights.load(tmp_path / "out.npz")
  same(image_backbone.find(config_of("ResNet"), where="").of(loaded),
       image_backbone.find(config_of("ResNet"), where="").of(variables_of(config_of("ResNet"))))
  assert np.ptp(loaded["params"]["token_embedding"]) > 0
  flat = safetensors.numpy.load_file(files / "resnet" / "model.safetensors")
  del flat["embedder.embedder.normalization.bias"]
  np.savez(tmp_path / "hole.npz", **flat)
  assert run(files, tmp_path / "hole.npz", tmp_path / "no.npz") == 2
  assert "missing params/features/stem/norm/bias" in capsys.readouterr().err and not (tmp_path / "no.npz").exists()
  assert run(files, tmp_path / "hole.npz", tmp_path / "no.npz", "--dont_load=features/stem/norm/bias") == 0


@pytest.mark.parametrize("src, flags, message", [
    ("empty", (), "a folder without model.safetensors and pytorch_model.bin"),
    ("other.npz", (), "none of its names is one of the config's backbone; it begins with weight"),
    ("nowhere.bin", (), "no file"),
    ("resnet", ("--part=base_model",), "--part=base_model: --from=hf reads a backbone; leave --part out"),
    ("resnet", ("--config.model.backbone={'name': 'stem'}",), "the backbone 'stem' is a few convolutions of our own")])
def test_mistakes_are_one_line(files, tmp_path, capsys, src, flags, message):
  assert run(files, src, tmp_path / "out.npz", *flags) == 2
  error = capsys.readouterr().err
  assert error.startswith("import_weights: ") and error.count("\n") == 1 and message in error
  assert not (tmp_path / "out.npz").exists()


def test_other_systems_and_other_heads_are_named(tmp_path, capsys):
  exported("Swin", tmp_path)
  card = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(card | {"num_heads": [2, 2, 2]}))
  with pytest.raises(import_weights.UserError, match=r"\(2, 2, 2\) attention heads, but the config's model has \(1, 2, 2\)"):
    fit(tmp_path, config_of("Swin"))
  assert run(tmp_path, ".", tmp_path / "o.npz", config="configs/uvim/depth_stage1.py:scenes,runlocal") == 2
  assert "'uvim.vit' has no image backbone of the hub's kinds" in capsys.readouterr().err
