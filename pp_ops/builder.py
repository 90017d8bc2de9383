"""Preprocessing strings: "decode|resize(512)|keep('image','labels')" parsed, checked and turned into a function."""

import ast
import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from pp_ops.registry import SEED, Features, Keys, Op
from uvim_like.errors import UserError, shortened, suggest, unknown

DEFAULT_MODULES = ("ops_general", "ops_image", "ops_labels", "ops_instances", "ops_augment", "ops_sequence",
                   "proj.uvim.pp_ops")
_WINDOW = 55   # characters of a long string that an error shows on either side
_BREAKS = "\n\r\t\v\f\x1c\x1d\x1e\x85\u2028\u2029"   # all that `str.splitlines` breaks at: an error stays in its lines
MAX_LENGTH = 20_000   # characters of a string; the longest of ours has 700
MAX_OPS = 200   # ops of a string; each is one more level of the syntax tree
# What arguments of a wrong kind raise while an op's graph is built: a value or shape (ValueError), a type (TypeError), a
# number that its type cannot hold (OverflowError), a size of too few sides (IndexError), what TensorFlow knows already of
# the values (OpError).
OP_ERRORS = (ValueError, TypeError, OverflowError, IndexError, tf.errors.OpError)


class Call(NamedTuple):
  """One op as written: name, literal arguments, and where it stands in the string (characters)."""
  name: str
  args: tuple
  kwargs: dict[str, Any]
  column: int


class Step(NamedTuple):
  """One op resolved: what to call, with which arguments (defaults filled in), and where it stands."""
  call: Call
  op: Op
  arguments: inspect.BoundArguments


class Program(NamedTuple):
  """A parsed string. `steps` in order; `text` as shown in errors."""
  text: str
  steps: tuple[Step, ...]


def at(text: str, column: int, message: str) -> UserError:
  """The error about one place of a string: the message, the string (cut to a window), a caret under the place."""
  start, stop = max(column - _WINDOW, 0), min(column + _WINDOW, len(text))
  head, tail = ("…" if start else ""), ("…" if stop < len(text) else "")
  shown = head + text[start:stop] + tail
  return UserError(f"preprocessing: {message}\n  {shown}\n  {' ' * (len(head) + column - start)}^")


# --- parsing: literals only ---------------------------------------------------------------------------------------

def parse(pp: str) -> tuple[Call, ...]:
  """The calls of a string; blanks and line breaks do not matter, edges of string arguments are stripped of blanks.

  Raises:
    UserError: not of the form op|op(literals)|…
  """
  text = one_line(pp)
  if not text.strip():
    return ()
  if len(text) > MAX_LENGTH:
    raise at(text, MAX_LENGTH, f"{len(text)} characters, more than MAX_LENGTH = {MAX_LENGTH}")
  indent = len(text) - len(text.lstrip())
  try:
    tree = ast.parse(text.strip(), mode="eval").body
  except SyntaxError as error:
    raise at(text, indent + max((error.offset or 1) - 1, 0), f"not op|op(…)|…: {error.msg}") from error
  except (ValueError, RecursionError, MemoryError) as error:   # null bytes, half a code point, 10,000 signs in a row
    raise at(text, indent, f"not op|op(…)|…: {error or 'nested too deeply'}") from error
  return tuple(_call(text, indent, node) for node in _split_bars(text, tree))


def one_line(pp: str) -> str:
  """The string as errors show it: line breaks and tabs as blanks, half code points (nothing prints them) as "?"."""
  whole = pp.encode("utf-8", "replace").decode("utf-8")
  return "".join(" " if c in _BREAKS else c for c in whole)


def _split_bars(text: str, node: ast.expr) -> list[ast.expr]:
  """The ops of a chain, whose tree leans to the left."""
  ops = []
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    ops.append(node.right)
    node = node.left
    if len(ops) >= MAX_OPS:
      raise at(text, 0, f"more than MAX_OPS = {MAX_OPS} ops")
  return [node, *reversed(ops)]


def _column(text: str, indent: int, node: ast.AST) -> int:
  """`ast` counts UTF-8 bytes; errors count characters."""
  return indent + len(text[indent:].encode()[:node.col_offset].decode())


def _call(text: str, indent: int, node: ast.expr) -> Call:
  column = _column(text, indent, node)
  if isinstance(node, ast.Name):
    return Call(node.id, (), {}, column)
  if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
    raise at(text, column, "expected the name of an op")
  if any(keyword.arg is None for keyword in node.keywords):
    raise at(text, column, "** is not allowed in an op's arguments")
  args = tuple(_literal(text, indent, arg) for arg in node.args)
  kwargs = {keyword.arg: _literal(text, indent, keyword.value) for keyword in node.keywords}
  return Call(node.func.id, args, kwargs, column)


def _literal(text: str, indent: int, node: ast.expr) -> Any:
  try:
    return _strip(ast.literal_eval(node))
  except (ValueError, TypeError, RecursionError, MemoryError) as error:
    written = f"{ast.get_source_segment(text[indent:], node)!s:.80}"
    hint = f"; did you mean '{written}' in quotes?" if isinstance(node, ast.Name) else ""
    raise at(text, _column(text, indent, node),
             f"{written} is not a literal (number, string, list, tuple, dict, True, None){hint}") from error


def _strip(value: Any) -> Any:
  if isinstance(value, str):
    return value.strip()
  if isinstance(value, (list, tuple)):
    return type(value)(map(_strip, value))
  if isinstance(value, dict):
    return {_strip(k): _strip(v) for k, v in value.items()}
  return value


