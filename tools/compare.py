"""`python -m tools.compare polymax --out=compare`: trains the rows of a paper's tables on generated scenes, prints the table.

All rows see the same images and as many steps as their configs say; what is finished is not trained again, so that the same
command goes on where it stopped. Rows and forms: tools/comparing/comparisons.py.
"""

import concurrent.futures
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tools import shell
from tools.comparing.comparisons import DATA, SUITES, Row
from tools.rendering import scenes_arrays
from uvim_like import config as configs
from uvim_like import flags
from uvim_like.errors import UserError, unknown
from uvim_like.evaluators import run as evaluation
from uvim_like.evaluators.base import Metric
from uvim_like.training import batches, setup, trained
from uvim_like.training.logs import METRICS_FILE, table_text

IMAGES = {"train": 10_000, "validation": 400}
# Numbers of an evaluator that the table shows.
COLUMNS = {"nyu_depth": ("RMSE", "abs_RE", "delta1"), "mean_iou": ("mIoU", "pixel_acc"),
           "surface_normals": ("mean", "median", "pct_11_25"), "coco_instances": ("box_AP50", "mask_AP50", "keypoint_AP"),
           "captions": ("BLEU4",)}


def main(argv: Sequence[str] | None = None) -> int:
  """Trains what is missing and prints the table; a person's mistake is one line and exit status 2."""
  return shell.exit_status("compare", command, argv)


def command(argv: Sequence[str]) -> None:
  """The command behind its shell."""
  parser = flags.Parser(prog="python -m tools.compare", description=__doc__)
  parser.add_argument("suite", help=f"one of {', '.join(SUITES)}")
  parser.add_argument("--out", default="compare", help="folder for data, workdirs and table.json")
  parser.add_argument("--rows", default="", help="only these, with commas; what they need is trained too")
  parser.add_whole("--images", default=IMAGES["train"], help="number of training images")
  parser.add_whole("--steps", help="steps of every training, to try the command in a minute")
  parser.add_whole("--jobs", default=1, help="trainings at a time, each on its share of the cores")
  options = parser.parse_args(argv)
  rows = chosen(options.suite, options.rows)
  run(rows, pathlib.Path(options.out).expanduser(), images=options.images, steps=options.steps, jobs=options.jobs)


def chosen(suite: str, names: str) -> list[Row]:
  """The suite's rows of these names (all without names) and those that they need, in the suite's order.

  Raises:
    UserError: no such suite or row, with the nearest.
  """
  if suite not in SUITES:
    raise unknown("suite", suite, SUITES)
  rows = {row.name: row for row in SUITES[suite]}
  wanted = set(filter(None, names.split(","))) or set(rows)
  for name in wanted - set(rows):
    raise unknown("row", name, rows, where="--rows")
  wanted |= {needed for name in wanted for needed in rows[name].needs.values()}
  return [row for row in rows.values() if row.name in wanted]


def run(rows: Sequence[Row], out: pathlib.Path, *, images: int, steps: int | None, jobs: int) -> None:
  """Data, trainings, evaluations, table."""
  for name in dict.fromkeys(row.data for row in rows):
    make_data(out / "data" / name, DATA[name], images)
  train_all(rows, out, steps=steps, jobs=jobs)
  lines = []
  for name in dict.fromkeys(row.data for row in rows):
    lines += lines_of([row for row in rows if row.data == name], out)
  (out / "table.json").write_text(json.dumps(lines, indent=2), encoding="utf-8")
  print(text(lines))


def make_data(folder: pathlib.Path, kind: Sequence[str], images: int) -> None:
  """The images with one kind of labels, rendered once; UserError where other numbers of them are there."""
  if not scenes_arrays.stored(folder, IMAGES | {"train": images}):
    words = ["scenes", f"--out={folder}", "--format=npz", "--config=mini", *kind, f"--workers={os.cpu_count()}",
             f"--num=train:{images},validation:{IMAGES['validation']}"]
    if subprocess.run([sys.executable, "-m", "tools.make_data", *words], check=False).returncode:
      raise UserError(f"'python -m tools.make_data {' '.join(words)}' failed; its message stands above")


