"""A whole kMaX-DeepLab, from pixels to masks and classes, against the authors' program."""

import functools

import jax
import jax.numpy as jnp
import pytest

from uvim_like.models.kmax import Model

pytestmark = pytest.mark.parity
TOLERANCE, TRAIN_TOLERANCE = 1e-4, 2e-3


def model_of(case) -> Model:
  """Every size from the file: the encoder's from its weights."""
  config, stored = case.config, case.under("sd/")
  encoder = {name: value.shape for name, value in stored.items() if name.startswith("encoder::")}
  stages = [[name for name in encoder if f"/stage{s}/" in name and "/conv3_bn/conv/" in name] for s in (2, 3, 4, 5)]

  decoder = {name: value.shape for name, value in stored.items() if name.startswith("pixel_decoder::")}
  blocks = [sum(f"kmax_pixeldecoder_{i}/" in name and name.endswith("/conv3_bn/conv/kernel") for name in decoder)
            for i in range(4)]
  layers = [len({name.split("/")[1] for name in stored if f"kmax_transformer_decoder_os{stride}_" in name})
            for stride in (32, 16, 8)]
  return Model(
      backbone=dict(name="kmax_resnet50", depths=[len(found) for found in stages],
                    widths=[encoder[found[0]][-1] for found in stages],
                    stem_width=encoder["encoder::resnet50/stem/conv/kernel"][-1]),
      num_queries=config["K"], num_classes=config["ncls"] - (config["ignore"] < config["ncls"]), dims=config["dims"],
      blocks=blocks, layers=layers, width=config["width"], key_dim=config["filters"], mlp_dim=config["ffn"],
      hidden_dim=config["hc"], mask_dim=config["oc"])


@pytest.mark.parametrize("train", [False, True])
def test_whole_network(peers, train):
  for case in peers("kmax_end_to_end"):
    model = model_of(case)
    image = jnp.asarray(case["in/image_0_255"]) / 127.5 - 1
    variables = case.variables(model, image)
    call = jax.jit(functools.partial(model.apply, train=train, mutable=["state"]))
    out, _ = call(variables, image)
    prefix, tolerance = ("out/train/", TRAIN_TOLERANCE) if train else ("out/", TOLERANCE)
    case.close(out.final.logits, f"{prefix}mask_logits", tolerance)
    case.close(out.final.classes, f"{prefix}class_logits", tolerance)
    for i, layer in enumerate(out.layers):
      case.close(layer.logits, f"{prefix}aux{i}/mask_logits", tolerance)
    assert f"{prefix}aux{len(out.layers)}/mask_logits" not in case.arrays
