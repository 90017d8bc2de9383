r"""AiT's tokenizer of instance masks on COCO (arXiv 2301.02229, section 3.1 and tables 3, 5, 8; the released recipe).

  python -m train --config=configs/ait/vqvae_mask.py --workdir=workdir/ait_vqvae_mask --config.data_dir=/data/coco

20 passes over the training objects. 64 images a step hold some 470 masks, where the release takes 512 cut out before;
2.0 M parameters, 0.058 G multiplications a mask. Hardware and hours: not stated with the recipe, not measured here.
Expected on
val2017, masks in the true boxes: 89.3 mask AP.

Arguments, after a colon and separated by commas:
  scenes      the generated dataset in place of COCO
  folder      own data in --config.data_dir, whose sizes and classes are read
  runlocal    two CPU cores and a few minutes: masks of 32 pixels in 4 words of 64
  ratio=16 width=16 blocks=2 words=128
              as in vqvae_depth; ratio 32 or 16
"""

from configs import ait_common, common


def get_config(arg=''):
  """The released recipe; see the module's docstring for the arguments."""
  small = dict(ratio=16, width=8, words=64)
  arg = common.parse_arg(arg, ait_common.ARGS | dict(ratio=16, width=16, blocks=2, words=128), runlocal=small)
  config = ait_common.base(arg, task='instance_segmentation', system='ait.vqvae')
  config.model = ait_common.mask_tokenizer(arg) | dict(
      ratio=arg.ratio, first_width=arg.width, num_res_blocks=arg.blocks, dict_size=arg.words)
  slots, canvas = (8, ait_common.SIZE) if arg.runlocal else (32, 640)
  ait_common.object_data(config, arg, masks=True, slots=slots, canvas=canvas)
  side = config.model.input_size[0]
  # The release trains on masks as they are, cut out; its evaluation counts every box of an image.
  config.pp_train = inside_boxes(config.pp_eval, side, canvas)
  config.pp_eval = inside_boxes(config.pp_eval, side, canvas)
  config.object_val.pp = inside_boxes(config.object_val.pp, side, canvas).replace('pad_instances(32)', 'pad_instances(100)')
  config.w_commitment = 0.25
  config.batch_size, config.num_epochs, config.lr = 64, 20, 3e-4
  config.wd_mults = []
  config.schedule = dict(decay_type='cosine', overlap=True, warmup_steps=500, warmup_start=1e-3, end=1 / 300)
  if arg.runlocal:
    ait_common.shrink_tokenizer_training(config)
  return config


def inside_boxes(pp, side, canvas):
  """The string with masks rasterised inside their boxes, `side` pixels wide, in place of whole ones."""
  return pp.replace(f'canvas({canvas})', f'canvas({canvas})|box_masks({side})').replace('"masks"', '"box_masks"')
