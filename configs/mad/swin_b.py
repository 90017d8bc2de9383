r"""MAD with Swin-B on COCO (Masked AutoDecoder, CVPR 2024, table 1).

  python -m train --config=configs/mad/swin_b.py --workdir=workdir/mad_swin_b --config.data_dir=/data/coco \
    --config.model_init.backbone=swin_b_384_22k.npz

1,125,000 steps of 32 images (nominally 300 epochs); 107 M parameters by the paper. Hardware and hours not stated, not
measured here. Expected on val2017: box AP 49.7, mask AP 40.6, keypoint AP 64.6, BLEU-4 32.2; 0.19 s an image on an
A100. The paper has one drop of the rate, at 200 epochs; its code a second one at 260 (`second_drop`).

Arguments, after a colon and separated by commas:
  second_drop  a hundredth of the rate from step 975,000 on, as in the released code
  task=        one of boxes, masks, keypoints, captions, trained alone
  code         the released code's form where it differs from the paper, the second drop included
  scenes       the generated dataset in place of COCO
  folder       own data in --config.data_dir, whose sizes and classes are read
  runlocal     two CPU cores and minutes: 64 pixels, 16 boxes, masks of 8x8, from scratch
"""

from configs import common, mad_common


def get_config(arg=''):
  """The paper's recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, mad_common.ARGS | dict(second_drop=False), runlocal={})
  config = mad_common.base(arg)
  mad_common.data(config, arg, train='random_flip|detr_scale', test='resize_short(800, 1333)')
  mad_common.network(config, arg, dict(name='swin_b', drop_path=0.2, out_norms=(3,)), init='swin_b_384_22k.npz')
  config.batch_size, config.total_steps = 32, 1_125_000
  second = (975_000,) if arg.second_drop or arg.code else ()
  mad_common.rates(config, drops=(750_000, *second), warmup_steps=250)
  return mad_common.shrink(config, arg)
