r"""A tokenizer of class maps for AiT's semantic segmentation (arXiv 2301.02229, table 10); no recipe was released.

  python -m train --config=configs/ait/vqvae_semantic.py:scenes --workdir=workdir/ait_vqvae_semantic

Integer labels come in through an embedding, logits go out, cross entropy where there is a label. Sizes and schedule are
those of the depth tokenizer, at ratio 16: our choice. Without `scenes` the labels are those of a folder (ADE20K's 150
classes), named by `--config.data_dir`. Hardware, hours and result: not measured.

Arguments, after a colon and separated by commas:
  scenes      the generated dataset, 10 classes
  folder      own data in --config.data_dir, whose classes are read
  runlocal    two CPU cores and a few minutes: 64 pixels, ratio 8, 64 words
"""

from configs import ait_common, common


def get_config(arg=''):
  """Our recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, ait_common.ARGS, runlocal={})
  config = ait_common.base(arg, task='semantic_segmentation', system='ait.vqvae')
  ait_common.semantic_data(config, arg)
  config.model = ait_common.semantic_tokenizer(arg)
  config.w_commitment = 0.25
  config.batch_size, config.num_epochs, config.lr = 8, 20, 3e-4
  config.wd_mults = []
  config.schedule = dict(decay_type='cosine', warmup_steps=500, end=0.06)
  if arg.runlocal:
    # Class maps are easy: on 51 pictures the maps that come back have an mIoU of 0.67, after twice the steps 0.69.
    ait_common.shrink_tokenizer_training(config, total_steps=600)
  return config
