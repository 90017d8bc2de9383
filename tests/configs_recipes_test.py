"""Every recipe, without arguments and with those that change its data, makes batches of the data that it names.

Datasets stand here in the form in which they are published, one example each, so that their features are those of the
real readers: what a recipe needs of them is checked exactly as a training checks it, and no example is read.
"""

import functools
import inspect
import json
import pathlib
import types

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from configs import mad_common
from pp_ops import mixture, pipeline, sources_tfds
from uvim_like import config as configs
from uvim_like import names
from uvim_like.evaluators import run as evaluation

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
ARGUMENTS = {
    "uvim": ("", "runlocal", "scenes", "singlehost", "released=False", "res=256"),
    "ait": ("", "runlocal", "scenes"),
    "mad": ("", "runlocal", "scenes", "task=masks", "task=captions"),
    "polymax": ("", "runlocal", "scenes", "per_pixel", "phase=pretrain", "phase=pretrain,runlocal",
                "phase=pretrain,per_pixel", "res=513", "phase=pretrain,res=257"),
}
SWITCHES = {"ait/depth": ("large", "parallel", "masked", "wosoft"), "ait/instances": ("parallel", "wosoft"),
            "ait/semantic": ("parallel",), "ait/vqvae_depth": ("ratio=16",),
            "mad/r50": ("parallel", "one_stage", "code"), "mad/swin_b": ("second_drop", "code"), "mad/vit_b": ("code",)}
NAMES = sorted(f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("*/*.py"))
RECIPES = [(name, arg) for name in NAMES for arg in (*ARGUMENTS[name.partition("/")[0]], *SWITCHES.get(name, ()))
           if (name, "per_pixel" in arg) != ("polymax/panoptic", True)]
DEVICES = 8


def save(path, size, mode="RGB"):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new(mode, size[::-1]).save(path)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """{(family, dataset): folder}; "" stands for all families."""
  root = tmp_path_factory.mktemp("published")
  write_coco(root / "coco")
  write_frames(root / "frames", (480, 640))
  write_labelled(root / "labelled", (480, 640))
  write_taskonomy(root / "taskonomy", (512, 512))
  for split, size in (("train", (333, 500)), ("validation", (427, 640))):
    for kind, mode in (("images", "RGB"), ("semantic", "L")):
      save(root / "folder" / split / kind / "a.png", size, mode)
  return {"coco_instances": root / "coco", "ait nyu": root / "frames", "polymax nyu": root / "labelled",
          "taskonomy": root / "taskonomy", "folder": root / "folder"}


def write_coco(root):
  kinds = [dict(id=1, name="person")]
  image = dict(id=1, file_name="1.jpg", height=427, width=640)
  thing = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 9, 9], area=81.0, iscrowd=0,
               segmentation=[[1, 1, 9, 1, 9, 9]])
  (root / "annotations").mkdir(parents=True)
  for split in ("train2017", "val2017"):
    tables = dict(
        instances=dict(images=[image], annotations=[thing], categories=kinds),
        person_keypoints=dict(annotations=[dict(id=1, image_id=1, keypoints=[0] * 51, num_keypoints=0)],
                              categories=[dict(kinds[0], keypoints=["joint"] * 17)]),
        captions=dict(images=[image], annotations=[dict(id=1, image_id=1, caption="a person")]))
    for kind, table in tables.items():
      (root / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(table))
    save(root / split / "1.jpg", (427, 640))


def write_frames(root, size):
  for scene in (root / "kitchen_0001", root / "official_splits" / "test" / "bathroom"):
    save(scene / "rgb_00001.jpg", size)
    save(scene / "sync_depth_00001.png", size, "I;16")


def write_labelled(root, size):
  root.mkdir()
  with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
    for name, channels, dtype in (("images", (3,), "u1"), ("depths", (), "f4"), ("rawDepths", (), "f4"),
                                  ("labels", (), "u2")):
      file.create_dataset(name, (2, *channels, *size[::-1]), dtype)
  scipy.io.savemat(root / "classMapping40.mat", {"mapClass": np.ones((1, 894))})
  scipy.io.savemat(root / "splits.mat", {"trainNdxs": np.array([[1]]), "testNdxs": np.array([[2]])})
  (root / "normals").mkdir()


def write_taskonomy(root, size):
  for building in ("allensville", "beechwood"):
    for domain, mode in (("rgb", "RGB"), ("depth_zbuffer", "I;16"), ("normal", "RGB")):
      save(root / domain / building / f"point_1_view_2_domain_{domain}.png", size, mode)
  (root / "train_val_test_tiny.csv").write_text("id,train,val,test\nallensville,1,0,0\nbeechwood,0,1,0\n")


