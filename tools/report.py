"""One page about trained runs of any system: `python -m tools.report --workdir=D,… --out=F.html`.

A table of all runs with the protocol of its numbers, validation pictures (image, truth, prediction, error), what each system
has to show beside them, curves, timings, configs and their differences. The page needs no network.
"""

import inspect
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from tools import shell
from tools.reporting import examples, html, report_config, report_pictures, report_systems, report_training, runs
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
from tools.reporting.html import Html, Page, Section
from tools.reporting.report_seen import Seen
from tools.reporting.report_training import head
from tools.reporting.runs import Run
from uvim_like import config_json, flags
from uvim_like.errors import UserError
from uvim_like.evaluators import run as evaluation

Row = Mapping[str, Any]
UVIM = (
    "UViM turns an image into a map (depth, segments, colours) in two stages. In stage I an oracle looks at the true "
    "map and writes a short code, a few words of a learned dictionary; a base model draws the map from the image and "
    "this code. In stage II a language model learns to write the code from the image alone, and the same base model "
    "draws the map from it. Stage I thus shows what the code can carry; stage II is the actual prediction.")
AIT = (
    "AiT writes outputs as tokens. A light tokenizer learns to turn a true map or mask into a few words and back; a "
    "solver then writes these words from the image, and the tokenizer's decoder makes the map of them. The tokenizer "
    "thus shows what its words can carry; the solver is the actual prediction.")
MASKED = (
    "MAD writes boxes, masks, keypoints and captions as sequences of one vocabulary. One decoder sees such a sequence "
    "partly hidden and fills it in, all places at once, in one or several stages.")
CLUSTERS = (
    "PolyMaX lets every pixel of an image join one of K clusters. What a cluster stands for, a class, a depth or a "
    "direction, comes from the network too, and a pixel is the mixture of its clusters, or belongs to the likeliest.")
# What a page says of its runs: (title of a page of one system, introduction), by kind.
ABOUT = {**dict.fromkeys((STAGE_I, STAGE_II), ("UViM: predictions from a guiding code", UVIM)),
         **dict.fromkeys((TOKENIZER, SOLVER), ("AiT: maps and objects as tokens", AIT)),
         **dict.fromkeys((MAD, MAD_AR), ("MAD: sequences from a masked decoder", MASKED)),
         **dict.fromkeys((POLYMAX, PER_PIXEL), ("PolyMaX: maps from clusters of pixels", CLUSTERS))}
BASELINES = {REGRESSION: "UViM: predictions from a guiding code", NO_CODE: "UViM: predictions from a guiding code"}
TAIL = {"minutes": "training, min", "milliseconds": "prediction, ms/image", "run": "folder"}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; a person's mistake is one line and exit status 2."""
  return shell.exit_status("report", run, argv)


def run(argv: Sequence[str]) -> None:
  """Writes the page and says how large it is."""
  parser = flags.Parser(prog="python -m tools.report", description=__doc__)
  parser.add_argument("--workdir", required=True, help="folders of trainings, with commas")
  parser.add_argument("--out", required=True, help="the page to write, F.html")
  parser.add_whole("--rows", default=8, help="validation images to show (8)")
  parser.add_argument("--table", default="", help="JSON list of more rows of the table: [{name, RMSE, minutes, …}]; a "
                      "row with the name of a run's row replaces its values")
  parser.add_argument("--title", default=None, help="of the page; by default it follows from the runs")
  options = parser.parse_args(argv)
  extra = read_table(pathlib.Path(options.table).expanduser()) if options.table else []
  out = pathlib.Path(options.out).expanduser()
  size = write(options.workdir.split(","), out, rows=options.rows, extra=extra, title=options.title, say=print)
  print(f"{out}: {size / 1e6:.2f} MB")


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
          title: str | None = None, say: Callable[[str], None] = lambda text: None) -> int:
  """Reads the runs, lets them predict, and writes the page.

  Args:
    workdirs: folders of trainings.
    out: the page's file.
    rows: validation images to show; fewer when the page would grow beyond its limit, which the page then says.
    extra: more rows of the table, e.g. {"name": "constant map", "RMSE": 1.37}; see `joined`.
    title: of the page; by default that of the system, or the systems' names.
    say: gets a line on each run.

  Returns:
    The page's size in bytes.

  Raises:
    UserError: a folder that holds no run, a page that is too large even with one image.
  """
  if rows < 1:
    raise UserError(f"--rows: {rows} is less than 1")
  given = [workdir for workdir in workdirs if str(workdir).strip()]
  if not given:
    raise UserError("--workdir: give at least one folder of a training")
  if pathlib.Path(out).is_dir():
    raise UserError(f"--out: '{out}' is a folder; give the name of a page, e.g. {pathlib.Path(out) / 'report.html'}")
  found = [look(run, say) for run in runs.read(given)]
  return html.write(out, fitting(found, rows=rows, extra=extra, title=title))


