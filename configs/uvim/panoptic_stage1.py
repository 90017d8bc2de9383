r"""UViM stage I on COCO panoptic: base model and restricted oracle (Listing 1 of the UViM paper, appendix D).

  python -m train --config=configs/uvim/panoptic_stage1.py --workdir=workdir/panoptic_stage1

111,515 steps of 1024 images; 224 M parameters. Hardware and hours: not stated with the recipe, not measured
here; `singlehost` is the release's variant for one host. Expected on COCO validation, oracle given the truth:
75.8 PQ (paper, README of its release), about 67.8 PQ with `singlehost,released` (docstring of the released config,
whose key for the epochs of that variant had no effect: 100 or 1000 is not known).

Arguments, after a colon and separated by commas:
  released     the released config of later date: resized bottleneck, code dropout 'random'
  scenes       the generated dataset in place of COCO
  folder       own data in --config.data_dir, whose sizes and classes are read
  runlocal     two CPU cores and a few minutes; `scenes,runlocal` is the recipe of this size. A prototype with
               such a code reached 33.4 PQ on 300 images in 4.5 minutes on one core; a constant map reaches 9.7 PQ
  singlehost   batch 128, 100 epochs
  res=, patch= resolution and patch size in pixels (512, 16; with runlocal 64, 8)
"""

import ml_collections as mlc

from configs import common


def get_config(arg=''):
  """Listing 1; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg)
  R, S = arg.res, arg.patch
  config = mlc.ConfigDict()

  config.task = 'panoptic_segmentation'

  config.dataset = 'coco/2017_panoptic'
  config.val_split = 'train[:4096]'
  config.train_split = 'train[4096:]'

  config.batch_size = 1024
  config.num_epochs = 1000

  labels = 'coco_panoptic|concat(["semantics","instances"], "labels")'
  tail = (f'resize({R})|resize({R}, key="labels", method="nearest")|value_range(-1, 1)|make_canonical|'
          'keep("image","labels")')
  config.pp_train = common.join('decode', labels, common.augment_panoptic(arg), tail)
  config.pp_eval = f'decode|{labels}|{tail}'

  config.shuffle_buffer_size = 25_000

  config.log_training_steps = 50
  config.log_eval_steps = 250
  config.checkpoint_steps = 1000
  config.keep_checkpoint_steps = 20_000

  # Model section
  config.model_name = 'proj.uvim.vit'
  config.model = mlc.ConfigDict()
  config.model.input_size = (R, R)
  config.model.patch_size = (S, S)
  config.model.code_len = 256
  config.model.width = 768
  config.model.oracle_depth = 6
  config.model.base_model_depth = 12
  config.model.mlp_dim = 3072
  config.model.num_heads = 12
  config.model.dict_size = 4096
  config.model.codeword_dim = 768
  config.model.dict_momentum = 0.995
  config.model.with_encoder_ctx = True
  config.model.with_decoder_ctx = True
  config.model.inputs = common.panoptic_planes(arg)
  config.model.outputs = config.model.inputs

  # Optimizer section
  config.optax_name = 'scale_by_adafactor'
  config.optax = dict(beta2_cap=0.95)

  config.lr = 4e-4
  config.wd = 4e-5
  config.schedule = dict(decay_type='cosine', warmup_steps=4_000)
  config.grad_clip_norm = 1.0

  # Evaluation section
  common.panoptic_evals(config, f'{labels}|{tail}', scenes=arg.scenes, folder=arg.folder)

  return common.vary(config, arg, singlehost=(128, 100))
