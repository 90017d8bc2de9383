r"""UViM stage II on NYU Depth V2: the language model of the guiding code (UViM paper, section 4.3; as released).

  python -m train --config=configs/uvim/depth_stage2.py --workdir=workdir/depth_stage2 \
    --config.oracle.model_init=workdir/depth_stage1

4,647 steps of 512 images, 4,000 of them warm-up, as released. Hardware and hours: not stated with the recipe,
not measured here. Expected on NYU validation: 0.463 m RMSE (README of the paper's release, whose
window is rows 54:480 of the image).

Arguments, after a colon and separated by commas (the oracle's must be those of its own training):
  released=False  the oracle has the bottleneck of the paper's listings; the released one is the default
  scenes          the generated dataset in place of NYU
  folder          own data in --config.data_dir, whose sizes and classes are read
  runlocal        two CPU cores and a few minutes: 1200 steps of 64 images. Measured with `scenes` and
                  --config.total_steps=1000: 0.828 m RMSE, on the stage I of 750 steps (0.61 of the best constant map's
                  1.358 m); its image encoder starts from the base model's (`model_init.base_model`)
  singlehost      batch 32, 20 epochs
  res=, patch=    resolution and patch size in pixels (512, 16; with runlocal 64, 8)
"""

import ml_collections as mlc

from configs import common


def get_config(arg=''):
  """The released recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, common.DEPTH_ARGS)
  config = mlc.ConfigDict()
  common.depth_data(config, arg, ctx=True)
  common.training(config, batch_size=512, num_epochs=50, lr=1e-3, wd=1e-6)
  common.stage_two(config, arg, 'depth', common.depth_planes(arg))
  common.depth_eval(config, arg, ctx=True)
  return common.vary(config, arg, singlehost=(32, 20))