@pytest.fixture(autouse=True, scope="module")
def unprepared(tmp_path_factory):
  """TFDS datasets with their features and without their records, and a text model for MAD's captions."""
  import tensorflow_datasets as tfds
  patch, empty = pytest.MonkeyPatch(), tmp_path_factory.mktemp("tfds")

  @functools.lru_cache
  def builder(name):
    real = tfds.builder(name, data_dir=empty)
    splits = dict.fromkeys(("train", "validation"), types.SimpleNamespace(num_examples=10 ** 6))
    return types.SimpleNamespace(info=types.SimpleNamespace(features=real.info.features, splits=splits))

  def opened(dataset, split, *, data_dir=None, skip_decode=()):
    assert data_dir is None
    return sources_tfds.TfdsSource(builder(dataset), dataset, split, skip_decode=skip_decode)

  patch.setattr(sources_tfds, "_open_records", lambda *_: None)
  patch.setattr(sources_tfds, "open_dataset", opened)
  patch.setattr(mad_common, "COCO_TEXT", "scenes")
  yield
  patch.undo()


def load(name, arg, places):
  """The recipe with defaults, its `data_dir` given as on the command line."""
  config = configs.load_file(f"{CONFIGS / name}.py" + (f":{arg}" if arg else ""))
  kinds = [part.split("*")[-1] for part in config.dataset.split(";")]
  folders = [places.get(kind) or places.get(f"{name.partition('/')[0]} {kind}") for kind in kinds]
  config.data_dir = ";".join(map(str, filter(None, folders))) or None
  return configs.with_defaults(config)


@functools.cache
def specs_of(dataset, split, pp, data_dir, modules, target_keys=()):
  """What `pipeline` makes of one string, once for all recipes that share it."""
  return pipeline.prepare(dataset=dataset, split=split, pp=pp, data_dir=data_dir, pp_modules=modules and list(modules),
                          target_keys=target_keys).specs


def training_specs(config, split, pp):
  """Of the batch, a mixture's too."""
  modules = config.pp_modules and tuple(config.pp_modules)
  if not mixture.is_mixture(config.dataset):
    return specs_of(config.dataset, split, pp, config.data_dir, modules)
  mixed = mixture.parts(config.dataset, split, pp, data_dir=config.data_dir)
  mixture.check_rows(mixed, config.batch_size, 1)
  return mixture.joint_specs(mixed, [specs_of(part.dataset, part.split, part.pp, part.data_dir, modules)
                                     for part in mixed])


@pytest.mark.parametrize(("name", "arg"), RECIPES)
def test_every_string_makes_batches(name, arg, places):
  config = load(name, arg, places)
  configs.check(config)
  found = [training_specs(config, config.train_split, config.pp_train)]
  if config.val_split:
    found.append(training_specs(config, config.val_split, config.pp_eval))
  for specs in found:
    if "labels" in specs:
      assert specs["image"].shape[:2] == specs["labels"].shape[:2], config.pp_train
  for block, evaluator in config.evals:
    about, make = config[block], evaluation.load(evaluator).make
    assert about.batch_size % DEVICES == 0, f"{block} cannot run on {DEVICES} devices"
    options = {"dataset": about.dataset} if "dataset" in inspect.signature(make).parameters else {}
    metric = make(**{**options, **configs.plain(about.metric)})
    modules = config.pp_modules and tuple(config.pp_modules)
    assert "image" in specs_of(about.dataset, about.split, about.pp, about.data_dir, modules, tuple(metric.target_keys))


@pytest.mark.parametrize(("name", "more"), [
    ("uvim/panoptic_stage1", 0), ("uvim/panoptic_stage2", 0), ("ait/vqvae_semantic", 1), ("ait/semantic", 1),
    ("polymax/semantic", 1), ("polymax/panoptic", 1)])
def test_the_key_that_messages_name_says_how_many_classes_there_are(name, more):
  config = configs.with_defaults(configs.load_file(f"{CONFIGS / name}.py:scenes,runlocal"))
  system = names.load("uvim_like.systems", config.model_name, where="", needs="make").make(config)
  value = functools.reduce(lambda block, key: block[key], system.label_key.split(".")[1:], config)
  classes = value if isinstance(value, int) else value.semantics[0]
  assert system.label_limits[0] == classes + more
