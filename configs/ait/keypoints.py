r"""AiT for human keypoints (arXiv 2301.02229, table 10: COCO, AiT 67.5, AiT-P 77.4 keypoint AP); no recipe was released.

  python -m train --config=configs/ait/keypoints.py --workdir=workdir/ait_keypoints --config.data_dir=/data/coco \
    --config.model_init.solver=workdir/ait_detection

The paper gives the result alone; what follows is ours. An object is the five tokens of detection, then x and y of its 17
joints in the same coordinate bins (after Pix2Seq V2, arXiv 2206.07669): 39 tokens, 50 objects an image. All classes stay
in the data, so that a detection model starts it and boxes are measured as in detection; joints that are not labelled,
which other classes never have, are not asked for. Every joint is written, with no token for hidden ones. Optimiser and
lengths are those of the instance recipe. Not measured.

Arguments, after a colon and separated by commas:
  parallel    AiT-P: five tokens of an object one after the other, its 34 joint tokens in one pass
  scenes      the generated dataset, 5 classes
  folder      own data in --config.data_dir, whose sizes and classes are read; needs the 17 joints of COCO
  runlocal    two CPU cores and a few minutes: 64 pixels, 8 objects of 39 tokens, from scratch
"""

from configs import ait_common, common, own_data
from uvim_like.errors import UserError


def get_config(arg=''):
  """Our recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, ait_common.ARGS | dict(parallel=False), runlocal={})
  if own_data.is_read(arg) and not arg.joints:
    raise UserError("config: this config learns keypoints, but instances.json has none of COCO's 17 joints")
  config = ait_common.base(arg, task='instance_segmentation', system='ait.solver')
  ait_common.object_solver(config, arg, tasks=('keypoints',), parallel=arg.parallel)
  if arg.person:
    config.object_val.metric.person = arg.person
  ait_common.start_from_detection(config)
  config.object_val.pred_kw = dict(temperature=1.0, top_p=0.4)
  ait_common.train_on_instances(config, arg)
  return config
