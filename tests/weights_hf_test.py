"""Foreign names: templates, layouts with known answers, older names, prefixes, reports, resampled position tables."""

import jax
import numpy as np
import pytest

from uvim_like import weights_hf, weights_peers, weights_rules
from uvim_like.errors import UserError
from uvim_like.models.backbones import make_backbone
from uvim_like.trees import flatten_names
from uvim_like.weights_rules import LAYOUTS, Rule, Table

FIELDS = {
    "ResNet": {"name": "resnet50", "depths": (1, 2), "widths": (16, 32), "stem_width": 8},
    "ConvNeXt": {"name": "convnext_t", "depths": (1, 2), "widths": (8, 16)},
    "Swin": {"name": "swin_b", "width": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4, "out_norms": (1,)},
    "SwinV2": {"name": "swinv2_b", "width": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4,
               "use_shift": True, "pretrain_window": 0, "out_norms": (1,), "position_hidden": 8},
    "ViT": {"name": "vit_b", "width": 16, "depth": 2, "num_heads": 2, "patch": 8, "grid": (4, 4), "class_token": True}}
SOURCES = {"hf": tuple(FIELDS), **{source: tuple(kinds) for source, kinds in weights_peers.TABLES.items()}}
CASES = [(source, kind) for source, kinds in SOURCES.items() for kind in kinds]


def random_tree(like, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), like)


def model_and_table(source, kind, **fields):
  model = make_backbone(FIELDS[kind] | fields)
  table = weights_hf.table(model) if source == "hf" else weights_peers.table(model, source)
  return model, table, weights_rules.eval_shapes(model, (1, 32, 32, 3))


@pytest.mark.parametrize("source, kind", CASES)
def test_ours_to_theirs_and_back_are_the_same_bits(source, kind):
  _, table, like = model_and_table(source, kind)
  tree = random_tree(like)
  theirs = weights_rules.to_theirs(tree, table)
  back, report = weights_rules.merge(like, theirs, table)
  assert report.fits and len(report.taken) == len(jax.tree.leaves(like))
  for (name, a), (_, b) in zip(flatten_names(tree), flatten_names(back)):
    assert a.tobytes() == np.asarray(b).tobytes(), name


@pytest.mark.parametrize("source, kind, names", [
    ("ait", "SwinV2", {"layers.1.blocks.1.attn.rpe_mlp.2.weight": (2, 8),
                       "layers.0.downsample.reduction.weight": (16, 32),
                       "layers.1.blocks.0.attn.logit_scale": (2, 1, 1), "norm1.weight": (16,)}),
    ("torchvision", "ResNet", {"layer2.1.bn3.running_var": (32,), "layer1.0.downsample.0.weight": (16, 8, 1, 1)}),
    ("detectron2", "ResNet", {"stem.conv1.norm.running_mean": (8,), "res3.0.shortcut.weight": (32, 16, 1, 1)}),
    ("swin", "Swin", {"layers.0.blocks.0.attn.relative_position_bias_table": (49, 1),
                      "layers.1.blocks.1.attn.qkv.bias": (48,)}),
    ("hf", "ViT", {"layers.1.attention.o_proj.weight": (16, 16), "embeddings.position_embeddings": (1, 17, 16)}),
    ("hf", "ConvNeXt", {"encoder.stages.1.downsampling_layer.1.weight": (16, 8, 2, 2),
                        "encoder.stages.0.layers.0.dwconv.weight": (8, 1, 7, 7)}),
    ("kmax", "ResNet", {"_stage3/_block2/_conv3_bn/_batch_norm/gamma/.ATTRIBUTES/VARIABLE_VALUE": (32,)}),
])
def test_names_and_shapes_there(source, kind, names):
  _, table, like = model_and_table(source, kind)
  theirs = weights_rules.to_theirs(random_tree(like), table)
  for name, shape in names.items():
    assert theirs[name].shape == shape, name


def test_older_names_of_the_library_are_read():
  for kind, renames in {
      "Swin": (("attention.q_proj", "attention.self.query"), ("attention.k_proj", "attention.self.key"),
               ("attention.v_proj", "attention.self.value"), ("attention.o_proj", "attention.output.dense"),
               ("attention.relative_position_bias.", "attention.self."), ("mlp.fc1", "intermediate.dense"),
               ("mlp.fc2", "output.dense")),
      "ViT": (("layers.", "encoder.layer."), ("attention.q_proj", "attention.attention.query"),
              ("attention.k_proj", "attention.attention.key"), ("attention.v_proj", "attention.attention.value"),
              ("attention.o_proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"),
              ("mlp.fc2", "output.dense"))}.items():
    _, table, like = model_and_table("hf", kind)
    tree = random_tree(like)
    theirs = weights_rules.to_theirs(tree, table)
    older = {}
    for name, array in theirs.items():
      for new, old in renames if not (kind == "Swin" and name.startswith("layernorm")) else ():
        name = name.replace(new, old)
      older[f"{kind.lower()}.{name}"] = array
    older |= {"classifier.weight": np.zeros((2, 2)), "classifier.bias": np.zeros(2)}
    back, report = weights_rules.merge(like, older, table)
    assert report.fits, report.text()
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_layouts():
  weight = np.arange(6.0).reshape(3, 2)  # (out, in)
  np.testing.assert_array_equal(LAYOUTS["dense"].to_ours(weight, ())[1], weight[:, 1])
  heads = LAYOUTS["heads_in"].to_ours(np.arange(8.0).reshape(4, 2), (2, 2, 2))
  np.testing.assert_array_equal(heads[0], [[0, 2], [4, 6]])  # input 0: outputs 0, 1 are head 0
  out = LAYOUTS["heads_out"].to_ours(np.arange(8.0).reshape(2, 4), (2, 2, 2))
  np.testing.assert_array_equal(out[1, 0], [2, 6])  # head 1, its first channel: column 2
  conv = np.random.default_rng(0).normal(size=(5, 4, 3, 2))
  assert LAYOUTS["conv"].to_ours(conv, ())[2, 1, 3, 4] == conv[4, 3, 2, 1]


