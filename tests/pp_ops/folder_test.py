"""Somebody's own folder: layouts, splits, odd files, what is read from it, and every mistake with its file."""

import json

import numpy as np
import pytest
from PIL import Image

from pp_ops import pipeline
from pp_ops.sources import open_source
from tools import make_data
from uvim_like.errors import UserError
from uvim_like.own_data import facts, layout

PLACES = [0.7914, 0.8605, 0.2541, 0.4179]   # shares of 2^48 of the first six bytes of SHA-256
SIZES = [(30, 41), (24, 24), (33, 20)]


def save(path, array, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path, **options)


def fill(root, names, *, sizes=SIZES, classes=3, maps=("semantic",), suffix=".jpg"):
  """Pictures of mixed sizes with label maps: classes 0.. and void, 16-bit depth up to 4.2 m."""
  for i, name in enumerate(names):
    h, w = sizes[i % len(sizes)]
    rows = np.arange(h)[:, None] + np.zeros((h, w), np.int64)
    save(root / "images" / f"{name}{suffix}", np.random.RandomState(i).randint(0, 255, (h, w, 3)).astype(np.uint8))
    if "semantic" in maps:
      save(root / "semantic" / f"{name}.png", np.where(rows == 0, 255, rows % classes).astype(np.uint8))
    if "depth" in maps:
      save(root / "depth" / f"{name}.png", (rows * 4200 // (h - 1)).astype(np.uint16))


@pytest.fixture(autouse=True)
def no_memory(tmp_path, monkeypatch):
  """Facts are kept in a folder of the test."""
  monkeypatch.setattr(facts, "CACHE", str(tmp_path / "cache"))


# --- layouts and splits -----------------------------------------------------------------------------------------------

NAMES = [f"street {i:02d}" for i in range(40)]


def ids(root, split):
  source = open_source("folder", split, data_dir=str(root))
  return [source.example_id(i) for i in range(len(source))]


def test_one_set_is_split_by_the_names_for_good(tmp_path):
  fill(tmp_path, NAMES)
  train, held = ids(tmp_path, "train"), ids(tmp_path, "validation")
  assert sorted(train + held) == NAMES == ids(tmp_path, "everything")
  assert held == [name for name in NAMES if layout.place_of_name(name) < 1 / 8] and 2 <= len(held) <= 10
  for name in NAMES[:20]:
    (tmp_path / "images" / f"{name}.jpg").unlink()
    (tmp_path / "semantic" / f"{name}.png").unlink()
  assert ids(tmp_path, "validation") == [name for name in held if name in NAMES[20:]]


def test_what_a_name_hashes_to_never_changes():
  places = [layout.place_of_name(name) for name in ("a", "street_2", "õ.ä", "000000000139")]
  np.testing.assert_allclose(places, PLACES, atol=1e-4)


def test_chance_never_leaves_too_few_for_validation():
  names = [name for name in map(str, range(400)) if layout.place_of_name(name) > 0.2][:32]
  held = layout.members(names, "validation")
  assert len(held) == 2 and layout.members(names, "train") == set(names) - held
  assert held == set(sorted(names, key=layout.place_of_name)[:2])


def test_a_handful_of_pictures_is_not_split(tmp_path):
  fill(tmp_path, NAMES[:5])
  assert ids(tmp_path, "train") == NAMES[:5]
  found = facts.read(str(tmp_path), {"semantic"}, progress=False)
  assert found.arguments["val"] == "train" and "validation is on training pictures" in found.notes[0]


@pytest.mark.parametrize("name", ["train", "training"])
def test_a_single_split_for_training_holds_some_out(tmp_path, name):
  fill(tmp_path / name, NAMES[:12])
  train, held = ids(tmp_path, "train"), ids(tmp_path, "validation")
  assert sorted(train + held) == NAMES[:12] and held
  assert "val" not in facts.read(str(tmp_path), {"semantic"}, progress=False).arguments


@pytest.mark.parametrize("inside", [False, True])
def test_folders_are_splits_both_ways_round(tmp_path, inside):
  for split, names in (("train", "abc"), ("val", "de")):
    fill(tmp_path / split, names)
  if inside:
    for kind in ("images", "semantic"):
      for split in ("train", "val"):
        (tmp_path / "turned" / kind).mkdir(parents=True, exist_ok=True)
        (tmp_path / split / kind).rename(tmp_path / "turned" / kind / split)
    tmp_path = tmp_path / "turned"
  assert (ids(tmp_path, "train"), ids(tmp_path, "val")) == (list("abc"), list("de"))
  found = facts.read(str(tmp_path), {"semantic"}, progress=False)
  assert found.arguments == {"size": "26x26", "short": 30, "long": 41, "classes": 3, "val": "val"}


def test_coco_json_with_objects_and_captions(tmp_path):
  assert make_data.main(["scenes", f"--out={tmp_path}", "--format=coco", "--num=train:2,validation:2", "--size=24x32",
                         "--workers=1"]) == 0
  source = open_source("folder", "validation", data_dir=str(tmp_path))
  example = source[1]
  assert example["objects/masks"].shape[1:] == (24, 32) == tuple(example["image/size"])
  assert example["panoptic_image"].shape == (24, 32, 3) and len(example["captions/text"]) == 5
  found = facts.read(str(tmp_path), {"panoptic", "instances", "masks"}, progress=False)
  assert {key: found.arguments[key] for key in ("segments", "things", "objects", "outlines", "size")} == {
      "segments": 10, "things": 5, "objects": 5, "outlines": True, "size": "24x32"}
  assert found.class_names["objects"][0] == {"id": 1, "name": "box"}


# --- odd files --------------------------------------------------------------------------------------------------------

def test_any_picture_is_read_upright_in_three_channels(tmp_path):
  pixels = np.random.RandomState(0).randint(0, 255, (6, 9, 3)).astype(np.uint8)
  save(tmp_path / "images" / "a.PNG", pixels)
  save(tmp_path / "images" / "b.png", np.dstack([pixels, np.full((6, 9), 7, np.uint8)]))
  save(tmp_path / "images" / "c.png", pixels[..., 0])
  save(tmp_path / "images" / "d.png", pixels[..., 0].astype(np.uint16) * 256 + 9)
  exif = Image.Exif()
  exif[0x0112] = 6   # to be turned to the right
  save(tmp_path / "images" / "e.jpeg", pixels, quality=100, subsampling=0, exif=exif)
  source = open_source("folder", "train", data_dir=str(tmp_path))
  images = {source.example_id(i): source[i]["image"] for i in range(5)}
  for name in "ab":
    np.testing.assert_array_equal(images[name], pixels)
  for name in "cd":
    np.testing.assert_array_equal(images[name], np.repeat(pixels[..., :1], 3, -1))
  assert images["e"].shape == (9, 6, 3)
  assert np.abs(images["e"].astype(int) - np.rot90(pixels, -1)).mean() < 3


def test_a_map_that_ignores_the_exif_is_told(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  save(tmp_path / "images" / "a.jpg", np.zeros((6, 9, 3), np.uint8), exif=exif)
  save(tmp_path / "semantic" / "a.png", np.zeros((6, 9), np.uint8))
  with pytest.raises(UserError, match="everything/a: size mismatch: semantic/a.png has 6x9 pixels, its image a.jpg "
                                      "9x6; its EXIF turns the image, which the map does not follow"):
    facts.read(str(tmp_path), {"semantic"}, progress=False)


# --- what is read -----------------------------------------------------------------------------------------------------

def test_depth_in_16_bits_gives_its_range(tmp_path):
  fill(tmp_path, NAMES[:9], maps=("depth",))
  found = facts.read(str(tmp_path), {"depth"}, progress=False)
  assert found.arguments["max_depth"] == 4.3   # the first number of two digits above 4.2 m
  depth = open_source("folder", "train", data_dir=str(tmp_path))[0]["depth"]
  assert depth.dtype == np.float32 and depth.max() == pytest.approx(4.2)


@pytest.mark.parametrize(("highest", "limit"), [(9.87, 9.9), (10.0, 11.0), (78.2, 79.0), (0.5, 0.51), (0.0123, 0.013),
                                                (65.535, 66.0)])
def test_the_range_ends_just_above_the_largest_depth(highest, limit):
  assert facts.depth_limit(highest) == limit and limit > highest


@pytest.mark.parametrize(("name", "text", "count", "last"), [
    ("classes.txt", "road\nsky\n car\nunseen\n\n \n", 4, "unseen"), ("classes.json", '["road", "sky", "car"]', 3, "car"),
    ("classes.json", '{"0": "road", "2": "car", "255": "void"}', 3, "car"),
    ("classes.json", '{"classes": [{"id": 3, "name": "dog"}, {"id": 0, "name": "road"}]}', 4, "dog")])
def test_names_of_classes(tmp_path, name, text, count, last):
  fill(tmp_path, NAMES[:9])
  (tmp_path / name).write_text(text)
  found = facts.read(str(tmp_path), {"semantic"}, progress=False)
  assert found.arguments["classes"] == count == len(found.class_names["semantic"])
  assert found.class_names["semantic"][-1] == last


@pytest.mark.parametrize(("text", "line"), [("road\nsky\n\ncar\n", 3), ("\nroad\nsky\ncar\n", 1)])
def test_a_line_without_a_name_would_move_the_ids_below_it(tmp_path, text, line):
  fill(tmp_path, NAMES[:9])
  (tmp_path / "classes.txt").write_text(text)
  with pytest.raises(UserError, match=f"classes.txt: line {line} is empty, .* or write 'class {line - 1}' where"):
    facts.read(str(tmp_path), {"semantic"}, progress=False)


def test_semantic_maps_come_before_labels(tmp_path):
  fill(tmp_path, NAMES[:9])
  for name in NAMES[:9]:
    h, w = Image.open(tmp_path / "images" / f"{name}.jpg").size[::-1]
    save(tmp_path / "labels" / f"{name}.png", np.full((h, w), 400, np.uint16))
  assert facts.read(str(tmp_path), {"semantic"}, progress=False).arguments["classes"] == 3


def test_one_class(tmp_path):
  fill(tmp_path, NAMES[:9], classes=1)
  found = facts.read(str(tmp_path), {"semantic"}, progress=False)
  assert found.arguments["classes"] == 1 and "255 stands for void" in found.notes[0]


def test_facts_are_read_again_when_a_file_changes(tmp_path, monkeypatch):
  fill(tmp_path, NAMES[:9])
  first = facts.read(str(tmp_path), {"semantic"}, progress=False)
  monkeypatch.setattr(facts, "check_place", None)   # would fail if anything were looked at again
  assert facts.read(str(tmp_path), {"semantic"}, progress=False) == first
  monkeypatch.undo()
  monkeypatch.setattr(facts, "CACHE", str(tmp_path / "cache"))
  save(tmp_path / "semantic" / f"{NAMES[0]}.png", np.full(SIZES[0], 6, np.uint8))
  assert facts.read(str(tmp_path), {"semantic"}, progress=False).arguments["classes"] == 7


def test_maps_without_partner_stop_only_those_who_read_them(tmp_path):
  fill(tmp_path, NAMES[:3], maps=("semantic", "depth"))
  (tmp_path / "depth" / f"{NAMES[1]}.png").unlink()
  (tmp_path / "instances.json").write_text(json.dumps(dict(images=[], annotations=[], categories=[])))
  options = dict(dataset="folder", split="train", data_dir=str(tmp_path))
  found = pipeline.prepare(pp='decode|semantic_labels|resize_all(16)|keep("image", "labels")', **options)
  assert found.keys == ("image", "semantic")
  for pp, keys, message in (('decode|depth_labels|resize_all(16)|keep("labels")', (), r"depth: 1 images without a file "
                             r"there \(street 01\)"),
                            ('resize(16)|keep("image")', ("objects/bbox",), "instances.json: 3 images without a file")):
    with pytest.raises(UserError, match=message):
      pipeline.prepare(pp=pp, target_keys=keys, **options)


def test_splits_with_other_maps(tmp_path):
  fill(tmp_path / "train", "ab", maps=("semantic", "depth"))
  fill(tmp_path / "val", "cd")
  source = open_source("folder", "train+val", data_dir=str(tmp_path))
  source.check(("image", "semantic"))
  with pytest.raises(UserError, match=r"the split 'val' has no depth/"):
    source.check(("image", "depth"))


# --- mistakes ---------------------------------------------------------------------------------------------------------

def test_everything_wrong_is_told_at_once_with_its_file(tmp_path):
  root = tmp_path / "data"
  fill(root, "abcdefgh")
  (root / "classes.txt").write_text("road\nsky\ncar\n")
  (root / "images" / "a.jpg").write_bytes((root / "images" / "a.jpg").read_bytes()[:400])
  (root / "images" / "b.jpg").write_text("no picture")
  (root / "semantic" / "c.png").unlink()
  save(root / "semantic" / "d.png", np.full((33, 41), 3, np.uint8))
  save(root / "semantic" / "spare.png", np.zeros((3, 3), np.uint8))
  save(root / "semantic" / "e.png", np.zeros((24, 24, 3), np.uint8))
  (root / "images" / "photo.webp").write_bytes(b"RIFF")
  with pytest.raises(UserError) as error:
    facts.read(str(root), {"semantic"}, progress=False)
  first, *lines = str(error.value).splitlines()
  assert first.startswith(f"config.data_dir: '{root}': 8 examples: 8 problems (")
  told = [line.strip().split(": ") for line in lines]
  assert sorted(tuple(words[:2]) for words in told) == [
      ("everything/a", "image does not decode"), ("everything/b", "image does not decode"),
      ("everything/c", "image without mask"), ("everything/d", "label out of range"), ("everything/d", "size mismatch"),
      ("everything/e", "mask does not decode"), ("everything/photo", "format that is not read"),
      ("everything/spare", "mask without image")]
  text = "\n".join(lines)
  for words in ("images/b.jpg is not an image that can be read", "c.jpg has no file in semantic/",
                "3 (1353 pixels) in channel 0, which has 3 classes, in semantic/d.png",
                "semantic/d.png has 33x41 pixels, its image d.jpg 30x41",
                "e.png: a label PNG needs one channel of class ids", "images/photo.webp: convert it to PNG or JPEG",
                "semantic/spare.png"):
    assert words in text, words


@pytest.mark.parametrize(("needs", "message"), [
    ({"depth"}, "this config needs depth/; beside the images there is semantic"),
    ({"instances?", "captions?"},
     "this config needs one of captions.json, instances.json; beside the images there is semantic")])
def test_what_a_config_needs_and_the_folder_lacks(tmp_path, needs, message):
  fill(tmp_path, "ab")
  with pytest.raises(UserError, match=message.replace("?", r"\?")):
    facts.read(str(tmp_path), needs, progress=False)


@pytest.mark.parametrize(("make", "needs", "message"), [
    (lambda root: fill(root / "a", "ab"), {"semantic"}, r"none of its splits \(a\) is called train or training"),
    (lambda root: None, {"semantic"}, "there is neither images/ nor <split>/images/ in it"),
    (lambda root: (fill(root, "ab", maps=("depth",)), [save(p, np.zeros(s, np.uint16)) for p, s in zip(
        sorted((root / "depth").iterdir()), SIZES)]), {"depth"}, "no pixel of depth/ is above 0 metres"),
    (lambda root: (fill(root, "ab"), (root / "classes.json").write_text("{")), {"semantic"},
     "classes.json: cannot be read"),
    (lambda root: (fill(root, "ab"), (root / "classes.json").write_text('[{"id": 0}]')), {"semantic"},
     "every class needs a name and an id of its own"),
    (lambda root: (fill(root, "a"), save(root / "semantic" / "a.png", np.full(SIZES[0], 255, np.uint8))), {"semantic"},
     "all pixels of semantic/ are 255, which stands for void")])
def test_a_folder_that_cannot_be_trained_on(tmp_path, make, needs, message):
  root = tmp_path / "data"
  root.mkdir()
  make(root)
  with pytest.raises(UserError, match=message):
    facts.read(str(root), needs, progress=False)


def test_masks_that_are_not_drawn(tmp_path):
  fill(tmp_path, "ab", maps=())
  images = [dict(id=i, file_name=f"{name}.jpg", height=SIZES[i][0], width=SIZES[i][1]) for i, name in enumerate("ab")]
  table = dict(images=images, categories=[dict(id=4, name="dog")],
               annotations=[dict(id=9, image_id=1, category_id=4, bbox=[1, 2, 5, 6], area=30)])
  (tmp_path / "instances.json").write_text(json.dumps(table))
  found = facts.read(str(tmp_path), {"instances"}, progress=False)
  assert (found.arguments["objects"], found.arguments["slots"], found.arguments["outlines"]) == (1, 1, False)
  with pytest.raises(UserError, match="annotation 9 of instances.json has no 'segmentation'"):
    facts.read(str(tmp_path), {"instances", "masks"}, progress=False)
  source = open_source("folder", "train", data_dir=str(tmp_path))
  assert [len(source[i]["objects/id"]) for i in range(2)] == [0, 1]
