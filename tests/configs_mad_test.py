"""MAD's configs: every combination of arguments builds and passes the schema, preprocessing resolves, models fit."""

import importlib
import itertools
import pathlib

import jax
import jax.numpy as jnp
import pytest

from uvim_like import config as configs
from uvim_like.errors import UserError
from uvim_like.systems.mad import settings
from uvim_like.training import optim

MAD = pathlib.Path(__file__).resolve().parent.parent / "configs" / "mad"
NAMES = sorted(path.stem for path in MAD.glob("*.py"))
SWITCHES = {"r50": ("parallel", "one_stage", "code"), "swin_b": ("code", "second_drop"), "vit_b": ("code",)}
WITH_ARGUMENTS = [(name, ",".join(chosen)) for name in NAMES for n in range(4)
                  for chosen in itertools.combinations((*SWITCHES.get(name, ()), "scenes", "runlocal", "task=masks"),
                                                       n)]


def load(name, arg=""):
  return configs.load_file(f"{MAD / name}.py" + (f":{arg}" if arg else ""))


def batch_of(config, size=(128, 160), images=2):
  """A batch in shapes, as preprocessing makes it."""
  sequences = config.sequences
  shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct((images, *sizes), dtype)  # noqa: E731
  slots = 12
  return {"image": shape(*size, 3), "valid_size": shape(2, dtype=jnp.int32), "boxes": shape(slots, 4),
          "box_labels": shape(slots, dtype=jnp.int32), "keypoints": shape(slots, sequences.joints, 3),
          "box_masks": shape(slots, *[sequences.mask_side] * 2, dtype=jnp.uint8),
          "captions": shape(5, sequences.caption_length, dtype=jnp.int32)}


@pytest.mark.parametrize(("name", "arg"), WITH_ARGUMENTS)
def test_builds_and_passes_the_schema(name, arg):
  config = load(name, arg)
  configs.check(config)
  full = configs.with_defaults(config)
  assert configs.from_json(configs.to_json(full)) == full
  assert ("scenes" in full.dataset) == ("scenes" in arg)
  assert ("masks" in full.objectives.tasks) and (len(full.objectives.tasks) == 1) == ("task=masks" in arg)
  side = full.sequences.mask_side
  assert all(f"box_masks({side})" in text for text in (full.pp_train, full.pp_eval))


def in_shape(config):
  """The system, its variables in shapes, and a batch."""
  system = importlib.import_module(configs.resolve(config.model_name, "uvim_like.systems")).make(config)
  batch = batch_of(config)
  return system, jax.eval_shape(system.init, jax.random.key(0), batch), batch


@pytest.mark.parametrize("name", NAMES)
def test_every_rate_names_a_parameter(name):
  config = configs.with_defaults(load(name))
  optim.make(config, in_shape(config)[1].params, total_steps=10)


@pytest.mark.parametrize(("name", "arg"), [("ar", "scenes,runlocal"), ("r50", "scenes,runlocal"), ("r50", "code")])
def test_model_evaluates_in_shape(name, arg):
  config = configs.with_defaults(load(name, arg))
  system, shapes, batch = in_shape(config)
  out = jax.eval_shape(lambda *args: system.loss(*args, True), shapes, (), batch, jax.random.key(0))
  assert out.loss.shape == () and all(part.shape == (2,) for part in out.parts.values())
  assert jax.tree.structure(out.state) == jax.tree.structure(shapes.state)
  for block, _ in config.evals:
    found = jax.eval_shape(lambda *args, o=config[block].pred_kw: system.predict["predict"](*args, **o), shapes, (),
                           batch, jax.random.key(0))
    assert all(x.shape[0] == 2 for x in found.values())


def test_sizes_are_the_papers():
  config = configs.with_defaults(load("r50", "code"))
  system = importlib.import_module(configs.resolve(config.model_name, "uvim_like.systems")).make(config)
  params = jax.eval_shape(system.init, jax.random.key(0), batch_of(config)).params
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
  assert params["token_embedding"].shape == (12_027, 256) and params["position_embedding"].shape == (506, 256)
  assert count({k: v for k, v in params.items() if k.startswith("encoder_")}) == pytest.approx(7.89e6, rel=1e-3)
  assert count({k: v for k, v in params.items() if k.startswith("decoder_")}) == pytest.approx(9.47e6, rel=1e-3)
  assert count({k: v for k, v in params.items() if k != "features"}) == pytest.approx(21.2e6, rel=3e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arg", ["scenes,runlocal", "scenes,task=captions", "scenes,runlocal,task=keypoints"])
def test_preprocessing_resolves_on_scenes(name, arg):
  pipeline = importlib.import_module("pp_ops.pipeline")
  config = configs.with_defaults(load(name, arg))
  strings = [(config.train_split, config.pp_train, True), (config.val_split, config.pp_eval, True)]
  strings += [(config[key].split, config[key].pp, False) for key, _ in config.evals]
  size = (64, 64) if "runlocal" in arg else (128, 128)
  wanted = {key: value.shape[1:] for key, value in batch_of(config, size).items()}
  for split, text, everything in strings:
    specs = pipeline.check(dataset=config.dataset, split=split, pp=text, outputs=["image", "valid_size"],
                           pp_modules=config.pp_modules)
    assert tuple(specs["image"].shape) == wanted["image"], text
    if everything:
      assert tuple(specs["box_masks"].shape[1:]) == wanted["box_masks"][1:]
      assert tuple(specs["captions"].shape) == wanted["captions"]
      assert tuple(specs["keypoints"].shape[1:]) == wanted["keypoints"][1:]
      assert specs["boxes"].shape[0] <= config.sequences.queries


def test_evaluators_accept_their_options():
  for name in NAMES:
    config = configs.with_defaults(load(name, "scenes,runlocal"))
    assert [evaluator for _, evaluator in config.evals] == ["coco_instances", "captions"]
    for key, evaluator in config.evals:
      make = importlib.import_module(configs.resolve(evaluator, "uvim_like.evaluators")).make
      assert make(**config[key].metric).protocol, evaluator


def test_rows_of_table_two_are_four_configs():
  rows = [load(name, arg) for name, arg in (("ar", ""), ("r50", "parallel"), ("r50", "one_stage"), ("r50", ""))]
  assert [row.objectives.get("form", "masked") for row in rows] == ["autoregressive"] + ["masked"] * 3
  assert [tuple(row.objectives.mask_ratios) for row in rows[1:]] == [(1.0,), (1.0, 0.7), (1.0, 0.7)]
  assert ["stages" in row.captions_val.pred_kw for row in rows] == [False, True, True, False]


def test_code_switches_every_conflict():
  config = load("r50", "code")
  for name, value in settings.CODE_FORM["config.sequences"].items():
    assert config.sequences[name] == value
  for name, value in settings.CODE_FORM["config.objectives"].items():
    assert config.objectives[name] == value
  assert configs.plain(config.objects_val.pred_kw) == {
      "tasks": ("boxes", "masks", "keypoints"), **settings.CODE_FORM["predict"]}
  assert load("swin_b", "code").schedule.drop_steps == (750_000, 975_000)


def test_unknown_task_is_named():
  with pytest.raises(UserError, match="did you mean 'masks'"):
    load("r50", "task=mask")
