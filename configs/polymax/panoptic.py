r"""kMaX-DeepLab on COCO panoptic: the network behind PolyMaX on its own task (arXiv 2207.04044).

  python -m train --config=configs/polymax/panoptic.py --workdir=workdir/panoptic \
    --config.model_init="{'encoder': 'resnet50_imagenet.npz'}"

150,000 steps of 64 images on a canvas of 1281x1281 (`res=`), from a backbone that was trained on ImageNet; without
the second line from scratch. The authors' copy-and-paste of things is left out. Hardware: several accelerators of
80 GB; not measured here. Expected PQ in % on COCO validation: not part of PolyMaX's paper; see kMaX-DeepLab's.

Arguments: those of depth.py; `phase` is `pretrain` by default, the recipe on COCO (`finetune`: the rate and length for
a smaller dataset, from such a training), `queries` is 128, `res` 1281 (`scenes`, `folder`: 641). There is no per-pixel
form.
"""

from configs import common, own_data
from configs import polymax_common as polymax
from uvim_like.errors import UserError

LABELS = 'coco_panoptic|concat(["semantics","instances"], "labels")'


def get_config(arg=''):
  """The recipe; see the docstring of depth.py for the arguments."""
  arg = polymax.parse(arg, 'panoptic_segmentation', phase='pretrain')
  if arg.per_pixel:
    raise UserError("config: argument 'per_pixel': a per-pixel model cannot tell instances apart; leave it out")
  if not arg.res:
    arg.res = 96 if arg.runlocal else 641 if arg.scenes or arg.folder else 1281   # `parse` set other small ones
  classes = common.SCENES_CLASSES - 1 if arg.scenes else arg.segments or 133
  config = polymax.start(arg, queries=32 if arg.runlocal else 128, num_classes=classes,
                         drop_path=0.0 if arg.runlocal else 0.2)
  config.head = dict(num_things=5, max_instances=20) if arg.scenes else dict(num_things=80, max_instances=100)
  if arg.segments:
    config.head = dict(num_things=arg.things, max_instances=arg.instances)
  config.dataset = 'scenes' if arg.scenes else 'coco/2017_panoptic'
  config.train_split, config.val_split = 'train', 'validation'
  config.pp_modules = ['ops_general', 'ops_image', 'ops_augment', 'ops_labels', 'proj.uvim.pp_ops']
  data(config, arg)
  if arg.folder:
    own_data.splits(config, arg)
  return polymax.vary(config, arg)


def data(config, arg):
  """Preprocessing and the metric: pictures in their proportions on a grey canvas; small ones are stretched."""
  if arg.scenes or arg.runlocal:
    train = whole = common.join(f'resize({arg.res})', common.resize_labels(arg.res))
    view, keys = f'resize({arg.res})', ('image', 'image/id')
  else:
    grey = f'canvas({arg.res}, 127.5)'
    train = f'fit({arg.res})|random_scale(0.3, 1.7, 0.1)|kmax_colours|random_crop({arg.res})|{grey}'
    view = whole = f'fit({arg.res})|{grey}'
    keys = ('image', 'image/id', 'valid_size')
  tail = common.join('value_range(-1, 1)', common.keep('image', 'labels'))
  config.pp_train = common.join('decode', LABELS, 'random_flip', train, tail)
  config.pp_eval = common.join('decode', LABELS, whole, tail)
  common.add_eval(config, 'panoptic_val', 'coco_panoptic', split='validation', log_steps=5000, prefix='coco_panoptic/',
                  pp=common.join(view, 'value_range(-1, 1)', common.keep(*keys)),
                  metric=dict(dataset='scenes') if arg.scenes else dict(categories=[]) if arg.folder else {})
