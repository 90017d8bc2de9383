"""Batches: exact resume, the same on any number of processes, padding, and errors with the example's id."""

import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pp_ops import pipeline
from uvim_like.errors import UserError

TAIL = ('|resize(32)|resize(32, key="labels", method="nearest")|value_range(-1, 1)')
LABELS = 'coco_panoptic|concat(["semantics","instances"], "labels")'
CROPS = ('|randu("fliplr")|det_fliplr(key="image")|det_fliplr(key="labels")|inception_box|crop_box(key="image")'
         '|crop_box(key="labels")')
PP_TRAIN = f'decode|{LABELS}{CROPS}{TAIL}|make_canonical|keep("image","labels")'
PP_EVAL = f'decode|{LABELS}{TAIL}|make_canonical|keep("image","labels")'
CONTEXT = '|resize(16, inkey="image", outkey="image_ctx")'
PP_TRAIN_2 = (f'decode|{LABELS}{CROPS}{CONTEXT}{TAIL}|value_range(-1, 1, key="image_ctx")|make_canonical'
              '|keep("image", "image_ctx", "labels")')
PP_PREDICT_2 = ('resize(16, inkey="image", outkey="image_ctx")|resize(32)|value_range(-1, 1, key="image_ctx")'
                '|value_range(-1, 1)|keep("image", "image_ctx", "image/id")')
MODULES = ["ops_general", "ops_image", "proj.uvim.pp_ops"]
SCENES = dict(dataset="scenes/mini", pp=PP_TRAIN, pp_modules=MODULES)


def take(n, **kwargs):
  return list(itertools.islice(pipeline.train_batches(**kwargs), n))


def assert_same(a, b):
  assert sorted(a) == sorted(b)
  for key in a:
    assert a[key].dtype == b[key].dtype
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# --- training -----------------------------------------------------------------------------------------------------

def test_batch_of_a_step_does_not_depend_on_where_one_starts():
  config = dict(**SCENES, split="train[:10]", batch_size=4, seed=3)
  batches = take(6, **config)
  for start in (1, 5):
    assert_same(take(1, **config, start_step=start)[0], batches[start])
  assert batches[0]["image"].shape == (4, 32, 32, 3) and batches[0]["image"].dtype == np.float32
  assert batches[0]["labels"].shape == (4, 32, 32, 2) and batches[0]["labels"].dtype == np.int32
  assert np.abs(batches[0]["image"]).max() <= 1 and set(batches[0]) == {"image", "labels", "_index"}


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_make_the_same_batch(processes):
  config = dict(**SCENES, split="train[:10]", batch_size=4, seed=3)
  alone = take(3, **config)
  parts = [take(3, **config, process_index=i, process_count=processes) for i in range(processes)]
  for step, whole in enumerate(alone):
    assert_same({k: np.concatenate([p[step][k] for p in parts]) for k in whole}, whole)


def test_every_epoch_is_another_permutation_with_other_crops():
  config = dict(**SCENES, split="train[20:28]", batch_size=8)
  first, second = take(2, **config)
  assert sorted(first["_index"]) == sorted(second["_index"]) == list(range(8))
  assert list(first["_index"]) != list(second["_index"])
  place = {i: list(first["_index"]).index(i) for i in range(8)}
  moved = [np.abs(second["image"][j] - first["image"][place[i]]).max() for j, i in enumerate(second["_index"])]
  assert min(moved) > 0.01
  other = take(1, **config, seed=1)[0]
  assert list(other["_index"]) != list(first["_index"])


def test_order_is_pinned():
  """A resumed run must find its order again after any upgrade: a change here breaks every run under way."""
  assert pipeline.epoch_order(8, 0, 0).tolist() == [2, 6, 0, 4, 1, 3, 5, 7]
  assert pipeline.epoch_order(8, 5 + 2 ** 32, 3).tolist() == [4, 5, 2, 7, 1, 0, 6, 3]
  rows = pipeline.rows_of_step(1, length=8, batch_size=6, seed=0)
  assert [epoch for epoch, _ in rows] == [0, 0, 1, 1, 1, 1] and [i for _, i in rows[:2]] == [5, 7]


def test_rows_far_away_are_reached_directly():
  (epoch, index), = pipeline.rows_of_step(10 ** 7, length=1000, batch_size=1, seed=5)
  assert epoch == 10 ** 4 and 0 <= index < 1000


def test_split_smaller_than_the_batch_repeats_within_it():
  (batch,) = take(1, **SCENES, split="train[:3]", batch_size=8)
  assert sorted(np.bincount(batch["_index"])) == [2, 3, 3]


def test_wrong_sizes():
  for sizes, words in ((dict(batch_size=3, process_count=2), "positive multiple"), (dict(batch_size=0), "positive"),
                       (dict(batch_size=2, process_index=2, process_count=2), "process_index")):
    with pytest.raises(UserError, match=words):
      pipeline.train_batches(**SCENES, split="train", **sizes)


