"""MAD's and DeepLab2's own files through the import: stored weights of the authors' programs, all of them taken."""

import json

import jax
import ml_collections as mlc
import numpy as np
import pytest

from tests.tools.import_backbone_test import random, same
from tools import import_weights
from uvim_like import config as configs
from uvim_like import weights_peers, weights_rules
from uvim_like.errors import UserError
from uvim_like.models.backbones import make_backbone


def stored(golden_dir, name):
  """(sizes, {name: array}) of a stored run's weights."""
  [path] = sorted(golden_dir.rglob(f"{name}.json"))
  with np.load(path.with_suffix(".npz")) as data:
    return json.loads(path.read_text())["config"], {key.removeprefix("sd/"): data[key] for key in data.files
                                                    if key.startswith("sd/")}


def fit(source, config, form, **options):
  """(the loaded tree, the report)."""
  _, loaded, report, _ = import_weights.fit(str(source), configs.plain(mlc.ConfigDict(config)), form=form, **options)
  return loaded, report


@pytest.fixture(scope="module")
def mad(golden_dir, tmp_path_factory):
  """(config, backbone's numbers, folder): MAD's stored transformer on a small ResNet with detectron2's names."""
  sizes, state = stored(golden_dir, "mad_model")
  fields = {"name": "resnet50", "depths": (1, 1), "widths": (16, sizes["cin"]), "stem_width": 8}
  config = dict(
      task="instance_segmentation", model_name="mad.decoder", dataset="npz",
      sequences=dict(classes=sizes["nc"], bins=sizes["nb"], text=sizes["words"], queries=sizes["nq"],
                     mask_side=sizes["ms"], joints=sizes["nk"], caption_length=sizes["cap"], prompt_tokens=6),
      model=dict(backbone=fields, width=sizes["d"], num_heads=sizes["heads"], mlp_dim=sizes["ff"],
                 encoder_layers=sizes["enc"], decoder_layers=sizes["dec"]))
  # The stored run has more positions than its longest sequence, one object a query behind its prompt, can reach.
  state["seq_pos_embed"] = state["seq_pos_embed"][:6 + 5 * sizes["nq"]]
  module = make_backbone(fields)
  tree = random(weights_rules.eval_shapes(module, (1, 32, 32, 3)))
  body = weights_rules.to_theirs(tree, weights_peers.table(module, "detectron2"))
  folder = tmp_path_factory.mktemp("mad")
  np.savez(folder / "all.npz", **state, **{f"backbone.{name}": array for name, array in body.items()})
  np.savez(folder / "backbone.npz", **body)
  np.savez(folder / "hole.npz", **{name: x for name, x in state.items() if name != "seq_pos_embed"}, stray=np.ones(2),
           **{f"backbone.{name}": array for name, array in body.items()})
  return config, tree, state, folder


def test_mads_checkpoint(mad):
  config, tree, state, folder = mad
  loaded, report = fit(folder / "all.npz", config, "detectron")
  assert report.fits and not report.kept
  same([loaded["params"]["features"], loaded["state"]["features"]], [tree["params"], tree["state"]])
  np.testing.assert_array_equal(loaded["params"]["token_embedding"], state["vocab_embed.embeddings.weight"])
  report = fit(folder / "hole.npz", config, "detectron")[1]
  assert report.missing == ("params/position_embedding",) and report.extra == ("stray",)


def test_a_detectron_backbone_alone(mad):
  config, tree, _, folder = mad
  loaded, report = fit(folder / "backbone.npz", config, "detectron", part="encoder")
  assert report.fits and len(report.taken) == len(jax.tree.leaves(tree))
  same([loaded["params"]["features"], loaded["state"]["features"]], [tree["params"], tree["state"]])


