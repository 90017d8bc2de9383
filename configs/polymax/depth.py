r"""PolyMaX on depth: 16 queries whose centres make a depth map (arXiv 2311.05770, sections 3 and 4).

  python -m train --config=configs/polymax/depth.py:phase=pretrain,backbone=convnext_l --workdir=workdir/taskonomy_depth \
    --config.data_dir=/data/taskonomy
  python -m train --config=configs/polymax/depth.py:backbone=convnext_l --workdir=workdir/nyu_depth \
    --config.model_init=workdir/taskonomy_depth

/data/taskonomy holds rgb/, depth_zbuffer/, normal/ and train_val_test_*.csv; NYU is TFDS's nyu_depth_v2. Scales,
crops and the mirror are our choice, as the paper states none; colours change by kMaX's policy, which it follows. Rotation
and cut borders (BinsFormer's, to which it refers for depth) are left out. Hardware: 64 images of 513x513 a step want
several accelerators of 80 GB; steps, batch and hours of the authors are not stated, and nothing here was measured at
that size. Expected on NYU test (the paper's table 2), RMS / A.Rel / log10 / δ1:
  ResNet-50  .317 .084 .037 .936   ConvNeXt-T .282 .076 .033 .954   S .273 .073 .032 .959   B .260 .071 .030 .965
  ConvNeXt-L .250 .067 .029 .969   DeepLabv3+ with ResNet-50 .375 .108 .046 .887
On Taskonomy (table 3) ResNet-50 .5885, ConvNeXt-L .4988 RMS. K with ConvNeXt-L (table 4), RMS: 4 .2544, 8 .2578, 16 .2499,
32 .2520, 64 .2537.

Arguments, after a colon and separated by commas:
  phase=      pretrain (Taskonomy, robust Charbonnier loss) or finetune (NYU; default)
  backbone=   resnet50 (default), convnext_t, convnext_s, convnext_b, convnext_l; tiny, tiny_convnext
  queries=    K (default 16)
  per_pixel   DeepLabv3+ in place of PolyMaX, same recipe
  scenes      the generated dataset
  folder      own data in --config.data_dir: images/ and depth/ (16-bit PNG in millimetres, .npy in metres)
  runlocal    two CPU cores and a few minutes, with `tiny`
  res=        square size in pixels (default: as the data is; with `runlocal` 64)
"""

from configs import own_data
from configs import polymax_common as polymax

TRAIN = ('resize_all((480, 640))|random_scale(0.8, 1.25, 0.0, divide_depth=True)|kmax_colours|random_crop((416, 544))|'
         'canvas((416, 544), 127.5)')


def get_config(arg=''):
  """The recipe; see the module's docstring for the arguments."""
  arg = polymax.parse(arg, 'depth')
  config = polymax.start(arg, queries=16)
  polymax.data(config, arg, labels='depth_labels', raw='depth', train=TRAIN,
               dataset={'pretrain': 'taskonomy', 'finetune': 'nyu_depth_v2'})
  polymax.evaluator(config, arg, 'depth_val', 'nyu_depth', labels='depth_labels', prefix='depth/',
                    metric=dict(preset='plain' if arg.scenes or arg.folder or arg.phase == 'pretrain' else 'nyu_eigen'))
  # The baseline regresses with the pretraining's loss in both phases.
  if arg.phase == 'pretrain' or arg.per_pixel:
    config.losses = dict(silog=0.0, relative=0.0, gradient=0.0, charbonnier=1.0)
  if arg.folder:
    own_data.depth(config, arg)
  elif arg.phase == 'pretrain' and not arg.scenes:
    config.max_depth = 128.0
    config.depth_val.metric.max_depth = 128.0
  return polymax.vary(config, arg, total_steps=900, batch_size=64, lr=3e-3)
