"""Every config trains: two steps, stop, resume to the same bits; stage II on stage I; a run without TensorFlow."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import train
from uvim_like import weights
from uvim_like.trees import flatten_names

ROOT = pathlib.Path(__file__).resolve().parent.parent
TASKS = ("panoptic", "depth", "color")
SMALL = {"width": 32, "num_heads": 2, "mlp_dim": 48, "oracle_depth": 1, "base_model_depth": 1, "codeword_dim": 16,
         "code_len": 4, "dict_size": 8}
SMALL_LM = {"num_layers": 1, "num_heads": 2, "mlp_dim": 48, "emb_dim": 32}


def command(config: str, workdir: pathlib.Path, *overrides: str, steps: int = 4) -> list[str]:
  """A training of the given config, shrunk until it takes seconds."""
  prefix = "oracle.model" if config.endswith("2") else "model"
  sizes = [f"{prefix}.{key}={value}" for key, value in SMALL.items()]
  if prefix == "oracle.model":
    sizes += [f"model.{key}={value}" for key, value in SMALL_LM.items()]
  settings = ["dataset=scenes/tiny", "train_split=train[:16]", "val_split=validation[:3]", "batch_size=8",
              f"total_steps={steps}", "schedule.warmup_steps=1", "log_training_steps=1", "log_eval_steps=100",
              "checkpoint_steps=2", *sizes, *overrides]
  path = ROOT / "configs" / "uvim" / f"{config}.py"
  return [f"--config={path}:scenes,runlocal,res=32,patch=8", f"--workdir={workdir}",
          *(f"--config.{setting}" for setting in settings)]


def metrics(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: pathlib.Path) -> list[float]:
  return [line["loss"] for line in metrics(workdir) if "loss" in line]


def small_split(task: str) -> str:
  """The override that shortens a config's own evaluation."""
  return {"panoptic": "panoptic_val", "depth": "depth_val", "color": "psnr_val"}[task] + ".split=validation[:3]"


# Depth goes all the way; the other tasks' own parts have tests of their own, and their whole way is slow.
BY_TASK = [task if task == "depth" else pytest.param(task, marks=pytest.mark.slow) for task in TASKS]


@pytest.fixture(scope="module", params=BY_TASK)
def stage_one(request, tmp_path_factory) -> tuple[str, pathlib.Path]:
  workdir = tmp_path_factory.mktemp(request.param) / "stage1"
  assert train.main(command(f"{request.param}_stage1", workdir, small_split(request.param))) == 0
  return request.param, workdir


def test_stage_one_leaves_what_is_promised(stage_one):
  task, workdir = stage_one
  assert {"config.json", "metrics.jsonl", "checkpoints", "weights.npz"} <= {p.name for p in workdir.iterdir()}
  lines = metrics(workdir)
  assert len(losses(workdir)) == 4 and all(np.isfinite(losses(workdir)))
  last = {key: value for line in lines if line["step"] == 4 for key, value in line.items()}
  wanted = {"panoptic": "coco_panoptic/All_pq", "depth": "nyu_depth/RMSE", "color": "psnr/"}[task]
  assert any(key.startswith(wanted) for key in last), sorted(last)
  assert {"val/loss_commitment", "val/code_perplexity", "val/code_dead"} <= set(last)


def test_stage_one_resumes_to_the_same_bits(stage_one, tmp_path, capsys):
  task, workdir = stage_one
  again = tmp_path / "again"
  # The schedule must be that of the whole training: a full run that then knows nothing of its last steps.
  shutil.copytree(workdir, again)
  shutil.rmtree(again / "checkpoints" / "4")
  for name in ("weights.npz", "finished.json"):
    (again / name).unlink()
  assert train.main(command(f"{task}_stage1", again, small_split(task))) == 0
  assert "resumed from step 2" in capsys.readouterr().out
  assert losses(again) == losses(workdir)
  first, second = (dict(flatten_names(weights.load_npz(d / "weights.npz"))) for d in (workdir, again))
  assert first.keys() == second.keys()
  assert all(np.array_equal(first[name], second[name]) for name in first)


def test_stage_two_trains_on_stage_one_and_leaves_it_alone(stage_one, tmp_path):
  task, oracle = stage_one
  before = (oracle / "weights.npz").read_bytes()
  workdir = tmp_path / "stage2"
  assert train.main(command(f"{task}_stage2", workdir, small_split(task), f"oracle.model_init={oracle}")) == 0
  assert len(losses(workdir)) == 4 and all(np.isfinite(losses(workdir)))
  assert (oracle / "weights.npz").read_bytes() == before
  assert any("accuracy" in key for line in metrics(workdir) for key in line)


def test_finished_run_does_nothing(stage_one, capsys):
  task, workdir = stage_one
  before = (workdir / "metrics.jsonl").read_text()
  assert train.main(command(f"{task}_stage1", workdir, small_split(task))) == 0
  assert "finished" in capsys.readouterr().out
  assert (workdir / "metrics.jsonl").read_text() == before