def test_mistakes_with_mads_files(mad, tmp_path):
  config, _, _, folder = mad
  with pytest.raises(UserError, match="no checkpoint of MAD's: .* a backbone alone is read with --part=encoder"):
    fit(folder / "backbone.npz", config, "detectron")
  with pytest.raises(UserError, match="config.model_name is 'uvim.vit', --part is 'all'; a whole checkpoint is MAD's"):
    import_weights.READERS["detectron"](str(folder / "all.npz"), {"model_name": "uvim.vit", "model": {}}, {})
  uneven = config | {"model": config["model"] | {"num_heads": 16, "width": 48}}
  np.savez(tmp_path / "a.npz", **{"transformer.encoder.layers.0.attentions.0.attn.out_proj.weight": np.ones((24, 24))})
  with pytest.raises(UserError, match=r"of \(24, 24\) does not divide into config.model.num_heads 16"):
    fit(tmp_path / "a.npz", uneven, "detectron")


@pytest.fixture(scope="module")
def kmax(golden_dir):
  """(config, {variable's name: array}, their keys in an object-based checkpoint) of a stored network."""
  sizes, state = stored(golden_dir, "kmax_end_to_end")

  def count(text):
    return sum(text in name and name.endswith("conv3_bn/conv/kernel") for name in state)

  stages = range(2, 6)
  widths = [state[f"encoder::resnet50/stage{s}/block1/conv3_bn/conv/kernel"].shape[-1] for s in stages]
  layers = [len({name.split("/")[1] for name in state if f"kmax_transformer_decoder_os{stride}_" in name})
            for stride in (32, 16, 8)]
  config = dict(
      task="panoptic_segmentation", model_name="polymax.kmax", dataset="npz", losses=dict(semantic=0.0), head=dict(num_things=1),
      model=dict(backbone=dict(name="kmax_resnet50", depths=[count(f"encoder::resnet50/stage{s}/") for s in stages],
                               widths=widths, stem_width=state["encoder::resnet50/stem/conv/kernel"].shape[-1]),
                 num_queries=sizes["K"], num_classes=sizes["ncls"], dims=sizes["dims"],
                 blocks=[count(f"kmax_pixeldecoder_{i}/") for i in range(4)], layers=layers, width=sizes["width"],
                 key_dim=sizes["filters"], mlp_dim=sizes["ffn"], hidden_dim=sizes["hc"], mask_dim=sizes["oc"]))
  return config, state, sizes["object_keys"]


def test_deeplab2s_variables(kmax, tmp_path):
  config, state, _ = kmax
  np.savez(tmp_path / "a.npz", **state, save_counter=np.ones(()))
  loaded, report = fit(tmp_path / "a.npz", config, "deeplab2")
  assert report.fits and len(report.taken) == len(state), report.text()
  report = fit(tmp_path / "a.npz", config | {"model": config["model"] | {"num_classes": 9}}, "deeplab2")[1]
  assert report.misshaped and not report.missing and not report.extra
  part, report = fit(tmp_path / "a.npz", config, "deeplab2", part="encoder")
  assert report.fits and len(report.taken) == sum(name.startswith("encoder::") for name in state)
  same(part["params"]["encoder"], loaded["params"]["encoder"])


def test_keys_of_an_object_based_checkpoint(kmax, tmp_path):
  config, state, keys = kmax
  np.savez(tmp_path / "a.npz", **{key: state[name] for name, key in (
      (name, keys.get(name.partition("::")[2])) for name in state) if key})
  np.savez(tmp_path / "b.npz", **state)
  ours, report = fit(tmp_path / "a.npz", config, "deeplab2", part="encoder")
  assert report.fits, report.text()
  same(ours["params"]["encoder"], fit(tmp_path / "b.npz", config, "deeplab2", part="encoder")[0]["params"]["encoder"])
  with pytest.raises(UserError, match="known for the encoder alone: use --part=encoder"):
    fit(tmp_path / "a.npz", config, "deeplab2")


def test_mistakes_with_deeplab2s_files(kmax, mad, tmp_path):
  np.savez(tmp_path / "a.npz", **{"some/where": np.ones(2)})
  for part in ("all", "encoder"):
    with pytest.raises(UserError, match="none of its names is a variable of DeepLab2's; it begins with some/where"):
      fit(tmp_path / "a.npz", kmax[0], "deeplab2", part=part)
  with pytest.raises(UserError, match="config.model_name is 'mad.decoder', --part is 'all'; valid: polymax.kmax"):
    fit(tmp_path / "a.npz", mad[0], "deeplab2")
