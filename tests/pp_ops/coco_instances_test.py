"""COCO's joined annotations from a few hand-written files: what an example holds, what is said of broken ones."""

import json

import numpy as np
import pytest
from PIL import Image

from pp_ops import pipeline
from pp_ops.sources import open_source
from tools import make_data
from uvim_like import scenes
from uvim_like.errors import UserError
from uvim_like.evaluators import captions, coco_instances
from uvim_like.evaluators.run import example_target
from uvim_like.tasks import text

SIZE = (30, 44)
# Two images with objects, one with a crowd only, one with nothing.
IMAGES = [dict(id=9, file_name="000000000009.jpg"), dict(id=4, file_name="000000000004.jpg"),
          dict(id=7, file_name="000000000007.jpg"), dict(id=2, file_name="000000000002.jpg")]
RLE = dict(size=list(SIZE), counts=[5 * 30 + 4, 10, 20, 10, SIZE[0] * SIZE[1] - 5 * 30 - 44])
THINGS = [
    dict(id=11, image_id=9, category_id=18, bbox=[10.5, 4, 20, 16.25], area=160.75, iscrowd=0,
         segmentation=[[10.5, 4, 30.5, 4, 30.5, 20.25], [11, 15, 14, 15, 14, 20]]),
    dict(id=12, image_id=9, category_id=1, bbox=[2, 2, 8, 25], area=150., iscrowd=0,
         segmentation=[[2, 2, 10, 2, 10, 27, 2, 27]]),
    dict(id=13, image_id=7, category_id=1, bbox=[5, 4, 2, 10], area=20, iscrowd=1, segmentation=RLE),
    dict(id=14, image_id=2, category_id=1, bbox=[30, 3, 10, 20], area=190., iscrowd=0,
         segmentation=[[30, 3, 40, 3, 40, 23, 30, 23]])]
POINTS = [4, 5, 2, 0, 0, 0, 6, 5, 1] + [0, 0, 0] * 14


def write(root, things=THINGS, images=IMAGES, name="train2017", **others):
  notes = root / "annotations"
  notes.mkdir(exist_ok=True)
  (root / name).mkdir(exist_ok=True)
  images = [dict(im, height=SIZE[0], width=SIZE[1]) for im in images]
  for i, image in enumerate(images):
    Image.fromarray(np.full((*SIZE, 3), 40 * i, np.uint8)).save(root / name / image["file_name"])
  kinds = [dict(id=1, name="person"), dict(id=18, name="dog")]
  tables = {
      "instances": dict(images=images, annotations=things, categories=kinds),
      "person_keypoints": dict(annotations=[dict(id=12, image_id=9, keypoints=POINTS, num_keypoints=2)],
                               categories=[dict(id=1, name="person", keypoints=["joint"] * 17)]),
      "captions": dict(images=images, annotations=[
          dict(id=1, image_id=9, caption="A dog, left of a person."), dict(id=2, image_id=9, caption="Two of them"),
          dict(id=3, image_id=2, caption="someone")])} | others
  for kind, table in tables.items():
    if table is not None:
      (notes / f"{kind}_{name}.json").write_text(table if isinstance(table, str) else json.dumps(table))
  return str(root)


@pytest.fixture
def root(tmp_path):
  return write(tmp_path)


def test_an_example_holds_everything(root):
  source = open_source(f"coco_instances:{root}", "train")
  assert len(source) == 4 and [source.example_id(i) for i in range(2)] == [im["file_name"] for im in IMAGES[:2]]
  one = source[0]
  assert one["image/id"] == 9 and one["image/size"].tolist() == list(SIZE) and one["image"].shape == (*SIZE, 3)
  assert one["objects/label"].tolist() == [1, 0] and one["objects/area"].tolist() == [160.75, 150]
  np.testing.assert_allclose(one["objects/bbox"][0] * [30, 44, 30, 44], [4, 10.5, 20.25, 30.5], rtol=1e-6)
  assert one["objects/masks"].shape == (2, *SIZE) and abs(int(one["objects/masks"][1].sum()) - 200) <= 25
  assert one["objects/masks"][0][17, 13] and one["objects/masks"][0][6, 25] and not one["objects/masks"][0][28, 20]
  np.testing.assert_array_equal(one["objects/keypoints"][1, :3], [[4.5, 5.5, 2], [0, 0, 0], [6.5, 5.5, 1]])
  assert not one["objects/keypoints"][0].any() and one["objects/num_keypoints"].tolist() == [0, 2]
  assert one["captions/text"].tolist() == [b"A dog, left of a person.", b"Two of them"]
  empty = source[1]
  assert empty["objects/masks"].shape == (0, *SIZE) and empty["captions/text"].shape == (0,)
  crowd = source[2]
  assert crowd["objects/is_crowd"].tolist() == [True] and int(crowd["objects/masks"].sum()) == 20
  assert crowd["objects/masks"][0, 4:14, 5].all() and crowd["objects/masks"][0, 4:14, 6].all()
  for key, spec in source.features.items():
    assert spec.shape.is_compatible_with(np.shape(one[key])), key


def test_images_with_objects_only(root):
  source = open_source("coco_instances", "train_annotated", data_dir=root)
  assert [int(source[i]["image/id"]) for i in range(len(source))] == [9, 2]
  assert pipeline.num_examples(dataset="coco_instances", split="train2017_annotated[1:]+train2017", data_dir=root) == 5


