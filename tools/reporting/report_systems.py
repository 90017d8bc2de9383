"""Which kinds of runs show what beside their predictions: one line a system; a kind that is not here shows nothing more."""

from collections.abc import Sequence
from typing import Any

from tools.reporting import report_ait, report_clusters, report_stages, report_uvim
from tools.reporting.examples import Examples, Loaded
from tools.reporting.html import Section
from tools.reporting.report_maps import Column
from tools.reporting.report_seen import Seen, Special
from uvim_like.errors import UserError

TABLES = (report_uvim.SPECIALS, report_ait.SPECIALS, report_stages.SPECIALS, report_clusters.SPECIALS)
SPECIALS: dict[str, tuple[Special, ...]] = {
    kind: tuple(special for table in TABLES for special in table.get(kind, ()))
    for kind in dict.fromkeys(kind for table in TABLES for kind in table)}


def gather(run: Loaded, found: Sequence[Examples]) -> tuple[dict[str, Any], list[str]]:
  """({name of a special: what it gathered}, what hindered others) of a run with predictions."""
  extras, problems = {}, []
  for special in SPECIALS.get(run.kind, ()):
    try:
      made = special.gather(run, found)
    except UserError as error:
      problems.append(f"{special.name}: {error}")
      continue
    if made is not None:
      extras[special.name] = made
  return extras, problems


def columns(seen: Seen, base: Examples) -> list[Column]:
  """What the run's specials add to the table of predictions."""
  return [column for special in SPECIALS.get(seen.run.kind, ()) if special.name in seen.extras
          for column in special.columns(seen, base)]


def sections(found: Sequence[Seen], count: int) -> list[Section]:
  """The sections of all specials, each with all runs that have it, `count` images at most."""
  every = {special.sections: special for kind in SPECIALS for special in SPECIALS[kind]}
  made = []
  for special in every.values():
    having = [seen for seen in found if special.name in seen.extras]
    made += special.sections(having, count) if having else []
  return made
