"""The configs of the report's runs, in full and where they differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from tools.reporting import html
from tools.reporting.html import Section
from tools.reporting.report_seen import Seen
from uvim_like import config_json

OPEN = 12  # differences up to which the table stands open
LONGEST = 90  # characters of a value in the table


def section(found: Sequence[Seen]) -> Section:
  """Where the configs differ, then all of them, folded."""
  texts = [html.details(f"{seen.run.name}: {seen.run.kind}, {seen.run.config.get('task') or ''}",
                        (seen.run.workdir / "config.json").read_text(encoding="utf-8")) for seen in found]
  return Section("Configurations", [*differences({seen.run.name: seen.run.config for seen in found}), *texts])


def differences(configs: Mapping[str, Any]) -> list[str]:
  """A table {key: value of each run} of what differs; nothing for a single run."""
  if len(configs) < 2:
    return []
  rows = differing(configs)
  if not rows:
    return ["The configs of the runs are the same."]
  columns = {"": "key", **{name: name for name in configs}}  # no folder has an empty name
  table = html.table([{"": key, **values} for key, values in rows.items()], columns=columns)
  what = f"{len(rows)} value{'s' if len(rows) > 1 else ''} of the config differ{'' if len(rows) > 1 else 's'}"
  return [f"{what}:", table] if len(rows) <= OPEN else [html.folded(what, [table])]


def differing(configs: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
  """{dotted key: {run: value as text, None where it has none}} of the keys that are not the same everywhere."""
  first, *others = configs.values()
  keys = dict.fromkeys(key for other in others for key, _, _ in config_json.diff(first, other))
  flat = {name: dict(config_json.leaves(config_json.plain(config))) for name, config in configs.items()}
  return {key: {name: shortened(values[key]) if key in values else None for name, values in flat.items()} for key in keys}


def shortened(value: Any) -> str:
  """A value as the table shows it."""
  text = value if isinstance(value, str) else repr(value)
  return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