def train_all(rows: Sequence[Row], out: pathlib.Path, *, steps: int | None, jobs: int) -> None:
  """Trains all rows, `jobs` at a time, each after those that it needs; UserError when one fails."""
  done: dict[str, concurrent.futures.Future] = {}
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    for row in rows:  # rows stand behind what they need, so that a waiting one never blocks what it waits for
      needed = [done[name] for name in row.needs.values()]
      done[row.name] = pool.submit(train_after, needed, row, out, steps=steps, jobs=jobs)
    for future in concurrent.futures.as_completed(done.values()):
      future.result()


def train_after(needed: Sequence[concurrent.futures.Future], row: Row, out: pathlib.Path, *, steps: int | None,
                jobs: int) -> None:
  """One training as a command of its own, its output in NAME.log; a finished one is not done again."""
  for future in needed:
    future.result()
  words = arguments(row, out, steps)
  print(f"$ python -m train {' '.join(words)}", flush=True)
  environment = os.environ | {"NPROC": str(max(1, os.cpu_count() // jobs))}  # read by XLA: threads of the process
  began = time.perf_counter()
  with open(out / f"{row.name}.log", "a", encoding="utf-8") as log:
    status = subprocess.run([sys.executable, "-m", "train", *words], stdout=log, stderr=log, env=environment,
                            check=False).returncode
  if status:
    raise UserError(f"{row.name}: training ended with status {status}; see {out / f'{row.name}.log'}")
  print(f"{row.name}: done after {(time.perf_counter() - began) / 60:.1f} minutes", flush=True)


def arguments(row: Row, out: pathlib.Path, steps: int | None) -> list[str]:
  """The words after `python -m train`."""
  file, _, argument = row.config.partition(":")
  overrides = ["dataset=npz", f"data_dir={out / 'data' / row.data}", "pp_train=flip_lr", *row.overrides,
               *(f"{key}={out / name}" for key, name in row.needs.items())]
  if steps:
    overrides += [f"total_steps={steps}", f"schedule.warmup_steps={max(1, steps // 10)}", f"checkpoint_steps={steps}"]
  return [f"--config={configs.ROOT / 'configs' / file}.py:{argument}", f"--workdir={out / row.name}",
          *(f"--config.{override}" for override in overrides)]


# --- Evaluation -------------------------------------------------------------------------------------------------------


def lines_of(rows: Sequence[Row], out: pathlib.Path) -> list[dict]:
  """The table's lines for rows of the same data: what can be said without looking, then every row in every form."""
  lines = []
  for row in rows:
    model = trained.restore(out / row.name)
    if not lines and (baseline := BASELINES.get(model.config.task)):
      lines.append(baseline_line(model.config, baseline))
    for form, options in row.forms.items():
      values, seconds = evaluate(model, options)
      lines.append({"task": model.config.task, "name": row.name, "form": form, **values,
                    "minutes": training_minutes(model), "s/image": seconds})
  return lines


def evaluate(model: trained.Trained, options: Mapping[str, Any] | None) -> tuple[dict[str, float], float]:
  """The columns of the config's evaluators, and seconds an image of the prediction (median over batches, compiled)."""
  found, times = {}, []
  for name, kind in model.config.evals:
    block = model.config[name]
    keywords = block.pred_kw if options is None else dict(block.pred_kw) | dict(options)
    predict = timed(jax.jit(functools.partial(model.system.predict[block.pred], **keywords)), model, times, block.batch_size)
    values = evaluation.evaluate(predict, validation(block, metric := make_metric(kind, block)), metric)
    found |= {column: values[column] for column in COLUMNS[kind] if column in values}
  return found, statistics.median(times[1:] or times)


def timed(predict: Callable, model: trained.Trained, times: list[float], rows: int) -> Callable:
  """`predict` over the model's variables, which notes the seconds an image of every call; the first compiles."""
  def call(batch):
    inputs = {key: value for key, value in batch.items() if key in setup.DEVICE_KEYS}
    began = time.perf_counter()
    outputs = jax.block_until_ready(predict(model.vars, model.frozen, inputs, jax.random.key(model.config.seed)))
    times.append((time.perf_counter() - began) / rows)
    return outputs
  return call


def make_metric(kind: str, block: Mapping[str, Any]) -> Metric:
  """The evaluator of a config's block."""
  return evaluation.load(kind).make(**block["metric"])


def validation(block: Mapping[str, Any], metric: Metric) -> Iterator:
  """The validation batches of an evaluator's block."""
  return batches.eval_batches(dataset="npz", split=block["split"], data_dir=block["data_dir"],
                              batch_size=block["batch_size"], target_keys=metric.target_keys)


def training_minutes(model: trained.Trained) -> float:
  """Minutes of the training's steps, evaluations and compilation left out."""
  lines = [json.loads(line) for line in (model.workdir / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
  return statistics.median(line["step_seconds"] for line in lines if "step_seconds" in line) * model.step / 60


# --- What can be said without looking at the image --------------------------------------------------------------------


def baseline_line(config: Any, baseline: Callable) -> dict:
  """The best constant map of a task, from the training labels, with the config's own evaluator."""
  labels = batches.load_split(dataset="npz", split="train", data_dir=config.data_dir).inputs["labels"]
  outputs = baseline(labels)
  name, kind = config.evals[0]
  metric = make_metric(kind, config[name])
  repeated = {key: np.broadcast_to(value, (config[name].batch_size, *value.shape)) for key, value in outputs.items()}
  values = evaluation.evaluate(lambda batch: repeated, validation(config[name], metric), metric)
  return {"task": config.task, "name": "constant map", "form": "", **{c: values[c] for c in COLUMNS[kind]}}


def mean_depth(labels: np.ndarray) -> dict[str, np.ndarray]:
  """{"depth": (H, W)}: the mean of what was measured at each pixel; labels (n, H, W, 1) metres, 0 = nothing."""
  measured = labels[..., 0] > 0
  total = np.sum(labels[..., 0], axis=0, dtype=np.float64, where=measured)
  return {"depth": (total / np.maximum(measured.sum(0), 1)).astype(np.float32)}


def commonest_class(labels: np.ndarray) -> dict[str, np.ndarray]:
  """{"semantics": (H, W)}: the most frequent class at each pixel; labels (n, H, W, 1), 0 = void."""
  counts = [np.sum(labels[..., 0] == k, axis=0) for k in range(1, int(labels.max()) + 1)]
  return {"semantics": np.argmax(counts, axis=0).astype(np.int32) + 1}


def mean_normal(labels: np.ndarray) -> dict[str, np.ndarray]:
  """{"normals": (H, W, 3)}: the mean direction at each pixel; labels (n, H, W, 3), zeros = nothing."""
  total = np.sum(labels, axis=0, dtype=np.float64)
  return {"normals": (total / np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-6)).astype(np.float32)}


BASELINES = {"depth": mean_depth, "semantic_segmentation": commonest_class, "surface_normals": mean_normal}


def text(lines: Sequence[Mapping[str, Any]]) -> str:
  """The lines as one table a task."""
  tables = []
  for task in dict.fromkeys(line["task"] for line in lines):
    own = [line for line in lines if line["task"] == task]
    columns = [key for key in dict.fromkeys(key for line in own for key in line) if key != "task"]
    rows = [[_cell(line.get(column, "")) for column in columns] for line in own]
    tables.append(f"{task}\n{table_text(columns, rows)}")
  return "\n\n".join(tables)


def _cell(value: Any) -> str:
  return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
  sys.exit(main())
