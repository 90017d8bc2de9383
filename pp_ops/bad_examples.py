"""What training does with an example that cannot be read, where the config says "skip": another takes its place.

The substitute is a function of (seed, epoch, example) and never of what went wrong before, so the batch of a step stays
a function of (seed, step), after a resume and on any number of processes.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from uvim_like.errors import UserError
from uvim_like.labels import check_channels

Batch = dict[str, np.ndarray]
log = logging.getLogger(__name__)

# What a broken file or a failed check raises; running out of memory, for one, is none of these. TensorFlow makes its
# own errors of what Python raises below it; substitutes are read by Python alone.
DATA_ERRORS = (tf.errors.InvalidArgumentError, tf.errors.UnknownError, tf.errors.NotFoundError, tf.errors.DataLossError,
               tf.errors.FailedPreconditionError, tf.errors.PermissionDeniedError, ValueError, OSError, KeyError)
TRIES = 16   # substitutes in a row that may be bad too; more, and the data or its storage is broken as a whole


class Split(NamedTuple):
  """What is known of a split here.

  Attributes:
    name: for messages.
    length: number of examples.
    example_id: index -> what people call it.
    read: (epoch, index) -> features of the batch and "_index", or one of `DATA_ERRORS`.
  """
  name: str
  length: int
  example_id: Callable[[int], str]
  read: Callable[[int, int], Mapping[str, np.ndarray]]


def substitute(seed: int, epoch: int, index: int, attempt: int, *, length: int) -> int:
  """The example that stands in for a bad one; RandomState, because numpy never changes its stream."""
  entropy = [seed & 0xffffffff, seed >> 32 & 0xffffffff, epoch & 0xffffffff, index & 0xffffffff, index >> 32, attempt]
  return int(np.random.RandomState(entropy).randint(length))


def reason(error: Exception) -> str:
  """What is wrong with an example, in one line."""
  text = f"there is no {error}" if isinstance(error, KeyError) else str(getattr(error, "message", error))
  return " ".join(text.split())[:400]


def label_problem(features: Mapping[str, np.ndarray], limits: Sequence[int] | None, *, where: str) -> str | None:
  """Words about the first channel of integer `labels` (H, W, C) outside its number of classes; -1 means ignored.

  Raises UserError, naming `where`, for another number of channels: all examples have it.
  """
  labels = features.get("labels")
  if limits is None or labels is None or not np.issubdtype(labels.dtype, np.integer):
    return None
  check_channels(labels.shape[-1], limits, where=where)
  for channel, classes in enumerate(limits):
    low, high = int(labels[..., channel].min()), int(labels[..., channel].max())
    if low < -1 or high >= classes:
      return f"label {high if high >= classes else low} in channel {channel}, which has {classes} classes"
  return None


class SkippingBatches:
  """The endless iterator of batches in which substitutes stand for bad examples; `close` stops its threads.

  Attributes:
    bad: id of each bad example met so far -> what is wrong with it. This process's part of the data alone.
  """

  def __init__(self, examples: Iterator[Mapping[str, np.ndarray]], rows: Callable[[int], list[tuple[int, int]]],
               split: Split, *, seed: int, start_step: int, max_bad_share: float,
               label_limits: Sequence[int] | None = None):
    self.bad: dict[str, str] = {}
    self._examples, self._rows, self._split = examples, rows, split
    self._seed, self._step, self._share, self._limits = seed, start_step, max_bad_share, label_limits

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    examples = [self._example(epoch, index) for epoch, index in self._rows(self._step)]
    self._step += 1
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}

  def close(self) -> None:
    """Stops the threads; the iterator is at its end then."""
    self._examples.close()

  def _example(self, epoch: int, index: int) -> Mapping[str, np.ndarray]:
    features, problem = self._attempt(lambda: next(self._examples))
    candidate = index
    for attempt in range(TRIES):
      if problem is None:
        return features
      self._note(candidate, problem)
      candidate = substitute(self._seed, epoch, index, attempt, length=self._split.length)
      features, problem = self._attempt(lambda candidate=candidate: self._split.read(epoch, candidate))
    raise UserError(f"{self._split.name}: example '{self._split.example_id(index)}' and {TRIES} others in its place "
                    f"cannot be read, the last because: {problem}")

  def _attempt(self, read: Callable[[], Mapping]) -> tuple[Mapping | None, str | None]:
    """(features, None), or (None, what is wrong)."""
    try:
      features = read()
    except DATA_ERRORS as error:
      return None, reason(error)
    return features, label_problem(features, self._limits, where=self._split.name)

  def _note(self, index: int, problem: str) -> None:
    """Counts and logs a bad example once; UserError above the share."""
    name = self._split.example_id(index)
    if name in self.bad:
      return
    self.bad[name] = problem
    log.warning("%s: example '%s' is left out (%d so far): %s", self._split.name, name, len(self.bad), problem)
    if len(self.bad) > self._share * self._split.length:
      raise UserError(f"{self._split.name}: {len(self.bad)} of {self._split.length} examples are bad, more than "
                      f"max_bad_share = {self._share:g}; the last: '{name}': {problem}")
