"""Evaluations as people and programs read them: a table with the protocol below each, and a JSON file."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from uvim_like.training import logs
from uvim_like.training import workdir as workdirs


class Measured(NamedTuple):
  """One evaluation.

  Attributes:
    name: as the config has it, or the task.
    evaluator: module of `uvim_like/evaluators`.
    data: what was evaluated, in words.
    values: {name: number}.
    protocol: how, in words.
    options: of the metric.
  """
  name: str
  evaluator: str
  data: str
  values: dict[str, float]
  protocol: str
  options: dict[str, Any]


def text(title: str, measured: Sequence[Measured]) -> str:
  """The table: every number, and the protocol below its evaluation."""
  lines = [title]
  for one in measured:
    width = max(map(len, one.values), default=0)
    lines += ["", f"{one.name} ({one.evaluator}) on {one.data}"]
    lines += [f"  {name:<{width}}  {shown(value)}" for name, value in one.values.items()]
    lines += [f"  protocol: {one.protocol}"] if one.protocol else []
  return "\n".join(lines)


def shown(value: float) -> str:
  """Six digits; counts whole."""
  return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def write(out: pathlib.Path, title: str, measured: Sequence[Measured], overrides: Sequence[str] = ()) -> None:
  """The JSON file: all digits, numbers that are none as strings, the config's overrides; whole or not at all."""
  document = {"of": title, "overrides": list(overrides), "evaluations": [
      {"name": one.name, "evaluator": one.evaluator, "data": one.data, "protocol": one.protocol, "metric": one.options,
       "values": {name: logs.json_value(value) for name, value in one.values.items()}} for one in measured]}
  workdirs.write_text(out, json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
