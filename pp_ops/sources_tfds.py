"""TFDS datasets that were prepared on disk, with random access to array_record and to plain TFRECORD files alike."""

import os
import struct
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from etils import epath

from pp_ops.source import Source, Specs, count, locate, split_spans
from uvim_like.errors import UserError, suggest

READ_ORDER = "read_order:"   # before a dataset's name: its splits count records as TFDS reads them
INTERLEAVED = 16   # shards at a time, and records of each in turn: TFDS's defaults
_LENGTH, _CRC = 8, 4   # a TFRECORD entry: length (little endian), its crc, data, the data's crc


class Records(Protocol):
  """The records of one named split, by position over all its shards."""

  def __call__(self, index: int) -> bytes: ...


# --- TFRECORD -----------------------------------------------------------------------------------------------------

def record_offsets(path: epath.Path) -> np.ndarray:
  """(n, 2) begin and length in bytes of every record of a TFRECORD file, from the length headers alone."""
  size = path.stat().length
  entries, place = [], 0
  with path.open("rb") as file:
    while place < size:
      file.seek(place)
      header = file.read(_LENGTH)
      length = struct.unpack("<Q", header)[0] if len(header) == _LENGTH else size
      entries.append((place + _LENGTH + _CRC, length))
      place += _LENGTH + _CRC + length + _CRC
  if place != size:
    raise UserError(f"{path}: not a whole TFRECORD file (record {len(entries) - 1} ends past the end); prepare it again")
  return np.array(entries, np.int64).reshape(-1, 2)


class TfrecordFiles:
  """Random access to shards; a shard's lengths are read on its first use (12 bytes a record)."""

  def __init__(self, paths: Sequence[epath.Path], lengths: Sequence[int]):
    self._paths, self._lengths = list(paths), list(lengths)
    self._ends = np.cumsum(lengths)
    self._offsets: dict[int, np.ndarray] = {}
    self._lock = threading.Lock()

  def __call__(self, index: int) -> bytes:
    shard = int(np.searchsorted(self._ends, index, side="right"))
    begin, length = self._shard_offsets(shard)[index - (self._ends[shard] - self._lengths[shard])]
    with self._paths[shard].open("rb") as file:
      file.seek(int(begin))
      return file.read(int(length))

  def _shard_offsets(self, shard: int) -> np.ndarray:
    with self._lock:
      if shard not in self._offsets:
        offsets = record_offsets(self._paths[shard])
        if len(offsets) != self._lengths[shard]:
          raise UserError(f"{self._paths[shard]}: {len(offsets)} records, dataset_info.json says {self._lengths[shard]}")
        self._offsets[shard] = offsets
      return self._offsets[shard]


class ArrayRecordFiles:
  """Random access to array_record shards."""

  def __init__(self, paths: Sequence[epath.Path]):
    from array_record.python import array_record_data_source  # not on every platform, and needed by this format alone
    self._source = array_record_data_source.ArrayRecordDataSource([str(p) for p in paths])

  def __call__(self, index: int) -> bytes:
    return self._source[index]


def _open_records(builder: Any, split: str) -> Records:
  info = builder.info.splits[split]
  kind = builder.info.file_format.name
  if kind == "TFRECORD":
    return TfrecordFiles(list(map(epath.Path, info.filepaths)), info.shard_lengths)
  if kind == "ARRAY_RECORD":
    return ArrayRecordFiles(info.filepaths)
  raise UserError(f"{builder.info.full_name}: stored as {kind}; prepare it with file_format='array_record' or 'tfrecord'")


# --- order --------------------------------------------------------------------------------------------------------

def read_order(lengths: Sequence[int]) -> np.ndarray:
  """(n,) int64: positions of a split's records in the order in which TFDS reads its shards unless told otherwise.

  It takes blocks of 16 records from 16 shards in turn. Protocols that speak of "the first 5000 images" of a dataset
  counted so.

  Args:
    lengths: records of each shard, in the order of the shards.
  """
  ends = np.cumsum(lengths).tolist()
  shards = tf.data.Dataset.from_tensor_slices(([end - n for end, n in zip(ends, lengths)], ends))
  order = shards.interleave(lambda begin, end: tf.data.Dataset.range(tf.cast(begin, tf.int64), tf.cast(end, tf.int64)),
                            cycle_length=INTERLEAVED, block_length=INTERLEAVED)
  return np.concatenate([np.zeros(0, np.int64), *order.batch(4096).as_numpy_iterator()])


# --- the source ---------------------------------------------------------------------------------------------------

