"""Sizes that do not fit each other are named before anything is compiled."""

import pytest

from uvim_like.errors import UserError
from uvim_like.systems.uvim import lm, vit

PLANES = {"depth": (16, 64)}


def stage_one(**model) -> dict:
  return {"task": "depth", "model": {"input_size": (32, 64), "patch_size": (8, 8), "width": 16, "num_heads": 2,
                                     "inputs": PLANES, "outputs": PLANES} | model}


def stage_two(oracle: dict | None = None, **model) -> dict:
  fields = {"vocab_size": 65, "seq_len": 16, "input_size": (32, 64), "patches": {"size": (8, 8)}, "num_layers": 1,
            "num_heads": 2, "mlp_dim": 16, "emb_dim": 16}
  stage = stage_one(code_len=16, dict_size=64, **(oracle or {}))
  return {"oracle": {"task": "depth", "model": stage["model"]}, "model": fields | model}


@pytest.mark.parametrize("make, config, expected", [
    (vit.make, stage_one(input_size=(32, 60)), "config.model.input_size: width 60 is no multiple of the patch's 8; nearest: 64"),
    (vit.make, stage_one(input_size=33), "input_size 33 must be (height, width), e.g. (33, 33)"),
    (lm.make, stage_two(input_size=(33, 64)), "config.model.input_size: height 33"),
    (lm.make, stage_two(oracle={"input_size": (33, 64)}), "config.oracle.model.input_size: height 33"),
    (lm.make, stage_two(vocab_size=64), "config.model.vocab_size: 64, but the oracle's dictionary of 64 words"),
    (lm.make, stage_two(seq_len=8), "config.model.seq_len: 8, but the oracle's code has 16 words"),
])
def test_message(make, config, expected):
  with pytest.raises(UserError) as error:
    make(config)
  assert expected in str(error.value)
