"""Every message about a wrong config of UViM's two stages: it names the place and the nearest choice."""

import re

import pytest

from uvim_like.errors import UserError
from uvim_like.systems.uvim import lm, vit


@pytest.mark.parametrize("changes, message", [
    ({"model__widht": 8}, "config.model: unknown field 'widht'; did you mean 'width'?"),
    ({"model__enc_depth": 8}, "config.model: unknown field 'enc_depth'; did you mean 'oracle_depth'?"),
    ({"model__dtype": "bfloat16"}, "config.model: unknown field 'dtype'"),
    ({"model__inputs": None}, "config.model: 'inputs' is missing"),
    ({"model__outputs": None}, "config.model: 'outputs' is missing"),
    ({"model__input_size": [9, 12]}, "config.model.input_size: height 9 is no multiple of the patch's 4; nearest: 8"),
    ({"model__input_size": [8, 2]}, "config.model.input_size: width 2 is no multiple of the patch's 3; nearest: 3"),
    ({"model__code_dropout": "randm"}, "config.model.code_dropout: 'randm' is none of none, random, ordered"),
    ({"model__quantizer": "vqvae"}, "config.model.quantizer: 'vqvae' is none of vq, fsq"),
    ({"model__outputs__instances": [5, 11]}, "'instances' has 11 pixels in a patch, patch_size (4, 3) has 12"),
    ({"model__bottleneck_resize": True, "model__code_len": 5},
     "config.model.code_len: 5 is no square, which bottleneck_resize needs; nearest: 4"),
    ({"model__quantizer": "fsq", "model__fsq_levels": [3, 5]},
     "config.model.dict_size: 12 words, but fsq_levels (3, 5) make 15"),
    ({"task": "panoptic_segmentaton"},
     "config.task: unknown name 'panoptic_segmentaton'; did you mean 'panoptic_segmentation'?"),
    ({"task": "boxes"}, "config.task: unknown name 'boxes'; valid: colorization, depth, depth_regression, "),
    ({"dtype": "float16"}, "config.dtype: unknown value 'float16'; did you mean '"),
    ({"remat": "fulll"}, "config.remat: unknown value 'fulll'; did you mean 'full'?")])
def test_wrong_stage_one(stage_one_config, changes, message):
  with pytest.raises(UserError, match=re.escape(message)):
    vit.make(stage_one_config(**changes))


@pytest.mark.parametrize("changes, message", [
    ({"model__num_layer": 1}, "config.model: unknown field 'num_layer'; did you mean 'num_layers'?"),
    ({"model__seq_len": None}, "config.model: 'seq_len' is missing"),
    ({"model__vocab_size": 12},
     "config.model.vocab_size: 12, but the oracle's dictionary of 12 words and the start token need 13"),
    ({"model__seq_len": 9}, "config.model.seq_len: 9, but the oracle's code has 4 words"),
    ({"model__input_size": [8, 10]}, "config.model.input_size: width 10 is no multiple of the patch's 4; nearest: 8"),
    ({"model__emb_dim": 15}, "config.model.emb_dim: 15 is no multiple of num_heads 2"),
    ({"oracle__model__widht": 8}, "config.oracle.model: unknown field 'widht'; did you mean 'width'?"),
    ({"oracle__model__input_size": [8, 13]},
     "config.oracle.model.input_size: width 13 is no multiple of the patch's 3; nearest: 12"),
    ({"oracle__task": "dept"}, "config.oracle.task: unknown name 'dept'; did you mean 'depth'?"),
    ({"dtype": "bfloat32"}, "config.dtype: unknown value 'bfloat32'; did you mean '"),
    ({"remat": "dot"}, "config.remat: unknown value 'dot'; did you mean 'dots'?")])
def test_wrong_stage_two(stage_two_config, changes, message):
  with pytest.raises(UserError, match=re.escape(message)):
    lm.make(stage_two_config(**changes))


# Each of these passes `make`, or ends in a bare KeyError or TypeError, unless `make` looks for it.
@pytest.mark.parametrize("changes, message", [
    ({"model__inputs": {"semantics": [5, 13], "instances": [4, 12]}}, "'semantics' has 13 pixels in a patch"),
    ({"model__posemb": "sincos"}, "config.model.posemb"),
    ({"model__num_heads": 3}, "config.model.width: 8"),
    ({"model__inputs": {"semantic": [5, 12], "instances": [4, 12]}}, "config.model.inputs"),
    ({"model__outputs": {"semantics": [5, 12]}}, "config.model.outputs"),
    ({"task": "depth"}, "config.model.inputs"),
    ({"model__quantizer": "fsq", "model__fsq_levels": [12, 1]}, "config.model.fsq_levels"),
    ({"remat": True}, "config.remat"),
    ({"dtype": 32}, "config.dtype")])
def test_stage_one_mistakes_that_need_a_look(stage_one_config, changes, message):
  with pytest.raises(UserError, match=re.escape(message)):
    vit.make(stage_one_config(**changes))


@pytest.mark.parametrize("changes, message", [
    ({"model__posemb_type": "learnt"}, "config.model.posemb_type"),
    ({"model__posemb_type": "sincos2d", "model__emb_dim": 18}, "config.model.emb_dim: 18"),
    ({"model__patches": {"siz": [4, 4]}}, "config.model.patches"),
    ({"oracle__model__zero_decoder_seq": True}, "config.oracle.model.zero_decoder_seq")])
def test_stage_two_mistakes_that_need_a_look(stage_two_config, changes, message):
  with pytest.raises(UserError, match=re.escape(message)):
    lm.make(stage_two_config(**changes))


def test_messages_are_one_line(stage_one_config):
  with pytest.raises(UserError) as error:
    vit.make(stage_one_config(model__widht=8))
  assert "\n" not in str(error.value)
