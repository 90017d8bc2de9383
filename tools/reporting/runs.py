"""What a run's folder tells without its model: config, the lines of metrics.jsonl, their series, training time."""

import collections
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tools.reporting import examples
from tools.reporting.examples import (
  MAD,
  MAD_AR,
  NO_CODE,
  PER_PIXEL,
  POLYMAX,
  REGRESSION,
  SOLVER,
  STAGE_I,
  STAGE_II,
  TOKENIZER,
)
from uvim_like.training.logs import METRICS_FILE
from uvim_like.training.workdir import FINISHED_FILE

# What the table of runs shows of an evaluator's numbers, and which direction is better.
HEADLINES = {"RMSE": "min", "abs_RE": "min", "delta1": "max", "All_pq": "max", "Things_pq": "max", "Stuff_pq": "max",
             "psnr": "max", "fid": "min", "mIoU": "max", "mean": "min", "median": "min", "pct_11_25": "max",
             "box_AP": "max", "mask_AP": "max", "keypoint_AP": "max", "BLEU4": "max"}
TITLES = {REGRESSION: "per-pixel regression of the same size", NO_CODE: "base model without a code",
          STAGE_I: "stage I: base model guided by the oracle's code",
          STAGE_II: "stage II: code written from the image, T = 0",
          PER_PIXEL: "DeepLabv3+: every pixel by itself", POLYMAX: "PolyMaX: pixels joined to clusters",
          TOKENIZER: "AiT tokenizer: what its code keeps of the truth", SOLVER: "AiT: tokens written from the image",
          MAD: "MAD: sequences filled in by masked inference", MAD_AR: "MAD's network, one token after the other"}
# The same above a column of pictures.
SHORT = {PER_PIXEL: "DeepLabv3+", POLYMAX: "PolyMaX", TOKENIZER: "AiT tokenizer", SOLVER: "AiT", MAD: "MAD",
         MAD_AR: "MAD, autoregressive"}
SEE_THE_TRUTH = (STAGE_I, TOKENIZER)  # their numbers say what a code can carry, and are no predictions from an image
_TABLE = (REGRESSION, NO_CODE, PER_PIXEL, STAGE_I, STAGE_II, TOKENIZER, SOLVER, MAD_AR, MAD, POLYMAX)
_PICTURES = (STAGE_I, TOKENIZER, STAGE_II, SOLVER, MAD, MAD_AR, POLYMAX, PER_PIXEL, REGRESSION, NO_CODE)


class Run(NamedTuple):
  """A run as its folder describes it.

  Attributes:
    name: of the folder.
    workdir: the folder.
    config: as trained.
    kind: see `examples.kind_of`.
    lines: of metrics.jsonl, in order; values that are no numbers are left out.
    unreadable: number of lines that were not read.
  """
  name: str
  workdir: pathlib.Path
  config: Any
  kind: str
  lines: list[dict[str, float]]
  unreadable: int


def read(workdirs: Sequence[str | os.PathLike]) -> list[Run]:
  """The runs in these folders; equal folder names get their parents in front. UserError for one without config."""
  paths = [pathlib.Path(workdir).expanduser() for workdir in workdirs]
  names = [path.resolve().name for path in paths]
  found = []
  for path, name in zip(paths, names):
    config = examples.read_config(path)
    lines, unreadable = read_metrics(path / METRICS_FILE)
    unique = name if names.count(name) == 1 else f"{path.resolve().parent.name}/{name}"
    found.append(Run(unique, path, config, examples.kind_of(config), lines, unreadable))
  return found


def read_metrics(path: pathlib.Path) -> tuple[list[dict[str, float]], int]:
  """The lines as {"step": …, name: value}, nan and inf as floats, and how many were no JSON object with a step.

  A run that is being written, or was killed, ends in half a line. ([], 0) when there is no file.
  """
  if not path.is_file():
    return [], 0
  texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
  parsed = [_line(text) for text in texts if text.strip()]
  lines = [line for line in parsed if line]
  return lines, len(parsed) - len(lines)


