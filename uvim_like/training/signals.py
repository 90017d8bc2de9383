"""SIGTERM and SIGINT end a training after the step that runs, with everything saved; the same command goes on."""

import os
import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

# Exit status of a run that was stopped by a signal and goes on when started again: EX_TEMPFAIL of sysexits.h, which no
# shell gives to a killed process (128 + n) and no mistake of a person has (2).
EXIT_STOPPED = 75
# Several processes ask each other whether to stop at multiples of this step: a round of messages, and all must make it
# at the same step, since saving is a common act.
AGREE_STEPS = 10


class Stopped(KeyboardInterrupt):
  """A run that was asked to stop, and did; no ordinary error, so that no library takes it for one."""


class StopRequest:
  """Notes the first SIGTERM or SIGINT while the block runs.

  Until `armed` there is nothing to save, and the signal raises `Stopped` at once. A second SIGINT ends the process at
  once, as it would by default; further SIGTERMs change nothing. Outside the main thread signals are left alone.
  """

  def __init__(self):
    self.armed = False
    self.name: str | None = None
    self._before: dict[int, object] = {}

  def __enter__(self) -> "StopRequest":
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._before = {}

  def _receive(self, number: int, frame: object) -> None:
    del frame
    if self.name is not None:
      if number == signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
      return
    self.name = signal.Signals(number).name
    if not self.armed:
      raise Stopped(f"{self.name} before the first step: nothing was lost")
    # Not print: the signal may have come in the middle of one.
    os.write(2, f"{self.name}: stopping after this step and saving; Ctrl-C (again) stops at once\n".encode())

  def agreed(self, step: int) -> bool:
    """Whether all processes stop after this step; alone, a look at a variable."""
    if jax.process_count() == 1:
      return self.name is not None
    if step % AGREE_STEPS:
      return False
    return bool(multihost_utils.process_allgather(np.array(self.name is not None)).any())
