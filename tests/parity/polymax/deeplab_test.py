"""DeepLabv3+'s decoder against the authors' program."""

import jax
import jax.numpy as jnp
import pytest

from uvim_like.models.deeplab import DeepLabV3Plus
from uvim_like.ops.resize_align import resize_bilinear

pytestmark = pytest.mark.parity
TOLERANCE = 1e-5


def test_decoder(peers):
  for case in peers("deeplabv3plus_head"):
    config = case.config
    module = DeepLabV3Plus(config["ncls"], config["dec"], config["aspp"], config["proj"], config["rates"])
    inputs = jnp.asarray(case["in/res5"]), jnp.asarray(case["in/res2"])
    logits = jax.jit(module.apply)(case.variables(module, *inputs), *inputs)
    case.close(logits, "out/logits", TOLERANCE)
    case.close(resize_bilinear(logits[:1], tuple(config["up"])), "out/logits_upsampled_first_sample", TOLERANCE)
