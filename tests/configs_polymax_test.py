"""PolyMaX's configs build with every argument, pass the schema, resolve their preprocessing and evaluate in shape."""

import importlib
import itertools
import pathlib

import jax
import jax.numpy as jnp
import pytest

from uvim_like import config as configs
from uvim_like.errors import UserError

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "configs" / "polymax"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SWITCHES = ("scenes", "runlocal", "per_pixel", "phase=pretrain")
ARGUMENTS = [",".join(chosen) for n in range(len(SWITCHES) + 1) for chosen in itertools.combinations(SWITCHES, n)]
CHANNELS = {"depth": (1, "float32"), "normals": (3, "float32"), "semantic": (1, "int32"), "panoptic": (2, "int32")}
IN_SHAPE = ("", "backbone=convnext_t", "scenes,runlocal", "scenes,runlocal,per_pixel", "scenes,runlocal,backbone=tiny_convnext")


def load(name: str, arg: str = "", *overrides: str):
  return configs.load_file(f"{FOLDER / name}.py" + (f":{arg}" if arg else ""), overrides)


@pytest.mark.parametrize("arg", ARGUMENTS)
@pytest.mark.parametrize("name", NAMES)
def test_builds_and_passes_the_schema(name, arg):
  if name == "panoptic" and "per_pixel" in arg:
    with pytest.raises(UserError, match="cannot tell instances apart"):
      load(name, arg)
    return
  config = load(name, arg)
  configs.check(config)
  full = configs.with_defaults(config)
  configs.check(full)
  assert configs.from_json(configs.to_json(full)) == full
  assert full.dataset.startswith("scenes") == ("scenes" in arg)


def test_the_papers_values():
  for name in NAMES:
    config, pretrain = load(name, "phase=finetune"), load(name, "phase=pretrain")
    assert (config.lr, config.wd) == (5e-5, 2.5e-6) and pretrain.lr == 5e-4
    # Steps and batch that are kMaX's on COCO, whose recipe panoptic.py is without arguments.
    assert (pretrain.total_steps, pretrain.batch_size) == (150_000, 64)
    assert load(name) == (pretrain if name == "panoptic" else config)
    assert config.optax.to_dict() == {"b1": 0.9, "b2": 0.999, "eps": 1e-7}
    assert config.lr_mults[0] == ("encoder/.*", 0.1) and config.wd_mults[0] == ("encoder/.*/kernel", 0.1)
  assert [load(name).model.num_queries for name in ("depth", "normals", "semantic", "panoptic")] == [16, 8, 40, 128]
  assert load("depth", "queries=32").model.num_queries == 32
  # kMaX on COCO drops paths of its decoder; PolyMaX's tasks do not.
  assert load("panoptic").model.drop_path == 0.2 and "drop_path" not in load("semantic").model
  assert load("depth", "phase=pretrain").losses.charbonnier == 1.0 and "losses" not in load("depth")


def test_wrong_arguments_are_named():
  with pytest.raises(UserError, match="did you mean 'convnext_t'"):
    load("depth", "backbone=convnext_tt")
  with pytest.raises(UserError, match="unknown phase"):
    load("depth", "phase=train")


def folder_features(name: str) -> dict:
  import tensorflow as tf
  image = {"image": tf.TensorSpec((480, 640, 3), tf.uint8)}
  objects = {f"panoptic_objects/{key}": tf.TensorSpec((None,), dtype) for key, dtype in
             dict(id=tf.int64, label=tf.int64, is_crowd=tf.bool, area=tf.int64).items()}
  return image | {"depth": {"depth": tf.TensorSpec((480, 640), tf.float16)},
                  "normals": {"normals": tf.TensorSpec((480, 640, 3), tf.uint8)},
                  "semantic": {"semantic": tf.TensorSpec((480, 640, 1), tf.uint8)},
                  "panoptic": objects | {"image/id": tf.TensorSpec((), tf.int64),
                                         "panoptic_image": tf.TensorSpec((480, 640, 3), tf.uint8)}}[name]


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_resolves(name):
  builder = importlib.import_module("pp_ops.builder")
  config = load(name)
  channels, dtype = CHANNELS[name]
  for pp in (config.pp_train, config.pp_eval):
    program = builder.compile_string(pp, configs.with_defaults(config).pp_modules)
    specs = builder.output_specs(program, folder_features(name))
    assert specs["image"].dtype.name == "float32" and specs["labels"].dtype.name == dtype, pp
    assert specs["labels"].shape[-1] == channels and specs["image"].shape[-1] == 3, pp
    assert specs["image"].shape[:2] == specs["labels"].shape[:2], pp


