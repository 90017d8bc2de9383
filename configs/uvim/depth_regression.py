r"""Depth as plain regression of one number a pixel: what UViM is to be compared with on the same data and size.

  python -m train --config=configs/uvim/depth_regression.py:scenes,runlocal --workdir=workdir/depth_regression

The base model alone, its code replaced by zeros, with squared error: a per-pixel ViT. Not in the paper. Hardware: two
CPU cores and a few minutes with `scenes,runlocal` (0.65 m RMSE after 4.5 minutes of one core on a prototype, 0.47 of
the best constant map's 1.372 m); without, as depth_stage1.

Arguments, after a colon and separated by commas: those of depth_stage1; `released` changes nothing, there is no code.
"""

import ml_collections as mlc

from configs import common


def get_config(arg=''):
  """The baseline; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg)
  config = mlc.ConfigDict()
  config.task = 'depth_regression'
  common.depth_data(config, arg)
  common.training(config, batch_size=1024, num_epochs=200, lr=1e-3, wd=1e-5)
  common.stage_one(config, arg, {'depth': (1, arg.patch ** 2)})
  common.depth_eval(config, arg, binned=False)
  common.vary(config, arg, singlehost=(128, 50))
  config.model.zero_decoder_seq = True
  if arg.runlocal:
    config.model.base_model_depth = 6  # as the prototype whose numbers stand above
  return config
