"""Batches from saved .npz arrays, without TensorFlow: the same three functions as the preprocessing pipeline has.

`data_dir` holds one `<split>.npz` per split, whose arrays have the examples as their first axis, finished (resized,
ordered, cropped): `image` (n,H,W,3), and as far as they exist `image_ctx` (n,H,W,3) and `labels` (n,H,W,C). All
other arrays are raw truth for the evaluators. The preprocessing string is therefore not applied, with one exception:
`pp="flip_lr"`, that op alone, mirrors each training example with probability 1/2, its labels with it.
"""

import collections
import dataclasses
import functools
import itertools
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from uvim_like import splits
from uvim_like.errors import UserError, unknown

Batch = dict[str, np.ndarray]

DATASET = "npz"
MODEL_KEYS = ("image", "image_ctx", "labels")


class Examples(NamedTuple):
  """A split in memory.

  Attributes:
    inputs: what the model reads, as stored; `convert` makes the batch types.
    truth: the other arrays.
    size: number of examples.
  """
  inputs: dict[str, np.ndarray]
  truth: dict[str, np.ndarray]
  size: int


def convert(key: str, array: np.ndarray) -> np.ndarray:
  """Stored array to batch type.

  uint8 pictures (`image`, `image_ctx`, `labels` of 3 channels) become float32 in [-1, 1] by x/127.5 - 1; other
  integers (class and instance ids) int32; other floats (metres) float32.
  """
  if array.dtype == np.uint8 and array.shape[-1] == 3:
    return array.astype(np.float32) / np.float32(127.5) - np.float32(1)
  return array.astype(np.float32 if np.issubdtype(array.dtype, np.floating) else np.int32, copy=False)


