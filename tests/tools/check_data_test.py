"""The validation pass: everything that is wrong, with its id, and nothing about what is right."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tools import make_data
from tools.checking import check_data, check_source
from tools.checking.check_data import Options, Problem
from uvim_like.errors import UserError

SIZE = (40, 36)


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
  """Four images with class maps and depth; nothing is wrong."""
  root, numbers = tmp_path / "data", np.random.RandomState(0)
  for name in ("a", "b", "c", "d"):
    save(root / "images" / f"{name}.png", numbers.randint(0, 255, (*SIZE[::-1], 3)).astype(np.uint8))
    save(root / "labels" / f"{name}.png", numbers.randint(0, 11, SIZE[::-1]).astype(np.uint8))
    (root / "depth").mkdir(exist_ok=True)
    np.save(root / "depth" / f"{name}.npy", np.ones(SIZE[::-1], np.float32))
  return root


def found(folder, *, dataset="folder", classes=(), split=None):
  """{(example, kind)}."""
  total, problems = check_data.check(dataset, str(folder), Options(classes, frozenset({255}), split))
  assert all("\n" not in problem.line() for problem in problems)
  return {(problem.example, problem.kind) for problem in problems}


def run(capsys, *words):
  status = make_data.main(["check", *words])
  told = capsys.readouterr()
  return status, told.out, told.err


def test_nothing_wrong(folder, capsys):
  status, out, _ = run(capsys, "--dataset=folder", f"--data_dir={folder}", "--classes=11")
  assert (status, out) == (0, "4 examples: no problems\n")


def test_everything_wrong_at_once(folder, capsys):
  (folder / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
  save(folder / "labels" / "b.png", np.full(SIZE[::-1], 77, np.uint8))
  save(folder / "labels" / "spare.png", np.zeros(SIZE[::-1], np.uint8))
  (folder / "labels" / "c.png").unlink()
  save(folder / "images" / "d.jpg", np.zeros((4, 4, 3), np.uint8))
  np.save(folder / "depth" / "b.npy", np.array([[np.nan, -1], [1, 2]], np.float32))
  status, out, _ = run(capsys, "--dataset=folder", f"--data_dir={folder}", "--classes=11")
  lines = out.splitlines()
  told = sorted(tuple(line.split(": ")[:2]) for line in lines[:-1])
  assert status == 1 and told == [
      ("train/a", "image does not decode"), ("train/b", "label out of range"), ("train/b", "negative depth"),
      ("train/b", "not finite"), ("train/b", "size mismatch"), ("train/c", "image without mask"),
      ("train/d", "duplicate id"), ("train/d", "size mismatch"), ("train/d", "size mismatch"),
      ("train/spare", "mask without image")]
  assert lines[-1].startswith("4 examples: 10 problems (3 size mismatch, ")
  assert "77 (1440 pixels) in channel 0, which has 11 classes" in out


def test_void_is_no_class_and_without_classes_nothing_is_out_of_range(folder):
  save(folder / "labels" / "b.png", np.full(SIZE[::-1], 255, np.uint8))
  assert found(folder, classes=(11,)) == set()
  save(folder / "labels" / "b.png", np.full(SIZE[::-1], 200, np.uint8))
  assert found(folder) == set()
  assert found(folder, classes=(11,)) == {("train/b", "label out of range")}


def test_the_folders_own_list_of_classes_counts(folder):
  """As in a training; what a person says of the classes goes first."""
  (folder / "classes.txt").write_text("".join(f"class {i}\n" for i in range(11)))
  assert found(folder) == set()
  save(folder / "labels" / "b.png", np.full(SIZE[::-1], 12, np.uint8))
  assert found(folder) == {("train/b", "label out of range")}
  assert found(folder, classes=(13,)) == set()


def test_picture_that_claims_too_many_pixels(folder):
  data = bytearray((folder / "images" / "a.png").read_bytes())
  data[16:24] = (60_000).to_bytes(4, "big") * 2
  (folder / "images" / "a.png").write_bytes(data)
  assert found(folder) == {("train/a", "image does not decode")}


def test_link_out_of_the_dataset(folder, tmp_path):
  (tmp_path / "secret.png").write_bytes((folder / "images" / "a.png").read_bytes())
  (folder / "images" / "a.png").unlink()
  (folder / "images" / "a.png").symlink_to(tmp_path / "secret.png")
  assert ("train/a", "link out of the dataset") in found(folder)


# --- COCO -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path):
  """Two images of 40x36 with two segments each, and two boxes with polygons and joints."""
  root = tmp_path / "coco"
  images, panoptic, things = [], [], []
  for number in (1, 2):
    name = f"{number:012d}"
    save(root / "train2017" / f"{name}.png", np.full((*SIZE[::-1], 3), 9, np.uint8))
    ids = np.zeros((*SIZE[::-1], 3), np.uint8)
    ids[:10], ids[10:30] = (7, 0, 0), (1, 1, 0)
    save(root / "panoptic_train2017" / f"{name}.png", ids)
    images.append(dict(id=number, file_name=f"{name}.png", height=SIZE[1], width=SIZE[0]))
    panoptic.append(dict(image_id=number, file_name=f"{name}.png", segments_info=[
        dict(id=7, category_id=1, bbox=[0, 0, 40, 10], area=400, iscrowd=0),
        dict(id=257, category_id=5, bbox=[0, 10, 40, 20], area=800, iscrowd=0)]))
    things.append(dict(id=10 * number, image_id=number, category_id=1, bbox=[2, 3, 10, 12], area=120, iscrowd=0,
                       segmentation=[[2, 3, 12, 3, 12, 15]], keypoints=[5, 5, 2, 0, 0, 0]))
  categories = [dict(id=1, name="thing", isthing=1), dict(id=5, name="stuff", isthing=0)]
  tables = {"panoptic": dict(images=images, annotations=panoptic, categories=categories),
            "instances": dict(images=images, annotations=things, categories=categories)}
  (root / "annotations").mkdir()
  return root, tables


def write(root, tables):
  for name, table in tables.items():
    (root / "annotations" / f"{name}_train2017.json").write_text(json.dumps(table))


def test_sound_tables(coco):
  root, tables = coco
  write(root, tables)
  assert found(root, dataset="coco_json") == set()


ONE, TWO = "train2017/000000000001", "train2017/000000000002"


@pytest.mark.parametrize("path, value, expected", [
    (("instances", "annotations", 0, "bbox"), [35, 3, 10, 12], (ONE, "annotation outside its image")),
    (("instances", "annotations", 0, "bbox"), [2, 3, -1, 12], (ONE, "annotation outside its image")),
    (("instances", "annotations", 0, "bbox"), [2, 3], (ONE, "malformed annotation")),
    (("instances", "annotations", 0, "segmentation"), [[2, 3, 60, 3, 12, 15]], (ONE, "annotation outside its image")),
    (("instances", "annotations", 0, "keypoints"), [5, 50, 2], (ONE, "annotation outside its image")),
    (("instances", "annotations", 0, "segmentation"), {"size": [3, 3], "counts": [9]}, (ONE, "size mismatch")),
    (("instances", "annotations", 1, "id"), 10, (TWO, "duplicate id")),
    (("instances", "annotations", 1, "category_id"), 9, (TWO, "unknown category")),
    (("instances", "annotations", 1, "image_id"), 9,
     ("train2017/instances_train2017.json[1]", "annotation without image")),
    (("panoptic", "annotations", 1, "image_id"), "2", ("train2017/panoptic_train2017.json[1]", "malformed annotation")),
    (("panoptic", "annotations", 1, "segments_info", 0, "id"), 8, (TWO, "segment without pixels")),
    (("panoptic", "annotations", 1, "segments_info", 0, "id"), 257, (TWO, "duplicate id")),
    (("panoptic", "annotations", 1, "segments_info", 0, "bbox"), [0, 0, 99, 9], (TWO, "annotation outside its image")),
    (("panoptic", "annotations", 1, "file_name"), "3.png", (TWO, "annotation without mask")),
    (("panoptic", "images", 1, "height"), 50, (TWO, "size mismatch")),
    (("panoptic", "images", 1, "id"), 1, (TWO, "duplicate id")),
    (("panoptic", "images", 1, "file_name"), "../../etc/passwd", ("train2017/images[1]", "path out of the folder")),
    (("panoptic", "categories", 1, "id"), 1, ("train2017/panoptic_train2017.json: categories[1]", "duplicate id")),
    (("panoptic", "images"), None, ("train2017/panoptic_train2017.json", "table cannot be read"))])
def test_one_thing_wrong_in_a_table(coco, path, value, expected):
  root, tables = coco
  tables = json.loads(json.dumps(tables))  # the two tables share their images above, and must not here
  place = tables
  for key in path[:-1]:
    place = place[key]
  place[path[-1]] = value
  write(root, tables)
  assert expected in found(root, dataset="coco_json")


def test_mask_and_image_without_each_other(coco):
  root, tables = coco
  write(root, tables)
  (root / "panoptic_train2017" / "000000000001.png").rename(root / "panoptic_train2017" / "other.png")
  assert {(ONE, "image without mask"), ("train2017/other", "mask without image")} <= found(root, dataset="coco_json")


# --- arrays, records, flags -------------------------------------------------------------------------------------------


def test_arrays(tmp_path):
  image, depth = np.zeros((4, 8, 8, 3), np.uint8), np.ones((4, 8, 8), np.float32)
  labels = np.zeros((4, 8, 8, 2), np.int16)
  labels[1, 2, 3, 1], depth[2, 0, 0], depth[3, 0, 0] = 20, np.nan, -1
  np.savez(tmp_path / "train.npz", image=image, labels=labels, depth=depth, **{"image/id": np.array([5, 6, 5, 7])})
  np.savez(tmp_path / "short.npz", image=image, labels=labels[:3])
  np.savez(tmp_path / "pickled.npz", image=np.array([{}], object))
  assert found(tmp_path, dataset="npz", classes=(11, 20), split="train") == {
      ("train[1]", "label out of range"), ("train[2]", "not finite"), ("train[3]", "negative depth"),
      ("train[0]", "duplicate id")}
  assert {("short", "array of another length"), ("pickled", "file cannot be read")} <= found(tmp_path, dataset="npz")


def test_rendered_scenes_are_sound():
  assert check_data.check("scenes/tiny", None, Options(split="train[:3]")) == (3, [])


def test_what_is_wrong_with_a_record():
  ids = np.zeros((4, 4, 3), np.uint8)
  ids[0] = (3, 0, 0)
  example = {"image": np.zeros((4, 4, 3), np.uint8), "depth": np.full((4, 5), np.inf, np.float16),
             "panoptic_image": ids, "panoptic_objects/id": np.array([4, 4]),
             "objects/bbox": np.array([[0, 0, 1, 1], [0, 0.5, 0.5, 1.2], [0.5, 0, 0.1, 1]], np.float32)}
  kinds = [kind for kind, _ in check_source.example_problems(example, Options())]
  assert sorted(kinds) == ["annotation outside its image", "annotation outside its image", "duplicate id", "not finite",
                           "pixels of no segment", "segment without pixels", "size mismatch"]


@pytest.mark.parametrize("words, message", [
    (["--data_dir=x"], "the following arguments are required: --dataset"),
    (["--dataset=folder"], "--data_dir is missing"),
    (["--dataset=npz", "--data_dir=nowhere"], "no .npz files in nowhere"),
    (["--dataset=folder", "--data_dir=nowhere"], "there is no images/ or <split>/images/ in 'nowhere'"),
    (["--dataset=coco_json", "--data_dir=nowhere"], "there is no annotations/panoptic_<split>.json"),
    (["--dataset=scenes/tiny"], "--split is missing"), (["--dataset=scnes", "--split=train"], "did you mean 'scenes'?"),
    (["--dataset=folder", "--data_dir=x", "--classes=many"], "--classes: 'many' is not whole numbers"),
    (["--dataset=folder", "--clases=3"], "unknown flag '--clases'; did you mean '--classes'?")])
def test_flags(capsys, words, message):
  status, _, err = run(capsys, *words)
  assert status == 2 and message in err and err.count("\n") == 1


def test_unknown_split(folder):
  with pytest.raises(UserError, match=re.escape("--split: unknown split 'trian'; did you mean 'train'?")):
    found(folder, split="trian")


def test_problems_are_one_line():
  assert Problem("a", "kind", "two\nlines").line() == "a: kind: two lines"
