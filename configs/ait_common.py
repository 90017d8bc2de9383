"""Shared by the AiT configs: arguments, tokenizers, solvers, layer-wise learning rates, preprocessing, small sizes."""

from typing import Any

import ml_collections as mlc

from configs import common, own_data

ARGS = dict(scenes=False, runlocal=False)
SIZE = 64                   # pixels of `runlocal`, on scenes/mini
SCENES_THINGS, SCENES_CLASSES = 5, 10
COCO_CLASSES, ADE_CLASSES = 80, 150
NYU_TRAIN = 24_231          # pairs of the raw frames in sync
# The columns of NYU's frames that a depth tokenizer is trained on: the border shows no depth.
TOKENIZER_COLUMNS = 'crop_window(0, 480, 41, 601)'
TRAIN_COLOURS = 'brightness_contrast|random_gamma|hue_saturation'


def base(arg: mlc.ConfigDict, *, task: str, system: str) -> mlc.ConfigDict:
  """A config with what all AiT trainings share: Adam's constants and intervals."""
  config = mlc.ConfigDict(dict(task=task, model_name=system))
  config.optax_name = 'scale_by_adam'
  config.optax = dict(b1=0.9, b2=0.999)
  config.log_training_steps, config.checkpoint_steps, config.log_eval_steps = 50, 1000, 1000
  if arg.runlocal:
    config.log_training_steps = 25
  return config


def remove(config: mlc.ConfigDict, *keys: str) -> None:
  """Deletes those of the keys that are there."""
  for key in keys:
    if key in config:
      del config[key]


# --- Tokenizers ------------------------------------------------------------------------------------------------------


def depth_tokenizer(arg: mlc.ConfigDict) -> dict[str, Any]:
  """Depth at 480 pixels in 225 words of 128; small: 64 pixels in 64 words of 64."""
  if arg.runlocal:
    return dict(input_size=(SIZE, SIZE), ratio=8, first_width=16, num_res_blocks=2, dict_size=64, codeword_dim=64)
  return dict(input_size=(480, 480), ratio=32, first_width=16, num_res_blocks=2, dict_size=128, codeword_dim=512)


def mask_tokenizer(arg: mlc.ConfigDict) -> dict[str, Any]:
  """A mask inside its box at 64 pixels in 16 words of 128; small: 32 pixels in 4 words of 64."""
  if arg.runlocal:
    return dict(input_size=(32, 32), ratio=16, first_width=8, num_res_blocks=2, dict_size=64, codeword_dim=32,
                signed=True)
  return dict(input_size=(64, 64), ratio=16, first_width=16, num_res_blocks=2, dict_size=128, codeword_dim=512,
              signed=True)


def semantic_classes(arg: mlc.ConfigDict) -> int:
  """Those of the data, ADE20K's without."""
  return SCENES_CLASSES if arg.scenes else arg.classes or ADE_CLASSES


def semantic_tokenizer(arg: mlc.ConfigDict) -> dict[str, Any]:
  """Classes as depth: the released code has none; sizes after the depth tokenizer at ratio 16."""
  classes = semantic_classes(arg)
  if arg.runlocal:
    return dict(input_size=(SIZE, SIZE), ratio=8, first_width=16, num_res_blocks=2, dict_size=64, codeword_dim=64,
                classes=classes)
  return dict(input_size=(512, 512), ratio=16, first_width=16, num_res_blocks=2, dict_size=128, codeword_dim=512,
              classes=classes)


