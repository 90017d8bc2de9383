"""Shared by all configs: their form `folder`, for somebody's own data."""

import ml_collections as mlc

# Arguments of every config for somebody's own data. `folder` alone, with --config.data_dir=…, reads the others from the
# data; 0 or '' where nothing was read: the paper's number then. `labels` is the folder of the class maps, `classes` are
# their number, `segments` (of which `things` come first) those of panoptic maps with at most `instances` an image,
# `objects` those of instances.json with at most `slots` an image, `outlines` whether these have masks, `person` the
# class with `joints`, `pieces` those of the captions' `text` model; `size` is a middle HxW, `short` and `long` the
# longest sides.
FOLDER = dict(folder=False, train='train', val='validation', labels='semantic', classes=0, max_depth=0.0, segments=0,
              things=0, instances=0, objects=0, slots=0, outlines=False, joints=0, person=0, text='', pieces=0, size='',
              short=0, long=0)


def is_read(arg: mlc.ConfigDict) -> bool:
  """Whether own data said what it holds; without, a config of the form `folder` has the paper's numbers."""
  return arg.folder and bool(arg.size)


def splits(config: mlc.ConfigDict, arg: mlc.ConfigDict) -> None:
  """Dataset and splits of own data, in all evaluators as well."""
  config.update(dataset='folder', train_split=arg.train, val_split=arg.val)
  for name, _ in config.get('evals', ()):
    config[name].split = arg.val


def depth(config: mlc.ConfigDict, arg: mlc.ConfigDict, name: str = 'depth_val') -> None:
  """The range of own depth in the task and its metric, whose truth is the file at its own size."""
  if arg.max_depth:
    config.max_depth = arg.max_depth
    config[name].metric.max_depth = arg.max_depth


def size(arg: mlc.ConfigDict, area: int, *, multiple: int = 32) -> tuple[int, int]:
  """(H, W) of about `area` pixels in the proportions of own pictures, sides in whole multiples."""
  height, width = (int(side) for side in arg.size.split('x')) if arg.size else (1, 1)
  ratio = min(max(height / width, 0.25), 4.0)
  sides = ((area * ratio) ** 0.5, (area / ratio) ** 0.5)
  return tuple(max(1, round(side / multiple)) * multiple for side in sides)