def test_side_by_side_queries_keys_and_values():
  _, table, like = model_and_table("hf", "Swin")
  theirs = weights_rules.to_theirs(random_tree(like), table)
  name = "encoder.layers.1.blocks.1.attention.{}_proj.weight"
  ours = weights_rules.to_ours(theirs, table, like).tree["params"]["stage1_block1"]["attn"]["qkv"]["kernel"]
  np.testing.assert_array_equal(ours[:, 16:32], theirs[name.format("k")].T)
  del theirs[name.format("k")]
  converted = weights_rules.to_ours(theirs, table, like)
  assert set(converted.rest) == {name.format("q"), name.format("v")}
  report = weights_rules.merge(random_tree(like), theirs, table, strict=False)[1]
  assert report.missing == ("params/stage1_block1/attn/qkv/kernel",) and set(report.extra) == set(converted.rest)


def test_report_names_what_does_not_fit():
  _, table, like = model_and_table("hf", "ResNet")
  theirs = weights_rules.to_theirs(random_tree(like), table)
  theirs["embedder.embedder.normalization.weight"] = np.zeros(9, np.float32)
  theirs["neck.weight"] = np.zeros(3)
  theirs["encoder.stages.1.layers.1.layer.0.normalization.num_batches_tracked"] = np.array(7)
  with pytest.raises(UserError, match="resnet: does not fit the model: .*extra neck.weight.*stem/norm/scale"):
    weights_rules.merge(like, theirs, table, where="resnet")
  report = weights_rules.merge(random_tree(like), theirs, table, strict=False)[1]
  assert report.extra == ("neck.weight",) and report.misshaped == (("params/stem/norm/scale", (9,), (8,)),)
  kept = weights_rules.merge(random_tree(like), theirs, table, ["params/stem/.*", "neck.*"])[1]
  assert len(kept.kept) == 3


def test_a_file_of_another_format_is_named_as_such():
  _, table, like = model_and_table("hf", "ResNet")
  with pytest.raises(UserError, match="no array has a name of this format; the file has conv1.weight"):
    weights_rules.merge(like, {"conv1.weight": np.zeros(3)}, table)
  with pytest.raises(UserError, match="'params/neck' has no name"):
    weights_rules.to_theirs({"params": {"neck": np.zeros(3)}, "state": {}}, table)
  with pytest.raises(UserError, match="unknown format 'aït'"):
    weights_peers.table(make_backbone(FIELDS["Swin"]), "aït")
  with pytest.raises(UserError, match="ait: unknown backbone 'Swin'; did you mean 'SwinV2'"):
    weights_peers.table(make_backbone(FIELDS["Swin"]), "ait")


@pytest.mark.parametrize("kind, fields, name", [("Swin", {"window_size": 6}, "stage0_block0/attn/position_bias"),
                                                ("ViT", {"grid": (6, 6)}, "position_embedding")])
def test_position_tables_are_resized_only_when_asked(kind, fields, name):
  _, table, like = model_and_table("hf", kind)
  theirs = weights_rules.to_theirs(random_tree(like), table)
  _, _, larger = model_and_table("hf", kind, **fields)
  report = weights_rules.merge(random_tree(larger), theirs, table, strict=False)[1]
  assert f"params/{name}" in [row[0] for row in report.misshaped] and not report.missing
  tree, report = weights_rules.merge(larger, theirs, table, resample=True)
  assert report.fits
  if kind == "ViT":  # the class token's row is no place in the image
    np.testing.assert_array_equal(tree["params"][name][:, 0], theirs["embeddings.position_embeddings"][:, 0])


def test_class_token_is_left_out_where_the_model_has_none():
  _, table, like = model_and_table("hf", "ViT")
  theirs = weights_rules.to_theirs(random_tree(like), table)
  _, table, like = model_and_table("hf", "ViT", class_token=False)
  tree, report = weights_rules.merge(like, theirs, table)
  assert report.fits
  np.testing.assert_array_equal(tree["params"]["position_embedding"], theirs["embeddings.position_embeddings"][:, 1:])


def test_numbers_with_an_offset():
  table = Table((Rule("params/a{s}", ("x{s+2}.y",)),))
  tree = weights_rules.to_ours({"x5.y": np.zeros(1), "x5.yy": np.ones(1)}, table, {"params": {}, "state": {}})
  assert set(tree.tree["params"]) == {"a3"} and set(tree.rest) == {"x5.yy"}
  assert set(weights_rules.to_theirs({"params": {"a0": np.zeros(1)}, "state": {}}, table)) == {"x2.y"}


def test_fields_of_a_config_name_what_is_not_known():
  with pytest.raises(UserError, match="unknown model_type 'convnextv2'; did you mean 'convnext'"):
    weights_hf.model_fields({"model_type": "convnextv2"})
  with pytest.raises(UserError, match="hidden_act 'swish'"):
    weights_hf.model_fields({"model_type": "vit", "hidden_act": "swish"})
  with pytest.raises(UserError, match="use_absolute_embeddings"):
    weights_hf.model_fields({"model_type": "swin", "use_absolute_embeddings": True})
