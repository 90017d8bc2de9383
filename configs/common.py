"""Shared by all configs: arguments, preprocessing strings, evaluator blocks, tables of sizes, variations."""

from collections.abc import Mapping
from typing import Any

import ml_collections as mlc

from configs import own_data
from uvim_like.errors import UserError, unknown

# Arguments of every UViM config, with the paper's values as defaults; `runlocal` changes the two sizes.
ARGS = dict(scenes=False, runlocal=False, singlehost=False, released=False, res=512, patch=16)
DEPTH_ARGS = ARGS | dict(released=True)
COLOR_ARGS = ARGS | dict(released=True, inception='')
RUNLOCAL_ARGS = dict(res=64, patch=8)

# Listing 2 of the UViM paper (appendix D).
LM_MODELS = {
    'base': dict(num_layers=12, num_heads=12, mlp_dim=3072, emb_dim=768),
    'large': dict(num_layers=24, num_heads=16, mlp_dim=4096, emb_dim=1024),
}
STAGE_I_MODELS = {
    'base': dict(oracle_depth=6, base_model_depth=12, num_heads=12, mlp_dim=3072, width=768),
}
ENCODER_LR_MULTS = [
    ('pos_embedding_encoder.*', 0.1),
    ('EmbedPatches.*', 0.1),
    ('encoder.*', 0.1),
    ('decoder.*', 1.0),
]

PP_MODULES = ['ops_general', 'ops_image', 'proj.uvim.pp_ops']

# `scenes` has ten classes and void, and at most nineteen instances and void.
SCENES_CLASSES, SCENES_INSTANCES = 10 + 1, 20
# Splits that are evaluated in full by the paper's recipes, cut to what two cores evaluate in seconds.
SHORT_SPLITS = {'train[4096:8192]': 'train[4096:4352]', 'train[:4096]': 'train[:256]', 'validation': 'validation[:256]'}


def parse_arg(arg: str | None, defaults: Mapping[str, Any] = ARGS, *,
              runlocal: Mapping[str, Any] = RUNLOCAL_ARGS) -> mlc.ConfigDict:
  """The arguments after the colon of `--config=file.py:scenes,res=64`, typed as their defaults.

  Args:
    arg: 'name' (a switch) or 'name=value', separated by commas; '' or None for none.
    defaults: every argument that exists beside `own_data.FOLDER`; the type of a default is the type of the argument.
    runlocal: defaults that change where the switch `runlocal` is on.

  Returns:
    All arguments as attributes.

  Raises:
    UserError: unknown argument, a value of another type, a value missing, both `scenes` and `folder`.
  """
  given, defaults = {}, {**own_data.FOLDER, **defaults}
  for item in filter(None, (part.strip() for part in (arg or '').split(','))):
    name, equals, text = (part.strip() for part in item.partition('='))
    if name not in defaults:
      raise unknown('argument', name, defaults, where='config')
    if not equals and not isinstance(defaults[name], bool):
      raise UserError(f"config: argument '{name}' needs a value: {name}={defaults[name]}")
    given[name] = _typed(name, text if equals else 'true', defaults[name])
  if given.get('scenes') and given.get('folder'):
    raise UserError("config: 'scenes' and 'folder' are two datasets; leave one out")
  small = runlocal if given.get('runlocal') else {}
  return mlc.ConfigDict({**defaults, **small, **given})


def _typed(name: str, text: str, default: Any) -> Any:
  """`text` as a value of the default's type."""
  kinds = {'true': True, '1': True, 'false': False, '0': False}
  try:
    return kinds[text.lower()] if isinstance(default, bool) else type(default)(text)
  except (ValueError, KeyError):
    raise UserError(f"config: argument '{name}' wants a {type(default).__name__}, not '{text}'") from None


# --- Preprocessing strings -----------------------------------------------------------------------------------------


def join(*ops: str) -> str:
  """Ops and pieces of strings joined by a bar; empty pieces drop out."""
  return '|'.join(op for op in ops if op)


def augment(*keys: str, crops: bool = True) -> str:
  """One mirror and one box for all keys alike."""
  flips = join('randu("fliplr")', *(f'det_fliplr(key="{key}")' for key in keys))
  return join(flips, 'inception_box', *(f'crop_box(key="{key}")' for key in keys)) if crops else flips


def resize_labels(res: int) -> str:
  """Labels are resized without mixing them."""
  return f'resize({res}, key="labels", method="nearest")'


def image_ctx(res: int) -> str:
  """The oracle's own copy of the image, which may have another resolution than the language model's."""
  return f'resize({res}, inkey="image", outkey="image_ctx")'


