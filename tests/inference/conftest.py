"""Runs of every system as trainings leave them, tiny and with random weights, and a folder of scenes to predict."""

import copy

import jax
import ml_collections as mlc
import numpy as np
import pytest
from PIL import Image

from tools.rendering import scenes_files
from uvim_like import config as configs
from uvim_like import weights
from uvim_like.scenes import stream
from uvim_like.training import setup
from uvim_like.training import workdir as workdirs

SIZE, VIEW = (40, 56), (32, 48)   # of the pictures, and at which the networks see them
COUNT, BATCH = 5, 2
TO_VIEW = f'resize({VIEW})|value_range(-1, 1)|keep("image")'
ON_CANVAS = 'instances|fit(32)|canvas(48)|pad_instances(4)|value_range(-1, 1)|keep("image", "valid_size")'
ENCODER = dict(name="kmax_resnet18", depths=(1, 1, 1, 1), widths=(4, 4, 8, 8), stem_width=4)
QUERIES = dict(backbone=ENCODER, dims=(8, 8, 4, 4), blocks=(1, 1, 1, 1), layers=(1, 0, 0), width=16, key_dim=8,
               mlp_dim=16, hidden_dim=8, mask_dim=8, branch_dim=8)
PIXELS = dict(backbone=ENCODER, features=8, aspp_features=8, low_features=4)
STAGE_ONE = dict(input_size=VIEW, patch_size=(8, 8), code_len=4, width=16, oracle_depth=1, base_model_depth=1,
                 mlp_dim=16, num_heads=2, dict_size=8, codeword_dim=6, with_encoder_ctx=True, with_decoder_ctx=True,
                 code_dropout="none")
LANGUAGE = dict(input_size=VIEW, patches=dict(size=(8, 8)), vocab_size=9, seq_len=4, num_layers=1, num_heads=2,
                mlp_dim=16, emb_dim=16, posemb_type="learn")
TOKENIZER = dict(ratio=8, first_width=4, num_res_blocks=1, dict_size=6, codeword_dim=5)
SOLVER = dict(backbone=dict(name="swinv2_t", width=8, depths=(1,), num_heads=(2,), window_size=2, pretrain_window=2,
                            use_shift=(False,), position_hidden=4, out_norms=(0,), patch=8),
              vocabulary=dict(num_bins=20, num_classes=5, mask_codes=6, depth_codes=6, other_codes=6), width=16,
              num_encoder_layers=1, num_decoder_layers=1, num_heads=2, mlp_dim=16, max_len=40, dropout=0.0,
              drop_path=0.0)
MAD = dict(backbone=dict(name="stem", widths=(8, 12), mix=0), width=16, num_heads=2, mlp_dim=24, encoder_layers=1,
           decoder_layers=1, dropout=0.0)


def planes(**sizes):
  """Inputs and outputs of a stage I: (classes or channels, pixels of a patch)."""
  found = {name: (size, 64) for name, size in sizes.items()}
  return dict(inputs=found, outputs=found)


def evaluated(name, evaluator, pp=TO_VIEW, **block):
  """The config's entries of one evaluation."""
  return {"evals": [(name, evaluator)], name: dict(split="train", pp=pp, **block)}


def stage_two(task, **sizes):
  """UViM's stage II of a task."""
  oracle = dict(task=task, model_name="uvim.vit", model=STAGE_ONE | planes(**sizes), model_init="")
  return dict(task=task, model_name="uvim.lm", model=dict(LANGUAGE), oracle=oracle)


RUNS = {
    "uvim_depth": stage_two("depth", depth=12) | evaluated(
        "depth_val", "nyu_depth", metric=dict(preset="plain"), pred_kw=dict(task_options=dict(estimate="mean")),
        pp=f'nyu_depth|resize({VIEW}, inkey="image", outkey="image_ctx")|value_range(-1, 1, key="image_ctx")|'
           f'resize({VIEW})|value_range(-1, 1)|keep("image", "image_ctx")'),
    "uvim_panoptic": stage_two("panoptic_segmentation", semantics=12, instances=6) | evaluated(
        "panoptic_val", "coco_panoptic", metric=dict(dataset="scenes")),
    "uvim_color": stage_two("colorization", color=3) | evaluated(
        "psnr_val", "psnr", pp='square_area_resize(32)|copy("image", "labels")|rgb_to_grayscale_to_rgb|'
        'value_range(-1, 1, key="image")|value_range(-1, 1, key="labels")|keep("image", "labels")'),
    "polymax_depth": dict(task="depth", model_name="polymax.kmax", model=QUERIES | dict(num_queries=6)) | evaluated(
        "depth_val", "nyu_depth", metric=dict(preset="plain")),
    "polymax_normals": dict(task="surface_normals", model_name="polymax.kmax",
                            model=QUERIES | dict(num_queries=4)) | evaluated(
        "normals_val", "surface_normals", metric=dict(target_key="normals")),
    "polymax_panoptic": dict(task="panoptic_segmentation", model_name="polymax.kmax",
                             model=QUERIES | dict(num_queries=7, num_classes=10),
                             head=dict(num_things=5, max_instances=6)) | evaluated(
        "panoptic_val", "coco_panoptic", metric=dict(dataset="scenes"),
        pred_kw=dict(thing_threshold=0.0, stuff_threshold=0.0, pixel_threshold=0.0)),
    "deeplab_semantic": dict(task="semantic_segmentation", model_name="polymax.per_pixel",
                             model=PIXELS | dict(outputs=10)) | evaluated(
        "semantic_val", "mean_iou", metric=dict(num_classes=10, target_key="semantic"), pp=TO_VIEW),
    "deeplab_normals": dict(task="surface_normals", model_name="polymax.per_pixel", model=PIXELS) | evaluated(
        "normals_val", "surface_normals", metric=dict(target_key="normals")),
    "ait_depth": dict(task="depth", model_name="ait.solver", model=SOLVER | dict(input_size=(40, 40)),
                      tokenizers=dict(depth=dict(model=TOKENIZER | dict(input_size=(40, 40)), model_init="")),
                      solver=dict(tasks=("depth",))) | evaluated(
        "depth_val", "nyu_depth", pp='resize_all((40, 56))|value_range(-1, 1)|keep("image")',
        pred_kw=dict(windows=2, flip=True), metric=dict(preset="plain"), batch_size=1),
    "ait_instances": dict(task="instance_segmentation", model_name="ait.solver",
                          model=SOLVER | dict(input_size=(48, 48)),
                          tokenizers=dict(instances=dict(
                              model=TOKENIZER | dict(input_size=(16, 16), signed=True), model_init="")),
                          solver=dict(tasks=("instances",), num_objects=4, box_norm=48)) | evaluated(
        "object_val", "coco_instances", pp=ON_CANVAS, metric=dict(kinds=("boxes", "masks"), dataset="coco_instances"),
        pred_kw=dict(temperature=1.0, top_p=0.3)),
    "mad": dict(task="instance_segmentation", model_name="mad.decoder", model=MAD,
                objectives=dict(instances=3, references=2),
                sequences=dict(classes=5, bins=20, text=96, queries=6, mask_side=4, joints=17,
                               caption_length=5)) | evaluated(
        "objects_val", "coco_instances", pp=ON_CANVAS, metric=dict(kinds=("boxes", "masks", "keypoints"), threshold=0.3,
                                                                   dataset="coco_instances", person=5),
        pred_kw=dict(tasks=("boxes", "masks", "keypoints"), stages=dict(keypoints=(1.0,)))),
}
for block in (RUNS["uvim_color"]["model"], RUNS["uvim_color"]["oracle"]["model"]):
  block["input_size"] = (32, 32)
