"""Sources: what each kind of dataset gives for an index, and what it says about broken files."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pp_ops import pipeline, scenes_builder, source, sources_coco, sources_scenes, sources_tfds
from pp_ops.sources import open_source
from uvim_like import scenes
from uvim_like.errors import UserError
from uvim_like.own_data import tables

# --- splits -------------------------------------------------------------------------------------------------------

LENGTHS = {"train": 1000, "validation": 10}


@pytest.mark.parametrize("split, want", [
    ("train", [("train", 0, 1000)]), ("train[4:]", [("train", 4, 1000)]), ("train[:10%]", [("train", 0, 100)]),
    ("train[64:128]+validation", [("train", 64, 128), ("validation", 0, 10)]), ("train[-3:]", [("train", 997, 1000)]),
    (" validation [ :50% ] ", [("validation", 0, 5)])])
def test_split_arithmetic(split, want):
  spans = source.split_spans(split, LENGTHS, where="x")
  assert [tuple(s) for s in spans] == want
  placed = [source.locate(i, spans) for i in range(source.count(spans))]
  assert placed == [(name, i) for name, start, stop in want for i in range(start, stop)]


@pytest.mark.parametrize("split, words", [
    ("tain", "unknown split 'tain'; did you mean 'train'?"), ("train[5", "bad split 'train[5'"),
    ("train[:5]+vali", "unknown split 'vali'"), ("train[2000:]", "incompatible with 1000 examples"),
    ("train[7:7]", "has no examples"), ("", "unknown split ''")])
def test_bad_splits(split, words):
  with pytest.raises(UserError) as error:
    source.split_spans(split, LENGTHS, where="here")
  assert words in str(error.value) and str(error.value).startswith("here: ")


# --- scenes -------------------------------------------------------------------------------------------------------

def test_scenes_are_those_of_the_renderer_and_match_their_specs():
  split = open_source("scenes/tiny", "train[1:3]+validation[5:6]")
  assert len(split) == 3
  example, direct = split[2], scenes.example("validation", 5, size=scenes.CONFIGS["tiny"].size)
  for key in ("image", "depth", "panoptic_image"):
    np.testing.assert_array_equal(example[key], direct[key])
  np.testing.assert_array_equal(example["panoptic_objects/id"], direct["panoptic_objects"]["id"])
  assert split.example_id(2) == f"{int(example['image/id']):012d}"
  for key, spec in split.features.items():
    value = np.asarray(example[key])
    assert spec.shape.is_compatible_with(value.shape), key
    assert spec.dtype.name == "string" or spec.dtype.as_numpy_dtype == value.dtype, key


def test_rendering_happens_once():
  before = sources_scenes.render.cache_info()
  split = open_source("scenes/tiny", "test[3:4]")
  for _ in range(3):
    split.fetch(0, ("image",))
  after = sources_scenes.render.cache_info()
  assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)


def test_scenes_prepared_on_disk_are_read_from_there(tmp_path):
  scenes_builder.builder("mini", data_dir=str(tmp_path), counts={"train": 3}).download_and_prepare()
  scenes_builder.builder("mini", data_dir=str(tmp_path), size=(24, 40), counts={"train": 1}).download_and_prepare()
  read, made = open_source("scenes/mini", "train", data_dir=str(tmp_path)), open_source("scenes/mini", "train")
  assert isinstance(read, sources_tfds.TfdsSource) and isinstance(made, sources_scenes.ScenesSource) and len(read) == 3
  assert {k: v.dtype for k, v in read.features.items()} == {k: v.dtype for k, v in made.features.items()}
  for i in (2, 0):
    got, want = read[i], made[i]
    for key in want:
      np.testing.assert_array_equal(got[key], want[key], err_msg=key)
  assert open_source("scenes/mini_24x40", "train", data_dir=str(tmp_path))[0]["image"].shape == (24, 40, 3)
  assert isinstance(open_source("scenes/tiny", "train", data_dir=str(tmp_path)), sources_scenes.ScenesSource)


# --- TFDS ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_both_record_formats_by_index(tmp_path, file_format):
  tfds.testing.DummyDataset(data_dir=tmp_path, file_format=file_format).download_and_prepare()
  builder = tfds.builder_from_directory(tmp_path / "dummy_dataset" / "1.0.0")
  split = sources_tfds.TfdsSource(builder, "dummy", "train")
  assert [int(split[i]["id"]) for i in (2, 0, 1)] == [2, 0, 1]


def test_coco_by_index_is_what_tfds_reads(tfds_dir):
  builder = tfds.builder("coco/2017_panoptic", data_dir=tfds_dir)
  assert len(builder.info.splits["train"].filepaths) == 2
  config = tfds.ReadConfig(interleave_cycle_length=1)
  for spec in ("train", "train[3:]", "validation"):
    split = open_source("coco/2017_panoptic", spec, data_dir=tfds_dir)
    examples = list(builder.as_dataset(split=spec, read_config=config).as_numpy_iterator())
    assert len(split) == len(examples)
    for i in reversed(range(len(split))):
      got, want = split[i], sources_tfds.flatten(examples[i])
      assert sorted(got) == sorted(want)
      for key in want:
        np.testing.assert_array_equal(got[key], want[key], err_msg=key)


def test_encoded_images_on_request(tfds_dir):
  plain = open_source("coco/2017_panoptic", "train", data_dir=tfds_dir)
  encoded = open_source("coco/2017_panoptic", "train", data_dir=tfds_dir, skip_decode=("image", "depth"))
  assert plain.features["image"].dtype == "uint8" and encoded.features["image"].dtype == "string"
  assert encoded[0]["image"][:2] == b"\xff\xd8"


def test_cut_tfrecord_is_named(tmp_path):
  tfds.testing.DummyDataset(data_dir=tmp_path, file_format="tfrecord").download_and_prepare()
  (path,) = (tmp_path / "dummy_dataset" / "1.0.0").glob("*.tfrecord*")
  path.write_bytes(path.read_bytes()[:-7])
  split = sources_tfds.TfdsSource(tfds.builder_from_directory(path.parent), "dummy", "train")
  with pytest.raises(UserError, match="not a whole TFRECORD file"):
    split.fetch(0, ("id",))


@pytest.mark.parametrize("dataset, words", [
    ("coco/2017_panoptc", "did you mean 'coco/2017_panoptic'?"), ("cocoo", "did you mean 'coco'?"),
    ("nyu_depth_v2", "not prepared in data_dir"), ("scens", "did you mean 'scenes'?"),
    ("scenes/tinny", "did you mean 'scenes/tiny'?"), ("folder", "needs data_dir"),
    ("folder:/nowhere", "neither images/"), ("coco_json:/nowhere", "no annotations/panoptic_<split>.json")])
def test_unknown_and_missing_datasets(tmp_path, dataset, words):
  with pytest.raises(UserError) as error:
    open_source(dataset, "train", data_dir=None if dataset == "folder" else str(tmp_path))
  assert words in str(error.value)


def test_read_order_is_that_of_tfds(tmp_path):
  """More shards than are read at a time, of unlike lengths, none a multiple of a block."""
  features = tfds.features.FeaturesDict({"number": np.int64})
  tfds.dataset_builders.store_as_tfds_dataset(
      "counted", "1.0.0", features, {"train": [(n, {"number": n}) for n in range(700)]}, data_dir=tmp_path, disable_shuffling=False,
      download_config=tfds.download.DownloadConfig(num_shards=19))
  builder = tfds.builder_from_directory(next(tmp_path.glob("counted/*")))
  stored = sources_tfds.TfdsSource(builder, "counted", "train")
  records = [int(stored[i]["number"]) for i in range(len(stored))]
  read = [int(example["number"]) for example in builder.as_dataset(split="train").as_numpy_iterator()]
  assert read != records
  ours = sources_tfds.TfdsSource(builder, "counted", "train[:90]+train[300:310]", in_read_order=True)
  assert [int(ours[i]["number"]) for i in range(len(ours))] == read[:90] + read[300:310]
  assert ours.example_id(99) == f"train[{records.index(read[309])}]"
  assert [records[i] for i in sources_tfds.read_order(builder.info.splits["train"].shard_lengths)] == read


# --- COCO JSON and folders ------------------------------------------------------------------------------------------

def test_coco_json_has_the_features_of_tfds(tfds_dir, coco_dir):
  ours = open_source("coco_json", "train", data_dir=coco_dir)
  theirs = open_source("coco/2017_panoptic", "train", data_dir=tfds_dir)
  assert {k: v.dtype for k, v in ours.features.items()} == {k: v.dtype for k, v in theirs.features.items()}
  for key, spec in ours.features.items():
    assert spec.shape.as_list() == theirs.features[key].shape.as_list(), key
  by_id = {int(e["image/id"]): e for e in (theirs[i] for i in range(len(theirs)))}
  for i in range(len(ours)):
    example = ours[i]
    for key, want in by_id[int(example["image/id"])].items():
      np.testing.assert_allclose(example[key], want, atol=1e-6) if key.endswith("bbox") else \
          np.testing.assert_array_equal(example[key], want, err_msg=key)


def test_coco_json_split_names(coco_dir):
  sizes = {s: pipeline.num_examples(dataset="coco_json", split=s, data_dir=coco_dir)
           for s in ("train2017", "validation", "val2017[1:]+train[:2]")}
  assert sizes == {"train2017": 9, "validation": 3, "val2017[1:]+train[:2]": 4}
  with pytest.raises(UserError, match="did you mean 'val2017'"):
    open_source(f"coco_json:{coco_dir}", "val2018")


def test_coco_json_parses_its_table_once_until_it_changes(coco_dir, tmp_path, monkeypatch):
  root = tmp_path / "coco"
  shutil.copytree(coco_dir, root)
  parsed = []
  monkeypatch.setattr(sources_coco, "read_json", lambda path: parsed.append(path.name) or tables.read_json(path))
  first = open_source("coco_json", "train", data_dir=str(root))[0]
  again = open_source("coco_json", "train[:3]", data_dir=str(root))[0]
  assert len(parsed) == 1 and first["image/id"] == again["image/id"]
  path = root / "annotations" / "panoptic_train2017.json"
  os.utime(path, (1, 1))
  assert len(open_source("coco_json", "train", data_dir=str(root))) == 9 and len(parsed) == 2
  next((root / "train2017").iterdir()).unlink()
  with pytest.raises(UserError, match="1 images of the annotations are missing"):
    open_source("coco_json", "train", data_dir=str(root))


def test_folder_pairs_by_name_and_reads_palettes_and_millimetres(folder, pictures):
  split = open_source("folder", "train", data_dir=str(folder))
  assert len(split) == 5 and split.example_id(4) == "street_4"
  for i in range(5):
    image, ids, _ = pictures.picture(i)
    example = split[i]
    np.testing.assert_array_equal(example["labels"][..., 0], pictures.class_map(ids))
    np.testing.assert_allclose(example["depth"], pictures.millimetres(ids) / 1000, rtol=1e-6)
    assert example["labels"].dtype == np.int32 and example["depth"].dtype == np.float32
    assert example["image"].shape == image.shape and int(example["image/id"]) == i
  np.testing.assert_array_equal(split[0]["image"], pictures.picture(0)[0])


def test_folder_with_splits_and_panoptic(tmp_path, pictures):
  for name, indices in (("train", range(3)), ("test", range(3, 5))):
    root = tmp_path / name
    pictures.write_pictures(indices, root / "images", root / "panoptic")
    (root / "panoptic.json").write_text(json.dumps(pictures.panoptic_table(indices)))
  split = open_source(f"folder:{tmp_path}", "test+train[:1]")
  assert [int(split[i]["image/id"]) for i in range(3)] == [1003, 1004, 1000]
  _, _, segments = pictures.picture(3)
  np.testing.assert_array_equal(split[0]["panoptic_objects/label"], [s["category_id"] // 2 for s in segments])
  with pytest.raises(UserError, match="unknown split 'validation'"):
    open_source(f"folder:{tmp_path}", "validation")


def test_folder_reports_files_without_partner_before_data_flows(folder):
  (folder / "labels" / "street_1.png").unlink()
  Image.new("L", (3, 3)).save(folder / "labels" / "other.png")
  split = open_source("folder", "train", data_dir=str(folder))
  split.check(("image", "depth"))
  with pytest.raises(UserError) as error:
    split.check(("image", "labels"))
  assert "1 images without a file there (street_1)" in str(error.value)
  assert "1 files without an image (other)" in str(error.value)


def test_folder_names_bad_files(folder):
  split = open_source("folder", "train", data_dir=str(folder))
  Image.new("L", (3, 4)).save(folder / "labels" / "street_1.png")
  Image.new("RGB", (52, 40)).save(folder / "labels" / "street_0.png")
  (folder / "labels" / "street_2.png").write_bytes(b"no picture")
  Image.new("L", (36, 48)).save(folder / "depth" / "street_1.png")
  for index, key, words in ((1, "labels", "street_1.png: 4x3 pixels, its image has 48x36"),
                            (0, "labels", "street_0.png: a label PNG needs one channel"),
                            (2, "labels", "street_2.png is not an image"),
                            (1, "depth", "street_1.png: depth needs a 16-bit PNG")):
    with pytest.raises(UserError) as error:
      split.fetch(index, (key,))
    assert words in str(error.value)


def test_two_images_of_one_name(folder):
  shutil.copy(folder / "images" / "street_0.PNG", folder / "images" / "street_1.png")
  with pytest.raises(UserError, match="a name must occur once"):
    open_source("folder", "train", data_dir=str(folder))


def test_python_side_fetch_reads_only_what_is_asked(folder):
  split = open_source("folder", "train", data_dir=str(folder))
  shutil.rmtree(folder / "depth")
  assert sorted(split.fetch(0, ("image", "labels"))) == ["image", "labels"]
