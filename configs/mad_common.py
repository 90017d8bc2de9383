"""Shared by the MAD configs: arguments, data of the four tasks, network and sequences, training recipe, small sizes."""

from typing import Any

import ml_collections as mlc

from configs import common, own_data
from uvim_like.errors import UserError, unknown

TASKS = ('boxes', 'masks', 'keypoints', 'captions')
# `task` trains one task alone; `code` is the released code's form where it differs from the paper.
ARGS = dict(scenes=False, runlocal=False, task='all', code=False)
SIZE = 64              # pixels of `runlocal`, on scenes/mini
SCENES_SIZE = 128      # of `scenes` alone
SCENES_THINGS, SCENES_PIECES = 5, 96
COCO_TEXT = 't5_coco_caption.model'   # a SentencePiece model of 11,421 pieces, see the README
STEPS_PER_EPOCH = 7500  # nominal, of 16 images
CANVAS = 1344          # holds a picture whose longer side is 1333, in whole cells of 32 pixels


def base(arg: mlc.ConfigDict, *, system: str = 'mad.decoder') -> mlc.ConfigDict:
  """A config with what all MAD trainings share: AdamW's constants, clipping, intervals."""
  config = mlc.ConfigDict(dict(task='instance_segmentation', model_name=system))
  config.optax_name = 'scale_by_adam'
  config.optax = dict(b1=0.9, b2=0.999)
  config.lr, config.wd = 1e-4, 1e-4 * 1e-4   # decay is not multiplied by the rate here
  config.grad_clip_norm = 0.1
  config.log_training_steps, config.checkpoint_steps, config.log_eval_steps = 50, 5000, STEPS_PER_EPOCH
  return config


def tasks(arg: mlc.ConfigDict) -> tuple[str, ...]:
  """All four, or the one that the argument `task` names; those of own data that it has."""
  if arg.task != 'all' and arg.task not in TASKS:
    raise unknown('task', arg.task, ('all', *TASKS), where='config: task')
  wanted = TASKS if arg.task == 'all' else (arg.task,)
  if not own_data.is_read(arg):
    return wanted
  there = [task for task, has in zip(TASKS, (arg.objects, arg.outlines, arg.joints, arg.pieces)) if has]
  if not set(wanted) & set(there):
    raise UserError(f"config: task '{arg.task}' is not in the data, which has "
                    f"{', '.join(there) or 'no objects and no captions'}")
  return tuple(task for task in wanted if task in there)


# --- Data ------------------------------------------------------------------------------------------------------------


def sizes(arg: mlc.ConfigDict, canvas: int) -> dict[str, Any]:
  """Canvas, object slots, side of the masks and text model of the data."""
  text = 'scenes' if arg.scenes else arg.text or COCO_TEXT
  if arg.runlocal:
    return dict(canvas=SIZE, slots=12, side=8, text=text)
  slots = 20 if arg.scenes else max(10, min(arg.slots, 100)) if arg.slots else 100   # ten are trained at least
  return dict(canvas=SCENES_SIZE if arg.scenes else canvas, slots=slots, side=16, text=text)


def pp(arg: mlc.ConfigDict, moves: str, size: dict[str, Any], *, raw: bool = False, truth: bool = True) -> str:
  """One preprocessing string.

  Args:
    arg: scenes, runlocal.
    moves: ops that alter the picture with its objects, between decoding and the canvas.
    size: see `sizes`.
    raw: images come decoded.
    truth: keep the annotations too.
  """
  has = held(arg) if truth else {}
  keys = tuple(key for key, there in has.items() if there)
  parts = (('masks', 'box_masks'), ('keypoints', 'keypoints'))
  less = ', '.join(f'{name}=False' for name, key in parts if not has.get(key))
  objects = common.join('panoptic_masks' if arg.scenes else '', f'instances({less})' if less else 'instances')
  if not has.get('boxes'):
    objects = ''
  masks = f'box_masks({size["side"]})' if has.get('box_masks') else ''
  words = f'tokenize_captions("{size["text"]}")' if has.get('captions') else ''
  return common.join('' if raw else 'decode', objects, moves, masks, words, f'canvas({size["canvas"]})',
                     f'pad_instances({size["slots"]})' if objects else '', 'value_range(-1, 1)',
                     common.keep('image', 'valid_size', *keys))


