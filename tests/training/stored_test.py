"""Finished npz examples with objects, normals and captions: types, mirrors, packed masks, mistakes."""

import numpy as np
import pytest

from tools import make_data
from tools.rendering import instance_arrays
from uvim_like import joints
from uvim_like.errors import UserError
from uvim_like.tasks import text
from uvim_like.training import batches, mirror, setup, stored

H, W, N = 48, 64, instance_arrays.SLOTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  out = tmp_path_factory.mktemp("npz")
  assert make_data.main(["scenes", f"--out={out}", "--size=48x64", "--num=train:6,validation:3", "--format=npz",
                         "--task=surface_normals,instances", "--workers=1"]) == 0
  return out


def steps(folder, count, pp=None, **options):
  made = batches.train_batches(**{"dataset": "npz", "split": "train", "pp": pp, "batch_size": 6, "data_dir": folder}
                               | options)
  found = [next(made) for _ in range(count)]
  made.close()
  return found


def test_the_keys_of_a_batch_go_to_the_device():
  assert setup.DEVICE_KEYS == stored.MODEL_KEYS
  assert {"image", "labels", "boxes", "box_labels", "masks", "box_masks", "keypoints", "captions", "valid_size",
          "task_id"} <= set(setup.DEVICE_KEYS)


def test_types(folder):
  batch, = steps(folder, 1)
  assert {k: (v.dtype, v.shape[1:]) for k, v in batch.items()} == {
      "image": (np.float32, (H, W, 3)), "labels": (np.float32, (H, W, 3)), "boxes": (np.float32, (N, 4)),
      "box_labels": (np.int32, (N,)), "masks": (np.uint8, (N, H, W)), "box_masks": (np.uint8, (N, 16, 16)),
      "keypoints": (np.float32, (N, 17, 3)), "captions": (np.int32, (5, 20)), "_index": (np.int64, ())}
  lengths = np.linalg.norm(batch["labels"], axis=-1)
  assert np.allclose(lengths[lengths > 0], 1, atol=1e-6) and (lengths == 0).any()
  for boxes, labels, masks in zip(batch["boxes"], batch["box_labels"], batch["masks"]):
    assert not boxes[labels == 0].any() and not masks[labels == 0].any() and (labels[0] > 0)
    for box, mask in zip(boxes[labels > 0], masks[labels > 0]):
      rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
      np.testing.assert_allclose(box * [H, W, H, W], [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], atol=1e-4)


def test_mirrored_examples_are_mirrored_throughout(folder):
  plain = {int(i): {k: v[r] for k, v in b.items()} for b in steps(folder, 1) for r, i in enumerate(b["_index"])}
  tokenizer, turned = text.load(folder / "captions.model"), 0
  for batch in steps(folder, 4, pp="flip_lr"):
    for r, i in enumerate(batch["_index"]):
      one, before = {k: v[r] for k, v in batch.items()}, plain[int(i)]
      if np.array_equal(one["image"], before["image"]):
        for key in one:
          np.testing.assert_array_equal(one[key], before[key], err_msg=key)
        continue
      turned += 1
      np.testing.assert_array_equal(one["image"], before["image"][:, ::-1])
      np.testing.assert_array_equal(one["labels"], before["labels"][:, ::-1] * np.float32([-1, 1, 1]))
      np.testing.assert_array_equal(one["masks"], before["masks"][..., ::-1])
      np.testing.assert_array_equal(one["box_masks"], before["box_masks"][..., ::-1])
      np.testing.assert_array_equal(one["box_labels"], before["box_labels"])
      real = one["box_labels"] > 0
      np.testing.assert_allclose(one["boxes"][real][:, [1, 3]], 1 - before["boxes"][real][:, [3, 1]], atol=1e-6)
      assert not one["boxes"][~real].any()
      swapped = before["keypoints"][:, list(joints.MIRROR)]
      np.testing.assert_array_equal(one["keypoints"][..., [0, 2]], swapped[..., [0, 2]])
      seen = swapped[..., 2] > 0
      np.testing.assert_allclose(one["keypoints"][seen][:, 1], 1 - swapped[seen][:, 1], atol=1e-6)
      assert not one["keypoints"][~seen].any()
      assert [text.decode(tokenizer, row) for row in one["captions"]] == [
          text.swap_sides(text.decode(tokenizer, row)) for row in before["captions"]]
  assert 6 <= turned <= 18


def test_hosts_and_resume(folder):
  whole = steps(folder, 3, pp="flip_lr", batch_size=4)
  late = steps(folder, 1, pp="flip_lr", batch_size=4, start_step=2)[0]
  parts = [steps(folder, 3, pp="flip_lr", batch_size=4, process_index=i, process_count=2)[2] for i in range(2)]
  for key in late:
    np.testing.assert_array_equal(late[key], whole[2][key])
    np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), whole[2][key])


def test_evaluation_hands_raw_truth_through(folder):
  keys = ("objects/id", "objects/bbox", "captions/text", "normals", "panoptic_image")
  made = batches.eval_batches(dataset="npz", split="validation", batch_size=2, data_dir=folder, target_keys=keys)
  (_, _), (last, targets) = made
  assert last["_mask"].tolist() == [1, 0] and not last["masks"][1].any() and len(targets) == 1
  assert set(keys) <= set(targets[0]) and targets[0]["captions/text"].dtype.kind == "U"
  assert "captions/mirrored" not in last and "masks/packed" not in last


def test_padded_pictures_are_not_mirrored():
  batch = {"image": np.zeros((2, 4, 6, 3)), "valid_size": np.array([[4, 6], [4, 5]])}
  with pytest.raises(UserError, match="padded images cannot be mirrored"):
    mirror.mirror(batch, np.array([True, False]), normals=False)
  whole = mirror.mirror({**batch, "valid_size": np.array([[4, 6]] * 2)}, np.array([True, False]), normals=False)
  assert set(whole) == set(batch)


@pytest.mark.parametrize("change, words", [
    (dict(boxes=np.zeros((3, 2, 4), np.float32)), "'boxes' without 'box_labels'"),
    (dict(boxes=np.zeros((3, 8), np.float32), box_labels=np.zeros((3, 2), int)), "'boxes' has the shape"),
    (dict(captions=np.zeros((3, 5, 9), np.float32)), "'captions' has the dtype float32; integers are needed"),
    (dict(keypoints=np.zeros((3, 2, 17, 3), int)), "'keypoints' has the dtype int64; floats are needed"),
    (dict(image_ctx=np.zeros((3, 4, 4, 3), np.uint8)), "training needs an array 'labels', or another of boxes")])
def test_mistakes_are_named(tmp_path, change, words):
  np.savez(tmp_path / "train.npz", image=np.zeros((3, 4, 4, 3), np.uint8), **change)
  with pytest.raises(UserError, match=words):
    steps(tmp_path, 1)


def test_other_numbers_of_joints_are_refused_by_a_mirror(tmp_path):
  np.savez(tmp_path / "train.npz", image=np.zeros((6, 4, 4, 3), np.uint8),
           keypoints=np.zeros((6, 2, 5, 3), np.float32))
  assert steps(tmp_path, 1)[0]["keypoints"].shape == (6, 2, 5, 3)
  with pytest.raises(UserError, match="what a mirror swaps is known for COCO's 17 only"):
    steps(tmp_path, 1, pp="flip_lr")
