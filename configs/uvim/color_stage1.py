r"""UViM stage I on ImageNet: colour from grey (UViM paper, section 4.2; the released config).

  python -m train --config=configs/uvim/color_stage1.py --workdir=workdir/color_stage1

124,714 steps of 1024 images; 133 M parameters. Hardware and hours: not stated, not measured here. Expected: FID-5k
15.59 (README of the paper's release).

Arguments, after a colon and separated by commas:
  released=False  the bottleneck of the paper's listings: learned matrices, no code dropout (default: the released one)
  scenes          the generated dataset in place of ImageNet
  folder          own data in --config.data_dir, whose sizes and classes are read
  runlocal        two CPU cores and a few minutes
  inception=PATH  evaluates FID-5k too, with the Inception network exported to PATH (see evaluators/coltran_fid.py)
  singlehost      batch 128, 20 epochs
  res=, patch=    resolution and patch size in pixels (512, 16; with runlocal 64, 8)
"""

import ml_collections as mlc

from configs import common


def get_config(arg=''):
  """The released recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, common.COLOR_ARGS)
  config = mlc.ConfigDict()
  config.task = 'colorization'
  common.color_data(config, arg)
  common.training(config, batch_size=1024, num_epochs=100, lr=4e-4, wd=4e-5)
  common.stage_one(config, arg, common.color_planes(arg))
  common.color_eval(config, arg)
  return common.vary(config, arg, singlehost=(128, 20))