def held(arg: mlc.ConfigDict) -> dict[str, bool]:
  """Entry of the batch -> whether the data has it; own data may lack any."""
  everything = not own_data.is_read(arg)
  return dict(boxes=everything or bool(arg.objects), box_labels=everything or bool(arg.objects),
              box_masks=everything or arg.outlines, keypoints=everything or bool(arg.joints),
              captions=everything or bool(arg.pieces))


def data(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, train: str, test: str, canvas: int = CANVAS) -> None:
  """Dataset, splits, preprocessing, and the evaluators of the trained tasks.

  Args:
    config: altered.
    arg: scenes, runlocal, task.
    train: augmentation of COCO.
    test: resizing of COCO.
    canvas: of COCO.
  """
  size = sizes(arg, canvas)
  if own_data.is_read(arg) and arg.long < 1333 and 'resize_short' in test:   # no larger than the pictures are
    short, long = min(800, arg.short), min(1333, arg.long)
    size['canvas'] = size['canvas'] if arg.runlocal else -(-long // 32) * 32
    train, test = f'random_flip|resize_short({short}, {long})', f'resize_short({short}, {long})'
  if arg.scenes:
    config.dataset = 'scenes/mini' if arg.runlocal else 'scenes'
    config.train_split, config.val_split = 'train', 'validation'
    train, test = 'random_flip', ''
  else:
    config.dataset = 'coco_instances'
    config.train_split, config.val_split = 'train2017_annotated', 'val2017'
    if arg.runlocal:
      train, test = f'random_flip|fit({SIZE})', f'fit({SIZE})'
    if arg.folder:
      config.update(dataset='folder', train_split=arg.train, val_split=arg.val)
  config.pp_train, config.pp_eval = pp(arg, train, size), pp(arg, test, size)
  wanted = tasks(arg)
  kinds = tuple(task for task in wanted if task != 'captions')
  if kinds:
    # A model that detects needs the picture alone; others get the true boxes, as no paper says what else.
    add_eval(config, 'objects_val', 'coco_instances', pp(arg, test, size, raw=True, truth='boxes' not in kinds),
             prefix='coco/', metric=dict(kinds=kinds), pred_kw=dict(tasks=kinds))
    if arg.folder:
      config.objects_val.metric.dataset = 'coco_instances'   # whose features own objects have
      if arg.person:
        config.objects_val.metric.person = arg.person
  if 'captions' in wanted:
    add_eval(config, 'captions_val', 'captions', pp(arg, test, size, raw=True, truth=False), prefix='captions/',
             metric=dict(model=size['text']), pred_kw=dict(tasks=('captions',)))


def add_eval(config: mlc.ConfigDict, name: str, evaluator: str, text: str, **block: Any) -> None:
  """One evaluator on the validation split, once a nominal epoch."""
  common.add_eval(config, name, evaluator, split=config.val_split, log_steps=STEPS_PER_EPOCH, pp=text, **block)


# --- Network and objectives ------------------------------------------------------------------------------------------


def network(config: mlc.ConfigDict, arg: mlc.ConfigDict, backbone: dict[str, Any], *, init: str) -> None:
  """Backbone, six layers each way, and the sequences; small: two and three layers on a few convolutions."""
  words = SCENES_PIECES if arg.scenes else arg.pieces or 11_421
  classes = SCENES_THINGS if arg.scenes else arg.objects or 80
  config.sequences = dict(classes=classes, bins=500, text=words, queries=100, mask_side=16, joints=17,
                          caption_length=20, prompt_tokens=6 if arg.code else 1)
  config.objectives = dict(tasks=tasks(arg), mask_ratios=(1.0, 0.7))
  config.model = dict(backbone=backbone, width=256, num_heads=8, mlp_dim=2048, encoder_layers=6, decoder_layers=6,
                      dropout=0.1)
  config.model_init = dict(backbone=init)
  if arg.code:
    config.objectives.update(occluded_visible=True, noise_masked_captions=True)
    for name, _ in config.evals:
      config[name].pred_kw.update(stages=dict(keypoints=(1.0,)), all_rows=True, requantise=True,
                                  order=dict(boxes='confidence', masks='confidence', keypoints='confidence'))
  if arg.scenes:
    # A third of the joints of these rooms are hidden but labelled, and COCO's metric counts them.
    config.objectives.occluded_visible = True
  if arg.runlocal:
    config.sequences.update(bins=128, queries=16, mask_side=8)
    if 'objects_val' in config:
      # With 128 bins of half a pixel a perfect answer has a keypoint AP of 0.85 at their edges, 0.97 in their middle.
      config.objects_val.pred_kw.half_bin = ('keypoints',)
    config.objectives.instances = 2   # of an image in a step, which takes two and a half times as long with 6
    config.model = dict(backbone=dict(name='stem', widths=(32, 64, 128), mix=2), width=128, num_heads=4, mlp_dim=256,
                        encoder_layers=2, decoder_layers=3, dropout=0.0)


def set_mask_side(config: mlc.ConfigDict, side: int) -> None:
  """The side of the masks, in the sequences and in every preprocessing string."""
  old = f'box_masks({config.sequences.mask_side})'
  config.sequences.mask_side = side
  for block in (config, *(config[name] for name, _ in config.evals)):
    for key in ('pp_train', 'pp_eval', 'pp'):
      if key in block:
        block[key] = block[key].replace(old, f'box_masks({side})')


def one_stage(config: mlc.ConfigDict) -> None:
  """Inference without masked refinement."""
  for name, _ in config.evals:
    config[name].pred_kw.stages = dict(keypoints=(1.0,), captions=(1.0,))


def rates(config: mlc.ConfigDict, *, drops: tuple[int, ...], warmup_steps: int = 0, frozen: str = '',
          undecayed: tuple[str, ...] = ()) -> None:
  """Rates by parameter: a tenth in the backbone, no decay of norms, all else decays, biases and embeddings too.

  Args:
    config: altered.
    drops: steps at which the rate falls to a tenth.
    warmup_steps: linear, from a thousandth.
    frozen: pattern of parameters that do not learn.
    undecayed: patterns of further parameters without decay.
  """
  config.lr_mults = [('features/.*', 0.1)]
  config.wd_mults = [('.*norm.*', 0.0), *((pattern, 0.0) for pattern in undecayed), ('features/.*', 0.1), ('.*', 1.0)]
  schedule = dict(decay_type='step', drop_steps=drops, drop_factor=0.1)
  if warmup_steps:
    schedule |= dict(warmup_steps=warmup_steps, warmup_start=0.001)
  config.schedule = [(frozen, None), ('.*', schedule)] if frozen else schedule


def shrink(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, total_steps: int = 1500) -> mlc.ConfigDict:
  """With `runlocal`: lengths and intervals for two CPU cores and a few minutes, and one rate for all, from scratch."""
  if not arg.runlocal:
    return config
  for key in ('num_epochs', 'model_init', 'lr_mults', 'wd_mults', 'schedule'):
    if key in config:
      del config[key]
  config.update(total_steps=total_steps, batch_size=16, lr=1e-3, wd=1e-4)
  config.grad_clip_norm = 1.0
  config.schedule = dict(decay_type='cosine', warmup_steps=total_steps // 20)
  config.log_training_steps = 25
  config.log_eval_steps = config.checkpoint_steps = total_steps // 2
  for name, _ in config.evals:
    config[name].log_steps = total_steps // 2
  return config
