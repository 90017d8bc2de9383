"""kMaX-DeepLab's k-means transformer decoder and predictor against the authors' program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.deeplab import RATES, SemanticBranch
from uvim_like.models.kmax_decoder import KMeansDecoder, KMeansLayer
from uvim_like.models.kmax_predictor import MaskPredictor
from uvim_like.ops.resize_align import resize_bilinear

pytestmark = pytest.mark.parity
TOLERANCE, LAYER_TOLERANCE, TRAIN_TOLERANCE = 1e-4, 2e-5, 1e-4
PREDICTOR_TOLERANCE = 1e-5
LEVELS = ("decoder_stage1", "decoder_stage2", "decoder_stage3")


def predictor_fields(config) -> dict:
  return dict(hidden_dim=config["hc"], mask_dim=config["oc"], num_classes=config["ncls"] - (config["ignore"] < config["ncls"]))


def decoder_of(case) -> KMeansDecoder:
  config = case.config
  return KMeansDecoder(config["K"], config["num_blocks"], config["width"], config["filters"], config["ffn"], 0.0,
                       predictor_fields(config))


def test_whole_decoder(peers):
  for case in peers("kmax_transformer_decoder"):
    module, levels = decoder_of(case), [jnp.asarray(case[f"in/{name}"]) for name in LEVELS]
    variables = case.variables(module, levels)
    classes, masks, layers = jax.jit(module.apply)(variables, levels)
    case.close(classes, "out/transformer_class_feature", TOLERANCE)
    case.close(masks, "out/transformer_mask_feature", TOLERANCE)
    for i, layer in enumerate(layers):
      case.close(layer.logits, f"out/aux{i}/mask_logits", TOLERANCE)
      case.close(layer.classes, f"out/aux{i}/class_logits", TOLERANCE)
      if f"out/aux{i}/pixel_feature" in case.arrays:
        case.close(layer.features, f"out/aux{i}/pixel_feature", TOLERANCE)
    assert f"out/aux{len(layers)}/mask_logits" not in case.arrays


@pytest.mark.parametrize("train", [False, True])
def test_one_layer(peers, train):
  for case in peers("kmax_transformer_decoder"):
    whole, levels = decoder_of(case), [jnp.asarray(case[f"in/{name}"]) for name in LEVELS]
    variables = case.variables(whole, levels)
    variables = {part: tree["layer_0"] for part, tree in variables.items()}
    layer = KMeansLayer(whole.width, whole.key_dim, whole.mlp_dim, 0.0, whole.predictor)
    call = jax.jit(functools.partial(layer.apply, train=train, mutable=["state"]))
    (queries, prediction), changed = call(variables, jnp.asarray(case["in/layer0_query_in"]), levels[0])
    if not train:
      case.close(queries, "out/layer0/query_out", LAYER_TOLERANCE)
      case.close(prediction.logits, "out/layer0/mask_logits", LAYER_TOLERANCE)
      np.testing.assert_array_equal(np.argmax(prediction.logits, axis=-1), case["out/layer0/assignment"])
      continue
    case.close(queries, "out/train/layer0_query_out", TRAIN_TOLERANCE)
    case.close(prediction.logits, "out/train/layer0_mask_logits", TRAIN_TOLERANCE)
    stored = {name: value for name, value in case.under("out/train/").items() if "moving_" in name}
    prefix = min((name for name in stored), key=len).split("/block1_transformer/")[0] if stored else ""
    assert stored, f"{case.name}: no moving statistics"
    want = case.variables(layer, jnp.asarray(case["in/layer0_query_in"]), levels[0], stored=stored)["state"]
    assert prefix.endswith("_0")
    for (path, value), moved in zip(jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(changed["state"]),
                                    strict=True):
      np.testing.assert_allclose(moved, value, atol=TRAIN_TOLERANCE * float(np.max(np.abs(value))), err_msg=str(path))


def test_final_predictor(peers):
  for case in peers("kmax_predictor"):
    config, given = case.config, case.under("in/")
    module = MaskPredictor(**predictor_fields(config))
    inputs = [jnp.asarray(given[name]) for name in ("feature_panoptic", "transformer_mask_feature",
                                                    "transformer_class_feature")]
    stored = {name: value for name, value in case.under("sd/").items() if "auxiliary_semantic" not in name}
    variables = case.variables(module, *inputs, stored=stored)
    out = jax.jit(module.apply)(variables, *inputs)
    case.close(out.logits, "out/pixel_space_mask_logits", PREDICTOR_TOLERANCE)
    case.close(out.features, "out/pixel_space_normalized_feature", PREDICTOR_TOLERANCE)
    case.close(out.classes, "out/transformer_class_logits", PREDICTOR_TOLERANCE)
    resized = resize_bilinear(out.logits[:1, ..., :2], tuple(config["size"]))
    case.close(resized, "out/resize_bilinear_align_corners", PREDICTOR_TOLERANCE)
    out, _ = jax.jit(functools.partial(module.apply, train=True, mutable=["state"]))(variables, *inputs)
    case.close(out.logits, "out/train/pixel_space_mask_logits", PREDICTOR_TOLERANCE)


def test_semantic_branch(peers):
  for case in peers("kmax_predictor"):
    given, stored = case.under("in/"), case.under("sd/")
    low = [stored[f"MaXDeepLab/auxiliary_semantic_decoder/low_level_conv{i}/conv/kernel"].shape[-1] for i in (1, 2)]
    module = SemanticBranch(case.config["ncls"], case.config["dec"], low, RATES)
    inputs = jnp.asarray(given["feature_semantic"]), [jnp.asarray(given["res3"]), jnp.asarray(given["res2"])]
    stored = {name: value for name, value in stored.items() if "auxiliary_semantic" in name}
    variables = case.variables(module, *inputs, stored=stored)
    case.close(jax.jit(module.apply)(variables, *inputs), "out/semantic_logits", PREDICTOR_TOLERANCE)