def test_process_ends_cleanly_with_iterators_alive():
  code = ("from pp_ops import pipeline\n"
          "kw = dict(dataset='scenes/mini', split='train[:30]', pp='resize(8)|keep(\"image\")', batch_size=2)\n"
          "train = pipeline.train_batches(**kw, prefetch=8)\nnext(train)\n"
          "held = iter(pipeline.eval_batches(**kw))\nnext(held)\nprint('done')\n")
  root = pathlib.Path(__file__).resolve().parents[2]
  done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=100, check=False)
  assert done.returncode == 0 and done.stdout == "done\n" and "terminate" not in done.stderr


# --- evaluation ---------------------------------------------------------------------------------------------------

def test_evaluation_is_in_order_and_padded():
  keys = ("panoptic_objects/id", "panoptic_image")
  batches = pipeline.eval_batches(dataset="scenes/mini", split="validation[:6]", pp=PP_PREDICT_2, batch_size=4,
                                  target_keys=keys)
  assert len(batches) == 2
  for _ in range(2):
    (first, targets), (last, rest) = list(batches)
    assert first["_index"].tolist() == [0, 1, 2, 3] and last["_index"].tolist() == [4, 5, -1, -1]
    assert first["_mask"].tolist() == [1, 1, 1, 1] and last["_mask"].tolist() == [1, 1, 0, 0]
    assert last["_mask"].dtype == np.float32 and not last["image"][2:].any() and last["image/id"][2:].tolist() == [0, 0]
    assert len(targets) == 4 and len(rest) == 2 and sorted(rest[0]) == sorted(keys)
    assert rest[0]["panoptic_image"].shape == (64, 64, 3)
    assert set(np.unique(rest[0]["panoptic_image"].astype(int) @ [1, 256, 65536])) - {0} <= set(
        rest[0]["panoptic_objects/id"].tolist())