def depth_pp(res: int, *, train: bool = False, raw: bool = False, ctx: bool = False, scenes: bool = False,
             crops: bool = True, folder: bool = False) -> str:
  """NYU depth. `raw`: for an evaluator, whose images are decoded and whose truth keeps its own size.

  Validation takes the window of 426x560 pixels that the metric looks at (UViM's released protocol); `scenes` and own
  data (`folder`) have no such border. Own maps differ in size, which no batch can hold: the metric reads the files.
  """
  needs_labels = not (raw and ctx)  # stage I predicts from them; stage II from the image alone
  keys = ('image', *(['image_ctx'] if ctx else []), *(['labels'] if needs_labels else []),
          *(['ground_truth'] if raw and not folder else []))
  return join(
      '' if raw else 'decode', 'nyu_depth',
      augment('image', 'labels', crops=crops) if train else ('' if scenes or folder else 'nyu_eval_crop'),
      'copy("labels", "ground_truth")' if raw and not folder else '',
      image_ctx(res) if ctx else '', f'resize({res})', resize_labels(res) if needs_labels else '',
      'value_range(-1, 1, key="image_ctx")' if ctx else '', 'value_range(-1, 1)', keep(*keys))


def color_pp(res: int, *, train: bool = False, raw: bool = False, ctx: bool = False, scenes: bool = False,
             crops: bool = True) -> str:
  """Grey image in, the same image in colour as the label; evaluation takes the central square (ColTran's protocol).

  `scenes` stores no JPEG, which the paper's crop decodes.
  """
  if train and not scenes:
    head = f'decode_jpeg_and_inception_crop({res})|flip_lr'
  elif train:
    head = join('decode', augment('image', crops=crops), f'resize({res})')
  else:
    head = join('' if raw else 'decode', f'square_area_resize({res})')
  keys = ('image', *(['image_ctx'] if ctx else []), 'labels')
  return join(
      head, 'copy("image", "labels")', 'rgb_to_grayscale_to_rgb', 'copy("image", "image_ctx")' if ctx else '',
      *(f'value_range(-1, 1, key="{key}")' for key in keys), keep(*keys))


def coltran_pp(res: int, *, ctx: bool) -> str:
  """ColTran's FID-5k: rounded pixels as x / 128 - 1, and the grey image is that of the normalised one."""
  keys = ('image', *(['image_ctx'] if ctx else []), 'labels')
  return join(f'square_area_resize({res})', 'value_range(-1, 1, 0, 256)', 'copy("image", "labels")',
              'rgb_to_grayscale_to_rgb', 'copy("image", "image_ctx")' if ctx else '', keep(*keys))


def keep(*keys: str) -> str:
  """The last op: what the batch holds."""
  return 'keep({})'.format(', '.join(f'"{key}"' for key in keys))


# --- Data, planes and evaluators of each task ------------------------------------------------------------------------

# A plane is (classes or channels, pixels in a patch).


def mirror_only(arg: mlc.ConfigDict) -> bool:
  """The small recipe on `scenes` mirrors and does not crop, as its prototype; with crops it was not measured."""
  return arg.scenes and arg.runlocal


def augment_panoptic(arg: mlc.ConfigDict) -> str:
  """Mirror and box for image and labels."""
  return augment('image', 'labels', crops=not mirror_only(arg))


def panoptic_planes(arg: mlc.ConfigDict) -> dict[str, tuple[int, int]]:
  """+1 class for void; COCO really needs 98 instances in train, 78 in validation."""
  pixels = arg.patch ** 2
  if arg.scenes:
    return {'semantics': (SCENES_CLASSES, pixels), 'instances': (SCENES_INSTANCES, pixels)}
  if arg.segments:
    return {'semantics': (arg.segments + 1, pixels), 'instances': (arg.instances + 1, pixels)}
  return {'semantics': (133 + 1, pixels), 'instances': (100, pixels)}


def panoptic_evals(config: mlc.ConfigDict, pp: str, *, scenes: bool, folder: bool = False) -> None:
  """Both listings' three evaluators: seen images, held-out ones, validation; for `scenes` and own data the last."""
  base = mlc.ConfigDict(dict(pp=pp, log_steps=10_000))
  config.evals = [('panoptic_train', 'coco_panoptic'), ('panoptic_holdout', 'coco_panoptic'),
                  ('panoptic_val', 'coco_panoptic')]
  splits = {'panoptic_train': ('coco_panoptic_train/', 'train[4096:8192]'),
            'panoptic_holdout': ('coco_panoptic_holdout/', 'train[:4096]'),
            'panoptic_val': ('coco_panoptic/', 'validation')}
  if scenes or folder:
    config.evals = config.evals[2:]
    base.metric = dict(dataset='scenes') if scenes else dict(categories=[])   # own ones are read from the data
  for name, _ in config.evals:
    config[name] = mlc.ConfigDict(base)
    config[name].prefix, config[name].split = splits[name]


