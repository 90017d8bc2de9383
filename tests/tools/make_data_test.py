"""The dataset on disk in every format against `scenes.example`, and the command's manners."""

import contextlib
import io
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tools import make_data
from tools.rendering import scenes_arrays, scenes_files
from uvim_like import config as configs
from uvim_like import scenes
from uvim_like.errors import UserError
from uvim_like.inference import tables, views
from uvim_like.scenes.classes import CATEGORY_IDS, NAMES
from uvim_like.training import batches

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SIZE = (48, 64)
COUNTS = {"train": 5, "validation": 3}


def run(out, *flags):
  return make_data.main(["scenes", f"--out={out}", "--size=48x64", "--num=train:5,validation:3", "--workers=1", *flags])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """All formats but TFDS in one folder."""
  out = tmp_path_factory.mktemp("data")
  assert run(out, "--format=folder,coco,npz", "--task=panoptic_segmentation") == 0
  return out


def read(path):
  return np.asarray(Image.open(path))


def quietly(function, *args):
  with contextlib.redirect_stdout(io.StringIO()):
    return function(*args)


def both_splits():
  return [(split, i, scenes.example(split, i, size=SIZE)) for split, n in COUNTS.items() for i in range(n)]


def test_npz_holds_finished_examples_and_targets(data):
  for split, n in COUNTS.items():
    with np.load(data / f"{split}.npz") as arrays:
      arrays = dict(arrays)
    assert {key: len(value) for key, value in arrays.items()} == dict.fromkeys(arrays, n)
    assert {(key, str(value.dtype)) for key, value in arrays.items()} == {
        ("image", "uint8"), ("labels", "int16"), ("image/id", "int64"), ("depth", "float16"),
        ("panoptic_image", "uint8"), ("panoptic_objects/id", "int64"),
        ("panoptic_objects/area", "int64"), ("panoptic_objects/label", "int64"),
        ("panoptic_objects/is_crowd", "bool"), ("panoptic_objects/bbox", "float32")}
    assert arrays["labels"].shape == (n, *SIZE, 2) and arrays["panoptic_objects/bbox"].shape[2] == 4
    for i in range(n):
      e = scenes.example(split, i, size=SIZE)
      for key in ("image", "image/id", "depth", "panoptic_image"):
        np.testing.assert_array_equal(arrays[key][i], e[key])
      listed = arrays["panoptic_objects/id"][i]
      m = len(e["panoptic_objects"]["id"])
      np.testing.assert_array_equal(listed[:m], e["panoptic_objects"]["id"])
      assert (listed[m:] == 0).all()
  with np.load(data / "train.npz") as arrays:
    longest = max(len(e["panoptic_objects"]["id"]) for split, _, e in both_splits() if split == "train")
    assert arrays["panoptic_objects/id"].shape[1] == longest


def test_npz_is_not_compressed(data):
  import zipfile
  with zipfile.ZipFile(data / "train.npz") as archive:
    assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_panoptic_labels_are_numbered_by_centre_of_mass():
  # Centres (cx + 4·cy): 7 at rows 2-3 → last; 9 at the top right; 8 at the top left → first; one void pixel.
  ids = np.array([[8, 8, 9, 9, 9], [8, 8, 9, 9, 0], [7, 7, 7, 7, 7], [7, 7, 7, 7, 7]])
  example = {"image": np.zeros((4, 5, 3), np.uint8),
             "panoptic_image": np.stack([ids, 0 * ids, 0 * ids], -1).astype(np.uint8),
             "panoptic_objects": {"id": np.array([7, 8, 9]), "label": np.array([5, 0, 0])}}
  labels = scenes_arrays.finish_panoptic(example)["labels"]
  assert labels.dtype == np.int16
  np.testing.assert_array_equal(labels[..., 0], [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [6] * 5, [6] * 5])
  np.testing.assert_array_equal(labels[..., 1], [[1, 1, 2, 2, 2], [1, 1, 2, 2, 0], [3] * 5, [3] * 5])


def test_depth_and_colour_examples():
  e = scenes.example("train", 0, size=SIZE)
  depth = scenes_arrays.finish_depth(e)["labels"]
  assert depth.shape == (*SIZE, 1) and depth.dtype == np.float16
  color = scenes_arrays.finish_colorization({"image": np.array([[[255, 0, 0], [10, 20, 30]]], np.uint8)})
  assert color["image"].tolist() == [[[76] * 3, [18] * 3]]  # .2989·255 = 76.2; 2.99 + 11.74 + 3.42 = 18.1
  assert color["labels"].tolist() == [[[255, 0, 0], [10, 20, 30]]] and color["image"].dtype == np.uint8