def look(run: Run, say: Callable[[str], None]) -> Seen:
  """The run's predictions; what hinders them, such as a dataset that is gone, goes on the page instead."""
  try:
    loaded = examples.load(run.workdir)
    found = examples.predictions(loaded)
  except UserError as error:
    say(f"{run.name}: no pictures: {error}")
    return Seen(run, problems=(str(error),))
  extras, problems = report_systems.gather(loaded, found)
  say(f"{run.name}: {run.kind}, step {loaded.trained.step or runs.steps_done(run)}: "
      + ", ".join(f"{base.family} of {len(base.image)} validation examples" for base in found))
  for problem in problems:
    say(f"{run.name}: {problem}")
  return Seen(run, tuple(found), extras, tuple(problems), loaded.trained.step)


def fitting(found: Sequence[Seen], *, rows: int, extra: Sequence[Row] = (), title: str | None = None,
            limit: int = html.MAX_BYTES) -> str:
  """The rendered page with as many of the wanted rows as `limit` bytes allow, at least one."""
  frame = page(found, extra=extra, title=title)
  shown = rows
  while True:
    pictures = report_pictures.sections(found, rows=shown, wanted=rows)
    text = html.render(frame._replace(sections=[frame.sections[0], *pictures, *frame.sections[1:]]))
    if shown == 1 or len(text.encode("utf-8")) <= limit:
      return text
    shown = (shown + 1) // 2


def page(found: Sequence[Seen], *, extra: Sequence[Row], title: str | None) -> Page:
  """The page without its pictures, which come behind the first section."""
  about = dict.fromkeys(ABOUT[seen.run.kind] for seen in found if seen.run.kind in ABOUT)
  return Page(title or title_of(found), " ".join(intro for _, intro in about),
              [results(found, extra), report_training.section(found), report_config.section(found)])


def title_of(found: Sequence[Seen]) -> str:
  """The title of the one system that the runs are of, or all systems' names."""
  kinds = [seen.run.kind for seen in found]
  titles = list(dict.fromkeys(ABOUT[kind][0] if kind in ABOUT else BASELINES.get(kind, kind) for kind in kinds))
  names = [title.partition(":")[0] for title in titles]
  return titles[0] if len(titles) == 1 else f"Runs of {', '.join(names[:-1])} and {names[-1]}"


# --- Results ---------------------------------------------------------------------------------------------------------


