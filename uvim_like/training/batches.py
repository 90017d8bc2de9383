"""Batches from saved .npz arrays, without TensorFlow: the same three functions as the preprocessing pipeline has.

`data_dir` holds one `<split>.npz` per split, whose arrays have the examples as their first axis, finished (resized,
ordered, cropped): `image` (n,H,W,3), and of the other `MODEL_KEYS` those that exist. All other arrays are raw truth
for the evaluators. The preprocessing string is therefore not applied, with one exception: `pp="flip_lr"`, that op
alone, mirrors each training example with probability 1/2, everything that describes it with it.

Two keys have a compact form on disk. `labels` int8 (n,H,W,3) are unit vectors times 127, the only labels whose x
changes its sign in a mirror. `masks/packed` (n,N,h,ceil(w/8)) uint8 are `masks` with eight pixels of a row in a byte
(`numpy.packbits`); (h,w) is the image's size or a divisor of it. `captions/mirrored` are the captions of the mirrored
picture.
"""

import collections
import dataclasses
import functools
import itertools
import logging
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from uvim_like import splits
from uvim_like.errors import UserError, unknown
from uvim_like.labels import check_channels
from uvim_like.training import mirror, stored

Batch = dict[str, np.ndarray]
log = logging.getLogger(__name__)
# What damaged archives, and single arrays in their place, raise.
READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, TypeError, AttributeError)

DATASET = "npz"
MODEL_KEYS = stored.MODEL_KEYS
convert = stored.convert


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


def _folder(dataset: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
  if dataset != DATASET:
    raise UserError(f"config.dataset: '{dataset}' needs the preprocessing pipeline; "
                    f"without it only '{DATASET}' is read")
  if not data_dir:
    raise UserError(f"config.data_dir: dataset '{DATASET}' needs the folder of its <split>.npz files")
  return pathlib.Path(data_dir).expanduser().absolute()


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
  except READ_ERRORS as error:
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
  for key in stored.PICTURE_KEYS:
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
  stored.check(path, arrays)


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
  return Examples({key: joined[key] for key in stored.STORED_KEYS if key in joined},
                  {key: joined[key] for key in joined if key not in stored.STORED_KEYS}, len(joined["image"]))


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


def stand_ins(labels: np.ndarray, limits: tuple[int, ...] | None, *, max_bad_share: float, where: str) -> np.ndarray:
  """(n,) int64: each example's own position, and a sound one's for those whose integer labels are out of range.

  Args:
    labels: (n,H,W,C).
    limits: number of classes a channel; None: nothing is out of range. -1 means ignored.
    max_bad_share: more of the split must not be bad.
    where: for the message.

  Raises:
    UserError: more are bad, or all; another number of channels.
  """
  positions = np.arange(len(labels))
  if limits is None or not np.issubdtype(labels.dtype, np.integer):
    return positions
  check_channels(labels.shape[-1], limits, where=where)
  axes = (1, 2)
  fine = ((labels.max(axes) < np.array(limits)) & (labels.min(axes) >= -1)).all(-1)
  bad = positions[~fine]
  if not len(bad):
    return positions
  log.warning("%s: %d examples with labels out of range are left out: %s%s", where, len(bad),
              ", ".join(map(str, bad[:10])), ", …" * (len(bad) > 10))
  if len(bad) > max_bad_share * len(labels) or not fine.any():
    raise UserError(f"{where}: {len(bad)} of {len(labels)} examples have labels out of range, more than "
                    f"max_bad_share = {max_bad_share:g}; the first: {bad[0]}")
  return np.where(fine, positions, positions[fine][positions % fine.sum()])


def train_batch(examples: Examples, step: int, *, batch_size: int, seed: int, rows: slice, flip: bool,
                stand_in: np.ndarray | None = None) -> Batch:
  """The rows of one process of the batch of one step: a pure function of its arguments; `stand_in` see `stand_ins`.

  Returns:
    The arrays of `Examples.inputs` as batch types, and `_index` (rows,) int64.
  """
  positions = step_positions(step, examples.size, batch_size=batch_size, seed=seed)[rows]
  positions = positions if stand_in is None else stand_in[positions]
  batch = stored.to_batch({key: array[positions] for key, array in examples.inputs.items()})
  if flip:
    chosen = _mirrored(step, batch_size=batch_size, seed=seed)[rows]
    normals = "labels" in examples.inputs and stored.is_normals(examples.inputs["labels"])
    batch = mirror.mirror(batch, chosen, normals=normals)
  return _of_model(batch) | {"_index": positions}


def _of_model(batch: Batch) -> Batch:
  return {key: array for key, array in batch.items() if key in MODEL_KEYS}


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
                  process_index: int = 0, process_count: int = 1, prefetch: int = 2, on_bad_example: str = "error",
                  max_bad_share: float = 0.01, label_limits: tuple[int, ...] | None = None) -> Iterator[Batch]:
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
    on_bad_example: "skip" puts another example in the place of one whose labels are out of range; "error" leaves that
      to the loop, which stops.
    max_bad_share: of the split; "skip" stops above it.
    label_limits: number of classes in each channel of integer labels.

  Returns:
    An iterator of {"image" (b,H,W,3) float32, "labels" (b,H,W,C), …, "_index" (b,) int64}; `close()` it when done.

  Raises:
    UserError: at once, for data that is missing or of wrong form.
  """
  del pp_modules, shuffle_buffer_size
  examples = load_split(dataset=dataset, split=split, data_dir=data_dir)
  if not set(examples.inputs) & {*stored.TARGET_KEYS, stored.PACKED_MASKS}:
    raise UserError(f"{data_dir}, split '{split}': training needs an array 'labels', or another of "
                    f"{', '.join(stored.TARGET_KEYS[1:])}; there are {sorted(examples.inputs | examples.truth)}")
  if on_bad_example == "skip" and "labels" in examples.inputs:
    stand_in = stand_ins(examples.inputs["labels"], label_limits, max_bad_share=max_bad_share,
                         where=f"{data_dir}, split '{split}'")
  else:
    stand_in = None
  make = functools.partial(
      train_batch, examples, stand_in=stand_in, batch_size=batch_size, seed=seed, flip=(pp or "").strip() == "flip_lr",
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
  real = _of_model(stored.to_batch({key: array[positions] for key, array in examples.inputs.items()}))
  batch = {key: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for key, array in real.items()}
  batch["_mask"] = np.repeat(np.array([1, 0], np.float32), [len(positions), missing])
  batch["_index"] = np.pad(positions, (0, missing), constant_values=-1)
  return batch, [{key: array[i] for key, array in truth.items()} for i in positions]