def test_semantics_and_normals_as_labels():
  e = scenes.example("train", 0, size=SIZE)
  labels = scenes_arrays.finish_semantics(e)["labels"]
  np.testing.assert_array_equal(labels, np.where(e["semantic"] == 255, 0, e["semantic"] + 1))
  assert labels.dtype == np.uint8 and labels.shape == (*SIZE, 1)
  labels = scenes_arrays.finish_normals(e)["labels"]
  assert labels.dtype == np.int8 and labels.shape == (*SIZE, 3)
  valid = (e["normals"] > 0).any(-1)
  np.testing.assert_array_equal((labels != 0).any(-1), valid)
  vectors, true = labels[valid] / 127, e["normals"][valid] / 127.5 - 1
  cosine = (vectors * true).sum(-1) / np.linalg.norm(vectors, axis=-1) / np.linalg.norm(true, axis=-1)
  assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 0.5


@pytest.mark.parametrize("tasks, keys", [("instances", {"boxes", "captions/text", "objects/keypoints"}),
                                         ("instances,depth", {"labels", "depth", "boxes"}),
                                         ("semantic_segmentation", {"labels", "semantic"})])
def test_npz_of_chosen_tasks(tmp_path, tasks, keys):
  assert make_data.main(["scenes", f"--out={tmp_path}", "--size=32", "--num=validation:1,train:2", "--format=npz",
                         f"--task={tasks}"]) == 0
  with np.load(tmp_path / "train.npz") as arrays:
    assert keys <= set(arrays.files) and ("labels" in arrays.files) == (tasks != "instances")
    assert {len(arrays[key]) for key in arrays.files} == {2}
  assert (tmp_path / "captions.model").exists() == ("instances" in tasks)
  assert run(tmp_path, "--format=npz", "--task=instances") == 0   # over the files of before, the text model too
  assert (tmp_path / "captions.model").exists()


def test_names_of_classes_lie_beside_the_examples(tmp_path):
  """A training on finished examples takes them over, so that its predictions and reports have names."""
  words = ["scenes", f"--out={tmp_path}", "--size=32", "--num=train:1", "--workers=1", "--format=npz"]
  assert make_data.main([*words, "--task=depth"]) == 0
  spec, place = str(ROOT / "configs/{}.py:scenes,runlocal"), ["dataset=npz", f"data_dir={tmp_path}"]
  assert not (tmp_path / "class_names.json").exists()
  assert not configs.load_file(spec.format("polymax/semantic"), place).get("class_names")
  for task, name, kind, make in (("semantic_segmentation", "polymax/semantic", NAMES, tables.semantic_table),
                                 ("panoptic_segmentation", "uvim/panoptic_stage2", NAMES, tables.semantic_table),
                                 ("instances", "mad/r50", NAMES[:5], tables.object_table)):
    assert make_data.main([*words, f"--task={task}"]) == 0
    config = configs.with_defaults(configs.load_file(spec.format(name), place))
    configs.check(config)
    found = make(config, views.views(config)[0])
    assert found.names == kind and (task == "semantic_segmentation" or found.ids == CATEGORY_IDS[:len(kind)])
  assert not configs.load_file(spec.format("mad/r50"), place[1:]).get("class_names")   # rendered scenes have a table
  (tmp_path / "class_names.json").write_text('{"semantic": "wall"}')
  with pytest.raises(UserError, match=r'class_names.json: {"semantic": \["wall", …\]} is needed'):
    configs.load_file(spec.format("mad/r50"), place)


def test_examples_that_are_there_must_be_as_many_as_are_asked_for(tmp_path):
  counts = {"train": 2, "validation": 1}
  assert not scenes_arrays.stored(tmp_path, counts)
  assert make_data.main(["scenes", f"--out={tmp_path}", "--size=32", "--num=train:2,validation:1", "--format=npz",
                         "--workers=1"]) == 0
  assert scenes_arrays.stored(tmp_path, counts)
  with pytest.raises(UserError, match="train.npz holds 2 examples, and 3 are asked for"):
    scenes_arrays.stored(tmp_path, counts | {"train": 3})
  (tmp_path / "train.npz").write_text("no archive")
  with pytest.raises(UserError, match="train.npz: no finished examples"):
    scenes_arrays.stored(tmp_path, counts)