# --- resolving ----------------------------------------------------------------------------------------------------

def load_ops(modules: Sequence[str] | None = None) -> dict[str, Op]:
  """All ops of the named modules of pp_ops, a leading "proj." dropped; later modules override earlier ones."""
  ops: dict[str, Op] = {}
  for name in DEFAULT_MODULES if modules is None else modules:
    ops.update(_module_ops(name))
  return ops


def _module_ops(name: str) -> dict[str, Op]:
  path = f"pp_ops.{name.removeprefix('proj.')}"
  try:
    module = importlib.import_module(path)
  except ModuleNotFoundError as error:
    if error.name is None or not (path == error.name or path.startswith(error.name + ".")):
      raise
    raise unknown("module of ops", name, DEFAULT_MODULES, where="pp_modules") from error
  if not hasattr(module, "OPS"):
    raise UserError(f"pp_modules: '{name}' has no table OPS; {suggest(name, DEFAULT_MODULES)}")
  return module.OPS


def compile_string(pp: str, modules: Sequence[str] | None = None) -> Program:
  """Parses a string and checks names and arguments of its ops; the features come later, in `check_keys`."""
  text, ops = one_line(pp), load_ops(modules)
  return Program(text, tuple(_resolve(text, call, ops) for call in parse(pp)))


def _resolve(text: str, call: Call, ops: Mapping[str, Op]) -> Step:
  if call.name not in ops:
    raise at(text, call.column, f"unknown op '{shortened(call.name)}'; {suggest(call.name, ops)}")
  op = ops[call.name]
  for name in call.kwargs:
    if name not in op.signature.parameters:
      near = suggest(name, op.signature.parameters)
      raise at(text, call.column, f"{call.name} has no argument '{shortened(name)}'; {near}")
  try:
    arguments = op.signature.bind(*call.args, **call.kwargs)
  except TypeError as error:
    raise at(text, call.column, f"{call.name}{_shown(op.signature)}: {str(error)[:300]}") from error
  arguments.apply_defaults()
  return Step(call, op, arguments)


def _shown(signature: inspect.Signature) -> str:
  plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
  return str(inspect.Signature(plain))


def decoded_keys(program: Program) -> frozenset[str]:
  """Features that the string decodes itself: the source should deliver their encoded bytes."""
  return frozenset(key for step in program.steps for key in _keys(program, step, step.op.decodes))


def needed_keys(program: Program, features: Iterable[str]) -> frozenset[str]:
  """The dataset's features that the result depends on, so that sources need not read the others."""
  needed = set(check_keys(program, features))
  for step in reversed(program.steps):
    needed -= set(_keys(program, step, step.op.writes))
    reads = _keys(program, step, step.op.reads)
    needed |= set(reads) - set(step.op.removes(reads, step.arguments.arguments))
  return frozenset(needed) & frozenset(features)


def check_keys(program: Program, features: Iterable[str]) -> Keys:
  """The keys after the last op.

  Raises:
    UserError: an op reads a key that is neither a feature nor written before it.
  """
  present = list(features)
  for step in program.steps:
    for key in _keys(program, step, step.op.reads):
      if key not in present:
        raise at(program.text, step.call.column, f"{step.call.name} reads '{key}', which is not there; "
                 f"{suggest(key, [k for k in present if not k.startswith('_')])}")
    gone = set(step.op.removes(tuple(present), step.arguments.arguments))
    present = [k for k in present if k not in gone]
    present += [k for k in _keys(program, step, step.op.writes) if k not in present]
  return tuple(present)


def _keys(program: Program, step: Step, declared) -> Keys:
  try:
    keys = tuple(declared(step.arguments.arguments))
  except (TypeError, LookupError) as error:   # a number or nothing where a list of keys is due
    raise at(program.text, step.call.column, f"{step.call.name}: keys of features are wanted: {error}") from error
  for key in keys:
    if not isinstance(key, str):
      raise at(program.text, step.call.column, f"{step.call.name}: the key of a feature is a string, not {key!r}")
  return keys


# --- running ------------------------------------------------------------------------------------------------------

def run(program: Program, features: Features) -> Features:
  """Applies the string to one example: flat features -> flat features, a new dict.

  Random ops take `features["_seed"]` (int64 (2,)) folded with their place in the string. Works eagerly and in graphs.

  Raises:
    UserError: while a graph is built, a shape or type that an op cannot take, with the caret under the op.
  """
  for position, step in enumerate(program.steps):
    seed = (tf.random.experimental.stateless_fold_in(features[SEED], position),) if step.op.random else ()
    try:
      features = step.op.function(features, *seed, *step.arguments.args, **step.arguments.kwargs)
    except OP_ERRORS as error:
      reason = " ".join(str(error).split())
      raise at(program.text, step.call.column, f"{step.call.name}: {reason[:300]}") from error
  return dict(features)


def output_specs(program: Program, features: Mapping[str, tf.TypeSpec]) -> dict[str, tf.TypeSpec]:
  """The specs after the last op, found by tracing the string over the features' specs; no data is read."""
  check_keys(program, features)
  specs = {**features, SEED: tf.TensorSpec([2], tf.int64)}
  graph = tf.function(lambda example: run(program, example), autograph=False).get_concrete_function(specs)
  return {k: tf.type_spec_from_value(v) for k, v in graph.structured_outputs.items() if not k.startswith("_")}