def test_eval_only_reads_the_checkpoint(stage_one):
  task, workdir = stage_one
  count = len(metrics(workdir))
  assert train.main([*command(f"{task}_stage1", workdir, small_split(task)), "--eval_only"]) == 0
  assert len(metrics(workdir)) > count and metrics(workdir)[-1]["step"] == 4


@pytest.mark.slow
def test_every_option_of_the_loop_together(stage_one, tmp_path):
  """bfloat16, rematerialised scanned layers, accumulation, averaged weights and split parameters, for stage II too."""
  task, oracle = stage_one
  options = ("dtype=bfloat16", "remat=dots", "scan_layers=True", "grad_accum_steps=2", "ema_decay=0.9", "batch_size=16",
             "mesh=[('data', 4), ('fsdp', 2)]", "sharding=[('.*', 'fsdp')]", "val_split=None", "evals=[]")
  for stage, extra in ((1, ()), (2, (f"oracle.model_init={oracle}",))):
    workdir = tmp_path / f"stage{stage}"
    assert train.main(command(f"{task}_stage{stage}", workdir, *options, *extra, steps=2)) == 0
    assert len(losses(workdir)) == 2 and all(np.isfinite(losses(workdir)))


def npz_examples(folder: pathlib.Path, count: int = 16) -> pathlib.Path:
  """Made-up finished examples, as somebody without TensorFlow would write them."""
  numbers = np.random.RandomState(0)
  folder.mkdir()
  for split in ("train", "validation"):
    np.savez(folder / f"{split}.npz", image=numbers.randint(0, 255, (count, 32, 32, 3)).astype(np.uint8),
             labels=numbers.uniform(0, 10, (count, 32, 32, 1)).astype(np.float16))
  return folder


def test_npz_training_without_tensorflow(tmp_path):
  data = npz_examples(tmp_path / "data")
  arguments = command("depth_stage1", tmp_path / "run", "dataset=npz", f"data_dir={data}", "train_split=train",
                      "val_split=validation", "evals=[]")
  code = "import sys; sys.modules['tensorflow'] = None; import train; sys.exit(train.main(sys.argv[1:]))"
  done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True,
                        env={**os.environ, "XLA_FLAGS": ""}, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  assert len(losses(tmp_path / "run")) == 4


@pytest.mark.parametrize("setting, message", [
    ("batch_sise=4", "config: unknown key 'batch_sise'; did you mean 'batch_size'?"),
    ("model.widht=32", "did you mean 'width'?"),
    ("model_name=proj.uvim.vitt", "did you mean 'uvim.vit'?"),
    ("task=depht", "did you mean 'depth'?"),
    ("dataset=scnes", "did you mean 'scenes'?"),
    ("dataset=scenes/tyni", "did you mean 'scenes/tiny'?"),
    ("batch_size=12", "does not divide among 8 devices; nearest that does: 8 or 16"),
    ("model.input_size=(33, 32)", "input_size"),
    ("optax_name=scale_by_adam_", "did you mean"),
    ("pp_train=decode|nyu_depth|resise(32)|keep('image', 'labels')", "did you mean 'resize'?"),
    ("pp_train=decode|nyu_depth|resize(sise=32)|keep('image', 'labels')", "did you mean 'size'?"),
    ("evals=[('depth_val', 'nyu_depht')]", "did you mean 'nyu_depth'?"),
    ("lr_mults=[('encodr.*', 0.1)]", "matches no parameter"),
    ("mesh=[('data', 3)]", "config.mesh"),
    ("dtype=float16", "did you mean 'bfloat16'?"),
])
def test_mistakes_are_one_line_before_anything_compiles(setting, message, tmp_path, capsys):
  assert train.main(command("depth_stage1", tmp_path / "run", setting)) == 2
  error = capsys.readouterr().err.strip()
  assert message in error, error
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_non_finite_loss_names_its_part_and_keeps_the_checkpoint(tmp_path, capsys):
  """A learning rate beyond all reason, after two good steps."""
  data = npz_examples(tmp_path / "data")
  base = ("dataset=npz", f"data_dir={data}", "train_split=train", "val_split=None", "evals=[]")
  assert train.main(command("depth_stage1", tmp_path / "run", *base, steps=2)) == 0
  with np.load(data / "train.npz") as arrays:
    np.savez(data / "train.npz", image=np.full_like(arrays["image"], np.nan, np.float32), labels=arrays["labels"])
  assert train.main(command("depth_stage1", tmp_path / "run", *base, steps=6)) == 2
  assert "'loss_" in capsys.readouterr().err
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()] == ["2"]


def test_label_out_of_range_names_the_example(tmp_path, capsys):
  folder = tmp_path / "data"
  folder.mkdir()
  labels = np.zeros((16, 32, 32, 2), np.int16)
  labels[5, 3, 4, 0] = 11
  np.savez(folder / "train.npz", image=np.zeros((16, 32, 32, 3), np.uint8), labels=labels)
  assert train.main(command("panoptic_stage1", tmp_path / "run", "dataset=npz", f"data_dir={folder}",
                            "train_split=train", "val_split=None", "evals=[]")) == 2
  error = capsys.readouterr().err
  assert "example 5: label 11 in channel 0" in error and "nearest valid: 10" in error
