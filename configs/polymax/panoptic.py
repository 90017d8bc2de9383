r"""kMaX-DeepLab on COCO panoptic: the network behind PolyMaX on its own task (arXiv 2207.04044).

  python -m train --config=configs/polymax/panoptic.py:phase=pretrain --workdir=workdir/panoptic

150,000 steps of 64 images of 1281x1281 in the authors' recipe (here `res=` sets the size). Hardware: several accelerators of 80 GB;
not measured here. Expected PQ in % on COCO validation: not part of PolyMaX's paper; see kMaX-DeepLab's.

Arguments: those of depth.py; `queries` is 128 by default. There is no per-pixel form.
"""

from configs import common, own_data
from configs import polymax_common as polymax
from uvim_like.errors import UserError

LABELS = 'coco_panoptic|concat(["semantics","instances"], "labels")'


def get_config(arg=''):
  """The recipe; see the docstring of depth.py for the arguments."""
  arg = polymax.parse(arg, 'panoptic_segmentation')
  if arg.per_pixel:
    raise UserError("config: argument 'per_pixel': a per-pixel model cannot tell instances apart; leave it out")
  if not arg.res:
    arg.res = 96 if arg.folder and arg.runlocal else 641
  classes = common.SCENES_CLASSES - 1 if arg.scenes else arg.segments or 133
  config = polymax.start(arg, queries=32 if arg.runlocal else 128, num_classes=classes)
  config.head = dict(num_things=5, max_instances=20) if arg.scenes else dict(num_things=80, max_instances=100)
  if arg.segments:
    config.head = dict(num_things=arg.things, max_instances=arg.instances)
  config.dataset = 'scenes' if arg.scenes else 'coco/2017_panoptic'
  config.train_split, config.val_split = 'train', 'validation'
  config.pp_modules = ['ops_general', 'ops_image', 'ops_augment', 'ops_labels', 'proj.uvim.pp_ops']
  size = common.join(f'resize({arg.res})', common.resize_labels(arg.res), 'value_range(-1, 1)')
  augment = '' if arg.scenes or arg.runlocal else f'random_scale(0.5, 2.0, 0.1)|random_crop({arg.res})|canvas({arg.res})'
  config.pp_train = common.join('decode', LABELS, 'random_flip', augment, size, common.keep('image', 'labels'))
  config.pp_eval = common.join('decode', LABELS, size, common.keep('image', 'labels'))
  common.add_eval(config, 'panoptic_val', 'coco_panoptic', split='validation', log_steps=5000, prefix='coco_panoptic/',
                  pp=common.join(f'resize({arg.res})', 'value_range(-1, 1)', common.keep('image', 'image/id')),
                  metric=dict(dataset='scenes') if arg.scenes else dict(categories=[]) if arg.folder else {})
  if arg.folder:
    own_data.splits(config, arg)
  return polymax.vary(config, arg)
