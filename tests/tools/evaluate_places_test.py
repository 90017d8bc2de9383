"""Which files of a folder of predictions are scored: the split's pictures, the index's names; odd truth, odd options."""

import json

import numpy as np
import pytest
from PIL import Image

from tools.evaluating import evaluate_files, truth_files
from uvim_like.errors import UserError
from uvim_like.evaluators import coco_instances
from uvim_like.own_data import layout

NAMES = [f"p{i}" for i in range(12)]
HELD_OUT = sorted(layout.members(NAMES, "validation"))


@pytest.fixture
def places(tmp_path):
  """(truth: one set of twelve pictures with depth, predictions of all of them with their index)."""
  truth, pred = tmp_path / "data", tmp_path / "pred"
  for folder in (truth / "images", truth / "depth", pred / "depth"):
    folder.mkdir(parents=True)
  for i, name in enumerate(NAMES):
    Image.new("RGB", (3, 2)).save(truth / "images" / f"{name}.png")
    np.save(truth / "depth" / f"{name}.npy", np.full((2, 3), i + 1.0, np.float32))
    np.savez(pred / "depth" / f"{name}.npz", depth=np.full((2, 3), i + 2.0, np.float32))
  write_index(pred, NAMES)
  return truth, pred


def write_index(pred, names):
  pictures = [dict(name=name, id=i, file=f"photos/{name}.png") for i, name in enumerate(names)]
  (pred / "predictions.json").write_text(json.dumps(dict(pictures=pictures)))


def test_a_split_leaves_out_predictions_of_the_others(places):
  truth, pred = places
  measured = evaluate_files.evaluate("depth", pred, truth, split="validation")
  assert measured.values["images"] == len(HELD_OUT) and measured.values["RMSE"] == 1
  assert measured.protocol.endswith(f"; {12 - len(HELD_OUT)} predictions of pictures outside the split are left out")
  whole = evaluate_files.evaluate("depth", pred, truth)
  assert whole.values["images"] == 12 and "outside" not in whole.protocol


def test_strangers_are_told_with_a_split_too(places):
  truth, pred = places
  np.savez(pred / "depth" / "other.npz", depth=np.ones((2, 3)))
  write_index(pred, [*NAMES, "other"])
  with pytest.raises(UserError, match="--pred: 1 predictions have no truth in .*: other"):
    evaluate_files.evaluate("depth", pred, truth, split="validation")
  (pred / "depth" / f"{HELD_OUT[0]}.npz").unlink()
  write_index(pred, NAMES)
  with pytest.raises(UserError, match=f"--pred: 1 of {len(HELD_OUT)} pictures have no prediction: {HELD_OUT[0]}"):
    evaluate_files.evaluate("depth", pred, truth, split="validation")


def test_splits_in_folders_of_their_own(tmp_path):
  for split, names in (("train", "ab"), ("val", "cd")):
    for kind in ("images", "semantic"):
      (tmp_path / split / kind).mkdir(parents=True)
      for name in names:
        Image.new("L", (3, 2)).save(tmp_path / split / kind / f"{name}.png")
  truth = truth_files.read(tmp_path, "semantic", split="val")
  assert truth_files.elsewhere(tmp_path, "semantic", truth) == {"a", "b"}
  assert truth_files.elsewhere(tmp_path / "train" / "semantic", "semantic", truth._replace(names=("a",))) == frozenset()


def test_only_what_the_index_names_is_scored(places):
  """An earlier command wrote p11 and samples of p0 into the same folder."""
  truth, pred = places
  (pred / "depth" / "p0.npz").unlink()
  (pred / "depth" / "p0").mkdir()
  Image.fromarray(np.ones((2, 3), np.uint16)).save(pred / "depth" / "p0" / "sample1.png")
  write_index(pred, NAMES[1:-1])
  assert evaluate_files.evaluate("depth", pred, truth).values["images"] == 10
  (pred / "predictions.json").unlink()   # without, all files count
  with pytest.raises(UserError, match="p0 has several samples"):
    evaluate_files.evaluate("depth", pred, truth)


