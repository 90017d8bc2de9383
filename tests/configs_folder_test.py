"""Every config takes `folder`: what somebody's data holds reaches its numbers, its preprocessing and its metrics."""

import importlib
import inspect
import json
import logging
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import train
from tools import make_data
from uvim_like import config as configs
from uvim_like.errors import UserError
from uvim_like.own_data import facts, form
from uvim_like.scenes import classes as scene_classes

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
NAMES = sorted(f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("*/*.py"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Rooms of 40x64 pixels with everything that a folder may have, in train/ and validation/."""
  out = tmp_path_factory.mktemp("own")
  assert make_data.main(["scenes", f"--out={out}", "--format=folder", "--num=train:3,validation:2", "--size=40x64",
                         "--workers=1"]) == 0
  (out / "classes.txt").write_text("\n".join(scene_classes.NAMES))   # not all of them occur
  return out


@pytest.fixture(autouse=True, scope="module")
def memory(tmp_path_factory):
  """Facts are kept in a folder of the tests."""
  patch = pytest.MonkeyPatch()
  patch.setattr(facts, "CACHE", str(tmp_path_factory.mktemp("facts")))
  yield
  patch.undo()


def load(name, arg, data, *overrides):
  return configs.load_file(f"{CONFIGS / name}.py:{arg}", [f"data_dir={data}", *overrides])


# Config -> what must be the data's: 10 classes of maps, of which 5 are things and objects, depth up to some metres.
EXPECTED = {
    "polymax/semantic": {"model.num_queries": 10, "semantic_val.metric.num_classes": 10},
    "polymax/panoptic": {"model.num_classes": 10, "head.num_things": 5},
    "uvim/panoptic_stage1": {"model.inputs.semantics": (11, 64)},
    "uvim/panoptic_stage2": {"oracle.model.inputs.semantics": (11, 64)},
    "ait/semantic": {"tokenizers.semantics.model.classes": 10, "semantic_val.metric.num_classes": 10},
    "ait/vqvae_semantic": {"model.classes": 10},
    "ait/instances": {"model.vocabulary.num_classes": 5},
    "ait/keypoints": {"model.vocabulary.num_classes": 5, "object_val.metric.person": 5},
    "mad/r50": {"sequences.classes": 5, "objects_val.metric.person": 5, "sequences.joints": 17},
}


@pytest.mark.parametrize("name", NAMES)
def test_the_data_reaches_the_config(name, data):
  for arg in ("folder", "folder,runlocal"):
    config = load(name, arg, data)
    configs.check(config)
    full = configs.with_defaults(config)
    assert configs.from_json(configs.to_json(full)) == full
    assert full.dataset.replace("28*", "").replace("60*", "").replace("4*", "") in ("folder", "folder;folder")
    assert full.data_dir == str(data) and "scenes" not in full.pp_train
    for block, _ in full.evals:
      assert full[block].split == "validation" and full[block].dataset == "folder"
  for path, wanted in EXPECTED.get(name, {}).items():
    value = full
    for key in path.split("."):
      value = value[key]
    assert value == wanted, path
  if "depth" in name:
    assert 4 < full.max_depth < 20 and full.depth_val.metric.max_depth == full.max_depth
  if "panoptic" in name:
    assert [c["isthing"] for c in full.panoptic_val.metric.categories] == [1] * 5 + [0] * 5


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_and_metrics_resolve(name, data):
  pipeline = importlib.import_module("pp_ops.pipeline")
  config = configs.with_defaults(load(name, "folder,runlocal", data))
  if ";" not in config.dataset:
    assert pipeline.check(dataset=config.dataset, split=config.train_split, pp=config.pp_train,
                          data_dir=config.data_dir, pp_modules=config.pp_modules, outputs=["image"])
  for block, evaluator in config.evals:
    about = config[block]
    make = importlib.import_module(configs.resolve(evaluator, "uvim_like.evaluators")).make
    options = {"dataset": about.dataset} if "dataset" in inspect.signature(make).parameters else {}
    metric = make(**{**options, **configs.plain(about.metric)})
    assert pipeline.prepare(dataset=about.dataset, split=about.split, pp=about.pp, data_dir=about.data_dir,
                            pp_modules=config.pp_modules, target_keys=metric.target_keys).specs


@pytest.mark.parametrize("name", ["uvim/panoptic_stage1", "ait/vqvae_semantic", "ait/vqvae_mask", "mad/r50",
                                  "polymax/depth"])
def test_a_batch_of_the_data_fits_the_model(name, data):
  pipeline = importlib.import_module("pp_ops.pipeline")
  config = configs.with_defaults(load(name, "folder,runlocal", data))
  batches = pipeline.train_batches(dataset=config.dataset, split=config.train_split, pp=config.pp_train, batch_size=2,
                                   data_dir=config.data_dir, pp_modules=config.pp_modules)
  batch = next(batches)
  batches.close()
  system = importlib.import_module(configs.resolve(config.model_name, "uvim_like.systems")).make(config)
  if system.label_limits:
    from uvim_like.training.loop import check_labels
    check_labels(batch, system.label_limits, where=name)
  batch = {key: value for key, value in batch.items() if key != "_index"}
  out = jax.eval_shape(lambda b: system.loss(system.init(jax.random.key(0), b), (), b, jax.random.key(0), True), batch)
  assert out.loss.shape == ()


# --- parts of a folder ------------------------------------------------------------------------------------------------


def fill(root, names, sizes, kind, make):
  for i, name in enumerate(names):
    h, w = sizes[i % len(sizes)]
    for folder, array in (("images", np.full((h, w, 3), 9 * i % 255, np.uint8)), (kind, make(h, w))):
      (root / folder).mkdir(parents=True, exist_ok=True)
      Image.fromarray(array).save(root / folder / f"{name}.png")


SIZES = [(30, 44), (21, 21), (64, 10)]


def test_semantic_maps_alone_of_mixed_sizes(tmp_path):
  fill(tmp_path, "abcdefghij", SIZES, "semantic", lambda h, w: np.arange(h * w).reshape(h, w).astype(np.uint8) % 4)
  config = configs.with_defaults(load("polymax/semantic", "folder,runlocal,backbone=tiny_convnext", tmp_path))
  assert config.model.num_queries == 4 and config.pp_eval.startswith("decode|semantic_labels|resize_all((64, 64))")
  assert (config.train_split, config.val_split) == ("train", "validation")
  assert config.class_names.semantic == ["class 0", "class 1", "class 2", "class 3"]
  wide = load("polymax/semantic", "folder,runlocal,classes=9,size=100x200", tmp_path)   # what is written out counts
  assert wide.model.num_queries == 9 and "resize_all((64, 96))" in wide.pp_eval


def test_labels_with_many_classes(tmp_path):
  fill(tmp_path, "abcdefghij", SIZES, "labels", lambda h, w: (np.arange(h * w).reshape(h, w) % 700).astype(np.uint16))
  for name in ("polymax/semantic", "ait/vqvae_semantic"):
    config = load(name, "folder,runlocal", tmp_path)
    assert 'semantic_labels("labels")' in config.pp_train and config.semantic_val.metric.target_key == "labels"
    assert config.semantic_val.metric.num_classes == 700


@pytest.mark.parametrize("folder", ["semantic", "labels"])
@pytest.mark.parametrize("name", ["polymax/semantic", "ait/semantic"])
def test_padding_is_void(tmp_path, name, folder):
  pipeline = importlib.import_module("pp_ops.pipeline")
  fill(tmp_path, "ab", SIZES, folder, lambda h, w: np.zeros((h, w), np.uint8))
  config = configs.with_defaults(load(name, "folder,runlocal", tmp_path))
  smaller = config.pp_train.replace("random_scale(0.5, 2.0, 0.1)", "random_scale(0.5, 0.5)")
  smaller = smaller.replace("resize_all(80)", "resize_all(32)")   # of a window of 64
  assert smaller != config.pp_train
  batches = pipeline.train_batches(dataset="folder", split="train", pp=smaller, batch_size=2, data_dir=str(tmp_path),
                                   pp_modules=config.pp_modules)
  labels = next(batches)["labels"]
  batches.close()
  assert set(np.unique(labels)) == {0, 1} and (labels[:, :32, :32] == 1).all() and (labels[:, 32:] == 0).all()


def test_captions_alone_train_captions_alone(tmp_path, monkeypatch):
  fill(tmp_path, ["1", "2"], SIZES, "depth", lambda h, w: np.full((h, w), 1500, np.uint16))
  images = [dict(id=i, file_name=f"{i}.png", height=SIZES[i - 1][0], width=SIZES[i - 1][1]) for i in (1, 2)]
  sentences = ["a red car stands before a small white house", "two brown dogs run over the green grass in the rain",
               "the old woman reads a yellow book on the wooden bench", "many people wait at the busy station at night"]
  notes = [dict(id=k, image_id=1 + k % 2, caption=sentence) for k, sentence in enumerate(sentences * 5)]
  (tmp_path / "captions.json").write_text(json.dumps(dict(images=images, annotations=notes)))
  monkeypatch.setattr(facts.texts, "CACHE", str(tmp_path / "text"))
  config = load("mad/r50", "folder,runlocal", tmp_path)
  assert tuple(config.objectives.tasks) == ("captions",) and [name for name, _ in config.evals] == ["captions_val"]
  assert 20 < config.sequences.text < 200 and "instances" not in config.pp_train
  with pytest.raises(UserError, match=r"this config needs instances\.json"):
    load("mad/r50", "folder,runlocal,task=boxes", tmp_path)


# --- the form ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arg", "overrides", "expected"), [
    ("folder,runlocal", ["lr=1", "data_dir=a", "data_dir=b"], "b"), ("folder=true", ["data_dir=a"], "a"),
    ("folder=false", ["data_dir=a"], None), ("runlocal", ["data_dir=a"], None), ("folder", [], None)])
def test_when_a_folder_is_read(arg, overrides, expected):
  assert form.data_dir_of(arg, overrides) == expected


@pytest.mark.parametrize(("name", "arg", "needs"), [
    ("uvim/depth_stage2", "", {"depth"}), ("uvim/color_stage1", "", set()), ("ait/detection", "", {"instances"}),
    ("ait/instances", "", {"instances", "masks"}), ("ait/joint", "", {"instances", "masks", "depth"}),
    ("mad/r50", "", {"instances?", "captions?"}), ("mad/vit_b", ",task=masks", {"instances", "masks", "captions?"}),
    ("polymax/normals", "", {"normals"})])
def test_what_configs_need(name, arg, needs):
  assert form.needs(configs.plain(configs.load_file(f"{CONFIGS / name}.py:folder{arg}"))) == needs


def test_what_was_read_is_told(data):
  text = form.summary(configs.with_defaults(load("polymax/semantic", "folder", data)))
  assert text == (f"own data in {data}: splits train and validation, 10 classes (box, sphere, cylinder, table, person, "
                  "wall, floor, ceiling, window, rug)")
  assert "depth up to " in form.summary(configs.with_defaults(load("uvim/depth_stage1", "folder", data)))
  assert form.summary(configs.with_defaults(configs.load_file(f"{CONFIGS}/mad/r50.py:scenes"))) == ""


def test_nothing_is_trained_on_broken_data(tmp_path, capsys):
  fill(tmp_path / "data", "ab", SIZES, "semantic", lambda h, w: np.zeros((h, w), np.uint8))
  (tmp_path / "data" / "semantic" / "b.png").write_text("no picture")
  (tmp_path / "data" / "images" / "c.png").write_bytes((tmp_path / "data" / "images" / "a.png").read_bytes()[:60])
  assert train.main([f"--config={CONFIGS}/polymax/semantic.py:folder,runlocal", f"--config.data_dir={tmp_path}/data",
                     f"--workdir={tmp_path}/run"]) == 2
  first, *lines = capsys.readouterr().err.splitlines()
  assert first == (f"train: config.data_dir: '{tmp_path}/data': 3 examples: 3 problems (1 image without mask, 1 mask "
                   "does not decode, 1 image does not decode)")
  assert [line.split(": ")[0].strip() for line in lines] == ["everything/c", "everything/b", "everything/c"]
  assert f"{tmp_path}/data/semantic/b.png is not an image that can be read" in lines[1]
  assert not (tmp_path / "run").exists()


def test_two_datasets_at_once_and_notes(tmp_path, caplog):
  with pytest.raises(UserError, match="'scenes' and 'folder' are two datasets"):
    configs.load_file(f"{CONFIGS}/ait/semantic.py:folder,scenes")
  fill(tmp_path, "ab", SIZES, "semantic", lambda h, w: np.zeros((h, w), np.uint8))
  with caplog.at_level(logging.WARNING):
    config = load("ait/semantic", "folder,runlocal", tmp_path)
  assert config.val_split == "train" and "validation is on training pictures" in caplog.text
