"""Several datasets in one batch, in fixed proportions: "60*nyu:/data/nyu; 4*coco_instances:/data/coco".

Dataset, split and preprocessing are lists with semicolons then, one entry for each part (`data_dir` may be one for
all). A part's count is its rows in a batch. The rows of a process are those of the first part, then those of the next,
and `task_id` says which is which. A key that a part does not have is filled with zeros: no measurement, no object.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from uvim_like.errors import UserError

Batch = dict[str, np.ndarray]
SEPARATOR = ";"
TASK = "task_id"
_SEED_STEP = 1_000_003   # parts draw their orders from seeds of their own


class Part(NamedTuple):
  """One dataset of a mixture.

  Attributes:
    rows: examples of it in a batch, over all processes.
    dataset, split, pp, data_dir: as for a dataset alone.
    seed: of order and augmentation.
  """
  rows: int
  dataset: str
  split: str
  pp: str | None
  data_dir: str | None
  seed: int


def is_mixture(dataset: str) -> bool:
  """Whether a dataset's name lists several."""
  return SEPARATOR in dataset


def parts(dataset: str, split: str, pp: str | None = None, *, data_dir: str | None = None, seed: int = 0
          ) -> tuple[Part, ...]:
  """The parts of a mixture; without `pp`, those of its datasets alone.

  Raises:
    UserError: an entry without its count, lists of different lengths.
  """
  names = _entries(dataset)
  rows, datasets = zip(*(_counted(name, dataset) for name in names))
  lists = [datasets]
  for what, text in (("split", split), ("preprocessing string", pp), ("data_dir", data_dir)):
    entries = _entries(text) if text is not None else [None] * len(names)
    if what == "data_dir" and len(entries) == 1:
      entries = entries * len(names)
    if len(entries) != len(names):
      raise UserError(f"dataset '{dataset}' has {len(names)} parts, but its {what} has {len(entries)}: '{text:.80}'; "
                      f"write one for each part, with '{SEPARATOR}' between them")
    lists.append(entries)
  return tuple(Part(count, *entry, seed + _SEED_STEP * i) for i, (count, entry) in enumerate(zip(rows, zip(*lists))))


def _entries(text: str) -> list[str]:
  return [entry.strip() for entry in text.split(SEPARATOR)]


def _counted(entry: str, dataset: str) -> tuple[int, str]:
  """"60*nyu" -> (60, "nyu")."""
  number, star, name = (word.strip() for word in entry.partition("*"))
  if not star or not number.isascii() or not number.isdigit() or not int(number) or not name:
    raise UserError(f"dataset '{dataset}': '{entry}' is not COUNT*DATASET, such as 60*nyu")
  return int(number), name


def check_rows(mixed: Sequence[Part], batch_size: int, process_count: int) -> None:
  """UserError unless the counts are the batch size and each divides among the processes."""
  counts = [part.rows for part in mixed]
  if sum(counts) != batch_size:
    raise UserError(f"batch_size {batch_size} is not the sum of the parts' rows {counts}")
  if any(rows % process_count for rows in counts):
    raise UserError(f"the parts' rows {counts} do not divide among {process_count} processes")


def length(mixed: Sequence[Part], sizes: Sequence[int]) -> int:
  """Examples of an epoch, which is a pass over the first part, in batches of all parts."""
  return sizes[0] * sum(part.rows for part in mixed) // mixed[0].rows


Specs = Mapping[str, Any]   # key -> something with .shape and .dtype.as_numpy_dtype


def joint_specs(mixed: Sequence[Part], specs: Sequence[Specs]) -> dict[str, Any]:
  """Key -> spec of one example, over all parts.

  Raises:
    UserError: parts that disagree about the shape or type of a key.
  """
  joint: dict[str, Any] = {}
  for part, one in zip(mixed, specs):
    for key, spec in one.items():
      known = joint.setdefault(key, spec)
      if (known.shape, known.dtype) != (spec.shape, spec.dtype):
        raise UserError(f"dataset '{part.dataset}': '{key}' is {tuple(spec.shape)} {spec.dtype.name} here and "
                        f"{tuple(known.shape)} {known.dtype.name} in another part of the batch; give both one shape")
  return joint


def completed(batch: Batch, specs: Specs, task: int) -> Batch:
  """A part's batch with every key of the mixture and `task_id`."""
  rows = len(next(iter(batch.values())))
  missing = {key: np.zeros((rows, *spec.shape), spec.dtype.as_numpy_dtype)
             for key, spec in specs.items() if key not in batch}
  return {**missing, **batch, TASK: np.full(rows, task, np.int32)}


class MixedBatches:
  """The endless iterator over batches of all parts; `close` stops their threads."""

  def __init__(self, iterators: Sequence[Iterator[Batch]], specs: Specs):
    self._iterators, self._specs = iterators, specs

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    batches = [completed(next(one), self._specs, task) for task, one in enumerate(self._iterators)]
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}

  def close(self) -> None:
    for one in self._iterators:
      one.close()


class MixedEval:
  """Iterable, as often as wanted, over the parts' evaluation batches, one part after the other."""

  def __init__(self, evals: Sequence[Iterable], specs: Specs):
    self._evals, self._specs = evals, specs

  def __len__(self) -> int:
    return sum(len(one) for one in self._evals)

  def __iter__(self) -> Iterator[tuple[Batch, list]]:
    for task, one in enumerate(self._evals):
      for batch, targets in one:
        yield completed(batch, self._specs, task), targets