RUNS["mad"]["evals"].append(("captions_val", "captions"))
RUNS["mad"]["captions_val"] = dict(split="train", pp=ON_CANVAS, metric=dict(model="scenes"), pred_kw=dict(
    tasks=("captions",), stages=dict(captions=(1.0, 0.6))))


SEEDS = {"mad": 11, "ait_instances": 7, "polymax_depth": 11}   # whose boxes have areas, whose depths are in range


def random_like(shapes, seed=0):
  """Values for shapes that make outputs differ from pixel to pixel; statistics stay positive."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = str(getattr(path[-1], "key", getattr(path[-1], "name", "")))
    if name in ("var", "counts"):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    if name == "scale":
      return rng.uniform(0.8, 1.2, leaf.shape).astype(leaf.dtype)
    fan = max(int(np.prod(leaf.shape[:-1])), 1)
    spread = 3.0 if "embed" in name else 0.1 if leaf.ndim < 2 or name == "bias" else 3 * fan ** -0.5
    return (spread * rng.normal(size=leaf.shape)).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def write_run(folder, name, data_dir, **changes):
  """The workdir of a run: config.json and weights.npz, its frozen stage beside it."""
  values = dict(dataset="folder", data_dir=str(data_dir), train_split="train", batch_size=BATCH, total_steps=1,
                pp_train='decode|keep("image")', lr=1e-3) | copy.deepcopy(RUNS[name]) | changes
  system = setup.make_system(configs.with_defaults(mlc.ConfigDict(values)))
  stages = system.frozen if "tokenizers" in values else {"oracle": system.frozen} if "oracle" in values else {}
  for number, (key, shapes) in enumerate(stages.items(), 1):
    path = folder / f"{key}.npz"
    found = random_like(shapes, number)
    weights.save_npz(path, {"params": found.params, "state": found.state})
    block = values["oracle"] if key == "oracle" else values["tokenizers"][key]
    block["model_init"] = str(path)
  side = values["model"].get("input_size", (48, 48) if "instance" in values["task"] else VIEW)
  view = np.zeros((1, *side, 3), np.float32)
  found = random_like(jax.eval_shape(system.init, jax.random.key(0), {"image": view}), SEEDS.get(name, 0))
  config = mlc.ConfigDict(values)
  configs.check(config)
  workdirs.write_text(folder / "config.json", configs.to_json(configs.with_defaults(config)))
  weights.save_npz(folder / "weights.npz", {"params": found.params, "state": found.state})
  return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  """A folder of scenes that are not square, two of them as JPEG."""
  folder = tmp_path_factory.mktemp("scenes")
  scenes_files.write_folder(stream.examples("train", COUNT, size=SIZE), folder, "train")
  for path in sorted((folder / "train" / "images").iterdir())[:2]:
    Image.open(path).save(path.with_suffix(".jpg"), quality=90)
    path.unlink()
  # Its tables name the pictures as they are now.
  for name in ("panoptic", "instances", "captions"):
    table = folder / "train" / f"{name}.json"
    document = table.read_text()
    for path in (folder / "train" / "images").glob("*.jpg"):
      document = document.replace(f'"file_name":"{path.stem}.png","height"', f'"file_name":"{path.name}","height"')
    table.write_text(document)
  return folder


@pytest.fixture(scope="session")
def workdir_of(data_dir, tmp_path_factory):
  """name -> workdir of that run, made when first asked for."""
  made = {}

  def get(name):
    if name not in made:
      made[name] = write_run(tmp_path_factory.mktemp(name), name, data_dir)
    return made[name]
  return get