def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  """Nested dicts of tensors -> one dict, names joined by "/"; a dataset of bare tensors gets the name "value"."""
  if not isinstance(tree, Mapping):
    return {prefix.removesuffix("/") or "value": tree}
  flat = {}
  for name, value in tree.items():
    flat |= flatten(value, f"{prefix}{name}/")
  return flat


class TfdsSource(Source):
  """A split of a prepared TFDS builder; the builder's own features parse the records.

  Its examples come in the order of the records on disk, or, with `in_read_order`, in that of `read_order`; the split's
  slices are of the one or the other.
  """

  def __init__(self, builder: Any, dataset: str, split: str, *, skip_decode: Collection[str] = (),
               in_read_order: bool = False):
    import tensorflow_datasets as tfds
    self.name = f"{dataset} '{split}'"
    self._builder = builder
    lengths = {name: info.num_examples for name, info in builder.info.splits.items()}
    self._spans = split_spans(split, lengths, where=dataset)
    self._records = {span.split: _open_records(builder, span.split) for span in self._spans}
    self._order = {span.split: read_order(builder.info.splits[span.split].shard_lengths)
                   for span in self._spans} if in_read_order else {}
    images = [k for k, f in builder.info.features.items() if type(f) is tfds.features.Image]
    self._decoders = {k: tfds.decode.SkipDecoding() for k in skip_decode if k in images}
    parse = tf.function(self._parse_record, autograph=False).get_concrete_function(tf.TensorSpec([], tf.string))
    self.features = {k: tf.type_spec_from_value(v) for k, v in parse.structured_outputs.items()}

  def __len__(self) -> int:
    return count(self._spans)

  def _place(self, index: int) -> tuple[str, int]:
    """The named split of an example, and the position of its record there."""
    split, position = locate(index, self._spans)
    return split, int(self._order[split][position]) if split in self._order else position

  def example_id(self, index: int) -> str:
    split, position = self._place(index)
    return f"{split}[{position}]"

  def raw_specs(self, keys: Collection[str]) -> Specs:
    return {"record": tf.TensorSpec([], tf.string)}

  def fetch(self, index: int, keys: Collection[str]) -> dict[str, Any]:
    split, position = self._place(index)
    return {"record": self._records[split](position)}

  def parse(self, raw: Mapping[str, tf.Tensor], keys: Collection[str]) -> dict[str, tf.Tensor]:
    parsed = self._parse_record(raw["record"])
    return {k: parsed[k] for k in keys}

  def _parse_record(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
    return flatten(self._builder.info.features.deserialize_example(record, decoders=self._decoders))


def open_directory(path: epath.Path, dataset: str, split: str, *, skip_decode: Collection[str] = ()) -> TfdsSource:
  """A split of the dataset in a folder with dataset_info.json; its builder's code is not needed."""
  import tensorflow_datasets as tfds
  return TfdsSource(tfds.builder_from_directory(path), dataset, split, skip_decode=skip_decode)


def open_dataset(dataset: str, split: str, *, data_dir: str | None = None,
                 skip_decode: Collection[str] = ()) -> TfdsSource:
  """A split of a TFDS dataset that was prepared in data_dir (default: TFDS's own).

  With "read_order:" before its name, slices of the split count the records in the order in which TFDS reads them.

  Raises:
    UserError: unknown name; known but not prepared there, with the command that prepares it.
  """
  import tensorflow_datasets as tfds
  in_read_order, dataset = dataset.startswith(READ_ORDER), dataset.removeprefix(READ_ORDER)
  try:
    builder = tfds.builder(dataset, data_dir=data_dir and os.path.expanduser(data_dir))
  except tfds.core.registered.DatasetNotFoundError as error:
    names = [*tfds.list_builders(with_community_datasets=False), "scenes", "folder", "coco_json", "coco_instances", "nyu",
             "taskonomy"]
    raise UserError(f"unknown dataset '{dataset}'; {suggest(dataset, names)}") from error
  except ValueError as error:
    configs = tfds.builder_cls(dataset.partition("/")[0]).builder_configs
    names = [f"{dataset.partition('/')[0]}/{config}" for config in configs]
    raise UserError(f"unknown dataset '{dataset}'; {suggest(dataset, names)}") from error
  if not builder.data_path.exists() or not builder.info.splits:
    raise UserError(
        f"dataset '{dataset}' is not prepared in data_dir '{builder.data_dir_root}'; prepare it with: python -c "
        f"\"import tensorflow_datasets as tfds; tfds.builder('{dataset}', data_dir='{builder.data_dir_root}')"
        ".download_and_prepare()\"")
  return TfdsSource(builder, dataset, split, skip_decode=skip_decode, in_read_order=in_read_order)
