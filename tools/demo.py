"""`python -m tools.demo --out=demo`: both stages of UViM on generated scenes, and one page that shows the result.

Renders rooms, trains stage I, a per-pixel regression of the same size and stage II, evaluates all of them on the same
validation images and writes `report.html`. About a quarter of an hour on two CPU cores; the same command goes on where
it stopped, and what is finished is not trained again.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tools import shell
from tools.rendering import scenes_arrays
from uvim_like import config as configs
from uvim_like import flags
from uvim_like.errors import UserError
from uvim_like.evaluators import nyu_depth
from uvim_like.training import batches

IMAGES = {"train": 10_000, "validation": 400}
METRICS = ("RMSE", "abs_RE", "delta1")
TRIAL_STEPS = 20
REPORT_SECONDS, START_SECONDS = 40, 30  # of the page; of a training's start and its evaluations


class Training(NamedTuple):
  """One training of the demo.

  Attributes:
    name: of its workdir.
    title: in the table.
    config: its file.
    share: of the time that is left when it begins; the number of steps follows from the speed of the machine.
    cost: of one step, as a share of a step of stage I.
    fewest: steps at least, however slow the machine: below, nothing is learned that is worth a picture.
    most: steps at most, however fast.
    overrides: of the config.
  """
  name: str
  title: str
  config: str
  share: float
  cost: float
  fewest: int
  most: int
  overrides: tuple[str, ...] = ()


def trainings(out: pathlib.Path) -> list[Training]:
  """The demo's three trainings, in order."""
  return [
      Training("stage1", "stage I: base model guided by the oracle's code", "configs/uvim/depth_stage1.py",
               share=0.48, cost=1.0, fewest=650, most=1600),
      Training("regression", "per-pixel regression of the same size", "configs/uvim/depth_regression.py",
               share=0.12, cost=0.7, fewest=200, most=800),
      Training("stage2", "stage II: code written from the image, T = 0", "configs/uvim/depth_stage2.py",
               share=1.0, cost=0.75, fewest=650, most=2000,
               overrides=(f"oracle.model_init={out / 'stage1'}",)),
  ]


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the demo; a mistake is one line and exit status 2."""
  return shell.exit_status("demo", start, argv)


def start(argv: Sequence[str]) -> None:
  """The demo behind its shell."""
  parser = flags.Parser(prog="python -m tools.demo", description=__doc__)
  parser.add_argument("--out", default="demo", help="folder for data, workdirs and report.html")
  parser.add_argument("--minutes", type=float, default=16, help="about how long it may take, installation aside")
  parser.add_whole("--steps", help="steps of every training, to try the demo in a minute")
  parser.add_whole("--images", default=IMAGES["train"], help="number of training images")
  parser.add_whole("--workers", default=2, help="processes that render")
  options = parser.parse_args(argv)
  run(pathlib.Path(options.out).expanduser(), minutes=options.minutes, steps=options.steps, images=options.images,
      workers=options.workers)


def run(out: pathlib.Path, *, minutes: float, steps: int | None, images: int, workers: int) -> None:
  """Data, trainings, table, page."""
  began = time.perf_counter()
  end = began + 60 * minutes
  data = out / "data"
  if not scenes_arrays.stored(data, IMAGES | {"train": images}):
    command("tools.make_data", "scenes", f"--out={data}", "--format=npz", "--config=mini", "--task=depth",
            f"--num=train:{images},validation:{IMAGES['validation']}", f"--workers={workers}")
  rows, remaining = [constant_map_row(data)], trainings(out)
  seconds = None if steps or settled_steps(remaining[0], out) else stage_one_seconds(out, data)  # of a step of stage I
  while remaining:
    training, *others = remaining
    left = end - time.perf_counter() - REPORT_SECONDS - START_SECONDS * len(remaining)
    count = settled_steps(training, out) or steps or affordable_steps(training, seconds, left)
    command("train", *arguments(training, out / training.name, data, steps=count, every=-(-count // 3)))
    rows.append(table_row(training, out))
    seconds, remaining = rows[-1]["minutes"] * 60 / count / training.cost, others
  (out / "table.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
  workdirs = ",".join(str(out / training.name) for training in trainings(out))
  command("tools.report", f"--workdir={workdirs}", f"--table={out / 'table.json'}", f"--out={out / 'report.html'}")
  print(table_text(rows))
  print(f"{(time.perf_counter() - began) / 60:.1f} minutes; open {out / 'report.html'}")


def command(module: str, *words: str) -> None:
  """Runs one of the project's commands as a person would; UserError when it fails."""
  print(f"\n$ python -m {module} {' '.join(words)}", flush=True)
  status = subprocess.run([sys.executable, "-m", module, *words], check=False).returncode
  if status:
    raise UserError(f"'python -m {module}' ended with status {status}; its message stands above")


