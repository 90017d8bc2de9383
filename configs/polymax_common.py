"""Shared by PolyMaX's configs: arguments, sizes, the recipe of kMaX-DeepLab that PolyMaX follows, small variations."""

from collections.abc import Mapping
from typing import Any

import ml_collections as mlc

from configs import common, own_data
from uvim_like.errors import unknown

# `queries` is K. `phase`: pretrain (Taskonomy, or what stands in its place) or finetune (NYU).
ARGS = dict(backbone='resnet50', phase='finetune', per_pixel=False, scenes=False, runlocal=False, res=0, queries=0)
RUNLOCAL_ARGS = dict(backbone='tiny')
# Taskonomy's pictures and NYU's; the network pads to 513x513 and 481x641 itself.
SIZES = {'pretrain': (512, 512), 'finetune': (480, 640)}
# Pixels of own pictures: NYU's, and what two cores train on in minutes.
NYU_AREA, SMALL_AREA = 480 * 640, 64 * 96
PHASES = ('pretrain', 'finetune')

# Drop rate of the last block: 1 - the keep probability of kMaX on COCO. PolyMaX does not state its own.
BACKBONES = {
    'resnet50': dict(name='kmax_resnet50'),
    'convnext_t': dict(name='kmax_convnext_t', drop_path=0.3),
    'convnext_s': dict(name='kmax_convnext_s', drop_path=0.4),
    'convnext_b': dict(name='kmax_convnext_b', drop_path=0.5),
    'convnext_l': dict(name='kmax_convnext_l', drop_path=0.6),
    # Two CPU cores: 0.5 M parameters.
    'tiny': dict(name='kmax_resnet18', depths=(1, 1, 1, 1), widths=(32, 64, 96, 128), stem_width=24, momentum=0.9),
    'tiny_convnext': dict(name='kmax_convnext_t', depths=(1, 1, 2, 1), widths=(32, 64, 96, 128), scale_init=0.1),
}
NARROW = dict(dims=(32, 32, 16, 16), blocks=(1, 1, 1, 1), layers=(1, 1, 1), width=64, key_dim=32, mlp_dim=128,
              hidden_dim=64, mask_dim=32, branch_dim=64, momentum=0.9)
NARROW_PIXEL = dict(features=64, aspp_features=64, low_features=24, momentum=0.9)


def parse(arg: str, task: str, **defaults: Any) -> mlc.ConfigDict:
  """The arguments, `defaults` of a task's own; UserError for a backbone or phase that does not exist."""
  arg = common.parse_arg(arg, ARGS | defaults, runlocal=RUNLOCAL_ARGS)
  if arg.backbone not in BACKBONES:
    raise unknown('backbone', arg.backbone, BACKBONES, where='config: backbone')
  if arg.phase not in PHASES:
    raise unknown('phase', arg.phase, PHASES, where='config: phase')
  if arg.runlocal and not arg.folder and not arg.res:
    arg.res = 64
  arg.task = task
  return arg


def start(arg: mlc.ConfigDict, *, queries: int, outputs: int | None = None, **fields: Any) -> mlc.ConfigDict:
  """Task, network and optimiser (fact sheet, sections 1 to 4 and 7).

  Args:
    arg: of `parse`.
    queries: K where the argument `queries` does not say.
    outputs: of the per-pixel baseline, where its task does not know.
    **fields: further ones of the network.
  """
  config = mlc.ConfigDict()
  config.task = arg.task
  if arg.per_pixel:
    config.model_name = 'polymax.per_pixel'
    config.model = dict(backbone=dict(BACKBONES[arg.backbone]))
    if outputs:
      config.model.outputs = outputs
  else:
    config.model_name = 'polymax.kmax'
    config.model = dict(backbone=dict(BACKBONES[arg.backbone]), num_queries=arg.queries or queries, **fields)
  optimiser(config, arg)
  return config


def optimiser(config: mlc.ConfigDict, arg: mlc.ConfigDict) -> None:
  """AdamW as kMaX has it; learning rates of PolyMaX.

  Steps, batch and warm-up of PolyMaX are not stated: in pretraining those of kMaX on COCO, else on Cityscapes.
  """
  pretrain = arg.phase == 'pretrain'
  config.batch_size = 64 if pretrain else 32
  config.total_steps = 150_000 if pretrain else 60_000
  config.optax_name = 'scale_by_adam'
  config.optax = dict(b1=0.9, b2=0.999, eps=1e-7)
  config.lr = 5e-4 if pretrain else 5e-5
  config.wd = 0.05 * config.lr  # decoupled, and multiplied by the learning rate in the authors' optimiser
  config.lr_mults = [('encoder/.*', 0.1), ('.*', 1.0)]
  config.wd_mults = [('encoder/.*/kernel', 0.1), ('.*/kernel', 1.0)]
  config.schedule = dict(decay_type='poly', power=0.9, warmup_steps=5000, overlap=True)
  config.log_training_steps = 100
  config.log_eval_steps = config.checkpoint_steps = 5000
  config.keep_checkpoint_steps = 20_000


