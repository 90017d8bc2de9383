"""One page about trained runs: `python -m tools.report --workdir=D,… --out=F.html` (table, pictures, codes, curves)."""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tools import examples, figures, html, report_pictures, runs
from tools.examples import STAGE_I, STAGE_II
from tools.html import Html, Page, Picture, Section
from tools.report_pictures import Seen, chart_pair
from tools.runs import Run
from uvim_like.errors import UserError

Row = Mapping[str, Any]
TITLE = "UViM: predictions from a guiding code"
INTRO = (
    "UViM turns an image into a map (depth, segments, colours) in two stages. In stage I an oracle looks at the true "
    "map and writes a short code, a few words of a learned dictionary; a base model draws the map from the image and "
    "this code. In stage II a language model learns to write the code from the image alone, and the same base model "
    "draws the map from it. Stage I thus shows what the code can carry; stage II is the actual prediction.")
HEADS = {"RMSE": "RMSE, m", "abs_RE": "abs. rel. error", "delta1": "δ < 1.25", "All_pq": "PQ", "Things_pq": "PQ things",
         "Stuff_pq": "PQ stuff", "psnr": "PSNR, dB", "fid": "FID"}
TAIL = {"minutes": "training, min", "milliseconds": "prediction, ms/image", "run": "folder"}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; a person's mistake is one line and exit status 2."""
  parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__, allow_abbrev=False)
  parser.add_argument("--workdir", required=True, help="folders of trainings, with commas")
  parser.add_argument("--out", required=True, help="the page to write, F.html")
  parser.add_argument("--rows", type=int, default=8, help="validation images to show (8)")
  parser.add_argument("--table", default="", help="JSON list of more rows of the table: [{name, RMSE, minutes, …}]; a "
                      "row with the name of a run's row replaces its values")
  flags = parser.parse_args(argv)
  try:
    extra = read_table(pathlib.Path(flags.table)) if flags.table else []
    size = write(flags.workdir.split(","), flags.out, rows=flags.rows, extra=extra, say=print)
  except UserError as error:
    print(f"report: {error}", file=sys.stderr)
    return 2
  print(f"{flags.out}: {size / 1e6:.2f} MB")
  return 0