def _line(text: str) -> dict[str, float] | None:
  try:
    values = json.loads(text)
  except json.JSONDecodeError:
    return None
  if not isinstance(values, dict) or not isinstance(values.get("step"), (int, float)):
    return None
  # Logs hold "nan" and "inf" as strings, since JSON has no such numbers.
  return {name: float(value) for name, value in values.items()
          if isinstance(value, (int, float)) or value in ("nan", "inf", "-inf")}


def series(lines: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
  """(steps, values) of one number, by step; where a step occurs twice (resumed, evaluated again) the last counts."""
  values = {line["step"]: line[name] for line in lines if name in line}
  steps = sorted(values)
  return np.array(steps, np.float64), np.array([values[step] for step in steps], np.float64)


def minutes_at(lines: Sequence[Mapping[str, float]], steps: np.ndarray) -> np.ndarray:
  """Minutes of training until each step, from the logged seconds a step; nan where nothing was timed.

  Evaluations are in the log's seconds, compilation is not.
  """
  logged, seconds = series(lines, "step_seconds")
  if not logged.size:
    return np.full(np.shape(steps), np.nan)
  passed = np.cumsum(np.diff(logged, prepend=0.0) * seconds) / 60
  return np.interp(steps, np.concatenate([[0.0], logged]), np.concatenate([[0.0], passed]))


def steps_done(run: Run) -> int:
  """The last step in the log, 0 without any."""
  return int(max((line["step"] for line in run.lines), default=0))


def evaluations(run: Run) -> list[tuple[str, str, str, Any]]:
  """(name, evaluator, prefix in the log, block) of each of the run's evaluators."""
  blocks = [(name, kind, run.config.get(name) or {}) for name, kind in run.config.get("evals") or ()]
  return [(name, kind, block.get("prefix") or f"{name}/", block) for name, kind, block in blocks]


def headlines(run: Run) -> dict[str, tuple[str, str]]:
  """{column: (name in the log, "min" or "max")} of the numbers by which runs are compared.

  The column is the metric's name; where several evaluators measure the same, theirs stands in front.
  """
  logged = {name for line in run.lines for name in line}
  found = [(name, metric, prefix + metric) for name, _, prefix, _ in evaluations(run) for metric in HEADLINES
           if prefix + metric in logged]
  often = collections.Counter(metric for _, metric, _ in found)
  return {metric if often[metric] == 1 else f"{name}: {metric}": (place, HEADLINES[metric])
          for name, metric, place in found}


def state(run: Run) -> str:
  """Whether the training is done, and how far it is otherwise."""
  if (run.workdir / FINISHED_FILE).is_file():
    return "finished"
  total = run.config.get("total_steps")
  return f"{steps_done(run) / total:.0%}" if isinstance(total, int) and total > 0 else "not finished"


def row(run: Run) -> dict[str, Any]:
  """The run's row in the table: name, kind, its last headline numbers, minutes of training, steps, folder."""
  last = {column: float(series(run.lines, name)[1][-1]) for column, (name, _) in headlines(run).items()}
  steps = steps_done(run)
  minutes = float(minutes_at(run.lines, np.array(steps)))
  return {"name": TITLES.get(run.kind, run.kind), "kind": run.kind, **last,
          "minutes": None if np.isnan(minutes) else minutes, "steps": steps, "run": run.name}


def rank(kind: str) -> int:
  """Place of a kind in the table: baselines first, then what sees the truth, then what predicts."""
  return _place(kind, _TABLE)


def rank_of_pictures(kind: str) -> int:
  """Place of a kind among the columns of pictures: what sees the truth stands beside it, baselines behind."""
  return _place(kind, _PICTURES)


def _place(kind: str, order: Sequence[str]) -> int:
  return order.index(kind) if kind in order else len(order)
