"""Folders as people have them: more than a config needs, links, names and formats of other tools; a line for each trouble."""

import json
import os

import numpy as np
import pytest
from etils import epath
from PIL import Image

from tools.checking import check_files
from tools.checking.check_data import Options
from uvim_like.errors import UserError
from uvim_like.own_data import facts, form, layout, tables
from uvim_like.own_data.check import alike
from uvim_like.own_data.files import read_place

SIZE = (6, 8)
NAMES = [f"street {i}.v" for i in range(1, 10)]   # with a blank and a dot


@pytest.fixture(autouse=True)
def no_memory(tmp_path, monkeypatch):
  """Facts are kept in a folder of the test."""
  monkeypatch.setattr(facts, "CACHE", str(tmp_path / "cache"))


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)


@pytest.fixture
def streets(tmp_path):
  """Nine pictures with class maps 0 and 1."""
  for name in NAMES:
    save(tmp_path / "d" / "images" / f"{name}.jpg", np.zeros((*SIZE, 3), np.uint8))
    save(tmp_path / "d" / "semantic" / f"{name}.png", np.eye(*SIZE, dtype=np.uint8))
  return tmp_path / "d"


def read(root, *needs):
  return facts.read(str(root), set(needs), progress=False)


def mistakes(root, *needs):
  """(the summary, the lines) of a folder with which nothing is trained."""
  with pytest.raises(UserError) as error:
    read(root, *needs)
  first, *lines = str(error.value).splitlines()
  return first.partition(f"'{root}': ")[2], [line.strip() for line in lines]


# --- more than is needed ----------------------------------------------------------------------------------------------


def test_what_the_config_does_not_need_stops_nothing(streets):
  (streets / "labels").mkdir()
  for name in NAMES:
    (streets / "labels" / f"{name}.txt").write_text("0 0.5 0.5 1 1")   # YOLO's
  save(streets / "depth" / f"{NAMES[0]}.png", np.full(SIZE, 1500, np.uint16))
  save(streets / "panoptic" / "another.png", np.zeros((*SIZE, 3), np.uint8))
  for suffix in ("PNG", "png"):
    save(streets / "normals" / f"a.{suffix}", np.zeros((*SIZE, 3), np.uint8))
  assert read(streets, "semantic").arguments["classes"] == 2
  assert read(streets).arguments["size"] == "6x8"
  place = layout.find(epath.Path(streets))["train"]
  assert set(place.maps) == {"semantic", "depth", "panoptic", "normals"} and set(place.others) == {"labels"}
  found = read_place(place)
  assert set(found.lacks) == {"depth", "panoptic", "normals"} and "8 images without a file there" in found.lacks["depth"]
  _, lines = mistakes(streets, "depth")
  assert len(lines) == 8 and lines[0] == f"everything/{NAMES[1]}: image without mask: {NAMES[1]}.jpg has no file in depth/"


def test_all_splits_need_the_maps(streets):
  for name in ("train", "val"):
    (streets / name).mkdir()
  (streets / "images").rename(streets / "train" / "images")
  (streets / "semantic").rename(streets / "train" / "semantic")
  save(streets / "val" / "images" / "a.png", np.zeros((*SIZE, 3), np.uint8))
  assert mistakes(streets, "semantic") == (
      "this config needs semantic/ or labels/; beside the images of val there is nothing", [])
  save(streets / "val" / "labels" / "a.png", np.full(SIZE, 4, np.uint8))
  assert mistakes(streets, "semantic") == (
      "this config needs semantic/ or labels/; split 'train' has semantic; split 'val' has labels", [])
  save(streets / "val" / "semantic" / "a.png", np.full(SIZE, 4, np.uint8))
  assert read(streets, "semantic").arguments["classes"] == 5