def test_files_that_are_not_there_leave_their_features_out(tmp_path):
  root = write(tmp_path, person_keypoints=None, captions=None)
  source = open_source("coco_instances", "train", data_dir=root)
  assert not [k for k in source.features if "keypoints" in k or "captions" in k] and len(source[0]["objects/id"]) == 2
  with pytest.raises(UserError, match="instances reads 'objects/keypoints', which is not there"):
    pipeline.prepare(dataset="coco_instances", split="train", data_dir=root, pp="decode|instances")


def test_training_and_scoring_the_truth(root):
  """Through a padded canvas and back: the annotations themselves score 1."""
  text.train(["a dog, left of a person.", "two of them", "someone"] * 9, f"{root}/small.model", pieces=40)
  pp = (f"decode|instances|fit((48, 64))|canvas((64, 64))|box_masks(32)|pad_instances(5)|"
        f"tokenize_captions('{root}/small.model', 30)|value_range(-1, 1)|"
        "keep('image', 'boxes', 'box_labels', 'box_masks', 'keypoints', 'captions', 'valid_size')")
  objects = coco_instances.make(kinds=("boxes", "masks", "keypoints"), dataset="coco_instances")
  words = captions.make(model=f"{root}/small.model")
  place = dict(dataset="coco_instances", data_dir=root, pp=pp)
  ours, theirs = objects.init(), words.init()
  for batch, targets in pipeline.eval_batches(split="train", batch_size=3, **place,
                                              target_keys=(*objects.target_keys, *words.target_keys)):
    for row, target in enumerate(targets):
      target = example_target(batch, row, target)
      points, middle = batch["keypoints"][row], batch["boxes"][row].reshape(-1, 1, 2, 2).mean(2)
      points[..., :2] = np.where(points[..., 2:] > 0, points[..., :2], middle)   # an unlabelled person is ignored there
      out = {"boxes": batch["boxes"][row], "scores": (batch["box_labels"][row] > 0) * np.float32(0.7),
             "classes": batch["box_labels"][row], "masks": batch["box_masks"][row].astype(np.float32),
             "keypoints": points, "captions": batch["captions"][row][0]}
      ours, theirs = objects.update(ours, out, target), words.update(theirs, out, target)
  got = objects.compute(ours)
  assert got["box_AP"] == pytest.approx(1) and got["keypoint_AP"] == pytest.approx(1) and got["images"] == 4
  assert got["mask_AP50"] == pytest.approx(1) and got["mask_AP"] > 0.8
  assert words.compute(theirs)["BLEU2"] == pytest.approx(1) and words.compute(theirs)["images"] == 2
  train = pipeline.train_batches(split="train_annotated", batch_size=2, **place)
  batch = next(train)
  train.close()
  assert sorted(batch["_index"]) == [0, 1] and batch["image"].shape == (2, 64, 64, 3)


@pytest.mark.parametrize("change, words", [
    (dict(things=[dict(THINGS[0], category_id=5)]), "category_id 5 is not among the categories"),
    (dict(things=[dict(THINGS[0], image_id=5)]), "image_id 5 is not among the images"),
    (dict(things=[{k: v for k, v in THINGS[0].items() if k != "bbox"}]), r"annotations\[0\]: 'bbox' is missing"),
    (dict(things=[dict(THINGS[0], bbox=[1, 2])]), "'bbox' has 2 numbers"),
    (dict(things=[dict(THINGS[0], segmentation=[[1, 2, 3]])]), "at least three points"),
    (dict(images=[*IMAGES, IMAGES[0]]), "an id in 'images' occurs twice"),
    (dict(captions="{"), "is not JSON"), (dict(person_keypoints=dict(annotations=[])), "no list 'categories'")])
def test_broken_files_are_named(tmp_path, change, words):
  with pytest.raises(UserError, match=words):
    open_source("coco_instances", "train", data_dir=write(tmp_path, **change))


def test_a_missing_picture_and_a_missing_split(tmp_path):
  root = write(tmp_path)
  (tmp_path / "train2017" / IMAGES[0]["file_name"]).unlink()
  with pytest.raises(UserError, match=f"1 images of instances_train2017.json are missing \\({IMAGES[0]['file_name']}"):
    open_source("coco_instances", "train", data_dir=root)
  with pytest.raises(UserError, match="unknown split 'trian'; did you mean 'train'"):
    open_source("coco_instances", "trian", data_dir=root)
  with pytest.raises(UserError, match="there is no annotations/instances"):
    open_source("coco_instances", "train", data_dir=str(tmp_path / "train2017"))


def test_the_exported_scenes_are_read_back(tmp_path):
  assert make_data.main(["scenes", f"--out={tmp_path}", "--size=48x64", "--num=train:2", "--format=coco"]) == 0
  source = open_source("coco_instances", "train", data_dir=str(tmp_path))
  for i in range(2):
    ours, e = source[i], scenes.example("train", i, size=(48, 64))
    ids = e["panoptic_image"].astype(np.int64) @ [1, 256, 65536]
    np.testing.assert_array_equal(ours["objects/masks"], ids == e["objects"]["id"][:, None, None])
    np.testing.assert_allclose(ours["objects/bbox"], e["objects"]["bbox"], atol=1e-6)
    np.testing.assert_array_equal(ours["objects/label"], e["objects"]["label"])
    people = e["objects"]["label"] == 4
    shift = np.where(e["objects"]["keypoints"][..., 2:] > 0, [0.5, 0.5, 0], 0)
    joints = (e["objects"]["keypoints"] + shift)[people]
    np.testing.assert_allclose(ours["objects/keypoints"][people], joints, atol=0.01)
    assert [t.decode() for t in ours["captions/text"]] == list(e["captions"]["text"])
