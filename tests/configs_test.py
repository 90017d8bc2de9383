"""Every config builds with every argument, passes the schema, resolves its preprocessing and evaluates in shape."""

import functools
import importlib
import itertools
import pathlib

import jax
import jax.numpy as jnp
import ml_collections as mlc
import pytest

from uvim_like import config as configs
from uvim_like.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
UVIM = ROOT / "configs" / "uvim"
NAMES = sorted(path.stem for path in UVIM.glob("*.py"))
STAGE_TWO = [name for name in NAMES if name.endswith("stage2")]
SWITCHES = ("released", "scenes", "runlocal", "singlehost")
ARGUMENTS = [",".join(chosen) for n in range(len(SWITCHES) + 1) for chosen in itertools.combinations(SWITCHES, n)]
IN_SHAPE = ("", "released", "scenes,runlocal", "runlocal,released=False")


def load(name: str, arg: str = "", *overrides: str) -> mlc.ConfigDict:
  return configs.load_file(f"{UVIM / name}.py" + (f":{arg}" if arg else ""), overrides)


def labels_of(config: mlc.ConfigDict) -> tuple[int, str]:
  """Channels and type of the label images of the config's task."""
  task = configs.with_defaults(config).task
  return {"panoptic_segmentation": (2, "int32"), "colorization": (3, "float32")}.get(task, (1, "float32"))


# --- Listings 1 and 2 of the UViM paper, key for key ----------------------------------------------------------------

LABELS = 'decode|coco_panoptic|concat(["semantics","instances"], "labels")|'
AUGMENT = ('randu("fliplr")|det_fliplr(key="image")|det_fliplr(key="labels")|inception_box|crop_box(key="image")|'
           'crop_box(key="labels")|')
TAIL_ONE = ('resize(512)|resize(512, key="labels", method="nearest")|value_range(-1, 1)|make_canonical|'
            'keep("image","labels")')
TAIL_TWO = ('resize(512, inkey="image", outkey="image_ctx")|resize(512)|resize(512, key="labels", method="nearest")|'
            'value_range(-1, 1, key="image_ctx")|value_range(-1, 1)|make_canonical|'
            'keep("image", "image_ctx", "labels")')
PLANES = {"semantics": (133 + 1, 256), "instances": (100, 256)}
EVALS = [("panoptic_train", "coco_panoptic"), ("panoptic_holdout", "coco_panoptic"), ("panoptic_val", "coco_panoptic")]


def eval_blocks(pp: str) -> dict:
  places = [("train", "coco_panoptic_train/", "train[4096:8192]"),
            ("holdout", "coco_panoptic_holdout/", "train[:4096]"),
            ("val", "coco_panoptic/", "validation")]
  return {f"panoptic_{name}": dict(pp=pp, log_steps=10_000, prefix=prefix, split=split)
          for name, prefix, split in places}


LISTING_1 = dict(
    task="panoptic_segmentation", dataset="coco/2017_panoptic", val_split="train[:4096]", train_split="train[4096:]",
    batch_size=1024, num_epochs=1000, pp_train=LABELS + AUGMENT + TAIL_ONE, pp_eval=LABELS + TAIL_ONE,
    shuffle_buffer_size=25_000, log_training_steps=50, log_eval_steps=250, checkpoint_steps=1000,
    keep_checkpoint_steps=20_000, model_name="proj.uvim.vit",
    model=dict(input_size=(512, 512), patch_size=(16, 16), code_len=256, width=768, oracle_depth=6, base_model_depth=12,
               mlp_dim=3072, num_heads=12, dict_size=4096, codeword_dim=768, dict_momentum=0.995,
               with_encoder_ctx=True, with_decoder_ctx=True, inputs=PLANES, outputs=PLANES),
    optax_name="scale_by_adafactor", optax=dict(beta2_cap=0.95), lr=4e-4, wd=4e-5,
    schedule=dict(decay_type="cosine", warmup_steps=4_000), grad_clip_norm=1.0, evals=EVALS,
    **eval_blocks((LABELS + TAIL_ONE).removeprefix("decode|")))