def test_infinite_depth_was_not_measured(places):
  truth, pred = places
  np.save(truth / "depth" / "p3.npy", np.array([[np.inf, np.nan, 4], [4, 4, -np.inf]], np.float32))
  measured = evaluate_files.evaluate("depth", pred, truth)
  assert "truth < 13 m" in measured.protocol and measured.values["images"] == 12 and measured.values["RMSE"] == 1


def test_saved_masks_are_described_as_they_are(tmp_path):
  """No mask is pasted: options about that are refused, the protocol does not speak of it."""
  thing = dict(image_id=1, category_id=1, bbox=[0, 0, 4, 4], segmentation=[[0, 0, 4, 0, 4, 4, 0, 4]])
  table = dict(images=[dict(id=1, file_name="a.png", height=8, width=8)], categories=[dict(id=1, name="cup")],
               annotations=[dict(thing, id=1, area=16, iscrowd=0)])
  (tmp_path / "truth.json").write_text(json.dumps(table))
  mask = coco_instances.ap.encode(np.pad(np.ones((4, 4), np.uint8), ((0, 4), (0, 4))))
  counts = mask["counts"].decode() if isinstance(mask["counts"], bytes) else mask["counts"]
  found = [dict(thing, score=0.5, segmentation=dict(size=[8, 8], counts=counts))]
  (tmp_path / "found.json").write_text(json.dumps(found))
  files = tmp_path / "found.json", tmp_path / "truth.json"
  measured = evaluate_files.evaluate("masks", *files)
  assert measured.values["mask_AP"] == pytest.approx(1) and measured.protocol.endswith("; masks as their run lengths say")
  assert "pasted into their boxes bilinearly, cut at 0.3" in coco_instances.describe(("masks",), 0.3)
  for name, value in (("threshold", 0.3), ("dataset", "scenes")):
    with pytest.raises(UserError, match=f"--metric.{name}: saved objects are in COCO's form"):
      evaluate_files.evaluate("masks", *files, options={name: value})
  with pytest.raises(UserError, match="--split: .* is one file"):
    evaluate_files.evaluate("masks", *files, split="val")
  assert evaluate_files.evaluate("masks", *files, options={"kinds": "boxes"}).values["box_AP"] == pytest.approx(1)


@pytest.mark.parametrize("listed, found", [(3, 2), (None, 2), (None, None)])
def test_classes_that_the_predictor_does_not_know_are_missed(tmp_path, listed, found):
  """Two classes in predictions.json, three in the truth: the third one's pixels are no void."""
  for folder, ids in (("truth", [[0, 1, 2, 2]]), ("pred", [[0, 1, 0, 0]])):
    (tmp_path / folder / "semantic").mkdir(parents=True)
    Image.fromarray(np.array(ids, np.uint8)).save(tmp_path / folder / "semantic" / "a.png")
  if listed:
    (tmp_path / "truth" / "classes.txt").write_text("a\nb\nc\n")
  if found:
    classes = dict(semantic=dict(categories=[dict(id=i) for i in range(found)]))
    (tmp_path / "pred" / "predictions.json").write_text(json.dumps(dict(
        pictures=[dict(name="a", id=0, file="a.png")], classes=classes)))
  measured = evaluate_files.evaluate("semantic", tmp_path / "pred", tmp_path / "truth")
  assert measured.values["mIoU"] == pytest.approx((1 / 3 + 1 + 0) / 3) and measured.values["pixel_acc"] == 0.5
  assert "over the 3 classes of the predictions and the truth" in measured.protocol
  fewer = evaluate_files.evaluate("semantic", tmp_path / "pred", tmp_path / "truth", options={"num_classes": 2})
  assert fewer.values["mIoU"] == 1 and "over the 2 classes of" in fewer.protocol   # as asked for