def shrink_tokenizer_training(config: mlc.ConfigDict, *, total_steps: int = 1200) -> None:
  """Lengths and intervals for two CPU cores and a few minutes."""
  remove(config, 'num_epochs')
  config.update(total_steps=total_steps, batch_size=32, lr=2e-3)
  config.schedule = dict(decay_type='cosine', warmup_steps=total_steps // 20)
  config.log_eval_steps = config.checkpoint_steps = total_steps // 2
  # The book must find the data in a fraction of the paper's steps: without re-use of dead words 14 of 64 were in use.
  config.model.update(dict_decay=0.95, dict_reset=1.0)
  for name, _ in config.get('evals', ()):
    config[name].log_steps = total_steps // 2


# --- Solvers ---------------------------------------------------------------------------------------------------------


def backbone(arg: mlc.ConfigDict, *, size: str, drop_path: float, shift: bool) -> dict[str, Any]:
  """SwinV2 with the windows of the release; `shift`: in all stages (objects), not only the first two (depth).

  Small: one stage of four blocks over patches of 8, whose single window is the image.
  """
  if arg.runlocal:
    return dict(name='swinv2_t', width=128, depths=(4,), num_heads=(4,), window_size=8, pretrain_window=8, patch=8,
                use_shift=(False,), out_norms=(0,), mlp_ratio=2.0, position_hidden=64)
  return dict(name=f'swinv2_{size}', window_size=(30, 30, 30, 15), pretrain_window=(12, 12, 12, 6),
              use_shift=(True,) * 4 if shift else (True, True, False, False), drop_path=drop_path)


def head(arg: mlc.ConfigDict, *, max_len: int = 2100) -> dict[str, Any]:
  """Six layers each way; small: one and two, without the regularisation that a few minutes do not need."""
  if arg.runlocal:
    return dict(width=128, num_encoder_layers=1, num_decoder_layers=2, num_heads=4, mlp_dim=256, dropout=0.0,
                drop_path=0.0, max_len=max_len)
  return dict(width=256, num_encoder_layers=6, num_decoder_layers=6, num_heads=8, mlp_dim=1024, dropout=0.1,
              drop_path=0.1, max_len=max_len)


def vocabulary(arg: mlc.ConfigDict, *, others: int = 0) -> dict[str, int]:
  """Rows of the one vocabulary; words as many as the tokenizers have."""
  words = 64 if arg.runlocal else 128
  classes = SCENES_THINGS if arg.scenes else arg.objects or COCO_CLASSES
  return dict(num_bins=200 if arg.runlocal else 2000, num_classes=classes,
              mask_codes=words, depth_codes=words, other_codes=others and words)


def adamw(config: mlc.ConfigDict, *, lr: float, wd: float, layer_decay: float, depths=(2, 2, 18, 2)) -> None:
  """AdamW with layer-wise rates; our weight decay is not multiplied by the learning rate, so theirs is written in."""
  config.lr, config.wd = lr, lr * wd
  config.lr_mults, config.wd_mults = layer_rates(depths, layer_decay)


def layer_rates(depths: tuple[int, ...], decay: float) -> tuple[list, list]:
  """(lr_mults, wd_mults): layer i of the backbone has the rate decay ** (last - i), the rest of the model 1.

  The patch embedding is layer 0, every block and every merging one more; norms of the last stage and the head are the
  last. Weight decay follows the layer's rate; norms, biases, scales, the position bias's MLP, embeddings and the output
  bias have none.
  """
  layers = ['patch_embed']
  for stage, depth in enumerate(depths):
    layers += [f'merge{stage}'] * (stage > 0) + [f'stage{stage}_block{block}' for block in range(depth)]
  rates = [(f'backbone/{layer}', decay ** (len(layers) - i)) for i, layer in enumerate(layers)]
  return ([(f'{name}/.*', rate) for name, rate in rates],
          [('.*/position/.*', 0.0), *((f'{name}/.*kernel', rate) for name, rate in rates), ('.*/kernel', 1.0)])


def shrink_solver_training(config: mlc.ConfigDict, *, total_steps: int, batch_size: int = 32) -> None:
  """Lengths and intervals for two CPU cores and a few minutes; nothing is pretrained, so all layers learn alike."""
  remove(config, 'num_epochs', 'model_init', 'model_load')
  config.update(total_steps=total_steps, batch_size=batch_size, lr=1e-3, wd=1e-4, lr_mults=[],
                wd_mults=[('.*/kernel', 1.0)])
  config.schedule = dict(decay_type='cosine', warmup_steps=total_steps // 20)
  config.grad_clip_norm = 1.0
  for task in set(config.solver.tasks) & {'depth', 'semantics'}:
    # Words alone say little at first: with ten times the auxiliary loss a fresh depth solver gets from 1.28 to 1.17 m
    # in its first 200 steps, and goes on so.
    config.solver[f'{task}_aux'] = 10.0 * config.solver.get(f'{task}_aux', 1.0)
    config.solver.update(standardize=True, aligned=True)
  config.log_eval_steps = config.checkpoint_steps = total_steps // 2
  for name, _ in config.get('evals', ()):
    config[name].log_steps = total_steps // 2


# --- Data ------------------------------------------------------------------------------------------------------------


def depth_data(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, colours: bool, protocol: bool) -> None:
  """NYU's raw frames (the layout of the dataset "nyu") with AiT's augmentation, or scenes.

  Args:
    config: altered.
    arg: scenes, runlocal.
    colours: CutDepth and colour changes (the solver; a tokenizer does not see the image, and NYU's border neither).
    protocol: evaluate with two windows and mirrored; else what the network is given (a tokenizer) or sees whole.
  """
  if arg.scenes or arg.runlocal or arg.folder:
    config.dataset = ('scenes/mini' if arg.runlocal else 'scenes') if arg.scenes else 'nyu'
    config.train_split, config.val_split = 'train', 'validation' if arg.scenes else 'test'
    shape = '' if arg.scenes and arg.runlocal else f'resize_all({SIZE if arg.runlocal else 480})'
    keep = 'value_range(-1, 1)|keep("image", "labels"'
    own = colours and arg.folder   # the paper's augmentation, its window of NYU's pictures in proportion
    config.pp_train = common.join('decode', 'cut_depth' if own and not arg.runlocal else '', 'depth_labels|random_flip',
                                  window(SIZE if arg.runlocal else 480) if arg.folder else shape,
                                  TRAIN_COLOURS if own else '', f'{keep})')
    config.pp_eval = common.join('decode|depth_labels', shape, f'{keep})')
    pp = f'depth_labels|copy("labels", "ground_truth")|{keep}, "ground_truth")'
    if shape:   # the metric reads the raw maps, at their own sizes
      pp = common.join('depth_labels', shape, f'{keep})')
    common.add_eval(config, 'depth_val', 'nyu_depth', split=config.val_split, log_steps=2000, prefix='nyu_depth/',
                    pp=pp, metric=dict(preset='plain'))
    if arg.folder:
      own_data.splits(config, arg)
      own_data.depth(config, arg)
    return
  config.dataset, config.train_split = 'nyu', 'train'
  config.pp_train = common.join('decode', 'cut_depth' if colours else TOKENIZER_COLUMNS,
                                'depth_labels|random_flip|random_crop(480)|canvas(480)',
                                TRAIN_COLOURS if colours else '', 'value_range(-1, 1)|keep("image", "labels")')
  common.add_eval(
      config, 'depth_val', 'nyu_depth', split='test', log_steps=2000, prefix='nyu_depth/',
      pp='depth_labels|copy("labels", "ground_truth")|value_range(-1, 1)|keep("image", "labels", "ground_truth")',
      pred_kw=dict(windows=2, flip=True) if protocol else {}, metric=dict(preset='nyu_eigen'))


def window(size: int) -> str:
  """A random window of own pictures that are stretched to a quarter more, whatever their size: few need to be moved."""
  return f'resize_all({size * 5 // 4})|random_crop({size})|canvas({size})'


def object_pp(arg: mlc.ConfigDict, *, train: bool, raw: bool = False, masks: bool = True, joints: bool = False,
              slots: int, canvas: int, extra: str = '') -> str:
  """COCO's objects with large-scale jitter on a square canvas, or those of scenes, mirrored."""
  less = ', '.join(f'{part}=False' for part, there in (('keypoints', joints), ('masks', masks)) if not there)
  head_ops = common.join('' if raw else 'decode', 'panoptic_masks' if arg.scenes and masks else '',
                         f'instances({less})')
  if arg.scenes and arg.runlocal:
    moves = 'random_flip' if train else ''
  elif train:
    moves = f'jitter_scale({canvas}, 0.1, 3.0)|random_crop({canvas}, boxes="clipped", tries=4)|random_flip'
  else:
    moves = f'fit({canvas})'
  keys = ['image', 'boxes', 'box_labels', *(['masks'] if masks else []), *(['keypoints'] if joints else []),
          'valid_size']
  return common.join(head_ops, moves, extra, f'canvas({canvas})', f'pad_instances({slots})', 'value_range(-1, 1)',
                     common.keep(*keys))


def object_data(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, masks: bool, joints: bool = False, slots: int,
                canvas: int) -> None:
  """Dataset, splits, preprocessing and COCO's average precision."""
  if arg.scenes:
    config.dataset = 'scenes/mini' if arg.runlocal else 'scenes'
    config.train_split, config.val_split = 'train', 'validation'
  else:
    config.dataset = 'coco_instances'
    config.train_split, config.val_split = 'train2017_annotated', 'val2017'
  shared = dict(masks=masks, joints=joints, slots=slots, canvas=canvas)
  kinds = ('boxes', *(('masks',) if masks else ()), *(('keypoints',) if joints else ()))
  config.pp_train = object_pp(arg, train=True, **shared)
  config.pp_eval = object_pp(arg, train=False, **shared)
  common.add_eval(config, 'object_val', 'coco_instances', split=config.val_split, log_steps=10_000, prefix='coco/',
                  pp=object_pp(arg, train=False, raw=True, **shared),
                  metric=dict(kinds=kinds))
  if arg.folder:
    own_data.splits(config, arg)
    config.object_val.metric.dataset = 'coco_instances'   # whose features own objects have


def object_solver(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, tasks: tuple[str, ...],
                  parallel: bool = False) -> None:
  """Data, tokenizers, network and sequences of the recipes with objects."""
  masks, joints = 'instances' in tasks, 'keypoints' in tasks
  # With joints an object has 39 tokens, of which 50 fit the 2100 positions.
  slots, canvas = (8, SIZE) if arg.runlocal else (50 if joints else 100, 640)
  object_data(config, arg, masks=masks, joints=joints, slots=slots, canvas=canvas)
  blocks = {}
  if masks:
    blocks['instances'] = dict(model_init='masks.npz', model=mask_tokenizer(arg))
  if 'depth' in tasks:
    blocks['depth'] = dict(model_init='depth.npz', model=depth_tokenizer(arg))
  if blocks:
    config.tokenizers = blocks
  tokens = 9 if masks else 39 if joints else 5
  length = max(slots * tokens, 64 if 'depth' in tasks else 0) if arg.runlocal else 2100
  config.model = dict(
      input_size=(canvas, canvas), vocabulary=vocabulary(arg, others=128 if masks else 0),
      backbone=backbone(arg, size='b', drop_path=0.3, shift=True), **head(arg, max_len=length))
  config.model_init = dict(backbone='backbone.npz')
  config.solver = dict(tasks=tasks, parallel=parallel, num_objects=slots, box_norm=canvas, mask_tau=1.0)


def start_from_detection(config: mlc.ConfigDict) -> None:
  """Weights of a detection model; the decoder starts anew, and the vocabulary grew by the codes of other maps."""
  config.model_init = dict(solver='detection.npz')
  config.model_load = dict(dont_load=('transformer/decoder/.*', 'transformer/.*_embed', 'transformer/outp_bias'))


def train_on_instances(config: mlc.ConfigDict, arg: mlc.ConfigDict) -> None:
  """The released training of instance segmentation (`insseg`, 50 epochs of 7330 steps), which starts from detection."""
  config.batch_size, config.total_steps = 16, 366_500
  adamw(config, lr=1e-4, wd=0.05, layer_decay=0.85)
  config.schedule = dict(decay_type='linear', overlap='product', end=0.01, warmup_steps=14_660, warmup_start=0.1)
  config.grad_clip_norm = 50.0
  if arg.runlocal:
    shrink_solver_training(config, total_steps=2000)


def mix_depth(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, rows: tuple[int, int]) -> None:
  """Adds NYU's depth to the data of an object solver: two parts of one batch, depth in the canvas's upper left."""
  canvas = config.model.input_size[0]
  objects = {key: config[key] for key in ('dataset', 'train_split', 'val_split', 'pp_train', 'pp_eval')}
  depth = mlc.ConfigDict()
  depth_data(depth, arg, colours=True, protocol=True)
  pad = f'canvas({canvas})'
  tail = 'value_range(-1, 1)|keep("image", "labels", "valid_size")'
  train = depth.pp_train.replace('value_range(-1, 1)|keep("image", "labels")', f'{pad}|{tail}')
  config.dataset = f'{rows[0]}*{objects["dataset"]};{rows[1]}*{depth.dataset}'
  config.train_split = f'{objects["train_split"]};{depth.train_split}'
  config.pp_train = f'{objects["pp_train"]};{train}'
  config.val_split, config.pp_eval = None, None
  config.object_val.update(dataset=objects['dataset'])
  config.evals = [*config.evals, ('depth_val', 'nyu_depth')]
  config.depth_val = depth.depth_val
  config.depth_val.update(dataset=depth.dataset, pred_kw=dict(depth.depth_val.get('pred_kw', {}), task='depth'))
  if not arg.runlocal:
    config.solver.map_size = (480, 480)


def semantic_data(config: mlc.ConfigDict, arg: mlc.ConfigDict) -> None:
  """Class maps of scenes, or of a folder."""
  config.dataset = ('scenes/mini' if arg.runlocal else 'scenes') if arg.scenes else 'folder'
  config.train_split, config.val_split = 'train', 'validation'
  size = SIZE if arg.runlocal else 512
  shape = '' if arg.scenes and arg.runlocal else f'resize_all({size})'
  keep = 'value_range(-1, 1)|keep("image", "labels"'
  labels = 'semantic_labels' if arg.labels == 'semantic' else f'semantic_labels("{arg.labels}")'
  moves = common.join(window(size), TRAIN_COLOURS) if arg.folder else shape
  config.pp_train = common.join('decode', labels, 'random_flip', moves, f'{keep})')
  config.pp_eval = common.join('decode', labels, shape, f'{keep})')
  pp, metric = f'{labels}|copy("labels", "ground_truth")|{keep}, "ground_truth")', dict(num_classes=semantic_classes(arg))
  if shape:   # the metric reads the raw maps, at their own sizes
    pp, metric['target_key'] = common.join(labels, shape, f'{keep})'), arg.labels
  common.add_eval(config, 'semantic_val', 'mean_iou', split='validation', log_steps=2000, prefix='miou/', pp=pp, metric=metric)
  if arg.folder:
    own_data.splits(config, arg)
