r"""PolyMaX on surface normals: 8 queries whose vectors make a map of unit normals (arXiv 2311.05770, sections 3 and 4).

  python -m train --config=configs/polymax/normals.py:phase=pretrain,backbone=convnext_l \
    --workdir=workdir/taskonomy_normals --config.data_dir=/data/taskonomy
  python -m train --config=configs/polymax/normals.py:backbone=convnext_l --workdir=workdir/nyu_normals \
    --config.model_init=workdir/taskonomy_normals --config.data_dir=/data/nyu

/data/nyu holds nyu_depth_v2_labeled.mat, splits.mat and normals/0001.png to 1449.png ((n + 1) / 2 · 255): NYU ships no
normals, and the truths of Ladicky, Silberman and GeoNet differ, so say with a number which one it was. /data/taskonomy,
hardware and hours: as depth.py. Colours change by kMaX's policy, which the paper follows; the crop is our choice.
Expected on NYU test (the paper's table 2), mean / median / RMS in degrees and % below 11.25:
  ResNet-50  14.03 7.789 21.45 63.25   ConvNeXt-T 13.73 7.533 21.18 64.07   S 13.42 7.351 20.74 64.73
  ConvNeXt-B 13.23 7.181 20.58 65.48   L 13.09 7.117 20.40 65.66   DeepLabv3+ with ResNet-50 14.81 8.291 22.49 61.44
On Taskonomy (table 3) ResNet-50 10.96, ConvNeXt-L 10.46 mean. K with ConvNeXt-L (table 5), mean: 4 13.10, 8 13.09, 16 13.15,
32 13.11.

Arguments: those of depth.py, with 8 for `queries`. No random scale and no rotation, as the paper says.
"""

from configs import polymax_common as polymax

TRAIN = 'resize_all((480, 640))|kmax_colours|random_crop((416, 544))|canvas((416, 544), 127.5)'


def get_config(arg=''):
  """The recipe; see the docstring of depth.py for the arguments."""
  arg = polymax.parse(arg, 'surface_normals')
  config = polymax.start(arg, queries=8)
  polymax.data(config, arg, labels='normal_labels', raw='normals', train=TRAIN,
               dataset={'pretrain': 'taskonomy', 'finetune': 'nyu'})
  polymax.evaluator(config, arg, 'normals_val', 'surface_normals', labels='normal_labels', prefix='normals/',
                    metric=dict(target_key='normals') if arg.folder else {})
  return polymax.vary(config, arg)