def data(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, labels: str, raw: str, dataset: Mapping[str, str],
         train: str, flip: str = 'random_flip') -> None:
  """Dataset, splits and preprocessing.

  Args:
    config: gets them.
    arg: of `parse`; `res` sets a square size for training and validation.
    labels: the op that makes labels.
    raw: feature that it reads.
    dataset: {phase: name}.
    train: geometry and colours of the paper's recipe in training, for NYU's pictures.
    flip: the op that mirrors an example.
  """
  config.dataset = 'scenes' if arg.scenes else dataset[arg.phase]
  config.train_split, config.val_split = 'train', 'validation'
  config.pp_modules = ['ops_general', 'ops_image', 'ops_augment', 'ops_labels', 'proj.uvim.pp_ops']
  size = f'resize_all({arg.res})' if arg.res else ''
  if arg.folder:
    own(config, arg, labels=labels, train=train, flip=flip)
    return
  tail = common.join(labels, 'value_range(-1, 1)')
  small = arg.scenes or arg.runlocal
  if arg.phase == 'pretrain':   # whole pictures: crop sizes are not stated
    train = resized(train, SIZES[arg.phase], window=SIZES[arg.phase])
  whole = size or ('' if arg.scenes else f'resize_all({SIZES[arg.phase]})')
  config.pp_train = common.join('decode', f'decode(key="{raw}")' if raw not in ('depth',) else '', '' if small else train,
                                flip, size, tail, common.keep('image', 'labels'))
  config.pp_eval = common.join('decode', f'decode(key="{raw}")' if raw not in ('depth',) else '', whole, tail,
                               common.keep('image', 'labels'))


def own(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, labels: str, train: str, flip: str) -> None:
  """The same for own data: the recipe's sizes in the proportions of the pictures, the recipe's augmentation.

  Pictures are stretched to one size: padding would count in the metric, which resizes predictions to the file's size.
  Classes become labels before anything moves: padding is 0 then, void, and would be a class in the files' numbers.
  Normals are mirrored and depth is divided as they are in the files.
  """
  size = own_pixels(arg)
  first, last = (labels, '') if arg.task == 'semantic_segmentation' else ('', labels)
  tail = common.join(last, 'value_range(-1, 1)', common.keep('image', 'labels'))
  config.pp_train = common.join('decode', first, flip, resized(train, size), tail)
  config.pp_eval = common.join('decode', first, f'resize_all({size})', tail)
  own_data.splits(config, arg)


def own_pixels(arg: mlc.ConfigDict) -> tuple[int, int]:
  """(H, W) of own pictures in training: `res`, else as many pixels as the recipe's, in their proportions."""
  return (arg.res, arg.res) if arg.res else own_data.size(arg, SMALL_AREA if arg.runlocal else NYU_AREA)


def resized(train: str, size: tuple[int, int], *, window: tuple[int, int] | None = None) -> str:
  """A recipe's augmentation for NYU's 480x640 pixels at another size, its window in proportion or as given."""
  height, width = size
  window = window or tuple(max(32, side * 13 // 15 // 32 * 32) for side in size)   # 416 of 480
  return train.replace('(480, 640)', f'({height}, {width})').replace('(416, 544)', f'{window}')


def evaluator(config: mlc.ConfigDict, arg: mlc.ConfigDict, name: str, kind: str, *, labels: str, metric: Mapping[str, Any],
              prefix: str) -> None:
  """One evaluator whose truth keeps its own size."""
  pp = common.join(labels, 'copy("labels", "ground_truth")', f'resize({arg.res})' if arg.res else '',
                   'value_range(-1, 1)', common.keep('image', 'ground_truth'))
  common.add_eval(config, name, kind, pp=pp, split='validation', log_steps=5000, prefix=prefix, metric=dict(metric))
  if config.dataset == 'folder':   # the metric reads the files: maps of their own sizes are no batch
    size = own_pixels(arg) if arg.folder else arg.res or SIZES[arg.phase]
    config[name].pp = common.join(f'resize({size})', 'value_range(-1, 1)', common.keep('image'))
    config[name].split = config.val_split


def vary(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, total_steps: int = 1200, batch_size: int = 32,
         lr: float = 2e-3) -> mlc.ConfigDict:
  """`runlocal`: a narrow network and a few minutes of two CPU cores."""
  if arg.runlocal:
    total_steps = total_steps // 2 if arg.folder else total_steps   # own pictures are half as large again
    config.model.update(NARROW_PIXEL if arg.per_pixel else NARROW)
    config.total_steps, config.batch_size = total_steps, batch_size
    config.lr, config.wd = lr, 1e-4
    config.lr_mults, config.wd_mults = [], [('.*/kernel', 1.0)]
    config.schedule.warmup_steps = total_steps // 10
    config.log_training_steps = 50
    config.log_eval_steps = config.checkpoint_steps = config.keep_checkpoint_steps = total_steps // 2
    for name, _ in config.evals:
      config[name].log_steps = total_steps // 2
    if arg.scenes:
      config.dataset = 'scenes/mini'
    if arg.backbone.startswith('tiny') and not arg.per_pixel and config.task.endswith('segmentation'):
      config.losses = dict(sample=256)
  return config