def depth_planes(arg: mlc.ConfigDict) -> dict[str, tuple[int, int]]:
  """256 bins over 1 mm to 10 m; 32 where the model is small: half a bin is 16 cm, and the head is most of the work."""
  return {'depth': (32 if arg.runlocal else 256, arg.patch ** 2)}


def depth_data(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, ctx: bool = False) -> None:
  """Dataset, splits and preprocessing of the depth configs."""
  config.dataset = 'nyu_depth_v2'
  config.train_split, config.val_split = 'train', 'validation'
  config.pp_modules = PP_MODULES
  config.pp_train = depth_pp(arg.res, train=True, ctx=ctx, crops=not mirror_only(arg))
  config.pp_eval = depth_pp(arg.res, ctx=ctx, scenes=arg.scenes, folder=arg.folder)


def depth_eval(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, ctx: bool = False, binned: bool = True) -> None:
  """The metric at its own size: on NYU the window of UViM's released code, on `scenes` the whole image.

  The small recipe on `scenes` and own data predicts the mean over its few bins; the paper's takes the best bin.
  """
  add_eval(config, 'depth_val', 'nyu_depth', split='validation', log_steps=2000, prefix='nyu_depth/',
           pp=depth_pp(arg.res, raw=True, ctx=ctx, scenes=arg.scenes, folder=arg.folder),
           metric=dict(preset='plain' if arg.scenes or arg.folder else 'nyu_uvim'))
  own_data.depth(config, arg)
  if binned and (arg.scenes or arg.folder) and arg.runlocal:
    config.depth_val.pred_kw = dict(task_options=dict(estimate='mean'))


def color_planes(arg: mlc.ConfigDict) -> dict[str, tuple[int, int]]:
  """Red, green, blue."""
  return {'color': (3, arg.patch ** 2)}


def color_data(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, ctx: bool = False) -> None:
  """Dataset, splits and preprocessing of the colour configs."""
  config.dataset = 'imagenet2012'
  config.train_split, config.val_split = 'train[4096:]', 'train[:4096]'
  config.pp_modules = PP_MODULES
  config.pp_train = color_pp(arg.res, train=True, ctx=ctx, scenes=arg.scenes, crops=not mirror_only(arg))
  config.pp_eval = color_pp(arg.res, ctx=ctx)


def color_eval(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, ctx: bool = False) -> None:
  """PSNR; and ColTran's FID-5k where `inception` names the exported network, which cannot be shipped."""
  pp = color_pp(arg.res, raw=True, ctx=ctx)
  add_eval(config, 'psnr_val', 'psnr', pp=pp, split='validation', log_steps=10_000, prefix='psnr/')
  if arg.inception and not (arg.scenes or arg.folder):   # its pictures are ImageNet's
    add_eval(config, 'coltran_fid', 'coltran_fid', pp=coltran_pp(arg.res, ctx=ctx),
             dataset=f'read_order:{config.dataset}', split='validation[:5000]+validation[10000:15000]',
             log_steps=100_000, metric=dict(inception_weights=arg.inception))


# --- Blocks shared by the depth and colour configs (the released recipes; the panoptic ones are spelt out) ----------


def training(config: mlc.ConfigDict, *, batch_size: int, num_epochs: int, lr: float, wd: float) -> mlc.ConfigDict:
  """Adds what both stages share: adafactor, cosine with 4000 warm-up steps, a log line every 50 steps."""
  config.batch_size = batch_size
  config.num_epochs = num_epochs
  config.log_training_steps = 50
  config.checkpoint_steps = 1000
  config.optax_name = 'scale_by_adafactor'
  config.optax = dict(beta2_cap=0.95)
  config.lr, config.wd = lr, wd
  config.schedule = dict(decay_type='cosine', warmup_steps=4_000)
  return config


def tokenizer(arg: mlc.ConfigDict, inputs: Mapping[str, tuple[int, int]]) -> dict:
  """The stage-I network of all six released trainings; `inputs` are (classes or channels, pixels in a patch)."""
  return dict(
      **STAGE_I_MODELS['base'],
      input_size=(arg.res, arg.res), patch_size=(arg.patch, arg.patch),
      code_len=256, dict_size=4096, codeword_dim=768, dict_momentum=0.995,
      with_encoder_ctx=True, with_decoder_ctx=True, inputs=dict(inputs), outputs=dict(inputs))


def stage_one(config: mlc.ConfigDict, arg: mlc.ConfigDict, inputs: Mapping[str, tuple[int, int]]) -> mlc.ConfigDict:
  """Adds the stage-I model, its clipping and its intervals."""
  config.shuffle_buffer_size = 25_000
  config.log_eval_steps = 250
  config.keep_checkpoint_steps = 20_000
  config.grad_clip_norm = 1.0
  config.model_name = 'proj.uvim.vit'
  config.model = tokenizer(arg, inputs)
  return config