LISTING_2 = dict(
    pp_modules=["ops_general", "ops_image", "proj.uvim.pp_ops"], pp_train=LABELS + AUGMENT + TAIL_TWO,
    pp_eval=LABELS + TAIL_TWO, dataset="coco/2017_panoptic", train_split="train[4096:]", val_split="train[:4096]",
    shuffle_buffer_size=50_000, batch_size=512, num_epochs=200, log_training_steps=50, log_eval_steps=1000,
    checkpoint_steps=1000, keep_checkpoint_steps=5000, optax_name="scale_by_adafactor", optax=dict(beta2_cap=0.95),
    lr=0.001, wd=0.000001,
    lr_mults=[("pos_embedding_encoder.*", 0.1), ("EmbedPatches.*", 0.1), ("encoder.*", 0.1), ("decoder.*", 1.0)],
    schedule=dict(decay_type="cosine", warmup_steps=4_000),
    oracle=dict(task="panoptic_segmentation", model_init="oracle.npz", model_name="proj.uvim.vit",
                model=dict(oracle_depth=6, base_model_depth=12, num_heads=12, mlp_dim=3072, width=768,
                           input_size=(512, 512), patch_size=(16, 16), code_len=256, dict_size=4096, codeword_dim=768,
                           with_encoder_ctx=True, with_decoder_ctx=True, inputs=PLANES, outputs=PLANES)),
    model_name="proj.uvim.lm", model_init={"encoder": "howto-i21k-L/16"},
    model=dict(num_layers=24, num_heads=16, mlp_dim=4096, emb_dim=1024, patches=dict(size=(16, 16)), vocab_size=4097,
               posemb_type="learn", input_size=(512, 512), seq_len=256),
    evals=EVALS,
    **eval_blocks('resize(512, inkey="image", outkey="image_ctx")|resize(512)|value_range(-1, 1, key="image_ctx")|'
                  'value_range(-1, 1)|keep("image", "image_ctx", "image/id")'))


@pytest.mark.parametrize(("name", "listing"), [("panoptic_stage1", LISTING_1), ("panoptic_stage2", LISTING_2)])
def test_is_the_papers_listing(name, listing):
  values = configs.plain(load(name))
  assert set(values) == set(listing)
  for key, value in listing.items():
    assert values[key] == value and type(values[key]) is type(value), key


def test_stage_one_outputs_are_the_same_object_as_its_inputs():
  model = load("panoptic_stage1").model
  assert model.outputs is model.inputs


@pytest.mark.parametrize("name", STAGE_TWO)
def test_sizes_follow_the_oracle(name):
  config = load(name, "", "oracle.model.dict_size=64", "oracle.model.code_len=16")
  assert (config.model.vocab_size, config.model.seq_len) == (65, 16)
  config.oracle.model.dict_size = 1024
  assert config.model.vocab_size == 1025
  configs.check(config)


def test_building_twice_changes_no_table():
  first = configs.plain(load("panoptic_stage2", "scenes,runlocal"))
  assert configs.plain(load("panoptic_stage2")) == LISTING_2
  assert configs.plain(load("panoptic_stage2", "scenes,runlocal")) == first


# --- Released values and arguments ----------------------------------------------------------------------------------

# batch, epochs, lr, wd, clip, buffer, keep, validation and task intervals; batch and epochs of `singlehost`.
RELEASED = {
    "panoptic_stage1": (1024, 1000, 4e-4, 4e-5, 1.0, 25_000, 20_000, 250, 10_000, (128, 100)),
    "color_stage1": (1024, 100, 4e-4, 4e-5, 1.0, 25_000, 20_000, 250, 10_000, (128, 20)),
    "depth_stage1": (1024, 200, 1e-3, 1e-5, 1.0, 25_000, 20_000, 250, 2_000, (128, 50)),
    "panoptic_stage2": (512, 200, 1e-3, 1e-6, None, 50_000, 5_000, 1000, 10_000, (32, 50)),
    "color_stage2": (512, 50, 1e-3, 1e-6, None, 50_000, 5_000, 1000, 10_000, (32, 20)),
    "depth_stage2": (512, 50, 1e-3, 1e-6, None, 50_000, 5_000, 1000, 2_000, (32, 20)),
}


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_released_values(name):
  config = configs.with_defaults(load(name, "released"))
  name_of_first = config.evals[0][0]
  assert (config.batch_size, config.num_epochs, config.lr, config.wd, config.grad_clip_norm, config.shuffle_buffer_size,
          config.keep_checkpoint_steps, config.log_eval_steps, config[name_of_first].log_steps) == RELEASED[name][:-1]
  assert (config.optax_name, config.optax.beta2_cap, config.seed) == ("scale_by_adafactor", 0.95, 0)
  assert config.schedule.to_dict() == {"decay_type": "cosine", "warmup_steps": 4000}
  net = config.oracle.model if config.oracle else config.model
  assert (net.code_dropout, net.bottleneck_resize) == ("random", True)
  assert (config.freeze_dict, config.w_commitment) == (False, 0.0)
  assert (net.width, net.oracle_depth, net.base_model_depth, net.num_heads, net.mlp_dim) == (768, 6, 12, 12, 3072)
  assert (net.code_len, net.dict_size, net.codeword_dim, net.input_size) == (256, 4096, 768, (512, 512))
  single = load(name, "singlehost")
  assert (single.batch_size, single.num_epochs) == RELEASED[name][-1]


