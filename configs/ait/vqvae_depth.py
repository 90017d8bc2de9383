r"""AiT's depth tokenizer on NYU Depth V2 (arXiv 2301.02229, section 3.1 and tables 2, 4, 6, 7, 11; the released
recipe).

  python -m train --config=configs/ait/vqvae_depth.py --workdir=workdir/ait_vqvae_depth \
    --config.data_dir=/data/nyu

60,560 steps of 8 maps; 7.7 M parameters, 3.8 G multiplications a map. Hardware and hours: not stated with the recipe,
not measured here. Expected: 0.0966 m RMSE of the reconstruction of unmasked maps.

Arguments, after a colon and separated by commas:
  scenes      the generated dataset in place of NYU
  folder      own data in --config.data_dir, whose sizes and classes are read
  runlocal    two CPU cores and a few minutes: 64 pixels, ratio 8, 64 words
  ratio=32 width=16 blocks=2 words=128 mask=0.5
              pixels of a token's side (32, 16, 8), channels after the first convolution (8, 16, 32), residual blocks
              (2 to 5), size of the dictionary (64, 128, 256), share of 16x16 patches hidden in training (0, 0.3, 0.5,
              0.7)
"""

from configs import ait_common, common

PER_EPOCH, EPOCHS = 3028, 20   # 24,231 maps in whole batches of 8


def get_config(arg=''):
  """The released recipe; see the module's docstring for the arguments."""
  small = dict(ratio=8, width=16, words=64)
  arg = common.parse_arg(arg, ait_common.ARGS | dict(ratio=32, width=16, blocks=2, words=128, mask=0.5), runlocal=small)
  config = ait_common.base(arg, task='depth', system='ait.vqvae')
  ait_common.depth_data(config, arg, colours=False, protocol=False)
  config.model = ait_common.depth_tokenizer(arg) | dict(
      ratio=arg.ratio, first_width=arg.width, num_res_blocks=arg.blocks, dict_size=arg.words, mask_ratio=arg.mask,
      mask_patch=8 if arg.runlocal else 16)
  config.w_commitment = 0.25
  config.batch_size, config.lr = 8, 3e-4
  if arg.scenes or arg.folder:
    config.num_epochs = EPOCHS
  else:
    config.total_steps = EPOCHS * PER_EPOCH
  config.wd_mults = []
  # Rate 0.98 at iterations 0, 500, … 3000 of every epoch: 140 times.
  drops = [epoch * PER_EPOCH + i for epoch in range(EPOCHS) for i in range(0, PER_EPOCH, 500)]
  config.schedule = dict(decay_type='step', drop_steps=drops, drop_factor=0.98)
  if arg.runlocal:
    ait_common.shrink_tokenizer_training(config)
  return config