def test_maps_beside_coco_tables(streets):
  (streets / "annotations").mkdir()
  for split, names in (("train", NAMES[:6]), ("val", NAMES[6:])):
    images = [dict(id=i, file_name=f"{name}.jpg", height=SIZE[0], width=SIZE[1]) for i, name in enumerate(names)]
    (streets / "annotations" / f"instances_{split}.json").write_text(
        json.dumps(dict(images=images, annotations=[], categories=[dict(id=1, name="car")])))
  found = read(streets, "semantic")
  assert found.arguments == {"size": "6x8", "short": 6, "long": 8, "classes": 2, "val": "val"}
  files = read_place(layout.find(epath.Path(streets))["train"])
  assert list(files.stems) == NAMES[:6] == list(files.labels["semantic"]) and not files.lacks
  (streets / "semantic" / f"{NAMES[7]}.png").unlink()
  assert mistakes(streets, "semantic")[1] == [
      f"val/{NAMES[7]}: image without mask: {NAMES[7]}.jpg has no file in semantic/"]


def test_no_folder_of_pictures(streets):
  (streets / "annotations").mkdir()
  (streets / "images").rename(streets / "pictures")
  (streets / "annotations" / "instances_train.json").write_text("{}")
  assert mistakes(streets, "semantic")[0] == ("no folder with the pictures of its split 'train': there is no train/, no "
                                              "images/train/ and no images/")


# --- links ------------------------------------------------------------------------------------------------------------


def test_splits_made_of_links_inside_the_dataset(streets, tmp_path):
  for split, names in (("train", NAMES[:6]), ("val", NAMES[6:])):
    for kind, suffix in (("images", "jpg"), ("semantic", "png")):
      (streets / split / kind).mkdir(parents=True)
      for name in names:
        (streets / split / kind / f"{name}.{suffix}").symlink_to(f"../../all_{kind}/{name}.{suffix}")
  for kind in ("images", "semantic"):
    (streets / kind).rename(streets / f"all_{kind}")
  assert read(streets, "semantic").arguments["classes"] == 2
  assert list(read_place(layout.find(epath.Path(streets))["val"]).stems) == NAMES[6:]
  out = tmp_path / "secret.jpg"
  save(out, np.zeros((*SIZE, 3), np.uint8))
  (streets / "val" / "images" / f"{NAMES[8]}.jpg").unlink()
  (streets / "val" / "images" / f"{NAMES[8]}.jpg").symlink_to(out)
  assert f"val/{NAMES[8]}: link out of the dataset: images/{NAMES[8]}.jpg" in mistakes(streets, "semantic")[1]


def test_a_link_to_nowhere_is_told(streets):
  path = streets / "images" / f"{NAMES[2]}.jpg"
  path.unlink()
  os.symlink("gone.jpg", path)
  (line,) = mistakes(streets, "semantic")[1]
  assert line.startswith(f"everything/{NAMES[2]}: image does not decode: {path} is") and "No such file" in line


# --- formats and names of other tools ---------------------------------------------------------------------------------


def test_label_maps_of_another_format(streets):
  for name, suffix in zip(NAMES[:2], ("tif", "jpg")):
    (streets / "semantic" / f"{name}.png").rename(streets / "semantic" / f"{name}.{suffix}")
  (streets / "semantic" / f"{NAMES[5]}.jpg").write_bytes(b"a preview beside the map")
  summary, lines = mistakes(streets, "semantic")
  assert summary == "9 examples: 2 problems (2 format that is not read)"
  assert lines[0] == (f"everything/{NAMES[0]}: format that is not read: semantic/{NAMES[0]}.tif: label maps are .png; "
                      "convert it without loss")
  for path in list((streets / "semantic").iterdir()):
    path.rename(path.with_suffix(".tif"))
  assert mistakes(streets, "semantic")[0] == (f"this config needs semantic/ or labels/; semantic/ has no .png but "
                                              f"{NAMES[0]}.tif, …")