@pytest.mark.parametrize("arg", ARGUMENTS)
@pytest.mark.parametrize("name", NAMES)
def test_builds_and_passes_the_schema(name, arg):
  config = load(name, arg)
  configs.check(config)
  full = configs.with_defaults(config)
  configs.check(full)
  assert configs.from_json(configs.to_json(full)) == full
  assert full.dataset.startswith("scenes") == ("scenes" in arg)
  assert (full.total_steps is not None) == ("runlocal" in arg)
  assert "nyu_eval_crop" not in full.pp_eval or "scenes" not in arg


def test_scenes_runlocal_is_the_measured_recipe():
  one, two = load("depth_stage1", "scenes,runlocal"), load("depth_stage2", "scenes,runlocal")
  for config in (one, two):
    net = config.get("oracle", config).model
    assert (net.width, net.num_heads, net.mlp_dim, net.oracle_depth, net.base_model_depth) == (128, 4, 256, 2, 4)
    assert (net.code_len, net.dict_size, net.codeword_dim, net.dict_momentum) == (16, 64, 128, 0.95)
    assert (net.bottleneck_resize, net.code_dropout, dict(net.inputs)) == (True, "random", {"depth": (32, 64)})
    assert (config.dataset, config.batch_size, config.lr, config.wd) == ("scenes/mini", 64, 2e-3, 1e-4)
    assert (config.optax_name, config.optax.to_dict()) == ("scale_by_adam", {"b1": 0.9, "b2": 0.95})
    assert config.schedule.to_dict() == {"decay_type": "cosine", "warmup_steps": config.total_steps // 10}
    assert config.depth_val.pred_kw.to_dict() == {"task_options": {"estimate": "mean"}}
  assert (one.total_steps, two.total_steps) == (900, 1200)
  assert (two.model.num_layers, two.model.emb_dim, two.model.target_emb_scale) == (4, 128, 0.1)
  two.oracle.model_init = "workdir/one"
  assert two.model_init.base_model == "workdir/one"


def test_baseline_is_the_base_model_alone():
  config = load("depth_regression", "scenes,runlocal")
  assert config.task == "depth_regression" and config.model.zero_decoder_seq
  assert config.model.inputs == config.model.outputs == mlc.ConfigDict({"depth": (1, 64)})


def test_size_arguments():
  config = load("panoptic_stage1", "scenes,res=128,patch=8")
  assert config.model.input_size == (128, 128) and config.model.patch_size == (8, 8)
  assert config.model.inputs.semantics == (11, 64) and "|resize(128)|" in config.pp_train


@pytest.mark.parametrize(("arg", "message"), [
    ("runlocl", "did you mean 'runlocal'?"), ("res=big", "wants a int, not 'big'"), ("res", "needs a value"),
    ("scenes=perhaps", "wants a bool")])
def test_wrong_arguments_are_named(arg, message):
  with pytest.raises(UserError, match=message.replace("?", r"\?")):
    load("depth_stage1", arg)


# --- Preprocessing --------------------------------------------------------------------------------------------------


def dataset_features(name: str) -> dict:
  """Features of the datasets in TFDS 4.9.10, flat, as far as the configs read them."""
  import tensorflow as tf

  def spec(shape, dtype=tf.uint8):
    return tf.TensorSpec(shape, dtype)

  image = {"image": spec((None, None, 3))}
  objects = {f"panoptic_objects/{key}": spec((None,), dtype) for key, dtype in
             dict(id=tf.int64, label=tf.int64, is_crowd=tf.bool, area=tf.int64).items()}
  return {
      "coco/2017_panoptic": image | objects | {"image/id": spec((), tf.int64), "panoptic_image": spec((None, None, 3))},
      "nyu_depth_v2": {"image": spec((480, 640, 3)), "depth": spec((480, 640), tf.float16)},
      "imagenet2012": image | {"label": spec((), tf.int64), "file_name": spec((), tf.string)},
  }[name]


def strings_of(config: mlc.ConfigDict) -> dict[str, tuple[str, set[str]]]:
  """{place: (preprocessing, keys that the batch must hold)}."""
  ctx = {"image_ctx"} if config.get("oracle") else set()
  strings = {"pp_train": (config.pp_train, {"image", "labels"} | ctx),
             "pp_eval": (config.pp_eval, {"image", "labels"} | ctx)}
  truth = {"nyu_depth": {"ground_truth"}, "psnr": {"labels"}}
  return strings | {name: (config[name].pp, {"image"} | ctx | truth.get(evaluator, set()))
                    for name, evaluator in config.evals}


@pytest.mark.parametrize("arg", ["", "runlocal"])
@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_resolves(name, arg):
  builder = importlib.import_module("pp_ops.builder")
  config = load(name, arg)
  for place, (pp, wanted) in strings_of(config).items():
    program = builder.compile_string(pp, configs.with_defaults(config).pp_modules)
    specs = builder.output_specs(program, dataset_features(config.dataset))
    assert wanted <= set(specs), place
    size = config.model.input_size
    assert tuple(specs["image"].shape) == (*size, 3), place
    if place.startswith("pp_"):
      channels, dtype = labels_of(config)
      assert tuple(specs["labels"].shape) == (*size, channels) and specs["labels"].dtype.name == dtype, place


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_resolves_on_scenes(name):
  pipeline = importlib.import_module("pp_ops.pipeline")
  config = load(name, "scenes,runlocal")
  for place, (pp, wanted) in strings_of(config).items():
    split = config[place].split if place in config and not place.startswith("pp_") else "validation"
    specs = pipeline.check(dataset=config.dataset, split=split, pp=pp, outputs=sorted(wanted),
                           pp_modules=configs.with_defaults(config).pp_modules)
    assert tuple(specs["image"].shape) == (64, 64, 3), place


@pytest.mark.parametrize("name", ["color_stage1", "color_stage2"])
def test_fid_reads_the_published_images_and_no_others(name):
  block = configs.with_defaults(load(name, "inception=inception.jaxexport")).coltran_fid
  assert (block.dataset, block.split) == ("read_order:imagenet2012", "validation[:5000]+validation[10000:15000]")
  assert "coltran_fid" not in load(name, "inception=inception.jaxexport,folder")


def test_evaluators_accept_their_options():
  for name in NAMES:
    config = configs.with_defaults(load(name, "scenes,runlocal"))
    for key, evaluator in config.evals:
      metric = importlib.import_module(configs.resolve(evaluator, "uvim_like.evaluators")).make(**config[key].metric)
      assert metric.protocol, evaluator


# --- Models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arg", IN_SHAPE)
@pytest.mark.parametrize("name", NAMES)
def test_model_evaluates_in_shape(name, arg):
  config = configs.with_defaults(load(name, arg))
  system = importlib.import_module(configs.resolve(config.model_name, "uvim_like.systems")).make(config)
  size, (channels, dtype) = config.model.input_size, labels_of(config)
  batch = {"image": jax.ShapeDtypeStruct((2, *size, 3), jnp.float32),
           "labels": jax.ShapeDtypeStruct((2, *size, channels), dtype)}
  if config.oracle:
    batch["image_ctx"] = batch["image"]
  shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
  if (name, arg) in PARAMETERS:
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes.params)) == PARAMETERS[name, arg]
  if "runlocal" in arg:  # the other sizes are the same program, and seconds longer to trace
    out = jax.eval_shape(lambda *args: system.loss(*args, True), shapes, system.frozen, batch, jax.random.key(0))
    assert out.loss.shape == () and all(part.shape == (2,) for part in out.parts.values())
    assert jax.tree.structure(out.state) == jax.tree.structure(shapes.state)
    for block, _ in config.evals:
      predict = functools.partial(system.predict[config[block].pred], **config[block].pred_kw)
      found = jax.eval_shape(predict, shapes, system.frozen, batch, jax.random.key(0))
      assert found and all(x.shape[0] == 2 for x in found.values())


# Of the published checkpoints; the listing's learned bottleneck has 2 * 1024 * 256 more.
PARAMETERS = {
    ("panoptic_stage1", ""): 223_593_984 + 524_288, ("panoptic_stage1", "released"): 223_593_984,
    ("color_stage1", ""): 132_701_184, ("depth_stage1", ""): 232_249_600,
    ("panoptic_stage2", ""): 715_729_921, ("color_stage2", ""): 715_729_921, ("depth_stage2", ""): 715_729_921,
}


def test_fid_sees_coltrans_pixels():
  """x / 128 - 1, and the grey image of the normalised one, also as context."""
  config = configs.load_file("configs/uvim/color_stage2.py:inception=net.jaxexport")
  assert config.coltran_fid.pp == ('square_area_resize(512)|value_range(-1, 1, 0, 256)|copy("image", "labels")|'
                                   'rgb_to_grayscale_to_rgb|copy("image", "image_ctx")|keep("image", "image_ctx", "labels")')
