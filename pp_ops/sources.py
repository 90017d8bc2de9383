"""A dataset's name in a config -> its source: TFDS, rendered scenes, a folder, and datasets as they are downloaded."""

import importlib
from collections.abc import Collection

import tensorflow as tf
from etils import epath

from pp_ops import sources_scenes, sources_tfds
from pp_ops.source import Source
from uvim_like.errors import UserError

# Kind of dataset that is a folder -> module with `open_split(root, split, skip_decode=)`, or the function itself.
FOLDERS = {"folder": "sources_folder", "coco_json": "sources_coco", "coco_instances": "sources_coco_instances",
           "nyu": "sources_nyu", "taskonomy": "sources_frames:open_taskonomy"}


def open_source(dataset: str, split: str, *, data_dir: str | None = None,
                skip_decode: Collection[str] = ()) -> Source:
  """Opens a split for random access; nothing but lists of files and their metadata is read.

  Args:
    dataset: a TFDS name ("coco/2017_panoptic", or "read_order:coco/2017_panoptic" as TFDS would read it), "scenes" or "scenes/<config>", or one of FOLDERS, "folder" or
      "folder:<path>".
    split: TFDS split arithmetic over the dataset's splits.
    data_dir: where TFDS datasets were prepared, or the folder itself.
    skip_decode: image features wanted as encoded bytes, where the dataset has these.

  Raises:
    UserError: unknown dataset or split, dataset not prepared.
  """
  if tf.config.get_visible_devices("GPU"):   # its memory is jax's; possible only before TensorFlow's first op
    tf.config.set_visible_devices([], "GPU")
  kind, _, path = dataset.partition(":")
  if kind in FOLDERS:
    root = path or data_dir
    if not root:
      raise UserError(f"dataset '{dataset}' needs data_dir=… (or '{kind}:<path>')")
    module, _, function = FOLDERS[kind].partition(":")
    opened = getattr(importlib.import_module(f"pp_ops.{module}"), function or "open_split")
    return opened(epath.Path(root).expanduser(), split, skip_decode=skip_decode)
  if dataset.partition("/")[0] == "scenes":
    prepared = sources_scenes.prepared_path(dataset, data_dir)
    if prepared is None:
      return sources_scenes.ScenesSource(dataset, split)
    return sources_tfds.open_directory(prepared, dataset, split, skip_decode=skip_decode)
  return sources_tfds.open_dataset(dataset, split, data_dir=data_dir, skip_decode=skip_decode)
