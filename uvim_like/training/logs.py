"""What a run tells: metrics.jsonl, TensorBoard events, one progress line, and overviews printed once."""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from clu import parameter_overview as clu_overview
from rich.progress import BarColumn, Progress, TextColumn

from uvim_like.errors import UserError
from uvim_like.training.events import Events
from uvim_like.training.workdir import write_text

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"

# Peak dense bfloat16 FLOP/s of one device, from the makers' data sheets, by a part of jax's `device_kind` in lower
# case. The first match counts, so the more special names stand first. CPUs have no entry: no MFU there.
PEAK_FLOPS = (
    ("tpu v6", 918e12), ("tpu v5 lite", 197e12), ("tpu v5e", 197e12), ("tpu v5", 459e12), ("tpu v4", 275e12),
    ("a100", 312e12), ("h100 pcie", 756e12), ("h100 nvl", 835e12), ("h100", 989e12), ("h200", 989e12))


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of a device kind (`jax.devices()[0].device_kind`), None when unknown."""
  kind = device_kind.lower()
  return next((peak for part, peak in PEAK_FLOPS if part in kind), None)


def rates(*, steps: int, seconds: float, batch_size: int, flops_per_step: float | None = None,
          peak: float | None = None) -> dict[str, float]:
  """Speed over an interval.

  Args:
    steps: steps done in it.
    seconds: its length.
    batch_size: images a step, over all devices.
    flops_per_step: of forward and backward pass over the global batch.
    peak: FLOP/s of all devices together.

  Returns:
    {"img/s", "step_seconds"} and, when both FLOP numbers are known, "mfu" (share of the peak, 0..1).
  """
  step_seconds = seconds / steps
  values = {"img/s": batch_size / step_seconds, "step_seconds": step_seconds}
  if flops_per_step and peak:
    values["mfu"] = flops_per_step / step_seconds / peak
  return values


def duration(seconds: float) -> str:
  """Seconds as "2d 03h", "1h 05m", "3m 20s" or "7s"."""
  minutes, secs = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f"{days}d {hours:02d}h"
  if hours:
    return f"{hours}h {minutes:02d}m"
  return f"{minutes}m {secs:02d}s" if minutes else f"{secs}s"


def progress_text(step: int, total_steps: int, loss: float, speed: Mapping[str, float]) -> str:
  """E.g. "step 150/4000  loss 1.234  812 img/s  0.158 s/step  ETA 10m 08s  MFU 41.2%"."""
  parts = [f"step {step}/{total_steps}", f"loss {loss:.4g}"]
  if speed:
    parts += [f"{speed['img/s']:.4g} img/s", f"{speed['step_seconds']:.3g} s/step",
              f"ETA {duration((total_steps - step) * speed['step_seconds'])}"]
  if "mfu" in speed:
    parts.append(f"MFU {100 * speed['mfu']:.1f}%")
  return "  ".join(parts)


def json_value(value: Any) -> int | float | str:
  """A scalar as JSON holds it; "nan", "inf" and "-inf" are strings, since JSON has no such numbers: float() reads them.

  Raises:
    ValueError: not a scalar.
  """
  array = np.asarray(value)
  if array.shape:
    raise ValueError(f"a metric must be a scalar, not of shape {array.shape}")
  if np.issubdtype(array.dtype, np.integer):
    return int(array)
  number = float(array)
  return number if math.isfinite(number) else str(number)


def drop_after(path: pathlib.Path, step: int) -> int:
  """Removes the lines of later steps than `step`, and a torn last line, from a metrics file; 0 removes all.

  Returns:
    The number of lines removed.

  Raises:
    UserError: a line before the last is no JSON object with "step".
  """
  if not path.exists():
    return 0
  lines = _lines(path)
  kept = [line for i, line in enumerate(lines)
          if _step_of(line, last=i + 1 == len(lines), place=f"{path}:{i + 1}") <= step and step > 0]
  if len(kept) < len(lines) or _torn(path):
    write_text(path, "".join(f"{line}\n" for line in kept))
  return len(lines) - len(kept)


def _lines(path: pathlib.Path) -> list[str]:
  """Lines of a metrics file; bytes that are no text make a line that is no JSON."""
  return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] + _torn(path)


def _torn(path: pathlib.Path) -> list[str]:
  """The last line when its end is missing: a run was killed while writing it."""
  last = path.read_bytes().rpartition(b"\n")[2]
  return [last.decode(errors="replace")] if last else []


def drop_torn(path: pathlib.Path) -> None:
  """Cuts a last line without its end off a metrics file, in place: somebody may be writing it."""
  if path.exists() and (torn := path.read_bytes().rpartition(b"\n")[2]):
    os.truncate(path, path.stat().st_size - len(torn))


def evaluated(path: pathlib.Path, step: int) -> set[str]:
  """Names of the numbers that evaluations wrote for a step: those in lines without "loss", which training has."""
  if not path.exists():
    return set()
  lines = [json.loads(line) for line in _lines(path) if f'"step": {step},' in line]
  return {name for line in lines if line["step"] == step and "loss" not in line for name in line}


def _step_of(line: str, *, last: bool, place: str) -> float:
  """The step of a line; infinite for a last line that was cut short."""
  try:
    return json.loads(line)["step"] + 0
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    if last:
      return math.inf
    raise UserError(f"{place}: not a JSON object with 'step': {line[:80]!r}") from error


class Logger:
  """Writes a run's metrics and shows its progress. Only the process with `active` touches files and terminal.

  Args:
    workdir: the run's folder; metrics go to `metrics.jsonl`, events to `tensorboard/`.
    total_steps: for the progress line.
    batch_size: images a step, over all devices.
    resume_step: the restored step, 0 when training begins: later lines of an earlier attempt are removed, and
      TensorBoard is told to hide them. None appends without touching what is there (evaluation only).
    flops_per_step: of one training step over the global batch, for MFU.
    peak: FLOP/s of all devices together, None where unknown.
    active: usually `jax.process_index() == 0`.
    terminal: draw a progress bar instead of plain lines; by default when standard output is one.
  """

  def __init__(self, workdir: str | os.PathLike, *, total_steps: int, batch_size: int, resume_step: int | None = None,
               flops_per_step: float | None = None, peak: float | None = None, active: bool = True,
               terminal: bool | None = None):
    self.total_steps, self.batch_size = total_steps, batch_size
    self.flops_per_step, self.peak, self.active = flops_per_step, peak, active
    self._mark: tuple[int, float] | None = None
    self._file = self._events = self._bar = None
    if not active:
      return
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if resume_step is None:
      drop_torn(workdir / METRICS_FILE)
    else:
      drop_after(workdir / METRICS_FILE, resume_step)
    self._file = open(workdir / METRICS_FILE, "a", encoding="utf-8")
    hidden_from = None if resume_step is None else resume_step + 1 if resume_step else 0
    self._events = Events(workdir / EVENTS_FOLDER, hidden_from=hidden_from)
    if sys.stdout.isatty() if terminal is None else terminal:
      self._bar = Progress(BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f}%"),
                           TextColumn("{task.description}"))
      self._task = self._bar.add_task("", total=total_steps, completed=resume_step or 0)
      self._bar.start()

  def __enter__(self) -> "Logger":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends one line {"step": …, name: value, …} and the same values as TensorBoard scalars.

    Args:
      step: number of updates done.
      values: {name: scalar}, on the host (anything that numpy reads).
    """
    if not self.active:
      return
    values = {name: json_value(value) for name, value in values.items()}
    self._file.write(json.dumps({"step": int(step), **values}, allow_nan=False) + "\n")
    self._file.flush()
    self._events.write(int(step), {name: float(value) for name, value in values.items()})

  def sync(self) -> None:
    """Returns when what was written survives a failure of the machine: a checkpoint must not outlive its log."""
    if self._file:
      os.fsync(self._file.fileno())

  def start(self, step: int) -> None:
    """Starts the clock for `progress`: call it after the first step, so that compilation is left out."""
    self._mark = (step, time.monotonic())

  def progress(self, step: int, loss: float) -> dict[str, float]:
    """Shows step, loss and the speed since the last call (or `start`), and returns that speed for `write`.

    Returns:
      See `rates`; {} when the clock was not started or no step was done since.
    """
    now, speed = time.monotonic(), {}
    if self._mark and step > self._mark[0]:
      speed = rates(steps=step - self._mark[0], seconds=max(now - self._mark[1], 1e-9), batch_size=self.batch_size,
                    flops_per_step=self.flops_per_step, peak=self.peak)
    self._mark = (step, now)
    text = progress_text(step, self.total_steps, float(loss), speed)
    if self._bar:
      self._bar.update(self._task, completed=step, description=text)
    else:
      self.say(text)
    return speed

  def say(self, text: str) -> None:
    """Prints a line (above the progress bar, where there is one)."""
    if self._bar:
      self._bar.console.print(text, highlight=False, markup=False)
    elif self.active:
      print(text, flush=True)

  def close(self) -> None:
    """Finishes the bar and the files; what was written is on disk afterwards."""
    bar, file, events = self._bar, self._file, self._events
    self._bar = self._file = self._events = None
    self.active = False
    if bar:
      bar.stop()
    if file:
      with file, events:
        pass


def parameter_overview(params: Any) -> str:
  """A table of the parameters (arrays or shapes) with name, shape, dtype, size, and their total."""
  return clu_overview.get_parameter_overview(params, include_stats=False)


def table_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """Rows in aligned columns under a header, for `optim.table` and `sharding.table`."""
  cells = [list(map(str, header)), *([str(cell) for cell in row] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*cells)]
  return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)