def settled_steps(training: Training, out: pathlib.Path) -> int | None:
  """The number of steps that an interrupted demo had settled on before; None where it had not come so far."""
  path = out / training.name / "config.json"
  return configs.from_json(path.read_text(encoding="utf-8")).total_steps if path.exists() else None


def arguments(training: Training, workdir: pathlib.Path, data: pathlib.Path, *, steps: int, every: int) -> list[str]:
  """The words after `python -m train`."""
  overrides = ["dataset=npz", f"data_dir={data}", "pp_train=flip_lr", f"total_steps={steps}",
               f"schedule.warmup_steps={max(1, steps // 10)}", f"log_eval_steps={every}", f"checkpoint_steps={every}",
               f"depth_val.log_steps={every}", *training.overrides]
  return [f"--config={training.config}:scenes,runlocal", f"--workdir={workdir}",
          *(f"--config.{override}" for override in overrides)]


def stage_one_seconds(out: pathlib.Path, data: pathlib.Path) -> float:
  """Seconds of a step of stage I on this machine, by a trial whose compiled program is then used again."""
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / "trial"
    command("train", *arguments(trainings(out)[0], workdir, data, steps=TRIAL_STEPS, every=TRIAL_STEPS),
            "--config.log_training_steps=5", "--config.val_split=None", "--config.evals=[]")
    return float(np.median([line["step_seconds"] for line in metrics(workdir) if "step_seconds" in line]))


def affordable_steps(training: Training, seconds: float, left: float) -> int:
  """As many steps as fit into the training's share of the time.

  Args:
    training: which.
    seconds: of a step of stage I.
    left: seconds for this training and those after it.
  """
  return int(np.clip(training.share * left / (training.cost * seconds), training.fewest, training.most))


def metrics(workdir: pathlib.Path) -> list[dict]:
  """The lines of a run's metrics file."""
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def table_row(training: Training, out: pathlib.Path) -> dict:
  """The last evaluation of a training and the minutes it took."""
  lines = metrics(out / training.name)
  last = next(line for line in reversed(lines) if "nyu_depth/RMSE" in line)
  steps = [line for line in lines if "step_seconds" in line]
  config = configs.from_json((out / training.name / "config.json").read_text(encoding="utf-8"))
  seconds = float(np.median([line["step_seconds"] for line in steps])) * config.total_steps
  return {"name": training.title, **{m: last[f"nyu_depth/{m}"] for m in METRICS}, "minutes": seconds / 60}


def constant_map_row(data: pathlib.Path) -> dict:
  """The best that can be said without looking: at each pixel the mean depth of the training images."""
  began = time.perf_counter()
  train_set = batches.load_split(dataset="npz", split="train", data_dir=data)
  with np.load(data / "validation.npz", allow_pickle=False) as arrays:
    truths = arrays["depth"].astype(np.float32)
  mean = mean_map(train_set.inputs["labels"][..., 0])
  metric = nyu_depth.make(preset="plain")
  stats = metric.init()
  for truth in truths:
    stats = metric.update(stats, {"depth": mean}, {"depth": truth})
  values = metric.compute(stats)
  return {"name": "constant map: mean depth at each pixel", **{m: values[m] for m in METRICS},
          "minutes": (time.perf_counter() - began) / 60}


def mean_map(depth: np.ndarray) -> np.ndarray:
  """(H, W) mean over images (n, H, W) metres of what was measured (above 0)."""
  total, count = np.zeros(depth.shape[1:]), np.zeros(depth.shape[1:])
  for image in depth:
    measured = image > 0
    total += np.where(measured, image, 0)
    count += measured
  return (total / np.maximum(count, 1)).astype(np.float32)


def table_text(rows: Sequence[dict]) -> str:
  """The table as text, with each RMSE as a share of the first row's."""
  head = f"{'':50} {'RMSE m':>8} {'of map':>7} {'AbsRel':>7} {'delta1':>7} {'minutes':>8}"
  lines = [f"{row['name']:50} {row['RMSE']:8.3f} {row['RMSE'] / rows[0]['RMSE']:7.2f} {row['abs_RE']:7.3f} "
           f"{row['delta1']:7.3f} {row['minutes']:8.1f}" for row in rows]
  return "\n".join(["", head, *lines])


if __name__ == "__main__":
  sys.exit(main())
