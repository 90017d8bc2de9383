"""What a run's folder tells without its model: config, the lines of metrics.jsonl, their series, training time."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tools import examples
from tools.examples import NO_CODE, REGRESSION, STAGE_I, STAGE_II
from uvim_like.training.logs import METRICS_FILE

# What the table of runs shows of an evaluator's numbers, and which direction is better.
HEADLINES = {"RMSE": "min", "abs_RE": "min", "delta1": "max", "All_pq": "max", "Things_pq": "max", "Stuff_pq": "max",
             "psnr": "max", "fid": "min"}
TITLES = {REGRESSION: "per-pixel regression of the same size", NO_CODE: "base model without a code",
          STAGE_I: "stage I: base model guided by the oracle's code",
          STAGE_II: "stage II: code written from the image, T = 0"}


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

  The column is the metric's name; with several evaluators theirs stands in front.
  """
  blocks = evaluations(run)
  found = {}
  for name, _, prefix, _ in blocks:
    for metric, goal in HEADLINES.items():
      if any(prefix + metric in line for line in run.lines):
        found[metric if len(blocks) == 1 else f"{name}: {metric}"] = (prefix + metric, goal)
  return found


def row(run: Run) -> dict[str, Any]:
  """The run's row in the table: name, kind, its last headline numbers, minutes of training, steps, folder."""
  last = {column: float(series(run.lines, name)[1][-1]) for column, (name, _) in headlines(run).items()}
  steps = steps_done(run)
  minutes = float(minutes_at(run.lines, np.array(steps)))
  return {"name": TITLES.get(run.kind, run.kind), "kind": run.kind, **last,
          "minutes": None if np.isnan(minutes) else minutes, "steps": steps, "run": run.name}


def rank(kind: str) -> int:
  """Place of a kind in the table: baselines, then stage I, then stage II, then other systems."""
  return _place(kind, (REGRESSION, NO_CODE, STAGE_I, STAGE_II))


def rank_of_pictures(kind: str) -> int:
  """Place of a kind among the columns of pictures: as the paper's appendix has them, baselines behind."""
  return _place(kind, (STAGE_I, STAGE_II, REGRESSION, NO_CODE))


def _place(kind: str, order: Sequence[str]) -> int:
  return order.index(kind) if kind in order else len(order)