def test_pictures_of_other_suffixes(streets):
  for name, suffix in zip(NAMES[:3], ("jfif", "jpe", "pgm")):
    (streets / "images" / f"{name}.jpg").rename(streets / "images" / f"{name}.{suffix}")
  assert mistakes(streets, "semantic")[1] == [
      f"everything/{NAMES[2]}: format that is not read: images/{NAMES[2]}.pgm: convert it to PNG or JPEG",
      f"everything/{NAMES[2]}: mask without image: semantic/{NAMES[2]}.png"]


def test_other_names_are_told_once(streets):
  for path in list((streets / "semantic").iterdir()):
    path.rename(path.with_name(f"{path.stem}_mask.png"))
  (streets / "semantic" / f"{NAMES[8]}_mask.png").unlink()
  summary, lines = mistakes(streets, "semantic")
  assert summary == "9 examples: 2 problems (1 names differ, 1 image without mask)"
  assert lines[0] == (f"everything: names differ: 8 files of semantic/ seem to belong to pictures of other names, as "
                      f"{NAMES[0]}_mask.png to {NAMES[0]}.jpg; partners need the same name before the suffix: rename it "
                      f"to {NAMES[0]}.png, and the others alike")


@pytest.mark.parametrize(("images", "labels", "pairs"), [
    (["a1", "b2", "extra"], ["a1_mask", "b2_mask"], {"a1": "a1_mask", "b2": "b2_mask"}),
    (["x_left", "y_left"], ["x_gt", "y_gt"], {"x_left": "x_gt", "y_left": "y_gt"}),
    (["img_1", "img_2"], ["mask_1", "mask_2"], {"img_1": "mask_1", "img_2": "mask_2"}),
    (["cat"], ["dog"], {}), (["a", "b"], ["c", "d"], {}), ([], [], {}), (["a", "b"], [], {})])
def test_names_that_differ_alike(images, labels, pairs):
  assert alike(images, labels) == pairs


# --- numbers that mean something else ---------------------------------------------------------------------------------


def test_notes_on_depth(streets):
  for i, name in enumerate(NAMES):
    save(streets / "depth" / f"{name}.png", np.full(SIZE, 65535 if i == 4 else 400 + 5000 * i, np.uint16))
  found = read(streets, "depth")
  assert found.arguments["max_depth"] == 66.0 and found.nearest == pytest.approx(0.4)
  assert found.notes == ["depth/ of 1 pictures has pixels of 65535, which are read as 65.535 m; where they stand for no "
                         "measurement, write 0 instead"]
  first = dict(task="depth", model=dict(outputs={"depth": (32, 64)}))
  for config in (first, dict(task="depth", model={}, oracle=first)):
    assert form.notes(config, found)[1:] == [
        "depth is learned in 32 bins, of which the first stands for no measurement: what is nearer than 2.1 m (the "
        "nearest is 0.4 m) is not learned"]
  finer = dict(task="depth", model=dict(outputs={"depth": (256, 64)}))
  assert form.notes(finer, found) == found.notes == form.notes(dict(task="depth", model=dict(num_queries=16)), found)


def test_void_among_many_classes(streets):
  for name in NAMES:
    save(streets / "labels" / f"{name}.png", (np.arange(48).reshape(SIZE) + 230).astype(np.uint16))
    (streets / "semantic" / f"{name}.png").unlink()
  found = read(streets, "semantic")
  assert found.arguments["classes"] == 278 and "255 stands for void among them as well" in found.notes[0]


# --- tables -----------------------------------------------------------------------------------------------------------


def table(annotations, categories):
  images = [dict(id=i, file_name=f"{name}.jpg", height=SIZE[0], width=SIZE[1]) for i, name in enumerate(NAMES)]
  return json.dumps(dict(images=images, annotations=annotations, categories=categories))