def test_home_folders_are_found(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert make_data.main(["scenes", "--out=~/data", "--size=32", "--num=train:1", "--format=npz", "--workers=1"]) == 0
  assert (tmp_path / "data" / "train.npz").is_file()
  assert batches.num_examples(dataset="npz", split="train", data_dir="~/data") == 1
  assert make_data.main(["check", "--dataset=npz", "--data_dir=~/data"]) == 0
  assert "1 examples: no problems" in capsys.readouterr().out


def test_folder_holds_maps_with_the_same_stems(data):
  for split, _, e in both_splits():
    root, name = data / split, e["image/filename"]
    np.testing.assert_array_equal(read(root / "images" / name), e["image"])
    np.testing.assert_array_equal(read(root / "semantic" / name), e["semantic"][..., 0])
    np.testing.assert_array_equal(read(root / "normals" / name), e["normals"])
    np.testing.assert_array_equal(read(root / "panoptic" / name), e["panoptic_image"])
    depth = read(root / "depth" / name)
    assert depth.dtype in (np.uint16, np.int32)
    np.testing.assert_allclose(depth, e["depth"].astype(np.float64) * 1000, atol=0.5)
    np.testing.assert_array_equal(depth == 0, e["depth"] == 0)
  assert (data / "classes.txt").read_text().splitlines() == list(NAMES)
  names = [sorted(path.name for path in (data / "train" / kind).iterdir())
           for kind in ("images", "depth", "semantic", "normals", "panoptic")]
  assert all(group == names[0] for group in names) and len(names[0]) == 5
  assert {path.name for path in (data / "train").glob("*.json")} == {"panoptic.json", "instances.json", "captions.json"}


@pytest.mark.parametrize("layout", ["coco", "folder"])
def test_panoptic_json_agrees_with_its_pngs(data, layout):
  for split, n in COUNTS.items():
    path = data / "annotations" / f"panoptic_{split}.json" if layout == "coco" else data / split / "panoptic.json"
    pictures = data / f"panoptic_{split}" if layout == "coco" else data / split / "panoptic"
    document = json.loads(path.read_text())
    kinds = {c["id"]: c for c in document["categories"]}
    assert list(kinds) == list(CATEGORY_IDS) and [c["name"] for c in kinds.values()] == list(NAMES)
    assert len(document["images"]) == len(document["annotations"]) == n
    for annotation in document["annotations"]:
      ids = read(pictures / annotation["file_name"]).astype(np.int64) @ [1, 256, 65536]
      segments = annotation["segments_info"]
      assert {s["id"] for s in segments} == set(np.unique(ids)) - {0}
      for s in segments:
        ys, xs = np.nonzero(ids == s["id"])
        assert s["area"] == len(ys) and s["category_id"] in kinds
        assert s["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert s["iscrowd"] in (0, 1) and (kinds[s["category_id"]]["isthing"] or not s["iscrowd"])


def test_coco_instances_are_scored_perfect_against_themselves(data):
  path = str(data / "annotations" / "instances_train.json")
  truth = quietly(COCO, path)
  assert set(truth.getCatIds()) <= set(CATEGORY_IDS[:5])
  for number, image in truth.imgs.items():
    e = scenes.example("train", number - scenes.image_id("train", 0), size=SIZE)
    ids = e["panoptic_image"].astype(np.int64) @ [1, 256, 65536]
    assert (data / "train" / image["file_name"]).exists() and (image["height"], image["width"]) == SIZE
    entries = truth.imgToAnns[number]
    assert len(entries) == len(e["objects"]["id"])
    for entry in entries:
      np.testing.assert_array_equal(truth.annToMask(entry), ids == entry["panoptic_id"])
  found = [{**{k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")}, "score": 1.0}
           for a in truth.anns.values() if not a["iscrowd"]]
  for kind in ("bbox", "segm"):
    score = COCOeval(truth, quietly(truth.loadRes, found), kind)
    for step in (score.evaluate, score.accumulate, score.summarize):
      quietly(step)
    assert score.stats[0] == pytest.approx(1)


def test_coco_keypoints_and_captions(data):
  keypoints = json.loads((data / "annotations" / "person_keypoints_train.json").read_text())
  assert [c["name"] for c in keypoints["categories"]] == ["person"]
  assert len(keypoints["categories"][0]["keypoints"]) == 17 and len(keypoints["categories"][0]["skeleton"]) == 19
  for a in keypoints["annotations"]:
    points = np.reshape(a["keypoints"], (17, 3))
    assert a["num_keypoints"] == (points[:, 2] > 0).sum()
    e = scenes.example("train", a["image_id"] - scenes.image_id("train", 0), size=SIZE)
    which = e["objects"]["id"].tolist().index(a["panoptic_id"])
    np.testing.assert_allclose(points, e["objects"]["keypoints"][which], atol=0.0051)
  captions = json.loads((data / "annotations" / "captions_validation.json").read_text())
  expected = [text for split, _, e in both_splits() if split == "validation" for text in e["captions"]["text"]]
  assert [a["caption"] for a in captions["annotations"]] == expected


def test_rewriting_replaces_and_leaves_other_formats_alone(tmp_path):
  assert run(tmp_path, "--format=folder,coco,npz") == 0
  assert make_data.main(["scenes", f"--out={tmp_path}", "--size=16", "--num=train:2", "--format=coco"]) == 0
  assert len(list((tmp_path / "train").glob("*.png"))) == 2 == len(list((tmp_path / "panoptic_train").iterdir()))
  assert len(list((tmp_path / "train" / "images").iterdir())) == 5
  assert len(list((tmp_path / "validation").glob("*.png"))) == 3
  assert not list(tmp_path.glob(".partial*"))


def test_a_run_that_breaks_leaves_nothing(tmp_path, monkeypatch):
  def breaks(*args, **kwargs):
    raise RuntimeError("disk full")
  monkeypatch.setattr(scenes_files, "_write_json", breaks)
  with pytest.raises(RuntimeError):
    run(tmp_path, "--format=folder")
  assert not list(tmp_path.iterdir())


def test_works_without_tensorflow(tmp_path):
  code = ("import sys; sys.modules.update(dict.fromkeys(['tensorflow', 'tensorflow_datasets']));"
          "from tools.make_data import main; sys.exit(main(sys.argv[1:]))")
  flags = ["scenes", f"--out={tmp_path}", "--format=npz,folder,coco", "--size=32", "--num=test:2",
           "--task=colorization"]
  done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "32 x 32 pixels: 2 test" in done.stdout and str(tmp_path / "test.npz") in done.stdout


@pytest.mark.parametrize("flags, message", [
    (["scenez", "--out=x"], "unknown command 'scenez'; did you mean 'scenes'"),
    (["scenes"], "--out"),
    (["scenes", "--out=x", "--confg=mini"], "unknown flag '--confg'; did you mean '--config'"),
    (["scenes", "--out=x", "--config=minni"], "--config: unknown value 'minni'; did you mean 'mini'"),
    (["scenes", "--out=x", "--format=npz,fodler"], "--format: unknown value 'fodler'; did you mean 'folder'"),
    (["scenes", "--out=x", "--task=dept"], "--task: unknown value 'dept'; did you mean 'depth'"),
    (["scenes", "--out=x", "--task=depth,instancs"], "--task: unknown value 'instancs'; did you mean 'instances'"),
    (["scenes", "--out=x", "--task=depth,surface_normals"], "both want the array 'labels'"),
    (["scenes", "--out=x", "--num=trian:8"], "--num: unknown value 'trian'; did you mean 'train'"),
    (["scenes", "--out=x", "--num=train:many"], "--num: 'many' is no whole number"),
    (["scenes", "--out=x", "--num=train"], "--num: 'train' is not SPLIT:NUMBER"),
    (["scenes", "--out=x", "--size=64x"], "--size: '' is no whole number"),
    (["scenes", "--out=x", "--size=1x2x3"], "--size: '1x2x3'"),
    (["scenes", "--out=x", "--size=8"], "--size: '8' is no whole number from 16 on"),
    (["scenes", "--out=x", "--workers=0"], "--workers: '0'"),
    (["scenes", f"--out={__file__}", "--format=npz"], "is a file, not a folder"),
])
def test_mistakes_end_in_one_line_and_code_2(flags, message, capsys):
  assert make_data.main(flags) == 2
  printed = capsys.readouterr().err
  assert message in printed and printed.count("\n") == 1


def test_flags_have_the_configs_values_by_default():
  flags = make_data.parse_flags(["scenes", "--out=x", "--config=mini", "--format=npz"])
  assert flags.size == (64, 64) and flags.counts == scenes.CONFIGS["mini"].splits and flags.tasks == ["depth"]
  assert make_data.parse_size("96x128") == (96, 128) and make_data.parse_size("64") == (64, 64)
  with pytest.raises(UserError):
    make_data.parse_counts("train:1,train:2")
