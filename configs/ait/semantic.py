r"""AiT for semantic segmentation (arXiv 2301.02229, table 10: ADE20K, AiT-P 50.1 mIoU); no recipe was released.

  python -m train --config=configs/ait/semantic.py:scenes --workdir=workdir/ait_semantic \
    --config.tokenizers.semantics.model_init=workdir/ait_vqvae_semantic

The codes of class maps are the "other tasks" rows of the vocabulary. Optimiser and lengths are those of the depth
recipe: our choice. Without `scenes` the labels are those of a folder, named by `--config.data_dir`. Not measured.

Arguments, after a colon and separated by commas:
  parallel    AiT-P: all tokens in one pass
  scenes      the generated dataset, 10 classes
  folder      own data in --config.data_dir, whose classes are read
  runlocal    two CPU cores and a few minutes: 64 pixels, 64 tokens, from scratch
"""

from configs import ait_common, common


def get_config(arg=''):
  """Our recipe; see the module's docstring for the arguments."""
  arg = common.parse_arg(arg, ait_common.ARGS | dict(parallel=False), runlocal={})
  config = ait_common.base(arg, task='semantic_segmentation', system='ait.solver')
  ait_common.semantic_data(config, arg)
  tokenizer = ait_common.semantic_tokenizer(arg)
  config.tokenizers = dict(semantics=dict(model_init='tokenizer.npz', model=tokenizer))
  config.model = dict(input_size=tokenizer['input_size'], vocabulary=ait_common.vocabulary(arg, others=128),
                      backbone=ait_common.backbone(arg, size='b', drop_path=0.1, shift=True),
                      **ait_common.head(arg, max_len=64 if arg.runlocal else 2100))
  config.model_init = dict(backbone='backbone.npz')
  config.solver = dict(tasks=('semantics',), parallel=arg.parallel, tau=0.8)
  config.batch_size, config.total_steps = 24, 25_250
  ait_common.adamw(config, lr=2e-4, wd=0.05, layer_decay=0.9)
  config.schedule = dict(decay_type='step', drop_steps=(18_180,), drop_factor=0.1, warmup_steps=500, warmup_start=0.1)
  config.grad_clip_norm = 10.0
  if arg.runlocal:
    ait_common.shrink_solver_training(config, total_steps=800)
  return config