def read_table(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a JSON file; UserError when it is no list of objects with "name"."""
  try:
    rows = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, json.JSONDecodeError) as error:
    raise UserError(f"--table: {path}: {error}") from None
  if not isinstance(rows, list) or not all(isinstance(row, dict) and "name" in row for row in rows):
    raise UserError(f"--table: {path}: a list of objects with \"name\" is expected")
  return rows


def write(workdirs: Sequence[str | os.PathLike], out: str | os.PathLike, *, rows: int = 8, extra: Sequence[Row] = (),
          title: str = TITLE, say: Callable[[str], None] = lambda text: None) -> int:
  """Reads the runs, lets them predict, and writes the page.

  Args:
    workdirs: folders of trainings.
    out: the page's file.
    rows: validation images to show; fewer when the page would grow beyond its limit, which the page then says.
    extra: more rows of the table, e.g. {"name": "constant map", "RMSE": 1.37}; see `joined`.
    title: of the page.
    say: gets a line on each run.

  Returns:
    The page's size in bytes.

  Raises:
    UserError: a folder that holds no run, a page that is too large even with one image.
  """
  if rows < 1:
    raise UserError(f"--rows: {rows} is less than 1")
  found = [look(run, say) for run in runs.read([workdir for workdir in workdirs if str(workdir).strip()])]
  if not found:
    raise UserError("--workdir: give at least one folder of a training")
  return html.write(out, fitting(found, rows=rows, extra=extra, title=title))


def look(run: Run, say: Callable[[str], None]) -> Seen:
  """The run's examples; what hinders them, such as a dataset that is gone, goes on the page instead."""
  try:
    found = examples.examples_of(run.workdir)
  except UserError as error:
    say(f"{run.name}: no pictures: {error}")
    return Seen(run, None, str(error))
  say(f"{run.name}: {run.kind}, {len(found.image)} validation examples")
  return Seen(run, found)


def fitting(found: Sequence[Seen], *, rows: int, extra: Sequence[Row] = (), title: str = TITLE,
            limit: int = html.MAX_BYTES) -> str:
  """The rendered page with as many of the wanted rows as `limit` bytes allow, at least one."""
  shown = rows
  while True:
    text = html.render(page(found, rows=shown, wanted=rows, extra=extra, title=title))
    if shown == 1 or len(text.encode("utf-8")) <= limit:
      return text
    shown = (shown + 1) // 2


def page(found: Sequence[Seen], *, rows: int, wanted: int, extra: Sequence[Row], title: str) -> Page:
  """The whole page; sections without content drop out."""
  two_stages = any(seen.run.kind in (STAGE_I, STAGE_II) for seen in found)
  pictures = report_pictures.sections(found, rows=rows, wanted=wanted)
  return Page(title, INTRO if two_stages else "",
              [results(found, extra), *pictures, training(found), configurations(found)])


# --- Results ---------------------------------------------------------------------------------------------------------


def results(found: Sequence[Seen], extra: Sequence[Row]) -> Section:
  """The table of all runs with the protocol of its numbers."""
  rows = joined([run_row(seen) for seen in sorted(found, key=lambda seen: runs.rank(seen.run.kind))], extra)
  goals = {column: goal for seen in found for column, (_, goal) in runs.headlines(seen.run).items()}
  notes = [f"Measured by {'; '.join(protocols(found))}."] if protocols(found) else []
  if any(row.get("kind") == STAGE_I for row in rows):
    notes.append("Stage I stands apart: its code is made from the truth, so its number says what the code can carry "
                 "and is no prediction from the image. Bold is the best of the others.")
  notes.append("Training minutes come from the logged step times, compilation left out. Predictions are timed in one "
               f"compiled batch, here: {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores.")
  return Section("Results", [results_table(rows, goals or runs.HEADLINES), *map(html.note, notes)])


def run_row(seen: Seen) -> dict[str, Any]:
  """The run's numbers and its speed as a row of the table."""
  return runs.row(seen.run) | ({"milliseconds": 1000 * seen.examples.seconds} if seen.examples else {})


def joined(rows: Sequence[Row], extra: Sequence[Row]) -> list[dict[str, Any]]:
  """All rows, the extra ones first; an extra row with the name of exactly one run's row replaces its values instead."""
  names = [row["name"] for row in rows]
  twins = {row["name"]: row for row in extra if names.count(row["name"]) == 1}
  return [dict(row) for row in extra if row["name"] not in twins] + [
      {**row, **twins.get(row["name"], {})} for row in rows]


def results_table(rows: Sequence[Row], goals: Mapping[str, str] = runs.HEADLINES) -> Html:
  """Rows {"name", "kind", metrics …, "minutes", "milliseconds", "run"} as a table.

  Args:
    rows: what a row does not have shows as a dash; rows of kind "stage I" stand apart.
    goals: {metric: "min" or "max"}.
  """
  metrics = {key: head(key) for row in rows for key in row if key not in ("name", "kind", "steps", *TAIL)}
  tail = {key: text for key, text in TAIL.items() if any(row.get(key) is not None for row in rows)}
  return html.table(rows, columns={"name": "model", **metrics, **tail},
                    best={key: goals[key] for key in metrics if key in goals},
                    formats={"minutes": ".1f", "milliseconds": ".1f"},
                    apart=[i for i, row in enumerate(rows) if row.get("kind") == STAGE_I])


def head(column: str) -> str:
  """What a column holds and, by an arrow, which way is better; "evaluator: metric" keeps its evaluator."""
  place, _, metric = column.rpartition(": ")
  arrow = {"min": "\N{NO-BREAK SPACE}↓", "max": "\N{NO-BREAK SPACE}↑"}.get(runs.HEADLINES.get(metric, ""), "")
  return f"{place}{': ' if place else ''}{HEADS.get(metric, metric)}{arrow}"


def protocols(found: Sequence[Seen]) -> list[str]:
  """Evaluator, its options, split and dataset of every number in the table, each once."""
  texts = {}
  for seen in found:
    for _, kind, _, block in runs.evaluations(seen.run):
      options = ", ".join(f"{key} {value}" for key, value in (block.get("metric") or {}).items())
      dataset = block.get("dataset") or seen.run.config.dataset
      texts[f"{kind}{f' ({options})' if options else ''} on split {block.get('split', '?')} of {dataset}"] = None
  return list(texts)


# --- Training --------------------------------------------------------------------------------------------------------


def training(found: Sequence[Seen]) -> Section:
  """Validation numbers of all runs over time, the losses of each, and their speed."""
  pieces: list[str] = []
  clock = comparison(found)
  if clock:
    pieces += ["All runs on one clock: what they reach on the validation images after how many minutes.",
               html.charts(clock)]
  losses = [chart for seen in found for chart in loss_charts(seen.run)]
  if losses:
    pieces += ["The losses of each run. Thin: as logged; thick: running median. The runs minimise different things, so "
               "heights cannot be compared between charts.", html.charts(losses)]
  pieces.append(html.table([speed_row(seen.run) for seen in found], columns={
      "name": "folder", "steps": "steps", "step_seconds": "seconds/step", "img/s": "images/s", "mfu": "MFU",
      "code_perplexity": "perplexity of the code", "code_dead": "unused words"}))
  broken = [f"{seen.run.name}: {seen.run.unreadable} line(s) of metrics.jsonl could not be read and are left out."
            for seen in found if seen.run.unreadable]
  return Section("Training", [*pieces, *map(html.note, broken)])


def comparison(found: Sequence[Seen]) -> list[Picture]:
  """A chart for each headline number over minutes of training, a line for each run that has it."""
  lines: dict[str, dict[str, figures.Curve]] = {}
  for seen in found:
    for column, (name, _) in runs.headlines(seen.run).items():
      steps, values = runs.series(seen.run.lines, name)
      minutes = runs.minutes_at(seen.run.lines, steps)
      if np.isfinite(minutes).any():
        lines.setdefault(column, {})[f"{seen.run.name} ({seen.run.kind})"] = (minutes, values)
  return [chart_pair(figures.curves, series, xlabel="minutes of training", ylabel=head(column),
                     markers=True, alt=f"{column} of the runs over minutes of training")
          for column, series in lines.items()]


def loss_charts(run: Run) -> list[Picture]:
  """Training and validation losses of one run; on a logarithmic axis where all values are positive.

  The commitment is left out where it has no weight in the loss: then it is another kind of number.
  """
  hidden = () if run.config.get("w_commitment") else ("val/loss_commitment",)
  names = {"loss": "training loss"} | {
      name: name.replace("val/", "validation ") for line in run.lines for name in line
      if name.startswith("val/loss") and name not in hidden}
  lines = {title: runs.series(run.lines, name) for name, title in names.items()}
  lines = {title: line for title, line in lines.items() if line[0].size and np.any(line[1] != 0)}
  if not lines:
    return []
  finite = np.concatenate([y[np.isfinite(y)] for _, y in lines.values()])
  return [chart_pair(figures.curves, lines, title=f"{run.name} ({run.kind})", ylabel="loss", smooth=True,
                     log=bool(finite.size and finite.min() > 0), alt=f"losses of {run.name} over steps")]


def speed_row(run: Run) -> dict[str, Any]:
  """Median speed and the last code statistics of a run."""
  made: dict[str, Any] = {"name": run.name, "steps": runs.steps_done(run)}
  for name in ("step_seconds", "img/s", "mfu"):
    values = runs.series(run.lines, name)[1]
    made |= {name: float(np.nanmedian(values))} if np.isfinite(values).any() else {}
  for name in ("code_perplexity", "code_dead"):
    values = runs.series(run.lines, f"val/{name}")[1]
    made |= {name: float(values[-1])} if values.size else {}
  return made


def configurations(found: Sequence[Seen]) -> Section:
  """The configs, folded."""
  return Section("Configurations", [
      html.details(f"{seen.run.name}: {seen.run.kind}, {seen.run.config.get('task') or ''}",
                   (seen.run.workdir / "config.json").read_text(encoding="utf-8")) for seen in found])


if __name__ == "__main__":
  sys.exit(main())
