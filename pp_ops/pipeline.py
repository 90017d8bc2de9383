"""Batches for training (shuffled, endless, resumable at any step) and for evaluation (in order, padded, with `_mask`).

The order is a seeded permutation of the split for every epoch, so the batch of step k is a function of (seed, k) alone,
whatever the number of processes; augmentation draws from (seed, epoch, example, place of the op in the string).
"""

import functools
import math
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pp_ops import bad_examples, builder, mixture, stand_in
from pp_ops.registry import SEED
from pp_ops.source import Source
from pp_ops.sources import open_source
from uvim_like.errors import UserError, suggest

Batch = dict[str, np.ndarray]
Targets = list[dict[str, np.ndarray]]
Rows = Callable[[int], list[tuple[int, int]]]   # step -> (epoch, index) of every row


class Prepared(NamedTuple):
  """A preprocessing string bound to a source.

  Attributes:
    source: the split.
    program: the string.
    specs: what it puts out, one example.
    keys: the source's features that are read.
    targets: features handed through beside the batch.
  """
  source: Source
  program: builder.Program
  specs: dict[str, tf.TensorSpec]
  keys: tuple[str, ...]
  targets: tuple[str, ...]


def prepare(*, dataset: str, split: str, pp: str, data_dir: str | None = None,
            pp_modules: Sequence[str] | None = None, target_keys: Collection[str] = ()) -> Prepared:
  """Opens the source and checks the whole string against its features; no example is read.

  Raises:
    UserError: a mistake in the string, the dataset, the split, files without partner that are needed, or outputs that
      cannot form a batch.
  """
  program = builder.compile_string(pp, pp_modules)
  source = open_source(dataset, split, data_dir=data_dir, skip_decode=builder.decoded_keys(program))
  specs = builder.output_specs(program, source.features)
  _check_batchable(program, specs)
  for key in target_keys:
    if key not in source.features:
      raise UserError(f"{source.name}: no feature '{key}' for the evaluator; {suggest(key, source.features)}")
  keys = builder.needed_keys(program, source.features) | set(target_keys)
  source.check(keys)
  return Prepared(source, program, specs, tuple(k for k in source.features if k in keys), tuple(target_keys))


def _check_batchable(program: builder.Program, specs: Mapping[str, tf.TypeSpec]) -> None:
  for key, spec in specs.items():
    if not isinstance(spec, tf.TensorSpec) or spec.dtype == tf.string:
      reason = "is text" if isinstance(spec, tf.TensorSpec) else "is ragged"
    elif not spec.shape.is_fully_defined():
      reason = f"has no fixed shape {tuple(spec.shape)}"
    else:
      continue
    raise builder.at(program.text, len(program.text.rstrip()),
                     f"'{key}' {reason}, which no batch can hold; resize it or leave it out with keep(…)")


def check(*, dataset: str, split: str, pp: str, data_dir: str | None = None,
          pp_modules: Sequence[str] | None = None, outputs: Collection[str] = ("image",)) -> dict[str, tf.TensorSpec]:
  """What a string makes of a dataset's examples: key -> spec (`.shape`, `.dtype`) of one example; reads no data.

  Raises:
    UserError: as `prepare`, or a key of `outputs` that the string does not put out.
  """
  prepared = prepare(dataset=dataset, split=split, pp=pp, data_dir=data_dir, pp_modules=pp_modules)
  for key in outputs:
    if key not in prepared.specs:
      text = prepared.program.text
      raise builder.at(text, len(text.rstrip()),
                       f"the string does not put out '{key}'; {suggest(key, prepared.specs)}")
  return prepared.specs


def batch_specs(*, dataset: str, split: str, pp: str, data_dir: str | None = None,
                pp_modules: Sequence[str] | None = None, at_hand: bool = True) -> dict[str, tf.TensorSpec]:
  """Of one row of the batches of `train_batches`, of mixtures too: key -> spec; reads no data.

  Args:
    dataset, split, pp, data_dir, pp_modules: as there.
    at_hand: False: the datasets are not opened, their features are those of `stand_in`.

  Raises:
    UserError: as `prepare`; parts of a mixture that disagree.
  """
  def specs(dataset, split, pp, data_dir):
    if at_hand:
      return prepare(dataset=dataset, split=split, pp=pp, data_dir=data_dir, pp_modules=pp_modules).specs
    program = builder.compile_string(stand_in.text_model(pp), pp_modules)
    found = builder.output_specs(program, stand_in.features(dataset))
    _check_batchable(program, found)
    return found

  if not mixture.is_mixture(dataset):
    return specs(dataset, split, pp, data_dir)
  mixed = mixture.parts(dataset, split, pp, data_dir=data_dir)
  joint = mixture.joint_specs(mixed, [specs(**_place(part)) for part in mixed])
  return joint | {mixture.TASK: tf.TensorSpec([], tf.int32)}


