"""Folders as trainings of every system leave them, with random weights: a training itself would take minutes to compile."""

import json
import pathlib

import jax
import numpy as np

from tools.rendering import instance_arrays, scenes_arrays
from uvim_like import config as configs
from uvim_like import scenes, weights
from uvim_like.tasks import text
from uvim_like.training import batches, setup

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = "<script>alert(1)<"  # a folder may be called so
COUNT, SIZE = 3, 64
UVIM = ("model.width=16", "model.mlp_dim=16", "model.num_heads=2", "model.base_model_depth=1", "model.oracle_depth=1",
        "model.codeword_dim=16")
LM = ("model.emb_dim=16", "model.mlp_dim=16", "model.num_heads=2", "model.num_layers=1")
VQ = ("ratio=16", "first_width=4", "num_res_blocks=1", "dict_size=8", "codeword_dim=8")
POLYMAX = ("model.backbone.widths=(4, 4, 8, 8)", "model.backbone.stem_width=4", "model.dims=(8, 8, 4, 4)",
           "model.layers=(1, 0, 0)", "model.width=16", "model.key_dim=8", "model.mlp_dim=16", "model.hidden_dim=8",
           "model.mask_dim=8", "model.branch_dim=8", "model.num_queries=11")
SOLVER = ("model.backbone.width=8", "model.backbone.depths=(1,)", "model.backbone.num_heads=(2,)",
          "model.backbone.patch=16", "model.backbone.window_size=4", "model.backbone.pretrain_window=4", "model.width=16",
          "model.num_decoder_layers=1", "model.num_heads=2", "model.mlp_dim=16", "model.vocabulary.other_codes=8",
          *(f"tokenizers.semantics.model.{text}" for text in VQ))
MAD = ("model.backbone.widths=(8, 8, 8)", "model.backbone.mix=0", "model.width=16", "model.num_heads=2", "model.mlp_dim=16",
       "model.encoder_layers=1", "model.decoder_layers=1", "sequences.queries=8", "sequences.bins=16",
       "captions_val.pred_kw={'tasks': ('captions',), 'stages': {'captions': (1.0, 0.5)}}")
LINES = [{"step": 50, "loss": 3.0, "step_seconds": 0.6, "img/s": 100.0},
         {"step": 100, "loss": "nan", "step_seconds": 0.6},
         {"step": 100, "nyu_depth/RMSE": 0.75, "nyu_depth/abs_RE": 0.2, "nyu_depth/delta1": 0.5, "val/loss_depth": 2.0,
          "val/code_perplexity": 5.0, "val/code_dead": 3, "miou/mIoU": 0.25, "normals/mean": 30.0, "coco/box_AP": 0.1,
          "captions/BLEU4": 0.2},
         {"step": 150, "loss": 2.0, "step_seconds": 1.2, "codebook_zeros_ratio": 0.5}]


def write_lines(folder, lines=LINES, tail='{"step": 200, "los'):
  """The log of a run that was killed while it wrote."""
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail, encoding="utf-8")


def write_data(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """{task: folder with validation.npz} of the same few scenes."""
  made = [scenes.example("validation", i, size=SIZE) for i in range(COUNT)]
  places = {}
  for task, labels in scenes_arrays.TASKS.items():
    places[task] = folder / task
    places[task].mkdir()
    rows = [labels(example) for example in made]
    np.savez(places[task] / "validation.npz", **{key: np.stack([row[key] for row in rows]) for key in rows[0]})
  places["objects"] = folder / "objects"
  places["objects"].mkdir()
  model = places["objects"] / "captions.model"
  sentences = [str(s) for example in made for s in example["captions"]["text"]]
  text.train(sentences * 8, model, pieces=60)
  rows = [instance_arrays.finish_instances(example, tokenizer=text.load(model)) for example in made]
  np.savez(places["objects"] / "validation.npz", **{key: np.stack([row[key] for row in rows]) for key in rows[0]})
  return places


def random_variables(system, batch):
  """Variables of the right shapes, none of them zero: fresh heads would make every prediction the same."""
  shapes, rng = jax.eval_shape(system.init, jax.random.key(0), batch), np.random.default_rng(0)

  def draw(path, leaf):
    name = str(getattr(path[-1], "key", ""))
    if name in ("scale", "var", "counts"):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    fan = max(int(np.prod(leaf.shape[:-1])), 1)
    return (rng.normal(size=leaf.shape) * (0.1 if len(leaf.shape) < 2 else fan ** -0.5)).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def make_run(folder: pathlib.Path, config_file: str, data: pathlib.Path, overrides=(), *, arguments="scenes,runlocal"):
  """A folder with config.json, weights.npz and a log that ends in half a line."""
  settings = ["dataset=npz", f"data_dir={data}", "batch_size=2", *overrides]
  config = configs.with_defaults(configs.load_file(f"{ROOT}/configs/{config_file}.py:{arguments}", settings))
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(configs.to_json(config), encoding="utf-8")
  batch, _ = next(iter(batches.eval_batches(dataset="npz", split="validation", pp="", data_dir=data, batch_size=2)))
  batch = {name: x for name, x in batch.items() if name in setup.DEVICE_KEYS}
  made = random_variables(setup.make_system(config), batch)
  weights.save_npz(folder / "weights.npz", {"params": made.params, "state": made.state})
  write_lines(folder)
  return folder


def make_all(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """{what it is: workdir}."""
  data = write_data(root)
  runs = {"stage1": make_run(root / NAME, "uvim/depth_stage1", data["depth"], UVIM)}
  runs["regression"] = make_run(root / "regression", "uvim/depth_regression", data["depth"], UVIM)
  runs["stage2"] = make_run(root / "stage2", "uvim/depth_stage2", data["depth"], [
      *LM, *(f"oracle.{text}" for text in UVIM), f"oracle.model_init={runs['stage1']}"])
  runs["tokenizer"] = make_run(root / "tokenizer", "ait/vqvae_semantic", data["semantic_segmentation"],
                               [f"model.{text}" for text in VQ])
  runs["solver"] = make_run(root / "solver", "ait/semantic", data["semantic_segmentation"],
                            [*SOLVER, f"tokenizers.semantics.model_init={runs['tokenizer']}"])
  runs["mad"] = make_run(root / "mad", "mad/r50", data["objects"], [
      *MAD, f"captions_val.metric.model={data['objects'] / 'captions.model'}"])
  runs["polymax"] = make_run(root / "polymax", "polymax/normals", data["surface_normals"], POLYMAX)
  return runs