def _folder(dataset: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
  if dataset != DATASET:
    raise UserError(f"config.dataset: '{dataset}' needs the preprocessing pipeline; "
                    f"without it only '{DATASET}' is read")
  if not data_dir:
    raise UserError(f"config.data_dir: dataset '{DATASET}' needs the folder of its <split>.npz files")
  return pathlib.Path(data_dir).absolute()


def _load(folder: pathlib.Path, name: str) -> dict[str, np.ndarray]:
  """All arrays of one split file, checked."""
  path = folder / f"{name}.npz"
  if not path.is_file():
    present = sorted(p.stem for p in folder.glob("*.npz"))
    raise unknown("split", name, present, where=f"{folder}") if present else UserError(f"no .npz files in {folder}")
  stat = path.stat()
  return _read(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _read(path: pathlib.Path, mtime_ns: int, size: int) -> dict[str, np.ndarray]:
  """Reading is kept: evaluations open the same file again and again. Time and size tell a changed file."""
  del mtime_ns, size
  try:
    with np.load(path, allow_pickle=False) as data:
      arrays = {key: data[key] for key in data.files}
  except (zipfile.BadZipFile, EOFError, ValueError) as error:
    raise UserError(f"{path}: not a readable .npz of plain arrays ({error})") from error
  _check(path, arrays)
  for array in arrays.values():
    array.flags.writeable = False
  return arrays


def _check(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  if "image" not in arrays:
    raise UserError(f"{path}: no array 'image'; there are {sorted(arrays)}")
  for key, array in arrays.items():
    if not array.ndim:
      raise UserError(f"{path}: '{key}' is a scalar; its first axis must be the examples")
  lengths = {key: len(array) for key, array in arrays.items()}
  if len(set(lengths.values())) > 1:
    raise UserError(f"{path}: the arrays differ in their number of examples: {lengths}")
  for key in MODEL_KEYS:
    if key not in arrays:
      continue
    array = arrays[key]
    if array.ndim != 4 or (key != "labels" and array.shape[-1] != 3):
      raise UserError(f"{path}: '{key}' has the shape {array.shape}; "
                      f"(n,H,W,{'C' if key == 'labels' else '3'}) is needed")
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
      raise UserError(f"{path}: '{key}' has the dtype {array.dtype}; integers or floats are needed")
    if key != "labels" and np.issubdtype(array.dtype, np.integer) and array.dtype != np.uint8:
      raise UserError(f"{path}: '{key}' has the dtype {array.dtype}; uint8, or floats in [-1, 1], are needed")


def load_split(*, dataset: str, split: str, data_dir: str | os.PathLike | None) -> Examples:
  """The examples that a split expression names, e.g. "train[64:128]+validation".

  Raises:
    UserError: no such file or split, arrays missing or of wrong form, parts whose arrays do not go together.
  """
  folder = _folder(dataset, data_dir)
  parts = [(_load(folder, name), indices)
           for name, indices in splits.select(split, lambda name: len(_load(folder, name)["image"]))]
  keys = set(parts[0][0])
  for arrays, _ in parts[1:]:
    if set(arrays) != keys:
      raise UserError(f"split '{split}': its parts hold different arrays: {sorted(keys ^ set(arrays))}")
  joined = {}
  for key in sorted(keys):
    if len({(arrays[key].shape[1:], arrays[key].dtype) for arrays, _ in parts}) > 1:
      raise UserError(f"split '{split}': the shapes or dtypes of '{key}' differ between its parts")
    pieces = [arrays[key][indices[0]:indices[-1] + 1] for arrays, indices in parts if len(indices)]
    joined[key] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
  return Examples({key: joined[key] for key in MODEL_KEYS if key in joined},
                  {key: joined[key] for key in joined if key not in MODEL_KEYS}, len(joined["image"]))


def num_examples(*, dataset: str, split: str, data_dir: str | os.PathLike | None = None) -> int:
  """Number of examples of a split."""
  folder = _folder(dataset, data_dir)
  return sum(len(indices) for _, indices in
             splits.select(split, lambda name: len(_load(folder, name)["image"])))


@functools.lru_cache(maxsize=4)
def epoch_order(size: int, *, seed: int, epoch: int) -> np.ndarray:
  """(size,) int64: the order of the examples in one epoch. Kept, since every step of an epoch asks for it."""
  order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(size)
  order.flags.writeable = False
  return order


def step_positions(step: int, size: int, *, batch_size: int, seed: int) -> np.ndarray:
  """(B,) int64: the examples of a step. The epochs' permutations follow one another without gap or overlap."""
  ordinals = np.arange(step * batch_size, (step + 1) * batch_size)
  epochs = ordinals // size
  orders = {epoch: epoch_order(size, seed=seed, epoch=int(epoch)) for epoch in np.unique(epochs)}
  return np.array([orders[epoch][ordinal % size] for epoch, ordinal in zip(epochs, ordinals)], np.int64)


def _mirrored(step: int, *, batch_size: int, seed: int) -> np.ndarray:
  """(B,) bool: which examples of a step are mirrored; another stream than the order's."""
  stream = np.random.SeedSequence([seed, step], spawn_key=(1,))
  return np.random.Generator(np.random.PCG64(stream)).random(batch_size) < 0.5


def train_batch(examples: Examples, step: int, *, batch_size: int, seed: int, rows: slice, mirror: bool) -> Batch:
  """The rows of one process of the batch of one step: a pure function of its arguments.

  Returns:
    The arrays of `Examples.inputs` as batch types, and `_index` (rows,) int64.
  """
  positions = step_positions(step, examples.size, batch_size=batch_size, seed=seed)[rows]
  batch = {key: convert(key, array[positions]) for key, array in examples.inputs.items()}
  if mirror:
    chosen = _mirrored(step, batch_size=batch_size, seed=seed)[rows]
    batch = {key: np.where(chosen[:, None, None, None], array[:, :, ::-1], array) for key, array in batch.items()}
  return batch | {"_index": positions}


def ahead(make: Callable[[int], Any], *, start: int, depth: int) -> Iterator[Any]:
  """make(start), make(start + 1), … without end, `depth` of them made ahead in one background thread.

  An exception of `make` is raised when its turn comes. Closing the iterator ends the thread.
  """
  steps = itertools.count(start)
  if not depth:
    yield from map(make, steps)
  pool = futures.ThreadPoolExecutor(1, thread_name_prefix="batches")
  try:
    queue = collections.deque(pool.submit(make, next(steps)) for _ in range(depth))
    while True:
      queue.append(pool.submit(make, next(steps)))
      yield queue.popleft().result()
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def _rows(batch_size: int, process_index: int, process_count: int) -> slice:
  """A process's rows of the global batch."""
  if batch_size % process_count:
    raise UserError(f"config.batch_size: {batch_size} does not divide among {process_count} processes")
  local = batch_size // process_count
  return slice(process_index * local, (process_index + 1) * local)


def train_batches(*, dataset: str, split: str, pp: str | None = None, batch_size: int, seed: int = 0,
                  start_step: int = 0, data_dir: str | os.PathLike | None = None,
                  pp_modules: Sequence[str] | None = None, shuffle_buffer_size: int | None = None,
                  process_index: int = 0, process_count: int = 1, prefetch: int = 2) -> Iterator[Batch]:
  """Training batches without end; the global batch of step k is a pure function of (seed, k), on any host layout.

  Args:
    dataset: 'npz'.
    split: see `uvim_like.splits`.
    pp: not applied, except for "flip_lr"; see the module's docstring. `pp_modules` and `shuffle_buffer_size` have no
      meaning here: every epoch is a full permutation.
    batch_size: global; each process gets its part of the rows.
    seed: of order and mirroring.
    start_step: first step; reached directly.
    data_dir: the folder of the .npz files.
    process_index: this process.
    process_count: of so many.
    prefetch: batches made ahead in a thread, 0 for none.

  Returns:
    An iterator of {"image" (b,H,W,3) float32, "labels" (b,H,W,C), …, "_index" (b,) int64}; `close()` it when done.

  Raises:
    UserError: at once, for data that is missing or of wrong form.
  """
  del pp_modules, shuffle_buffer_size
  examples = load_split(dataset=dataset, split=split, data_dir=data_dir)
  if "labels" not in examples.inputs:
    raise UserError(f"{data_dir}, split '{split}': training needs an array 'labels'; "
                    f"there are {sorted(examples.inputs | examples.truth)}")
  make = functools.partial(
      train_batch, examples, batch_size=batch_size, seed=seed, mirror=(pp or "").strip() == "flip_lr",
      rows=_rows(batch_size, process_index, process_count))
  return ahead(make, start=start_step, depth=prefetch)


def eval_batches(*, dataset: str, split: str, pp: str | None = None, batch_size: int,
                 data_dir: str | os.PathLike | None = None, pp_modules: Sequence[str] | None = None,
                 target_keys: Sequence[str] = (), process_index: int = 0,
                 process_count: int = 1) -> "EvalBatches":
  """The split in order, in batches of one size; every process sees equally many.

  Args:
    dataset, split, pp, batch_size, data_dir, pp_modules, process_index, process_count: as in `train_batches`.
    target_keys: arrays that must be there; all arrays beyond the model's own are returned anyway.

  Returns:
    An iterable, as often as needed, of (batch, targets). The batch is zero-padded, `_mask` (b,) float32 is 1 on examples and 0 on padding,
    `_index` is -1 there. `targets` has a dict of raw arrays (no first axis) for each example, none for padding.

  Raises:
    UserError: as `train_batches`, and for a target key that no array has.
  """
  del pp, pp_modules
  examples = load_split(dataset=dataset, split=split, data_dir=data_dir)
  stored = examples.inputs | examples.truth
  for key in target_keys:
    if key not in stored:
      raise unknown("array", key, stored, where=f"{data_dir}, split '{split}'")
  truth = examples.truth | {key: stored[key] for key in target_keys}
  rows = _rows(batch_size, process_index, process_count)
  return EvalBatches(examples, truth, [range(start, start + batch_size)[rows]
                                       for start in range(0, examples.size, batch_size)])


@dataclasses.dataclass(frozen=True)
class EvalBatches:
  """Evaluation batches that can be iterated again, once an evaluation.

  Attributes:
    examples: the split.
    truth: arrays for the targets.
    wanted: positions of each batch, beyond the split's end where it is padded.
  """
  examples: Examples
  truth: Mapping[str, np.ndarray]
  wanted: list[range]

  def __len__(self) -> int:
    return len(self.wanted)

  def __iter__(self) -> Iterator[tuple[Batch, list[dict[str, np.ndarray]]]]:
    return (_eval_batch(self.examples, self.truth, wanted) for wanted in self.wanted)


def _eval_batch(examples: Examples, truth: Mapping[str, np.ndarray], wanted: range) -> tuple[Batch, list]:
  """Examples `wanted` as far as they exist, padded to its length."""
  positions = np.array([i for i in wanted if i < examples.size], np.int64)
  missing = len(wanted) - len(positions)
  real = {key: convert(key, array[positions]) for key, array in examples.inputs.items()}
  batch = {key: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for key, array in real.items()}
  batch["_mask"] = np.repeat(np.array([1, 0], np.float32), [len(positions), missing])
  batch["_index"] = np.pad(positions, (0, missing), constant_values=-1)
  return batch, [{key: array[i] for key, array in truth.items()} for i in positions]
