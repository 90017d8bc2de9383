r"""The autoregressive baseline of MAD with ResNet-50 on COCO (Masked AutoDecoder, CVPR 2024, row 1 of table 2).

  python -m train --config=configs/mad/ar.py --workdir=workdir/mad_ar --config.data_dir=/data/coco \
    --config.model_init.backbone=resnet50.npz

The recipe of `configs/mad/r50.py` with a causal decoder that writes one token after the other. Details of the paper's
baseline are in a supplement that we do not have; ours is Pix2Seq's on MAD's vocabulary: objects in random order, noise
objects behind them, classes that the model reads corrupted, boxes drawn with top_p 0.4 and everything else greedy.
Expected on val2017: box AP 27.9, mask AP 12.3, keypoint AP 33.4, BLEU-4 34.1; 3953 ms an image for 827 steps (A100).

Arguments, after a colon and separated by commas:
  task=       one of boxes, masks, keypoints, captions, trained alone
  scenes      the generated dataset in place of COCO
  folder      own data in --config.data_dir, whose sizes and classes are read
  runlocal    two CPU cores and minutes: 64 pixels, 16 boxes, masks of 8x8, from scratch
"""

from configs import common, mad_common


def get_config(arg=''):
  """The baseline; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, {k: v for k, v in mad_common.ARGS.items() if k != 'code'}, runlocal={})
  arg.code = False
  config = mad_common.base(arg)
  mad_common.data(config, arg, train='random_flip|detr_scale', test='resize_short(800, 1333)')
  mad_common.network(config, arg, dict(name='resnet50', frozen=True, freeze_at=1), init='resnet50.npz')
  config.batch_size, config.total_steps = 16, 375_000
  mad_common.rates(config, drops=(300_000,), frozen='features/stem/.*')
  config.objectives.form = 'autoregressive'
  return mad_common.shrink(config, arg)