def test_the_papers_data():
  """Taskonomy whole and square, NYU's crops; COCO's pictures keep their proportions, are scaled and padded with grey."""
  for name in ("depth", "normals"):
    pretrain, finetune = load(name, "phase=pretrain"), load(name)
    assert pretrain.dataset == "taskonomy" and "resize_all((512, 512))" in pretrain.pp_train
    assert "random_crop((512, 512))|canvas((512, 512), 127.5)" in pretrain.pp_train
    assert "random_crop((416, 544))|canvas((416, 544), 127.5)" in finetune.pp_train
    assert all("kmax_colours" in config.pp_train for config in (pretrain, finetune))
  assert [load(name).dataset for name in ("normals", "semantic")] == ["nyu", "nyu"]
  config = load("panoptic")
  grey = "canvas(1281, 127.5)|"
  assert f"|fit(1281)|random_scale(0.3, 1.7, 0.1)|kmax_colours|random_crop(1281)|{grey}" in config.pp_train
  assert config.panoptic_val.pp.startswith(f"fit(1281)|{grey}") and "valid_size" in config.panoptic_val.pp
  assert not any("kmax_colours" in load(name, "scenes,runlocal").pp_train for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_resolves_on_scenes(name):
  pipeline = importlib.import_module("pp_ops.pipeline")
  config = configs.with_defaults(load(name, "scenes,runlocal"))
  for pp in (config.pp_train, config.pp_eval):
    specs = pipeline.check(dataset=config.dataset, split="validation", pp=pp, outputs=["image", "labels"],
                           pp_modules=config.pp_modules)
    assert tuple(specs["image"].shape) == (64, 64, 3) and specs["labels"].shape[-1] == CHANNELS[name][0]
  for key, evaluator in config.evals:
    wanted = ["image"] if name == "panoptic" else ["image", "ground_truth"]
    specs = pipeline.check(dataset=config.dataset, split="validation", pp=config[key].pp, outputs=wanted,
                           pp_modules=config.pp_modules)
    assert tuple(specs["image"].shape) == (64, 64, 3)
    metric = importlib.import_module(configs.resolve(evaluator, "uvim_like.evaluators")).make(**config[key].metric)
    assert metric.protocol


@pytest.mark.parametrize("name,arg", [(name, arg) for name in NAMES for arg in IN_SHAPE
                                      if (name, "per_pixel" in arg) != ("panoptic", True)])
def test_model_evaluates_in_shape(name, arg):
  config = configs.with_defaults(load(name, arg))
  system = make(config)
  channels, dtype = CHANNELS[name]
  batch = {"image": jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32),
           "labels": jax.ShapeDtypeStruct((2, 64, 64, channels), dtype)}
  variables = jax.eval_shape(system.init, jax.random.key(0), batch)
  out = jax.eval_shape(lambda v, b: system.loss(v, (), b, jax.random.key(0), True), variables, batch)
  assert out.loss.shape == () and all(part.shape == (2,) for part in out.parts.values())
  assert jax.tree.map(jnp.shape, out.state) == jax.tree.map(jnp.shape, variables.state)


def make(config):
  return importlib.import_module(configs.resolve(config.model_name, "uvim_like.systems")).make(config)