def test_one_json_file_of_panoptic_maps_and_of_others(tmp_path):
  """COCO's panoptic_val2017.json lies beside panoptic_val2017/; of maps alone no JSON says anything."""
  ids = np.zeros((4, 6, 3), np.uint8)
  ids[:2, :, 0], ids[2:, :, 0] = 1, 2
  segments = [dict(id=i, category_id=i, area=12, bbox=[0, 2 * i - 2, 6, 2], iscrowd=0) for i in (1, 2)]
  table = dict(images=[dict(id=1, file_name="a.jpg", height=4, width=6)],
               annotations=[dict(image_id=1, file_name="a.png", segments_info=segments)],
               categories=[dict(id=i, name=str(i), isthing=1) for i in (1, 2)])
  for place, folder in ((tmp_path / "pred", "panoptic"), (tmp_path, "panoptic_val")):
    (place / folder).mkdir(parents=True)
    Image.fromarray(ids).save(place / folder / "a.png")
    (place / f"{folder}.json").write_text(json.dumps(table))
  truth = tmp_path / "panoptic_val.json"
  assert evaluate_files.evaluate("panoptic", tmp_path / "pred", truth).values["All_pq"] == 1
  for task, folder in (("depth", "depth/"), ("normals", "normals/"), ("semantic", "semantic/ or labels/")):
    with pytest.raises(UserError, match=f"--gt: .*panoptic_val.json' is a file; a folder of {folder} with label maps"):
      evaluate_files.evaluate(task, tmp_path / "pred", truth)
  (tmp_path / "panoptic_val").rename(tmp_path / "elsewhere")
  with pytest.raises(UserError, match="--gt: .* looked for in .*panoptic_val/; there is no such folder"):
    evaluate_files.evaluate("panoptic", tmp_path / "pred", truth)
  (tmp_path / "elsewhere").rename(tmp_path / "panoptic_val")
  with pytest.raises(UserError, match="--metric.dataset: the classes are those of the truth's own list; leave it out"):
    evaluate_files.evaluate("panoptic", tmp_path / "pred", truth, options={"dataset": "scenes"})


def test_only_kinds_that_the_truth_has_are_scored(tmp_path):
  """Boxes alone are annotated: masks and joints would score 0 whatever they are."""
  box = dict(image_id=1, category_id=1, bbox=[0, 0, 4, 4])
  table = dict(images=[dict(id=1, file_name="a.png", height=8, width=8)], categories=[dict(id=1, name="person")],
               annotations=[dict(box, id=1, area=16, iscrowd=0)])
  mask = coco_instances.ap.encode(np.pad(np.ones((4, 4), np.uint8), ((0, 4), (0, 4))))
  found = dict(box, score=0.5, keypoints=[1, 1, 1] * 17, segmentation=dict(mask, counts=str(mask["counts"], "ascii")))
  (tmp_path / "truth.json").write_text(json.dumps(table))
  files = tmp_path / "found.json", tmp_path / "truth.json"
  files[0].write_text(json.dumps([found]))
  measured = evaluate_files.evaluate("instances", *files)
  assert measured.values["box_AP"] == pytest.approx(1)
  assert not any(name.startswith(("mask", "keypoint")) for name in measured.values)
  assert measured.protocol.endswith("; predicted masks, keypoints are left out, which the truth does not have")
  with pytest.raises(UserError, match="--metric.kinds: masks cannot be scored: .*truth.json has boxes alone"):
    evaluate_files.evaluate("instances", *files, options={"kinds": ["boxes", "masks"]})
  files[0].write_text(json.dumps([{key: value for key, value in found.items() if key not in ("bbox", "keypoints")}]))
  with pytest.raises(UserError, match="--pred: masks cannot be scored: .*truth.json has boxes alone"):
    evaluate_files.evaluate("instances", *files)
  with pytest.raises(UserError, match="unknown kind 'box'; did you mean 'boxes'"):
    evaluate_files.evaluate("instances", *files, options={"kinds": "box"})
