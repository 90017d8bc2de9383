r"""AiT for depth and instances with one set of weights (arXiv 2301.02229, table 13; the released recipe).

  python -m train --config=configs/ait/joint.py --workdir=workdir/ait_joint --config.data_dir='/data/coco;/data/nyu' \
    --config.tokenizers.instances.model_init=workdir/ait_vqvae_mask \
    --config.tokenizers.depth.model_init=workdir/ait_vqvae_depth --config.model_init.solver=workdir/ait_detection

302,875 steps of 60 COCO and 4 NYU images on 64 GPUs; each task's loss over its own tokens, depth's times 0.2. Expected:
0.3103 m RMSE, 42.2 box AP, 34.1 mask AP.

Arguments, after a colon and separated by commas:
  scenes      both parts from the generated dataset
  folder      own data in --config.data_dir, whose sizes and classes are read
  runlocal    two CPU cores and a few minutes: 64 pixels, from scratch
"""

from configs import ait_common, common


def get_config(arg=''):
  """The released recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, ait_common.ARGS, runlocal={})
  config = ait_common.base(arg, task='instance_segmentation', system='ait.solver')
  ait_common.object_solver(config, arg, tasks=('instances', 'depth'))
  ait_common.mix_depth(config, arg, rows=(28, 4) if arg.runlocal else (60, 4))
  ait_common.start_from_detection(config)
  config.solver.update(depth_weight=0.2, tau=1.0)
  config.object_val.pred_kw = dict(task='instances', temperature=1.0, top_p=0.3)
  config.batch_size, config.total_steps = 64, 302_875
  ait_common.adamw(config, lr=8e-4, wd=0.05, layer_decay=0.85)
  config.schedule = dict(decay_type='linear', overlap='product', end=0.01, warmup_steps=12_115, warmup_start=0.1)
  config.grad_clip_norm = 10.0
  if arg.runlocal:
    ait_common.shrink_solver_training(config, total_steps=2000)
  return config
