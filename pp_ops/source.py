"""What the pipeline knows of a dataset split: random access to examples with flat, typed features."""

import abc
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from uvim_like.errors import UserError, unknown

Specs = dict[str, tf.TypeSpec]


class Source(abc.ABC):
  """A split of a dataset. Reading has two halves: `fetch` in Python and `parse` in a TensorFlow graph.

  Attributes:
    name: dataset and split, for messages.
    features: flat name -> spec; nested features are joined by "/", e.g. "panoptic_objects/id".
  """
  name: str
  features: Specs

  @abc.abstractmethod
  def __len__(self) -> int:
    """Number of examples."""

  @abc.abstractmethod
  def example_id(self, index: int) -> str:
    """What people call the example: a file's stem, or a record's place."""

  def check(self, keys: Collection[str]) -> None:
    """Raises UserError when one of the named features cannot be had for all examples, before any is read."""
    del keys   # most datasets have all features of all examples

  @abc.abstractmethod
  def raw_specs(self, keys: Collection[str]) -> Specs:
    """Of what `fetch` returns when the named features are wanted."""

  @abc.abstractmethod
  def fetch(self, index: int, keys: Collection[str]) -> dict[str, Any]:
    """The raw values of an example: numpy arrays or bytes. UserError names a file that cannot be read."""

  def parse(self, raw: Mapping[str, tf.Tensor], keys: Collection[str]) -> dict[str, tf.Tensor]:
    """Raw values -> the named features."""
    return {k: raw[k] for k in keys}

  def __getitem__(self, index: int) -> dict[str, Any]:
    """All features of one example as numpy arrays (bytes for text)."""
    keys = tuple(self.features)
    self.check(keys)
    parsed = self.parse({k: tf.constant(v) for k, v in self.fetch(index, keys).items()}, keys)
    return {k: v.numpy() for k, v in parsed.items()}


class Span(NamedTuple):
  """Examples start ≤ i < stop of one named split."""
  split: str
  start: int
  stop: int


def split_spans(split: str, lengths: Mapping[str, int], *, where: str) -> tuple[Span, ...]:
  """TFDS split arithmetic: "train[4096:]", "train[:10%]", "train[64:128]+validation" -> spans of named splits.

  Raises:
    UserError: unknown split, bad syntax, a slice outside the split or without examples.
  """
  import tensorflow_datasets as tfds  # 0.2 s and its own dependencies: only where data is opened
  for name in (part.split("[")[0].strip() for part in split.split("+")):
    if name not in lengths:
      raise unknown("split", name, lengths, where=where)
  infos = {name: tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0) for name, n in lengths.items()}
  compact = "".join(split.split())
  try:
    parts = tfds.core.ReadInstruction.from_spec(compact).to_absolute(infos)
  except (ValueError, AssertionError) as error:
    raise UserError(f"{where}: bad split '{split}': {str(error).splitlines()[-1]}") from error
  spans = tuple(Span(p.splitname, p.from_ or 0, lengths[p.splitname] if p.to is None else p.to) for p in parts)
  if sum(max(s.stop - s.start, 0) for s in spans) == 0:
    raise UserError(f"{where}: split '{split}' has no examples; sizes: {dict(lengths)}")
  return spans


def count(spans: tuple[Span, ...]) -> int:
  """Number of examples in all spans."""
  return sum(max(s.stop - s.start, 0) for s in spans)


def locate(index: int, spans: tuple[Span, ...]) -> tuple[str, int]:
  """(named split, position in it) of the example at `index` of the spans joined."""
  rest = index
  for span in spans:
    length = max(span.stop - span.start, 0)
    if 0 <= rest < length:
      return span.split, span.start + rest
    rest -= length
  raise IndexError(f"example {index} of {count(spans)}")