def stage_two(config: mlc.ConfigDict, arg: mlc.ConfigDict, task: str,
              inputs: Mapping[str, tuple[int, int]]) -> mlc.ConfigDict:
  """Adds the stage-II model, its oracle, which knows the task, and its intervals."""
  config.shuffle_buffer_size = 50_000
  config.log_eval_steps = 1000
  config.keep_checkpoint_steps = 5000
  config.lr_mults = ENCODER_LR_MULTS
  config.oracle = dict(task=task, model_init='oracle.npz', model_name='proj.uvim.vit',
                       model=tokenizer(arg, inputs))
  config.model_name = 'proj.uvim.lm'
  config.model_init = {'encoder': 'howto-i21k-L/16'}
  config.model = dict(
      **LM_MODELS['large'], patches=dict(size=(arg.patch, arg.patch)), posemb_type='learn',
      input_size=(arg.res, arg.res),
      vocab_size=config.oracle.model.get_ref('dict_size') + 1,
      seq_len=config.oracle.model.get_ref('code_len'))
  return config


def add_eval(config: mlc.ConfigDict, name: str, evaluator: str, **block: Any) -> None:
  """One more evaluator and its block."""
  config.evals = [*config.get('evals', ()), (name, evaluator)]
  config[name] = block


# --- Variations of a finished recipe ---------------------------------------------------------------------------------


def vary(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, singlehost: tuple[int, int]) -> mlc.ConfigDict:
  """Applies the arguments that mean the same in every UViM config; `singlehost` is (batch_size, num_epochs)."""
  stage_two = 'oracle' in config
  net = config.oracle.model if stage_two else config.model
  if arg.released:
    net.update(code_dropout='random', bottleneck_resize=True)
    if not stage_two:
      config.update(freeze_dict=False, w_commitment=0.0)
  if arg.singlehost:
    config.batch_size, config.num_epochs = singlehost
  if arg.scenes:
    config.update(dataset='scenes', train_split='train', val_split='validation')
  if arg.folder:
    own_data.splits(config, arg)
  if arg.runlocal:
    (shrink_stage_two if stage_two else shrink_training)(config, arg)
    shrink_tokenizer(net)
    if arg.scenes or arg.folder:
      scenes_runlocal(config, net, warm_start=stage_two)
    if arg.scenes:
      config.dataset = 'scenes/mini'
  return config


def shrink_tokenizer(model: mlc.ConfigDict) -> None:
  """The stage-I network for 64x64 pixels in patches of 8: 16 words of a dictionary of 64."""
  model.update(width=128, num_heads=4, mlp_dim=256, oracle_depth=2, base_model_depth=4, code_len=16, dict_size=64,
               codeword_dim=128)


def shrink_training(config: mlc.ConfigDict, arg: mlc.ConfigDict, *, total_steps: int = 900) -> None:
  """Sizes and intervals for two CPU cores and a few minutes."""
  del config.num_epochs
  config.total_steps = total_steps
  config.batch_size = 64
  config.schedule.warmup_steps = total_steps // 10
  config.shuffle_buffer_size = 1000
  config.log_eval_steps = config.checkpoint_steps = total_steps // 2
  config.keep_checkpoint_steps = total_steps
  whole = arg.scenes or arg.folder
  config.val_split = config.val_split if whole else SHORT_SPLITS.get(config.val_split, config.val_split)
  for name, _ in config.evals:
    config[name].log_steps = total_steps // 2
    if not whole:
      config[name].split = SHORT_SPLITS.get(config[name].split, config[name].split)


def shrink_stage_two(config: mlc.ConfigDict, arg: mlc.ConfigDict) -> None:
  """The same for the language model; weights of a ViT-L/16 do not fit it, so it starts from scratch."""
  shrink_training(config, arg, total_steps=1200)
  config.model.update(num_layers=4, num_heads=4, mlp_dim=256, emb_dim=128)
  if 'model_init' in config:
    del config.model_init


def scenes_runlocal(config: mlc.ConfigDict, net: mlc.ConfigDict, *, warm_start: bool) -> None:
  """What made the small models learn in minutes (measured on the prototype of `scenes`, see the configs' headers).

  A code with a spatial layout (resized bottleneck, code dropout) is what a small language model can learn, a dictionary
  that forgets in fifty steps is used in full after two minutes, and an image encoder started from the base model's
  stands in for ImageNet-21k weights.
  """
  net.update(bottleneck_resize=True, code_dropout='random', dict_momentum=0.95)
  config.optax_name = 'scale_by_adam'
  config.optax = mlc.ConfigDict(dict(b1=0.9, b2=0.95))
  config.lr, config.wd = 2e-3, 1e-4
  if warm_start:
    config.model_init = {'base_model': config.oracle.get_ref('model_init')}
    config.model.target_emb_scale = 0.1
    config.lr_mults = []  # the multipliers protect a pretrained encoder; this one has seen minutes