@pytest.mark.parametrize(("segmentation", "message"), [
    (dict(size=[6, 8], counts=[40, 2]), "do not fill its 6 x 8 pixels"), (dict(size=[6, 8]), "'counts', a list or a text"),
    (dict(size=[6, 8], counts=["a"]), "cannot be read"), (dict(size=[8, 6], counts=[48]), "mask (8, 6), its image (6, 8)"),
    (dict(size=8, counts=[48]), "malformed annotation"), (dict(counts=[48]), "malformed annotation")])
def test_run_lengths(streets, segmentation, message):
  entry = dict(id=0, image_id=3, category_id=0, bbox=[0, 0, 1, 1], area=1, segmentation=segmentation)
  (streets / "instances.json").write_text(table([entry], [dict(id=0, name="car")]))
  (line,) = mistakes(streets, "instances", "masks")[1]
  assert line.startswith(f"everything/{NAMES[3]}: ") and message in line


def test_run_lengths_of_an_impossible_size_are_not_drawn(streets):
  side = 10 ** 6
  entry = dict(id=1, image_id=0, category_id=1, bbox=[0, 0, 1, 1], area=1,
               segmentation=dict(size=[side, side], counts=[side * side]))
  claimed = json.loads(table([entry], [dict(id=1, name="car")]))
  claimed["images"][0].update(height=side, width=side)
  (streets / "instances.json").write_text(json.dumps(claimed))
  (line,) = mistakes(streets, "instances", "masks")[1]
  assert line.startswith(f"everything/{NAMES[0]}: size mismatch: 1000000x1000000 in the table")


def test_panoptic_categories_begin_with_one(streets):
  entries = []
  for i, name in enumerate(NAMES):
    save(streets / "panoptic" / f"{name}.png", np.full((*SIZE, 3), (7, 0, 0), np.uint8))
    entries.append(dict(image_id=i, file_name=f"{name}.png", segments_info=[dict(id=7, category_id=0)]))
  (streets / "panoptic.json").write_text(table(entries, [dict(id=0, name="road"), dict(id=1, name="car")]))
  assert mistakes(streets, "panoptic")[1] == [
      "everything/panoptic.json: categories[0]: id of a category too small: 0: ids of panoptic categories begin with 1; "
      "add 1 to all of them, in 'segments_info' too"]


# --- tables -----------------------------------------------------------------------------------------------------------


def write_table(path, annotations, categories=None):
  images = [dict(id=i, file_name=f"{name}.jpg", height=SIZE[0], width=SIZE[1]) for i, name in enumerate(NAMES)]
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(dict(images=images, annotations=annotations) | (
      {"categories": categories} if categories else {})))


def test_a_table_of_captions_is_known_by_its_place_not_by_its_name(tmp_path):
  """captions/train.json beside images/train/: captions have no categories."""
  for part in ("train", "val"):
    for name in NAMES:
      save(tmp_path / "images" / part / f"{name}.jpg", np.zeros((*SIZE, 3), np.uint8))
    write_table(tmp_path / "captions" / f"{part}.json",
                [dict(id=i, image_id=i, caption="a road") for i in range(len(NAMES))])
  assert read(tmp_path, "captions").arguments is not None
  total, problems = check_files.check(str(tmp_path), coco=False, options=Options())
  assert total == 2 * len(NAMES) and problems == []


def test_null_of_a_table_is_none(tmp_path):
  for name in NAMES:
    save(tmp_path / "images" / f"{name}.jpg", np.zeros((*SIZE, 3), np.uint8))
  things = [dict(id=i + 1, image_id=i, category_id=1, bbox=[1, 1, 3, 3], area=9, iscrowd=0, segmentation=None,
                 keypoints=None) for i in range(len(NAMES))]
  write_table(tmp_path / "instances.json", things, [dict(id=1, name="cup")])
  total, problems = check_files.check(str(tmp_path), coco=False, options=Options())
  assert total == len(NAMES) and problems == []
  table = tables.load(None, {"instances": epath.Path(tmp_path / "instances.json")})
  (thing,) = table.things[0]
  assert thing.shape == () and thing.points is None and table.joints == 0
