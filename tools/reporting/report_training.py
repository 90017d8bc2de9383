"""The report's charts and tables over time: validation numbers, losses, use of the codebooks, speed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tools.reporting import figures, html, runs
from tools.reporting.html import Picture, Section
from tools.reporting.report_seen import Seen, chart_pair
from tools.reporting.runs import Run

Lines = dict[str, figures.Curve]
HEADS = {"RMSE": "RMSE, m", "abs_RE": "abs. rel. error", "delta1": "δ < 1.25", "All_pq": "PQ", "Things_pq": "PQ things",
         "Stuff_pq": "PQ stuff", "psnr": "PSNR, dB", "fid": "FID", "mean": "mean angle, °", "median": "median angle, °",
         "pct_11_25": "below 11.25°, %", "box_AP": "box AP", "mask_AP": "mask AP", "keypoint_AP": "keypoint AP",
         "BLEU4": "BLEU-4"}
# Names in the log -> what the chart shows. Validation counts words over the whole split, a training step over its batch.
CODEBOOK = {"val/code_perplexity": "perplexity of the words (validation)", "val/code_dead": "unused words (validation)",
            "codebook_zeros_ratio": "share of words unused by a batch", "codebook_max_ratio": "share of the commonest word"}


def section(found: Sequence[Seen]) -> Section:
  """Validation numbers of all runs over time, losses, use of the codebooks, speed."""
  listed = [seen.run for seen in found]
  clock, losses, codes = comparison(listed), overlaid_losses(listed) + all_losses(listed), codebooks(listed)
  pieces: list[str] = []
  if clock:
    pieces += ["All runs on one clock: what they reach on the validation images after how many minutes.",
               html.charts(clock)]
  if losses:
    pieces += ["The losses of each run. Thin: as logged; thick: running median. The runs minimise different things, so "
               "heights cannot be compared between charts.", html.charts(losses)]
  if codes:
    pieces += ["Use of the codebooks over time: a word that nobody writes any more is lost to the code.",
               html.charts(codes)]
  pieces.append(html.table([speed_row(seen) for seen in found], columns={
      "name": "folder", "steps": "steps", "state": "state", "step_seconds": "seconds/step", "img/s": "images/s",
      "mfu": "MFU", "milliseconds": "prediction, ms/image", "code_perplexity": "perplexity of the code",
      "code_dead": "unused words"}, formats={"milliseconds": ".1f"}))
  broken = [f"{run.name}: {run.unreadable} line(s) of metrics.jsonl could not be read and are left out."
            for run in listed if run.unreadable]
  empty = [f"{run.name}: nothing is logged yet." for run in listed if not run.lines]
  return Section("Training", [*pieces, *map(html.note, [*broken, *empty])])


def head(column: str) -> str:
  """What a column holds and, by an arrow, which way is better; "evaluator: metric" keeps its evaluator."""
  place, _, metric = column.rpartition(": ")
  arrow = {"min": "\N{NO-BREAK SPACE}↓", "max": "\N{NO-BREAK SPACE}↑"}.get(runs.HEADLINES.get(metric, ""), "")
  return f"{place}{': ' if place else ''}{HEADS.get(metric, metric)}{arrow}"


def comparison(found: Sequence[Run]) -> list[Picture]:
  """A chart for each headline number over minutes of training, a line for each run that has it."""
  lines: dict[str, Lines] = {}
  for run in found:
    for column, (name, _) in runs.headlines(run).items():
      steps, values = runs.series(run.lines, name)
      minutes = runs.minutes_at(run.lines, steps)
      if np.isfinite(minutes).any():
        lines.setdefault(column, {})[titled(run)] = (minutes, values)
  return [chart_pair(figures.curves, series, xlabel="minutes of training", ylabel=head(column),
                     markers=True, alt=f"{column} of the runs over minutes of training")
          for column, series in lines.items()]


def titled(run: Run) -> str:
  """The run in a legend: its folder and what it is."""
  return f"{run.name} ({runs.SHORT.get(run.kind, run.kind)})"


def overlaid_losses(found: Sequence[Run]) -> list[Picture]:
  """A chart for each kind of run that occurs more than once: the training losses over each other."""
  groups: dict[tuple, list[Run]] = {}
  for run in found:
    if runs.series(run.lines, "loss")[0].size:
      groups.setdefault((run.kind, run.config.get("task")), []).append(run)
  charts = []
  for (kind, _), members in groups.items():
    lines = {run.name: runs.series(run.lines, "loss") for run in members}
    if len(lines) > 1:
      charts.append(loss_chart(lines, title=f"training loss, {runs.SHORT.get(kind, kind)}",
                               alt="training losses of the runs over steps"))
  return charts


def all_losses(found: Sequence[Run]) -> list[Picture]:
  """The chart of every run that logged any loss."""
  return [chart for run in found for chart in loss_charts(run)]


def loss_charts(run: Run) -> list[Picture]:
  """Training and validation losses of one run.

  The commitment is left out where it has no weight in the loss: then it is another kind of number.
  """
  hidden = () if run.config.get("w_commitment") else ("val/loss_commitment",)
  names = {"loss": "training loss"} | {
      name: name.replace("val/", "validation ") for line in run.lines for name in line
      if name.startswith("val/") and name.rpartition("/")[2].startswith("loss") and name not in hidden}
  lines = {title: runs.series(run.lines, name) for name, title in names.items()}
  lines = {title: line for title, line in lines.items() if line[0].size and np.any(line[1] != 0)}
  return [loss_chart(lines, title=titled(run), alt=f"losses of {run.name} over steps")] if lines else []


def loss_chart(lines: Mapping[str, figures.Curve], *, title: str, alt: str) -> Picture:
  """Losses over steps, on a logarithmic axis where all values are positive."""
  finite = np.concatenate([y[np.isfinite(y)] for _, y in lines.values()])
  return chart_pair(figures.curves, lines, title=title, ylabel="loss", smooth=True,
                    log=bool(finite.size and finite.min() > 0), alt=alt)


def codebooks(found: Sequence[Run]) -> list[Picture]:
  """A chart for each number that tells the use of a codebook, a line for each run that logs it."""
  charts = []
  for name, title in CODEBOOK.items():
    lines = {titled(run): runs.series(run.lines, name) for run in found}
    lines = {run: line for run, line in lines.items() if line[0].size}
    if lines:
      charts.append(chart_pair(figures.curves, lines, ylabel=title, markers=name.startswith("val/"),
                               smooth=not name.startswith("val/"), alt=f"{title} over steps"))
  return charts


def speed_row(seen: Seen) -> dict[str, Any]:
  """Median speed and the last code statistics of a run."""
  run = seen.run
  made: dict[str, Any] = {"name": run.name, "steps": runs.steps_done(run), "state": runs.state(run)}
  for name in ("step_seconds", "img/s", "mfu"):
    values = runs.series(run.lines, name)[1]
    made |= {name: float(np.nanmedian(values))} if np.isfinite(values).any() else {}
  for name in ("code_perplexity", "code_dead"):
    values = runs.series(run.lines, f"val/{name}")[1]
    made |= {name: float(values[-1])} if values.size else {}
  return made | ({"milliseconds": 1000 * seen.seconds} if seen.seconds is not None else {})
