r"""PolyMaX on semantic segmentation: one query a class (arXiv 2311.05770, sections 3 and 4).

  python -m train --config=configs/polymax/semantic.py:phase=pretrain,backbone=convnext_l \
    --workdir=workdir/taskonomy_semantic --config.data_dir=/data/taskonomy_labels
  python -m train --config=configs/polymax/semantic.py:backbone=convnext_l --workdir=workdir/nyu_semantic \
    --config.model_init=workdir/taskonomy_semantic --config.data_dir=/data/nyu

/data/nyu holds nyu_depth_v2_labeled.mat, splits.mat and classMapping40.mat. Taskonomy's own class maps are weak, and
the authors' are unpublished: /data/taskonomy_labels is a folder with train/ and validation/, each with images/ and
semantic/ (PNG, classes from 0, 255 = void), made by a network of panoptic.py, say. Scales, colours and the mirror are
kMaX's. Another number of classes than the checkpoint's starts the queries anew and says so. Hardware and hours: as
depth.py. Expected mIoU in % on NYU test, 40 classes (the paper's table 2), and on Taskonomy with the authors'
pseudo-labels (table 3, unpublished):
  ResNet-50 51.30, 35.00   ConvNeXt-T 54.59, 35.23   S 56.34, 38.99   B 57.21, 41.17   L 58.08, 40.94
  DeepLabv3+ with ResNet-50 50.14, 32.87

Arguments: those of depth.py; `queries` is the number of classes (default 40; 133 in pretraining, COCO's; scenes 10;
with `folder` those of the data).
"""

from configs import common
from configs import polymax_common as polymax

TRAIN = ('resize_all((480, 640))|random_scale(0.5, 2.0, 0.1)|kmax_colours|random_crop((480, 640))|'
         'canvas((480, 640), 127.5)')
LABELS = 'semantic_labels'


def get_config(arg=''):
  """The recipe; see the docstring of depth.py for the arguments."""
  arg = polymax.parse(arg, 'semantic_segmentation')
  scenes_classes = common.SCENES_CLASSES - 1
  classes = arg.queries or (scenes_classes if arg.scenes else arg.classes or (133 if arg.phase == 'pretrain' else 40))
  config = polymax.start(arg, queries=classes, outputs=classes)
  labels = LABELS if arg.labels == 'semantic' else f'{LABELS}("{arg.labels}")'
  polymax.data(config, arg, labels=labels, raw='semantic', train=TRAIN,
               dataset={'pretrain': 'folder', 'finetune': 'nyu'})
  files = dict(target_key=arg.labels) if config.dataset == 'folder' else {}
  polymax.evaluator(config, arg, 'semantic_val', 'mean_iou', labels=labels, prefix='semantic/',
                    metric=dict(num_classes=classes, **files))
  return polymax.vary(config, arg)
