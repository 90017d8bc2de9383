r"""UViM stage II on ImageNet: the language model of the guiding code (UViM paper, section 4.2; as released).

  python -m train --config=configs/uvim/color_stage2.py --workdir=workdir/color_stage2 \
    --config.oracle.model_init=workdir/color_stage1

124,714 steps of 512 images. Hardware and hours: not stated, not measured here. Expected: FID-5k 16.99 (README of the
paper's release); the release's colour notebook samples the code at temperature 1.

Arguments, after a colon and separated by commas (the oracle's must be those of its own training):
  released=False  the oracle has the bottleneck of the paper's listings; the released one is the default
  scenes          the generated dataset in place of ImageNet
  folder          own data in --config.data_dir, whose sizes and classes are read
  runlocal        two CPU cores and a few minutes
  inception=PATH  evaluates FID-5k too, with the Inception network exported to PATH (see evaluators/coltran_fid.py)
  singlehost      batch 32, 20 epochs
  res=, patch=    resolution and patch size in pixels (512, 16; with runlocal 64, 8)
"""

import ml_collections as mlc

from configs import common


def get_config(arg=''):
  """The released recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, common.COLOR_ARGS)
  config = mlc.ConfigDict()
  common.color_data(config, arg, ctx=True)
  common.training(config, batch_size=512, num_epochs=50, lr=1e-3, wd=1e-6)
  common.stage_two(config, arg, 'colorization', common.color_planes(arg))
  common.color_eval(config, arg, ctx=True)
  return common.vary(config, arg, singlehost=(32, 20))
