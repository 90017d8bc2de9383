r"""AiT's instance segmentation on COCO (arXiv 2301.02229, tables 9 and 10; the released recipe).

  python -m train --config=configs/ait/instances.py --workdir=workdir/ait_instances --config.data_dir=/data/coco \
    --config.tokenizers.instances.model_init=workdir/ait_vqvae_mask --config.model_init.solver=workdir/ait_detection

366,500 steps of 16 images on 16 GPUs; backbone and encoder from the detection model, the decoder from scratch.
Expected on
val2017: 43.3 box AP, 34.2 mask AP; without soft tokens 43.6 and 31.1; parallel 35.2 mask AP (paper only: which query
asks for the first mask token, and for the next object, is our choice).

Arguments, after a colon and separated by commas:
  parallel    AiT-P: five tokens of an object one after the other, its 16 mask tokens in one pass
  wosoft      hard tokens everywhere, no auxiliary loss
  scenes      the generated dataset, 5 classes
  folder      own data in --config.data_dir, whose sizes and classes are read
  runlocal    two CPU cores and a few minutes: 64 pixels, 8 objects of 9 tokens, from scratch
"""

from configs import ait_common, common


def get_config(arg=''):
  """The released recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, ait_common.ARGS | dict(parallel=False, wosoft=False), runlocal={})
  config = ait_common.base(arg, task='instance_segmentation', system='ait.solver')
  ait_common.object_solver(config, arg, tasks=('instances',), parallel=arg.parallel)
  ait_common.start_from_detection(config)
  config.solver.mask_aux = 0.0 if arg.wosoft else 5.0
  soft = dict(soft_feedback=False, soft_detokenizer=False) if arg.wosoft else {}
  config.object_val.pred_kw = dict(temperature=1.0, top_p=0.3) | soft
  ait_common.train_on_instances(config, arg)
  return config
