r"""UViM stage I on NYU Depth V2: depth in 256 bins over 1 mm to 10 m (UViM paper, section 4.3; the released config).

  python -m train --config=configs/uvim/depth_stage1.py --workdir=workdir/depth_stage1

9,294 steps of 1024 images; 232 M parameters. Hardware and hours: not stated with the recipe, not measured
here. Expected on NYU validation, oracle given the truth: 0.155 m RMSE (README of the paper's release).

Arguments, after a colon and separated by commas:
  released=False  the bottleneck of the paper's listings: learned matrices, no code dropout (default: the released one)
  scenes          the generated dataset in place of NYU
  folder          own data in --config.data_dir, whose sizes and classes are read
  runlocal        two CPU cores and a few minutes, with 32 bins: 900 steps of 64 images. Measured with `scenes` and
                  --config.total_steps=750: 0.549 m RMSE, predicting the mean over bins (0.40 of the best constant map's
                  1.358 m; 0.641 m with the best bin)
  singlehost      batch 128, 50 epochs
  res=, patch=    resolution and patch size in pixels (512, 16; with runlocal 64, 8)
"""

import ml_collections as mlc

from configs import common


def get_config(arg=''):
  """The released recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, common.DEPTH_ARGS)
  config = mlc.ConfigDict()
  config.task = 'depth'
  common.depth_data(config, arg)
  common.training(config, batch_size=1024, num_epochs=200, lr=1e-3, wd=1e-5)
  common.stage_one(config, arg, common.depth_planes(arg))
  common.depth_eval(config, arg)
  return common.vary(config, arg, singlehost=(128, 50))