@pytest.mark.parametrize("count, sizes", [(5, (3, 2)), (2, (2, 0)), (4, (2, 2)), (9, (5, 4))])
def test_every_process_has_the_same_number_of_batches(count, sizes):
  config = dict(dataset="scenes/mini", split=f"validation[:{count}]", pp=PP_EVAL, batch_size=4)
  parts = [list(pipeline.eval_batches(**config, process_index=i, process_count=2)) for i in (0, 1)]
  assert len(parts[0]) == len(parts[1]) == -(-count // 4)
  assert tuple(int(sum(b["_mask"].sum() for b, _ in p)) for p in parts) == sizes
  assert tuple(sum(len(t) for _, t in p) for p in parts) == sizes
  whole = [b for b, _ in pipeline.eval_batches(**config)]
  for i, batch in enumerate(whole):
    assert_same({k: np.concatenate([p[i][0][k] for p in parts]) for k in batch}, batch)


def test_num_examples():
  assert pipeline.num_examples(dataset="scenes", split="train") == 4000
  assert pipeline.num_examples(dataset="scenes/tiny", split="train[:50%]+test") == 48


# --- the listings on real TFDS builds, COCO JSON and a folder ---------------------------------------------------------

@pytest.mark.parametrize("source", ["tfds", "json"])
def test_listing_strings_run_on_coco(source, tfds_dir, coco_dir):
  where = (dict(dataset="coco/2017_panoptic", data_dir=tfds_dir) if source == "tfds" else
           dict(dataset="coco_json", data_dir=coco_dir)) | dict(pp_modules=MODULES)
  for pp, keys in ((PP_TRAIN, {"image", "labels"}), (PP_TRAIN_2, {"image", "labels", "image_ctx"})):
    (batch,) = take(1, **where, split="train[4:]", pp=pp, batch_size=2)
    assert set(batch) == keys | {"_index"} and batch["labels"].shape == (2, 32, 32, 2)
    assert batch["labels"][..., 0].max() <= 133 and batch["labels"][..., 1].max() <= 4
  for pp in (PP_EVAL, PP_EVAL.removeprefix("decode|"), PP_PREDICT_2):
    (batch, targets), = list(pipeline.eval_batches(**where, split="validation", pp=pp, batch_size=4,
                                                   target_keys=("panoptic_objects/is_crowd",)))
    assert batch["_mask"].tolist() == [1, 1, 1, 0] and len(targets[0]["panoptic_objects/is_crowd"]) == 4
  assert sorted(batch["image/id"][:3]) == [1009, 1010, 1011]


def test_depth_strings_run_on_nyu(tfds_dir):
  where = dict(dataset="nyu_depth_v2", data_dir=tfds_dir)
  train = f'decode|nyu_depth{CROPS}{TAIL}|keep("image","labels")'
  (batch,) = take(1, **where, split="train", pp=train, batch_size=2)
  assert batch["labels"].shape == (2, 32, 32, 1) and batch["labels"].dtype == np.float32
  assert 1 < batch["labels"].max() < 9
  evaluator = ('nyu_depth|nyu_eval_crop|copy(inkey="labels", outkey="ground_truth")|resize(32)|value_range(-1, 1)'
               '|keep("image", "ground_truth")')
  (batch, targets), = list(pipeline.eval_batches(**where, split="validation", pp=evaluator, batch_size=3,
                                                 target_keys=("depth",)))
  assert batch["ground_truth"].shape == (3, 426, 560, 1)
  np.testing.assert_array_equal(batch["ground_truth"][1, ..., 0], targets[1]["depth"][54:480, 41:601].astype(np.float32))


def test_colour_and_depth_strings_run_on_scenes():
  colour = ('decode_jpeg_and_inception_crop(32)|flip_lr|copy("image","labels")|rgb_to_grayscale_to_rgb'
            '|value_range(-1, 1)|value_range(-1, 1, key="labels")|keep("image","labels")')
  (batch,) = take(1, dataset="scenes/mini", split="train[:4]", pp=colour, batch_size=4)
  grey = batch["labels"] @ np.array([0.2989, 0.587, 0.114], np.float32)
  np.testing.assert_allclose(batch["image"][..., 0], grey, atol=0.01)
  (batch,) = take(1, dataset="scenes/mini", split="train[:4]", pp=f'decode|nyu_depth{CROPS}{TAIL}|keep("image","labels")',
                  batch_size=4)
  assert batch["labels"].shape == (4, 32, 32, 1)


def test_folder_of_labelled_photographs(folder):
  pp = ('decode|resize((24, 40))|resize((24, 40), key="labels", method="nearest")|value_range(-1, 1)'
        '|check_range(0, 10, ignore=[255])|keep("image","labels")')
  (batch,) = take(1, dataset="folder", data_dir=str(folder), split="train[:80%]", pp=pp, batch_size=2)
  assert batch["image"].shape == (2, 24, 40, 3) and batch["labels"].dtype == np.int32
  assert set(np.unique(batch["labels"])) <= {*range(11), 255}


# --- errors -------------------------------------------------------------------------------------------------------

def test_image_that_does_not_decode_is_named(folder):
  (folder / "images" / "street_3.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photograph")
  config = dict(dataset="folder", data_dir=str(folder), split="train", batch_size=1)
  for pp in ('decode|resize(8)|keep("image")', 'resize(8)|keep("image")'):
    batches = pipeline.train_batches(pp=pp, **config)
    with pytest.raises(UserError, match="example 'street_3': .*"):
      for _ in range(5):
        next(batches)
    done = []
    with pytest.raises(UserError, match="example 'street_3'"):
      for batch, _ in pipeline.eval_batches(pp=pp, **config):
        done.append(int(batch["_index"][0]))
    assert done == [0, 1, 2]


def test_labels_out_of_range_are_named(folder):
  Image.fromarray(np.full((48, 36), 77, np.uint8)).save(folder / "labels" / "street_1.png")
  pp = 'decode|check_range(0, 10, ignore=[255])|resize(8)|resize(8, key="labels", method="nearest")|keep("image","labels")'
  with pytest.raises(UserError, match="example 'street_1': .*outside the model's range .*77"):
    list(pipeline.eval_batches(pp=pp, dataset="folder", data_dir=str(folder), split="train", batch_size=4))


def test_label_of_another_size_is_named(folder):
  Image.fromarray(np.zeros((4, 3), np.uint8)).save(folder / "labels" / "street_1.png")
  pp = 'decode|resize(8)|resize(8, key="labels", method="nearest")|keep("image","labels")'
  with pytest.raises(UserError, match="example 'street_1': .*street_1.png: 4x3 pixels, its image has 48x36"):
    list(pipeline.eval_batches(pp=pp, dataset="folder", data_dir=str(folder), split="train", batch_size=4))


@pytest.mark.parametrize("pp, words", [
    ('decode|keep("image")', None), ('coco_panoptic|resize(8)|keep("image", "semantics")', None),
    ('resize(8)', "'image/filename' is text"),
    ('keep("image","panoptic_objects/id")', "'panoptic_objects/id' has no fixed shape (None,)"),
    ('keep("image/id","image")|drop("image","imag")', "drop reads 'imag', which is not there; did you mean 'image'?")])
def test_outputs_that_form_no_batch(pp, words):
  config = dict(dataset="scenes/mini", split="train", pp=pp)
  if words is None:
    assert "image" in pipeline.check(**config)
  else:
    with pytest.raises(UserError) as error:
      pipeline.check(**config)
    assert words in str(error.value) and "^" in str(error.value)


def test_check_reads_no_data_and_wants_its_outputs():
  specs = pipeline.check(**SCENES, split="train", outputs=("image", "labels"))
  assert tuple(specs["labels"].shape) == (32, 32, 2) and specs["labels"].dtype.name == "int32"
  with pytest.raises(UserError, match="does not put out 'label'; did you mean 'labels'?"):
    pipeline.check(**SCENES, split="train", outputs=("label",))


def test_target_that_the_dataset_lacks():
  with pytest.raises(UserError, match="no feature 'panoptic_objects/ids' .*did you mean 'panoptic_objects/id'?"):
    pipeline.eval_batches(dataset="scenes", split="train", pp=PP_EVAL, batch_size=1, target_keys=("panoptic_objects/ids",))
