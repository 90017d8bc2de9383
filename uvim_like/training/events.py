"""TensorBoard's event files, written at once by the caller: a full disk is an error here, not a dead thread."""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

VERSION = "brain.Event:2"  # of the format, in the first event of a file


class Events:
  """One event file in a folder.

  Args:
    folder: made when it is missing.
    hidden_from: a step from which on TensorBoard is to hide what earlier files hold; None hides nothing.
  """

  def __init__(self, folder: pathlib.Path, *, hidden_from: int | None = None):
    folder.mkdir(parents=True, exist_ok=True)
    # The process and the nanosecond: a run that is restarted within a second must not write into the same file.
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
    self._file = open(folder / name, "xb")
    self._append(Event(wall_time=time.time(), file_version=VERSION))
    if hidden_from is not None:
      self._append(Event(wall_time=time.time(), step=hidden_from, session_log=SessionLog(status=SessionLog.START)))

  def __enter__(self) -> "Events":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends the scalars of one step; OSError when the disk takes no more."""
    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

  def _append(self, event: Event) -> None:
    """One record: length, its checksum, data, their checksum (the framing of TFRecord files)."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    self._file.write(length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data)))
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()
