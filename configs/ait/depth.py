r"""AiT's depth solver on NYU Depth V2 (arXiv 2301.02229, table 12; the released recipes).

  python -m train --config=configs/ait/depth.py --workdir=workdir/ait_depth --config.data_dir=/data/nyu \
    --config.tokenizers.depth.model_init=workdir/ait_vqvae_depth --config.model_init.backbone=swinv2_base_simmim.npz

25,250 steps of 24 images, SwinV2-B from SimMIM's weights. Hardware: 8 GPUs (the release's README); hours not stated,
not measured here. Expected, RMSE in metres with two windows and mirrored views: B 0.305, L 0.284, parallel B 0.301,
parallel L 0.275, without soft tokens B 0.318.

Arguments, after a colon and separated by commas:
  large       SwinV2-L (half the rate, more decay)
  parallel    AiT-P: all tokens in one pass
  masked      tokens learned from the others, all or some hidden, and decoded in stages (after MAD; no paper's recipe)
  wosoft      hard tokens everywhere, no auxiliary loss
  scenes      the generated dataset in place of NYU
  folder      own data in --config.data_dir, whose sizes and classes are read
  runlocal    two CPU cores and a few minutes: 64 pixels, a SwinV2 of one stage, 64 tokens, from scratch
"""

from configs import ait_common, common


def get_config(arg=''):
  """The released recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, ait_common.ARGS | dict(large=False, parallel=False, masked=False, wosoft=False),
                         runlocal={})
  config = ait_common.base(arg, task='depth', system='ait.solver')
  ait_common.depth_data(config, arg, colours=True, protocol=True)
  tokenizer = ait_common.depth_tokenizer(arg)
  config.tokenizers = dict(depth=dict(model_init='tokenizer.npz', model=tokenizer))
  config.model = dict(
      input_size=tokenizer['input_size'], vocabulary=ait_common.vocabulary(arg),
      backbone=ait_common.backbone(arg, size='l' if arg.large else 'b', drop_path=0.1, shift=False),
      **ait_common.head(arg, max_len=64 if arg.runlocal else 2100))
  config.model_init = dict(backbone='backbone.npz')
  config.solver = dict(tasks=('depth',), parallel=arg.parallel, masked=arg.masked, tau=0.8,
                       depth_aux=0.0 if arg.wosoft else 1.0)
  if arg.wosoft:
    options = dict(soft_feedback=False, soft_detokenizer=False)
    config.depth_val.pred_kw = dict(config.depth_val.get('pred_kw', {})) | options
  config.batch_size, config.total_steps = 24, 25_250
  ait_common.adamw(config, lr=1e-4 if arg.large else 2e-4, wd=0.075 if arg.large else 0.05, layer_decay=0.9)
  config.schedule = dict(decay_type='step', drop_steps=(18_180,), drop_factor=0.1, warmup_steps=500, warmup_start=0.1)
  config.grad_clip_norm = 10.0
  if arg.runlocal:
    ait_common.shrink_solver_training(config, total_steps=1200)
  return config
