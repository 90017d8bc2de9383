r"""UViM stage II on COCO panoptic: the language model of the guiding code (Listing 2 of the UViM paper, appendix D).

  python -m train --config=configs/uvim/panoptic_stage2.py --workdir=workdir/panoptic_stage2 \
    --config.oracle.model_init=workdir/panoptic_stage1

44,606 steps of 512 images; 716 M parameters, the image encoder from a ViT-L/16 (ImageNet-21k). Hardware and
hours: not stated with the recipe, not measured here. Expected on COCO validation: 43.1 PQ (paper, README of its
release); the released config's docstring says about 43.7 PQ on the held-out images, 39.4 with `singlehost,released`
(whose key for the epochs had no effect in the release: 50 or 200 is not known).

Arguments, after a colon and separated by commas (the oracle's must be those of its own training):
  released     the oracle has the resized bottleneck
  scenes       the generated dataset in place of COCO
  folder       own data in --config.data_dir, whose sizes and classes are read
  runlocal     two CPU cores and a few minutes. With `scenes`: 30.1 PQ after 4.5 minutes on one core was measured
               on a prototype with such a code (stage I itself: 33.4 PQ, a constant map: 9.7 PQ)
  singlehost   batch 32, 50 epochs
  res=, patch= resolution and patch size in pixels (512, 16; with runlocal 64, 8)
"""

import ml_collections as mlc

from configs import common

LM_MODELS = common.LM_MODELS
STAGE_I_MODELS = common.STAGE_I_MODELS


def get_config(arg=''):
  """Listing 2; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg)
  R, S = arg.res, arg.patch
  config = mlc.ConfigDict()

  config.pp_modules = ['ops_general', 'ops_image', 'proj.uvim.pp_ops']

  labels = 'coco_panoptic|concat(["semantics","instances"], "labels")'
  ctx = f'resize({R}, inkey="image", outkey="image_ctx")|resize({R})'
  ranges = 'value_range(-1, 1, key="image_ctx")|value_range(-1, 1)'
  tail = f'{ctx}|{common.resize_labels(R)}|{ranges}|make_canonical|keep("image", "image_ctx", "labels")'
  config.pp_train = common.join('decode', labels, common.augment_panoptic(arg), tail)
  config.pp_eval = f'decode|{labels}|{tail}'

  config.dataset = 'coco/2017_panoptic'
  config.train_split = 'train[4096:]'
  config.val_split = 'train[:4096]'

  config.shuffle_buffer_size = 50_000
  config.batch_size = 512
  config.num_epochs = 200

  config.log_training_steps = 50
  config.log_eval_steps = 1000
  config.checkpoint_steps = 1000
  config.keep_checkpoint_steps = 5000

  # Optimizer section
  config.optax_name = 'scale_by_adafactor'
  config.optax = dict(beta2_cap=0.95)
  config.lr = 0.001
  config.wd = 0.000001
  config.lr_mults = [
      ('pos_embedding_encoder.*', 0.1),
      ('EmbedPatches.*', 0.1),
      ('encoder.*', 0.1),
      ('decoder.*', 1.0),
  ]
  config.schedule = dict(decay_type='cosine', warmup_steps=4_000)

  # Oracle section
  config.oracle = dict()
  config.oracle.task = 'panoptic_segmentation'
  config.oracle.model_init = 'oracle.npz'
  config.oracle.model_name = 'proj.uvim.vit'
  config.oracle.model = STAGE_I_MODELS['base']
  config.oracle.model.input_size = (R, R)
  config.oracle.model.patch_size = (S, S)
  config.oracle.model.code_len = 256
  config.oracle.model.dict_size = 4096
  config.oracle.model.codeword_dim = 768
  config.oracle.model.with_encoder_ctx = True
  config.oracle.model.with_decoder_ctx = True
  config.oracle.model.inputs = common.panoptic_planes(arg)
  config.oracle.model.outputs = config.oracle.model.inputs

  # Model section
  config.model_name = 'proj.uvim.lm'
  config.model_init = {'encoder': 'howto-i21k-L/16'}
  config.model = LM_MODELS['large']
  config.model.patches = dict(size=(S, S))
  config.model.vocab_size = config.oracle.model.get_ref('dict_size') + 1
  config.model.posemb_type = 'learn'
  config.model.input_size = (R, R)
  config.model.seq_len = config.oracle.model.get_ref('code_len')

  # Evaluation section
  common.panoptic_evals(config, f'{ctx}|{ranges}|keep("image", "image_ctx", "image/id")', scenes=arg.scenes,
                        folder=arg.folder)

  return common.vary(config, arg, singlehost=(32, 50))
