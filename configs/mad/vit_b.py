r"""MAD with a windowed ViT-B on COCO (Masked AutoDecoder, CVPR 2024, table 1), large-scale jitter on 1024 pixels.

  python -m train --config=configs/mad/vit_b.py --workdir=workdir/mad_vit_b --config.data_dir=/data/coco \
    --config.model_init.backbone=vit_b_mim.npz

375,000 steps of 32 images (nominally 100 epochs); 107 M parameters by the paper. Hardware and hours not stated, not
measured here. Expected on val2017: box AP 50.1, mask AP 41.2, keypoint AP 66.5, BLEU-4 32.6; 0.26 s an image on an
A100. Two caveats of that row: the released recipe starts from weights whose name says that they were fine-tuned as a
COCO detector, where the paper says masked image modelling; and its ViT is EVA-02's (SwiGLU, rotary positions), ours the
plain one with ViTDet's windows and the level of stride 32 of its pyramid.

Arguments, after a colon and separated by commas:
  task=       one of boxes, masks, keypoints, captions, trained alone
  code        the released code's form where it differs from the paper
  scenes      the generated dataset in place of COCO
  folder      own data in --config.data_dir, whose sizes and classes are read
  runlocal    two CPU cores and minutes: 64 pixels, 16 boxes, masks of 8x8, from scratch
"""

from configs import common, mad_common

CANVAS = 1024


def get_config(arg=''):
  """The paper's recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, mad_common.ARGS, runlocal={})
  config = mad_common.base(arg)
  mad_common.data(config, arg, canvas=CANVAS, test=f'fit({CANVAS})',
                  train=f'random_flip|jitter_scale({CANVAS}, 0.3, 2.0)|random_crop({CANVAS})')
  mad_common.network(config, arg, dict(name='vit_b', window=14, global_blocks=(2, 5, 8, 11), pyramid=(32,),
                                       drop_path=0.1, final_norm=False), init='vit_b_mim.npz')
  config.batch_size, config.total_steps = 32, 375_000
  mad_common.rates(config, drops=(300_000,), undecayed=('features/position_embedding',))
  return mad_common.shrink(config, arg)