def results(found: Sequence[Seen], extra: Sequence[Row]) -> Section:
  """The table of all runs with the protocol of its numbers."""
  rows = joined([run_row(seen) for seen in sorted(found, key=lambda seen: runs.rank(seen.run.kind))], extra)
  goals = {column: goal for seen in found for column, (_, goal) in runs.headlines(seen.run).items()}
  notes = protocols(found)
  if any(row.get("kind") == STAGE_I for row in rows):
    notes.append("Stage I stands apart: its code is made from the truth, so its number says what the code can carry "
                 "and is no prediction from the image. Bold is the best of the others.")
  if any(row.get("kind") == TOKENIZER for row in rows):
    notes.append("Tokenizers stand apart: they see the truth, so their numbers say what their codes can carry.")
  notes.append("Training minutes come from the logged step times, compilation left out. Predictions are timed in one "
               f"compiled batch, here: {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores.")
  going_on = [f"{seen.run.name} (step {seen.step})" for seen in found if seen.step and runs.state(seen.run) != "finished"]
  notes += [f"Not finished yet; pictures are those of the newest checkpoint: {', '.join(going_on)}."] if going_on else []
  return Section("Results", [results_table(rows, goals or runs.HEADLINES), *map(html.note, notes)])


def run_row(seen: Seen) -> dict[str, Any]:
  """The run's numbers and its speed as a row of the table."""
  return runs.row(seen.run) | ({"milliseconds": 1000 * seen.seconds} if seen.seconds is not None else {})


def joined(rows: Sequence[Row], extra: Sequence[Row]) -> list[dict[str, Any]]:
  """All rows, the extra ones first; an extra row with the name of exactly one run's row replaces its values instead."""
  names = [row["name"] for row in rows]
  twins = {row["name"]: row for row in extra if names.count(row["name"]) == 1}
  return [dict(row) for row in extra if row["name"] not in twins] + [
      {**row, **twins.get(row["name"], {})} for row in rows]


def results_table(rows: Sequence[Row], goals: Mapping[str, str] = runs.HEADLINES) -> Html:
  """Rows {"name", "kind", metrics …, "minutes", "milliseconds", "run"} as a table.

  Args:
    rows: what a row does not have shows as a dash; rows of runs that see the truth stand apart.
    goals: {metric: "min" or "max"}.
  """
  metrics = {key: head(key) for row in rows for key in row if key not in ("name", "kind", "steps", *TAIL)}
  tail = {key: text for key, text in TAIL.items() if any(row.get(key) is not None for row in rows)}
  return html.table(rows, columns={"name": "model", **metrics, **tail},
                    best={key: goals[key] for key in metrics if key in goals},
                    formats={"minutes": ".1f", "milliseconds": ".1f"},
                    apart=[i for i, row in enumerate(rows) if row.get("kind") in runs.SEE_THE_TRUTH])


def protocols(found: Sequence[Seen]) -> list[str]:
  """What each number of the table means: evaluator, options, split, dataset and protocol, each once, with its runs."""
  texts: dict[tuple[str, str], list[str]] = {}
  for seen in found:
    named = runs.headlines(seen.run)
    for _, kind, prefix, block in runs.evaluations(seen.run):
      columns = ", ".join(head(column).rstrip("\N{NO-BREAK SPACE}↓↑") for column, (place, _) in named.items()
                          if place.startswith(prefix))
      dataset = block.get("dataset") or seen.run.config.get("dataset")
      given = ", ".join(f"{key} {value}" for key, value in (block.get("metric") or {}).items())
      text = (f"{kind}{f' ({given})' if given else ''} on split {block.get('split', '?')} of {dataset}"
              f"{protocol(kind, block, dataset)}")
      texts.setdefault((columns, text), []).append(seen.run.name)
  everyone = len(found)
  return [f"{columns or 'Not logged yet'}: measured by {text}."
          + (f" ({', '.join(names)})" if len(names) < everyone else "") for (columns, text), names in texts.items()]


def protocol(kind: str, block: Mapping[str, Any], dataset: str) -> str:
  """An evaluator's own words for its protocol, with a colon in front; "" where it cannot be made here."""
  try:
    make = evaluation.load(kind).make
    options = config_json.plain(block.get("metric") or {})
    if "dataset" in inspect.signature(make).parameters:
      options.setdefault("dataset", dataset)
    text = make(**options).protocol
  except UserError:  # it wants a file or a dataset that is not at hand; its name and options still stand there
    return ""
  return f": {text.rstrip('.')}" if text else ""


if __name__ == "__main__":
  sys.exit(main())