def num_examples(*, dataset: str, split: str, data_dir: str | None = None) -> int:
  """Number of examples of a split; of a mixture, those of all parts while the first passes once."""
  if mixture.is_mixture(dataset):
    mixed = mixture.parts(dataset, split, data_dir=data_dir)
    sizes = [num_examples(dataset=p.dataset, split=p.split, data_dir=p.data_dir) for p in mixed]
    return mixture.length(mixed, sizes)
  return len(open_source(dataset, split, data_dir=data_dir))


# --- one example ----------------------------------------------------------------------------------------------------

def example_seed(seed: int | tf.Tensor, epoch: int | tf.Tensor, index: int | tf.Tensor) -> tf.Tensor:
  """The private seed of an example in an epoch: int64 (2,)."""
  pair = tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)])
  return tf.random.experimental.stateless_fold_in(pair, tf.cast(index, tf.int64))


def transform(prepared: Prepared, raw: Mapping[str, tf.Tensor], seed: tf.Tensor) -> tuple[dict, dict]:
  """Raw values of one example -> (features of the batch, targets)."""
  features = prepared.source.parse(raw, prepared.keys)
  targets = {k: features[k] for k in prepared.targets}
  outputs = builder.run(prepared.program, {**features, SEED: seed})
  return {k: outputs[k] for k in prepared.specs}, targets


def _load(prepared: Prepared, seed: int, epoch: tf.Tensor, index: tf.Tensor) -> tuple[dict, dict]:
  """The graph of one example: fetch in Python, the rest in TensorFlow."""
  specs = prepared.source.raw_specs(prepared.keys)
  values = tf.numpy_function(functools.partial(_fetch, prepared), [index], [s.dtype for s in specs.values()],
                             stateful=False) if specs else []
  raw = {k: tf.ensure_shape(v, spec.shape) for (k, spec), v in zip(specs.items(), values)}
  features, targets = transform(prepared, raw, example_seed(seed, epoch, index))
  return {**features, "_index": index}, targets


def _fetch(prepared: Prepared, index: np.ndarray) -> list:
  raw = prepared.source.fetch(int(index), prepared.keys)
  return [raw[k] for k in prepared.source.raw_specs(prepared.keys)]


def _blame(prepared: Prepared, rows: Sequence[tuple[int, int]], seed: int, error: Exception) -> Exception:
  """The error with the id of the first of these (epoch, index) that fails alone; the error itself if none does."""
  for epoch, index in rows:
    try:
      raw = prepared.source.fetch(int(index), prepared.keys)
      transform(prepared, {k: tf.constant(v) for k, v in raw.items()}, example_seed(seed, epoch, index))
    except (tf.errors.OpError, *bad_examples.DATA_ERRORS) as cause:
      return UserError(f"{prepared.source.name}: example '{prepared.source.example_id(int(index))}': "
                       f"{bad_examples.reason(cause)}")
  return error


# --- order ----------------------------------------------------------------------------------------------------------

@functools.lru_cache(maxsize=4)
def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
  """The permutation of an epoch, (length,) int64; RandomState, because numpy never changes its stream."""
  order = np.random.RandomState([seed & 0xffffffff, seed >> 32 & 0xffffffff, epoch]).permutation(length)
  order.setflags(write=False)
  return order


