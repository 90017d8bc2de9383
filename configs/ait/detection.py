r"""AiT's detection model on COCO, from which its instance and joint recipes start (released recipe).

  python -m train --config=configs/ait/detection.py --workdir=workdir/ait_detection --config.data_dir=/data/coco \
    --config.model_init.backbone=swinv2_base_simmim.npz

183,300 steps of 128 images, some 200 epochs (the paper says 100, which fits a batch of 64), float32, 32 GPUs; hours and
box AP of this stage not stated, not measured here.

Arguments, after a colon and separated by commas:
  scenes      the generated dataset, 5 classes
  folder      own data in --config.data_dir, whose sizes and classes are read
  runlocal    two CPU cores and a few minutes: 64 pixels, 8 objects, from scratch
"""

from configs import ait_common, common


def get_config(arg=''):
  """The released recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, ait_common.ARGS, runlocal={})
  config = ait_common.base(arg, task='instance_segmentation', system='ait.solver')
  ait_common.object_solver(config, arg, tasks=('detection',))
  config.batch_size, config.total_steps = 128, 183_300
  ait_common.adamw(config, lr=1e-3, wd=0.05, layer_decay=0.85)
  config.schedule = dict(decay_type='linear', overlap='product', end=0.01, warmup_steps=18_330, warmup_start=0.1)
  config.grad_clip_norm = 1.0
  config.object_val.pred_kw = dict(temperature=1.0, top_p=0.4)
  if arg.runlocal:
    ait_common.shrink_solver_training(config, total_steps=2000)
  return config
