"""What an op of the preprocessing strings declares, and the decorators that write the declaration down."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Keys = tuple[str, ...]
Features = Mapping[str, Any]
SEED = "_seed"   # private feature of every example: int64 (2,), derived from (seed, epoch, index)


class Op(NamedTuple):
  """One op, as `OPS[name]` of a module of ops.

  Attributes:
    function: (features, [seed,] **arguments) -> features, a new dict; `features` is flat, names joined by "/".
    signature: of the arguments that a string may give.
    reads: arguments -> keys that must be there.
    writes: arguments -> keys that are there afterwards.
    removes: (present keys, arguments) -> keys that are gone afterwards.
    decodes: arguments -> keys that the op wants as encoded bytes where the dataset has them.
    random: the function takes a seed, int64 (2,), of its own per example and position in the string.
  """
  function: Callable[..., Features]
  signature: inspect.Signature
  reads: Callable[[Mapping], Keys]
  writes: Callable[[Mapping], Keys]
  removes: Callable[[Keys, Mapping], Keys]
  decodes: Callable[[Mapping], Keys]
  random: bool


def _nothing(*_: Any) -> Keys:
  return ()


def _constant(keys: Keys | Callable) -> Callable[[Mapping], Keys]:
  return keys if callable(keys) else functools.partial(_same, keys)


def _same(keys: Keys, _: Mapping) -> Keys:
  return tuple(keys)


def string_signature(function: Callable, *, random: bool) -> inspect.Signature:
  """The arguments that a string may give: those after the data and, for random ops, the seed."""
  parameters = list(inspect.signature(function).parameters.values())
  return inspect.Signature(parameters[2 if random else 1:])


def features_op(ops: dict[str, Op], *, reads: Keys | Callable = (), writes: Keys | Callable = (),
                removes: Callable = _nothing, decodes: Keys | Callable = (), random: bool = False) -> Callable:
  """Enters a function (features, [seed,] ...) -> features into `ops` under its own name.

  `reads`, `writes` and `decodes` are tuples of keys, or functions from the bound arguments to one.
  """
  def enter(function: Callable) -> Callable:
    ops[function.__name__] = Op(function, string_signature(function, random=random), _constant(reads),
                                _constant(writes), removes, _constant(decodes), random)
    return function
  return enter


def input_key(arguments: Mapping) -> str:
  """Where a `key_op` reads: `inkey`, or `key`."""
  return arguments["inkey"] or arguments["key"]


def output_key(arguments: Mapping) -> str:
  """Where a `key_op` writes: `outkey`, or `key`; an `inkey` alone does not move the output."""
  return arguments["outkey"] or arguments["key"]


def key_op(ops: dict[str, Op], *, default: str = "image", reads: Keys | Callable = (), decodes: bool = False,
           random: bool = False) -> Callable:
  """Enters a function of one tensor (x, [seed,] ...) -> tensor into `ops`, with arguments key=, inkey=, outkey=.

  `reads` adds keys besides the input; a function that has them takes the whole dict as keyword `features`.
  """
  def enter(function: Callable) -> Callable:
    own = [p for p in string_signature(function, random=random).parameters.values() if p.name != "features"]
    keys = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
            for name, value in (("key", default), ("inkey", None), ("outkey", None))]
    ops[function.__name__] = Op(
        functools.partial(_apply_to_key, function, bool(reads)), inspect.Signature(own + keys),
        lambda a: (input_key(a), *_constant(reads)(a)), lambda a: (output_key(a),), _nothing,
        (lambda a: (input_key(a),)) if decodes else _nothing, random)
    return function
  return enter


def _apply_to_key(function: Callable, whole: bool, features: Features, /, *seed_and_args: Any,
                  key: str, inkey: str | None, outkey: str | None, **arguments: Any) -> Features:
  if whole:
    arguments["features"] = features
  keys = dict(key=key, inkey=inkey, outkey=outkey)
  out = function(features[input_key(keys)], *seed_and_args, **arguments)
  return {**features, output_key(keys): out}
