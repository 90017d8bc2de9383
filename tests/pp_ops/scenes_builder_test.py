"""The TFDS dataset `scenes` against `scenes.example`, and its features against those of COCO and NYU."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from pp_ops import scenes_builder
from uvim_like import scenes


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def built(request, tmp_path_factory):
  """(builder, folder, size of the images) of a few examples, not square in one of the two cases."""
  folder = str(tmp_path_factory.mktemp(request.param))
  size = {"tfrecord": (48, 64), "array_record": None}[request.param]
  builder = scenes_builder.builder("mini", data_dir=folder, size=size, counts={"train": 3, "test": 2},
                                   file_format=request.param)
  builder.download_and_prepare()
  return builder, folder, size or (64, 64)


def assert_same(read, made):
  assert set(read) == set(made)
  for key, value in made.items():
    if isinstance(value, dict):
      assert_same(read[key], value)
    elif isinstance(value, str):
      assert read[key].decode() == value
    elif key == "text":
      assert [text.decode() for text in read[key]] == value.tolist()
    else:
      # A data source gives Python lists and scalars where tf.data gives arrays.
      found = read[key] if hasattr(read[key], "dtype") else np.asarray(read[key], value.dtype)
      assert found.dtype == value.dtype
      np.testing.assert_array_equal(found.reshape(value.shape), value)


def test_what_is_read_equals_what_is_made_in_order(built):
  builder, _, size = built
  for split, count in (("train", 3), ("test", 2)):
    if builder.info.file_format.value == "array_record":
      source = builder.as_data_source(split)
      examples = [source[i] for i in range(len(source))]
    else:
      examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
    assert len(examples) == count
    for index, read in enumerate(examples):
      assert_same(read, scenes.example(split, index, size=size))


def test_it_is_found_by_name_in_its_folder(built):
  builder, folder, _ = built
  loaded = tfds.builder(f"scenes/{builder.builder_config.name}", data_dir=folder)
  assert loaded.info.splits["train"].num_examples == 3
  assert loaded.info.features["image"].shape == builder.info.features["image"].shape


def test_features_are_those_of_coco_panoptic_and_nyu(tmp_path):
  ours = scenes_builder.features((128, 128))
  coco = tfds.builder("coco/2017_panoptic", data_dir=str(tmp_path)).info.features
  assert set(coco) <= set(ours)
  for key in ("panoptic_image", "panoptic_image/filename", "image/filename", "image/id"):
    assert type(ours[key]) is type(coco[key]) and ours[key].get_tensor_info() == coco[key].get_tensor_info()
    assert ours[key].get_serialized_info() == coco[key].get_serialized_info()
  mine, theirs = ours["panoptic_objects"].feature, coco["panoptic_objects"].feature
  assert set(mine) == set(theirs)
  for key in theirs:
    assert type(mine[key]) is type(theirs[key]) and mine[key].get_tensor_info() == theirs[key].get_tensor_info()
  nyu = tfds.builder("nyu_depth_v2", data_dir=str(tmp_path)).info.features["depth"]
  assert type(ours["depth"]) is type(nyu) and ours["depth"].np_dtype == nyu.np_dtype and len(nyu.shape) == 2


def test_configs_are_those_of_the_renderer():
  by_name = scenes_builder.Scenes.builder_configs
  assert set(by_name) == set(scenes.CONFIGS)
  for name, config in scenes.CONFIGS.items():
    assert by_name[name].size == (config.size, config.size) and by_name[name].counts == config.splits
