r"""MAD with ResNet-50 on COCO: the ablation recipe of the paper (Masked AutoDecoder, CVPR 2024, tables 2 to 8).

  python -m train --config=configs/mad/r50.py --workdir=workdir/mad_r50 --config.data_dir=/data/coco \
    --config.model_init.backbone=resnet50.npz

375,000 steps of 16 images (nominally 50 epochs) on 8 GPUs; hours not stated, not measured here. Expected on val2017:
box AP 38.9, mask AP 32.3, keypoint AP 54.7, BLEU-4 29.6. Rows of table 2: `configs/mad/ar.py` (27.9, 12.3, 33.4, 34.1),
`parallel` (35.9, 29.8, 51.5, 18.2), `one_stage` (38.9, 32.3, 54.6, 18.6), and this config as it is. The differences of
the ablations are single runs.

Arguments, after a colon and separated by commas:
  parallel    everything masked in training, one stage in inference
  one_stage   masked training, one stage in inference
  task=       one of boxes, masks, keypoints, captions, trained alone (table 8); masks and keypoints then get true boxes
  code        the released code's form where it differs from the paper
  ratio=0.7 bins=500 side=16   share of masked tokens, bins of a coordinate, side of the masks (tables 4 to 6)
  scenes      the generated dataset in place of COCO
  folder      own data in --config.data_dir, whose sizes and classes are read
  runlocal    two CPU cores and minutes: 64 pixels, 16 boxes, masks of 8x8, from scratch
"""

from configs import common, mad_common

ARGS = mad_common.ARGS | dict(parallel=False, one_stage=False, ratio=0.7, bins=500, side=16)


def get_config(arg=''):
  """The paper's recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, ARGS, runlocal=dict(bins=128, side=8))
  config = mad_common.base(arg)
  mad_common.data(config, arg, train='random_flip|detr_scale', test='resize_short(800, 1333)')
  mad_common.network(config, arg, dict(name='resnet50', frozen=True, freeze_at=1), init='resnet50.npz')
  config.batch_size, config.total_steps = 16, 375_000
  mad_common.rates(config, drops=(300_000,), frozen='features/stem/.*')
  config.sequences.bins = arg.bins
  mad_common.set_mask_side(config, arg.side)
  config.objectives.mask_ratios = (1.0,) if arg.parallel else (1.0, arg.ratio)
  if arg.parallel or arg.one_stage:
    mad_common.one_stage(config)
  return mad_common.shrink(config, arg)
