"""Numbers of a trained run, or of saved predictions, each with the protocol that it was measured under.

  python -m tools.evaluate --workdir=D [--step=K]              all evaluations of the run's config, at any kept step
  python -m tools.evaluate --task=depth --pred=P --gt=G        predictions as tools.predict writes them; no model

G is a folder as trainings read it (images/ is not needed), the folder of the label maps alone, or COCO's JSON (of
panoptic maps beside the folder of its name). Options of the metric: --metric.preset=nyu_eigen, --metric.max_depth=80.
Prints a table and writes a JSON file.

Exit status: 0 done, 2 a mistake that a person must mend (one line says which).
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from tools import shell
from tools.evaluating.evaluate_table import Measured, text, write
from uvim_like import config as configs
from uvim_like import flags
from uvim_like.errors import UserError

METRIC = "--metric."


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command and returns its exit status; a mistake is one line (`--debug` shows the traceback)."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  return shell.exit_status("evaluate", run, argv)


def run(argv: Sequence[str]) -> None:
  """Measures, prints the table and writes it."""
  words, metric = metric_options(argv)
  overrides, rest = shell.overrides_of_run(words)
  options = parse(rest)
  measure = of_files if options.workdir is None else of_run
  title, out, measured = measure(options, overrides, metric)
  print(text(title, measured))
  write(out, title, measured, overrides)
  print(f"\n{out}")


def metric_options(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
  """(the other words, {option: value}) of "--metric.key=value"; UserError for one without value."""
  rest, options = [], {}
  for word in words:
    key, equals, value = word.removeprefix(METRIC).partition("=")
    if not word.startswith(METRIC):
      rest.append(word)
    elif not equals or not key.isidentifier():
      raise UserError(f"{word}: {METRIC}key=value is expected, e.g. {METRIC}max_depth=80")
    else:
      options[key] = configs.parse_value(value, None, where=f"{METRIC}{key}")
  return rest, options


def parse(words: Sequence[str]) -> argparse.Namespace:
  """The flags, checked: a run, or a task with predictions and truth."""
  parser = flags.Parser(prog="python -m tools.evaluate", description=__doc__,
                        epilog="--config.key=value changes the run's config, e.g. --config.data_dir=D.")
  parser.add_argument("--workdir", help="folder of a training, or its weights.npz")
  parser.add_whole("--step", least=0, help="of a kept checkpoint; default: the newest")
  parser.add_argument("--evals", default="", help="only these of the config's evaluations, with commas")
  parser.add_argument("--task", help="of saved predictions: depth, semantic_segmentation, panoptic_segmentation, "
                      "surface_normals, instance_segmentation, captions")
  parser.add_argument("--pred", help="folder of predictions")
  parser.add_argument("--gt", help="folder of the truth")
  parser.add_argument("--split", help="only this split of the truth: every picture of it must have a prediction")
  parser.add_argument("--out", help="JSON file; default: evaluation_<step>.json in the workdir, with more in its name "
                      "for some evaluations or a changed config; or evaluation.json in --pred")
  options = parser.parse_args(words)
  files = {"--task": options.task, "--pred": options.pred, "--gt": options.gt, "--split": options.split}
  run = {"--step": options.step, "--evals": options.evals}
  if options.workdir is not None and any(files.values()):
    raise UserError(f"--workdir evaluates a run, {_first(files)} saved predictions; leave one out")
  if options.workdir is None:
    if missing := [name for name in ("--task", "--pred", "--gt") if not files[name]]:
      raise UserError(f"{missing[0]} is missing: --workdir=D, or --task=T --pred=P --gt=G")
    if any(value not in (None, "") for value in run.values()):
      raise UserError(f"{_first(run)} is of a run; saved predictions have none")
  return options


def _first(given: dict[str, Any]) -> str:
  return next(name for name, value in given.items() if value not in (None, ""))


def of_run(options: argparse.Namespace, overrides: Sequence[str],
           metric: dict[str, Any]) -> tuple[str, pathlib.Path, list[Measured]]:
  """(title, JSON file, evaluations) of a run."""
  if metric:
    raise UserError(f"{METRIC}{next(iter(metric))}: a run is evaluated as its config says; change that by "
                    f"--config.<evaluation>.metric.{next(iter(metric))}=…")
  from tools.evaluating import evaluate_run  # jax and a model: saved predictions need neither
  only = [name for name in options.evals.split(",") if name]
  run, measured = evaluate_run.evaluate(options.workdir, step=options.step, overrides=overrides, only=only)
  # All evaluations of the run as it is have the plain name, which others must not take.
  usual = "_".join(["evaluation", str(run.step), *only, *(["changed"] if overrides else [])])
  out = pathlib.Path(options.out).expanduser() if options.out else run.workdir / f"{usual}.json"
  return f"{run.workdir}: {run.config.model_name} after {run.step} steps", out, measured


def of_files(options: argparse.Namespace, overrides: Sequence[str],
             metric: dict[str, Any]) -> tuple[str, pathlib.Path, list[Measured]]:
  """(title, JSON file, evaluations) of saved predictions."""
  if overrides:
    raise UserError(f"--config.{overrides[0].partition('=')[0]}: saved predictions have no config; the metric's "
                    f"options are {METRIC}key=value")
  from tools.evaluating import evaluate_files
  measured = evaluate_files.evaluate(options.task, pathlib.Path(options.pred).expanduser(),
                                     pathlib.Path(options.gt).expanduser(), split=options.split, options=metric)
  pred = pathlib.Path(options.pred).expanduser()
  default = (pred if pred.is_dir() else pred.parent) / "evaluation.json"
  out = pathlib.Path(options.out).expanduser() if options.out else default
  return f"{options.pred} against {options.gt}", out, [measured]


if __name__ == "__main__":
  sys.exit(main())
