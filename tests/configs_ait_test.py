"""AiT's configs: every combination of arguments builds and passes the schema, preprocessing resolves, models fit."""

import functools
import importlib
import itertools
import pathlib

import jax
import jax.numpy as jnp
import pytest

from configs import ait_common
from uvim_like import config as configs
from uvim_like.training import optim, schedules

AIT = pathlib.Path(__file__).resolve().parent.parent / "configs" / "ait"
NAMES = sorted(path.stem for path in AIT.glob("*.py"))
SWITCHES = {"depth": ("large", "parallel", "wosoft"), "instances": ("parallel", "wosoft"), "semantic": ("parallel",),
            "keypoints": ("parallel",)}
WITH_ARGUMENTS = [
    (name, ",".join(chosen)) for name in NAMES for n in range(6)
    for chosen in itertools.combinations((*SWITCHES.get(name, ()), "scenes", "runlocal"), n)]
IN_SHAPE = [(name, arg) for name in NAMES for arg in ("", "scenes,runlocal")]


def load(name, arg=""):
  return configs.load_file(f"{AIT / name}.py" + (f":{arg}" if arg else ""))


def batch_of(config, size=2):
  """A batch in shapes, as the config's tasks need it."""
  height, width = config.model.input_size
  shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct((size, *sizes), dtype)  # noqa: E731
  labels = jnp.int32 if config.task == "semantic_segmentation" else jnp.float32
  batch = {"image": shape(height, width, 3), "labels": shape(height, width, 1, dtype=labels)}
  if config.task == "instance_segmentation":
    slots = config.solver.get("num_objects") or 8
    side = config.model.input_size[0]
    batch |= {"boxes": shape(slots, 4), "box_labels": shape(slots, dtype=jnp.int32), "task_id": shape(dtype=jnp.int32),
              "valid_size": shape(2, dtype=jnp.int32), "masks": shape(slots, height, width, dtype=jnp.uint8),
              "box_masks": shape(slots, side, side, dtype=jnp.uint8), "keypoints": shape(slots, 17, 3)}
  return batch


@pytest.mark.parametrize(("name", "arg"), WITH_ARGUMENTS)
def test_builds_and_passes_the_schema(name, arg):
  config = load(name, arg)
  configs.check(config)
  full = configs.with_defaults(config)
  assert configs.from_json(configs.to_json(full)) == full
  assert ("scenes" in full.dataset) == ("scenes" in arg)


@pytest.mark.parametrize(("name", "arg"), IN_SHAPE)
def test_model_evaluates_in_shape(name, arg):
  config = configs.with_defaults(load(name, arg))
  system = importlib.import_module(configs.resolve(config.model_name, "uvim_like.systems")).make(config)
  batch = batch_of(config)
  shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
  optim.make(config, shapes.params, total_steps=10)  # every pattern of the rates names a parameter
  out = jax.eval_shape(lambda *args: system.loss(*args, True), shapes, system.frozen, batch, jax.random.key(0))
  assert out.loss.shape == () and all(part.shape == (2,) for part in out.parts.values())
  tasks = config.solver.get("tasks", (None,))
  for task in tasks if len(tasks) > 1 else (None,):
    options = {"task": task} if task else {}
    run = functools.partial(system.predict["predict"], **options)
    outputs = jax.eval_shape(run, shapes, system.frozen, batch, jax.random.key(0))
    assert all(x.shape[0] == 2 for x in outputs.values())


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_resolves_on_scenes(name):
  pipeline = importlib.import_module("pp_ops.pipeline")
  config = configs.with_defaults(load(name, "scenes,runlocal"))
  parts = zip(*(text.split(";") for text in (config.dataset, config.train_split, config.pp_train)))
  strings = [(dataset.split("*")[-1], split, pp) for dataset, split, pp in parts]
  strings += [(config[key].dataset, config[key].split, config[key].pp) for key, _ in config.evals]
  for dataset, split, pp in strings:
    specs = pipeline.check(dataset=dataset, split=split, pp=pp, outputs=["image"], pp_modules=config.pp_modules)
    assert tuple(specs["image"].shape) == (64, 64, 3), pp


def test_evaluators_accept_their_options():
  for name in NAMES:
    config = configs.with_defaults(load(name, "scenes,runlocal"))
    for key, evaluator in config.evals:
      make = importlib.import_module(configs.resolve(evaluator, "uvim_like.evaluators")).make
      assert make(**config[key].metric).protocol, evaluator


@pytest.mark.parametrize("arg", ["", "scenes", "scenes,runlocal"])
@pytest.mark.parametrize("name", ["vqvae_depth", "depth", "vqvae_semantic", "semantic"])
def test_metrics_compare_at_the_size_of_the_truth(name, arg):
  """resize_all takes the kept truth along; the raw feature keeps its size."""
  config = load(name, arg)
  block = config["depth_val" if "depth" in name else "semantic_val"]
  kept = "ground_truth" in block.pp
  assert not (kept and "resize_all" in block.pp)
  if "semantic" in name:
    assert ("target_key" in block.metric) != kept
    assert kept or block.metric.target_key == "semantic"


def test_the_depth_tokenizer_is_trained_as_released():
  config, solver, other = load("vqvae_depth"), load("depth"), load("vqvae_depth", "scenes")
  assert config.total_steps == 60_560 == 20 * (24_231 // 8) and "num_epochs" not in config and other.num_epochs == 20
  assert len(config.schedule.drop_steps) == 140 and max(config.schedule.drop_steps) < config.total_steps
  # It never sees the border of NYU's frames; the solver does.
  assert config.pp_train.startswith("decode|crop_window(0, 480, 41, 601)|depth_labels|random_flip|random_crop(480)|")
  assert "crop_window" not in solver.pp_train + config.depth_val.pp + solver.depth_val.pp


def test_the_mask_tokenizer_sees_masks_as_they_are_and_is_judged_on_all():
  config = load("vqvae_mask")
  assert config.pp_train == config.pp_eval and "|fit(640)|" in config.pp_train and "pad_instances(32)" in config.pp_train
  assert "pad_instances(100)" in config.object_val.pp and "box_masks(64)" in config.object_val.pp


def test_objects_are_trained_on_a_line_from_the_first_step():
  for name, steps in (("detection", 183_300), ("instances", 366_500), ("joint", 302_875)):
    factor = schedules.make(load(name).schedule, total_steps=steps)
    assert float(factor(0)) == pytest.approx(0.1) and float(factor(steps // 2)) == pytest.approx(0.505, abs=1e-4)


def test_each_evaluator_of_the_joint_recipe_looks_where_its_part_lies():
  config = configs.with_defaults(configs.load_file(f"{AIT / 'joint'}.py", ["data_dir=/data/coco;/data/nyu"]))
  assert [config[name].data_dir for name, _ in config.evals] == ["/data/coco", "/data/nyu"]
  assert [config[name].dataset for name, _ in config.evals] == ["coco_instances", "nyu"]
  assert config.data_dir == "/data/coco;/data/nyu"


def test_layer_rates():
  lr, wd = ait_common.layer_rates((2, 1), 0.5)
  assert lr == [("backbone/patch_embed/.*", 0.5 ** 5), ("backbone/stage0_block0/.*", 0.5 ** 4),
                ("backbone/stage0_block1/.*", 0.5 ** 3), ("backbone/merge1/.*", 0.5 ** 2),
                ("backbone/stage1_block0/.*", 0.5)]
  assert wd[0] == (".*/position/.*", 0.0) and wd[-1] == (".*/kernel", 1.0) and len(wd) == len(lr) + 2