def rows_of_step(step: int, *, length: int, batch_size: int, seed: int, process_index: int = 0,
                 process_count: int = 1) -> list[tuple[int, int]]:
  """(epoch, index) of this process's rows of the global batch of a step; batches run on over the ends of epochs."""
  local = batch_size // process_count
  first = step * batch_size + process_index * local
  return [(p // length, int(epoch_order(length, seed, p // length)[p % length])) for p in range(first, first + local)]


def _check_sizes(batch_size: int, process_index: int, process_count: int) -> None:
  if batch_size < 1 or batch_size % process_count:
    raise UserError(f"batch_size {batch_size} must be a positive multiple of the {process_count} processes")
  if not 0 <= process_index < process_count:
    raise UserError(f"process_index {process_index} is not below process_count {process_count}")


# --- training -------------------------------------------------------------------------------------------------------

def train_batches(*, dataset: str, split: str, pp: str, batch_size: int, seed: int = 0, start_step: int = 0,
                  data_dir: str | None = None, pp_modules: Sequence[str] | None = None,
                  shuffle_buffer_size: int | None = None, process_index: int = 0, process_count: int = 1,
                  prefetch: int = 2, on_bad_example: str = "error", max_bad_share: float = 0.01,
                  label_limits: tuple[int, ...] | None = None) -> Iterator[Batch]:
  """Endless batches, from the one of `start_step` on; each is a function of (seed, step) alone.

  Args:
    dataset, split, data_dir: see `open_source`.
    pp, pp_modules: the preprocessing string and the modules of its ops.
    batch_size: over all processes; each gets batch_size / process_count rows, in the order of process_index.
    shuffle_buffer_size: taken for the vocabulary's sake and not used: every epoch is a full permutation of the split.
    prefetch: batches made ahead.
    on_bad_example: "error" stops at an example that cannot be read; "skip" puts another in its place, see
      `bad_examples`.
    max_bad_share: of the split; "skip" stops above it.
    label_limits: with "skip", integer labels outside these numbers of classes make an example bad too.

  Returns:
    Iterator of dicts of numpy arrays, the string's outputs (B, …) and "_index" (B,) int64, the position in the split.

  Raises:
    UserError: at once for mistakes that need no data; at its batch for an example that fails, with the example's id.
  """
  del shuffle_buffer_size
  if mixture.is_mixture(dataset):
    mixed = mixture.parts(dataset, split, pp, data_dir=data_dir, seed=seed)
    mixture.check_rows(mixed, batch_size, process_count)
    place = dict(pp_modules=pp_modules, process_index=process_index, process_count=process_count)
    options = dict(start_step=start_step, prefetch=prefetch, on_bad_example=on_bad_example,
                   max_bad_share=max_bad_share, label_limits=label_limits)
    return mixture.MixedBatches([train_batches(batch_size=p.rows, seed=p.seed, **_place(p), **place, **options)
                                 for p in mixed], _joint_specs(mixed, pp_modules))
  _check_sizes(batch_size, process_index, process_count)
  prepared = prepare(dataset=dataset, split=split, pp=pp, data_dir=data_dir, pp_modules=pp_modules)
  rows = functools.partial(rows_of_step, length=len(prepared.source), batch_size=batch_size, seed=seed,
                           process_index=process_index, process_count=process_count)
  options = dict(seed=seed, start_step=start_step)
  local = batch_size // process_count
  if on_bad_example == "skip":
    examples = Running(_examples(prepared, rows, local, **options).prefetch(prefetch * local))
    split = bad_examples.Split(prepared.source.name, len(prepared.source), prepared.source.example_id,
                               functools.partial(_read, prepared, seed))
    return bad_examples.SkippingBatches(examples, rows, split, **options, max_bad_share=max_bad_share,
                                        label_limits=label_limits)
  return TrainBatches(prepared, rows, **options, local=local, prefetch=prefetch)


def _place(part: mixture.Part) -> dict[str, Any]:
  """Where a part of a mixture comes from."""
  return dict(dataset=part.dataset, split=part.split, pp=part.pp, data_dir=part.data_dir)


def _joint_specs(mixed: Sequence[mixture.Part], pp_modules: Sequence[str] | None) -> dict[str, tf.TensorSpec]:
  return mixture.joint_specs(mixed, [prepare(**_place(part), pp_modules=pp_modules).specs for part in mixed])


def _order(rows: Rows, local: int, step: tf.Tensor) -> tf.Tensor:
  """`rows` in a graph: int64 (local, 2)."""
  order = tf.numpy_function(lambda step: np.array(rows(int(step)), np.int64), [step], tf.int64, stateful=False)
  return tf.ensure_shape(order, [local, 2])


def _examples(prepared: Prepared, rows: Rows, local: int, *, seed: int, start_step: int) -> tf.data.Dataset:
  """The examples of all steps from `start_step` on, one after another."""
  order = tf.data.Dataset.counter(start_step).map(functools.partial(_order, rows, local)).unbatch()
  return order.map(lambda row: _load(prepared, seed, row[0], row[1])[0], tf.data.AUTOTUNE, deterministic=True)


def _read(prepared: Prepared, seed: int, epoch: int, index: int) -> dict[str, np.ndarray]:
  """One example of an epoch, read at once."""
  raw = prepared.source.fetch(index, prepared.keys)
  features, _ = transform(prepared, {k: tf.constant(v) for k, v in raw.items()}, example_seed(seed, epoch, index))
  return {k: v.numpy() for k, v in features.items()} | {"_index": np.int64(index)}


class TrainBatches:
  """The endless iterator that `train_batches` returns; `close` stops its threads."""

  def __init__(self, prepared: Prepared, rows: Rows, *, seed: int, start_step: int, local: int, prefetch: int):
    self._prepared, self._rows, self._seed, self._step = prepared, rows, seed, start_step
    examples = _examples(prepared, rows, local, seed=seed, start_step=start_step)
    self._batches = Running(examples.batch(local, drop_remainder=True).prefetch(prefetch))

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    try:
      batch = next(self._batches)
    except tf.errors.OpError as error:
      raise _blame(self._prepared, self._rows(self._step), self._seed, error) from error
    self._step += 1
    return batch

  def close(self) -> None:
    """Stops the threads; the iterator is at its end then."""
    self._batches.close()


class Running:
  """A tf.data iterator that ends before the interpreter does.

  Its threads call Python to fetch examples. If they still run while the interpreter shuts down, the process hangs or
  aborts, so the iterator is released at exit at the latest.
  """

  def __init__(self, dataset: tf.data.Dataset):
    holder = [dataset.as_numpy_iterator()]
    self._holder = holder
    self.close = weakref.finalize(self, holder.clear)

  def __next__(self) -> Any:
    if not self._holder:
      raise StopIteration
    return next(self._holder[0])


# --- evaluation -----------------------------------------------------------------------------------------------------

class EvalBatches:
  """Iterable, as often as wanted, of (batch, targets); `len` batches, the same number on every process."""

  def __init__(self, prepared: Prepared, batch_size: int, process_index: int, process_count: int):
    self._prepared = prepared
    self._local = batch_size // process_count
    length = len(prepared.source)
    starts = np.arange(math.ceil(length / batch_size)) * batch_size + process_index * self._local
    self._rows = [range(min(s, length), min(s + self._local, length)) for s in starts.tolist()]

  def __len__(self) -> int:
    return len(self._rows)

  def __iter__(self) -> Iterator[tuple[Batch, Targets]]:
    prepared = self._prepared
    indices = np.array([i for rows in self._rows for i in rows], np.int64)
    examples = tf.data.Dataset.from_tensor_slices(indices).map(
        lambda index: _load(prepared, 0, tf.constant(0, tf.int64), index), tf.data.AUTOTUNE, deterministic=True)
    examples = Running(examples.prefetch(self._local))
    for rows in self._rows:
      yield pad_batch(prepared.specs, [self._next(examples, index) for index in rows], self._local)

  def _next(self, examples: Running, index: int) -> tuple[dict, dict]:
    try:
      return next(examples)
    except tf.errors.OpError as error:
      raise _blame(self._prepared, [(0, index)], 0, error) from error


def pad_batch(specs: Mapping[str, tf.TensorSpec], examples: Sequence[tuple[dict, dict]], size: int
              ) -> tuple[Batch, Targets]:
  """Stacks examples (at most `size`) and fills up with zeros; `_mask` is 0 and `_index` -1 there."""
  missing = size - len(examples)
  batch = {}
  for key, spec in specs.items():
    rows = [np.asarray(features[key]) for features, _ in examples]
    rows += [np.zeros(spec.shape, spec.dtype.as_numpy_dtype)] * missing
    batch[key] = np.stack(rows)
  batch["_index"] = np.array([features["_index"] for features, _ in examples] + [-1] * missing, np.int64)
  batch["_mask"] = np.array([1] * len(examples) + [0] * missing, np.float32)
  return batch, [targets for _, targets in examples]


def eval_batches(*, dataset: str, split: str, pp: str, batch_size: int, data_dir: str | None = None,
                 pp_modules: Sequence[str] | None = None, target_keys: Collection[str] = (), process_index: int = 0,
                 process_count: int = 1) -> EvalBatches:
  """The split once, in its order; arguments as `train_batches`.

  Args:
    target_keys: raw features of the dataset, e.g. "panoptic_objects/id", handed through at their true size.

  Returns:
    Iterable with `len` of (batch, targets): the batch as in training with "_mask" (B,) float32, 0 where it is padded;
    targets: one dict for each real example. Processes without examples left yield batches that are all padding.

  Raises:
    UserError: as `train_batches`.
  """
  if mixture.is_mixture(dataset):
    mixed = mixture.parts(dataset, split, pp, data_dir=data_dir)
    place = dict(pp_modules=pp_modules, target_keys=target_keys, process_index=process_index,
                 process_count=process_count)
    return mixture.MixedEval([eval_batches(batch_size=batch_size, **_place(p), **place) for p in mixed],
                             _joint_specs(mixed, pp_modules))
  _check_sizes(batch_size, process_index, process_count)
  prepared = prepare(dataset=dataset, split=split, pp=pp, data_dir=data_dir, pp_modules=pp_modules,
                     target_keys=target_keys)
  return EvalBatches(prepared, batch_size, process_index, process_count)
