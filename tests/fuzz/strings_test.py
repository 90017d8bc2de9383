"""Preprocessing strings and config overrides from made-up text: a clean result or a UserError, nothing else."""

import ast
import functools

import ml_collections as mlc
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_ops import builder
from uvim_like import config as configs
from uvim_like.errors import UserError

FEATURES = {
    "image": tf.TensorSpec([], tf.string), "image/id": tf.TensorSpec([], tf.int64),
    "labels": tf.TensorSpec([None, None, 1], tf.int32), "depth": tf.TensorSpec([None, None], tf.float32),
    "panoptic_image": tf.TensorSpec([None, None, 3], tf.uint8), "panoptic_objects/id": tf.TensorSpec([None], tf.int64),
    "panoptic_objects/label": tf.TensorSpec([None], tf.int64), "panoptic_objects/area": tf.TensorSpec([None], tf.int64)}
OPS = sorted(builder.load_ops())
ARGUMENTS = sorted({name for op in builder.load_ops().values() for name in op.signature.parameters})
FEW, MANY, TRACED = 300, 3500, 1500

anything = st.text(max_size=60)
numbers = st.one_of(st.integers(-10 ** 20, 10 ** 20), st.floats(), st.sampled_from([0, 1, 8, -1, 2 ** 31, 1e308]))
words = st.one_of(st.sampled_from([*FEATURES, "area", "nearest", "int32", ""]), anything)
literals = st.recursive(st.one_of(numbers, words, st.none(), st.booleans(), st.binary(max_size=3)),
                        lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner),
                                                st.dictionaries(words, inner, max_size=2)), max_leaves=6).map(repr)
broken = st.sampled_from(["", "(", ")", "[", "'", '"', "|", "**", "*", "=", ",", "\n", "\0", "\ud800", "#", "\\",
                          "-" * 5000, "(" * 250, "[" * 250, "9" * 5000, "a|" * 3000, "lambda: 0", "f'{1}'", "open('x')",
                          "x" * 30_000])
named = st.tuples(st.one_of(st.sampled_from(ARGUMENTS), anything), literals).map("=".join)
given_argument = st.one_of(literals, named, broken)
op_names = st.one_of(st.sampled_from(OPS), anything)
written = st.tuples(op_names, st.lists(given_argument, max_size=4)).map(lambda pair: f"{pair[0]}({', '.join(pair[1])})")
calls = st.one_of(op_names, written)
programs = st.one_of(st.lists(calls, max_size=5).map("|".join),
                     st.lists(st.one_of(calls, broken), max_size=5).map("".join), anything)


def compile_and_check(pp: str) -> builder.Program | None:
  """What happens before any data flows; None after a UserError."""
  try:
    program = builder.compile_string(pp)
    builder.check_keys(program, FEATURES)
    builder.decoded_keys(program)
    builder.needed_keys(program, FEATURES)
  except UserError as error:
    assert_readable(error)
    return None
  return program


def assert_readable(error: UserError) -> None:
  """One line, or one with the string and a caret below it; short enough for a terminal."""
  lines = str(error).split("\n")
  assert len(lines) == 1 or len(lines) == 3 and lines[2].strip() == "^"
  assert all(len(line) < 1000 for line in lines) and str(error).strip()
  str(error).encode("utf-8")  # what no terminal can print is not shown


def test_strings():
  check_strings(FEW)


@pytest.mark.slow
def test_many_strings():
  check_strings(MANY)


def check_strings(count: int) -> None:
  @settings(max_examples=count)
  @given(programs)
  def check(pp):
    compile_and_check(pp)
  check()


@pytest.mark.slow
def test_many_strings_up_to_their_graphs():
  """What the ops themselves say to arguments of every kind."""
  arguments = st.lists(given_argument, max_size=3).map(", ".join)
  one = st.tuples(st.sampled_from(OPS), arguments).map(lambda pair: f"{pair[0]}({pair[1]})")

  @settings(max_examples=TRACED)
  @given(st.lists(one, min_size=1, max_size=2).map(lambda ops: "|".join(["decode", *ops])))
  def check(pp):
    program = compile_and_check(pp)
    if program is not None:
      try:
        builder.output_specs(program, FEATURES)
      except UserError as error:
        assert_readable(error)
  check()


# --- overrides --------------------------------------------------------------------------------------------------------


@functools.cache
def base() -> str:
  path = configs.ROOT / "configs" / "uvim" / "depth_stage1.py"
  return configs.to_json(configs.load_file(f"{path}:scenes,runlocal"))


PATHS = ["lr", "batch_size", "model.width", "model.inputs", "schedule", "schedule.warmup_steps", "evals",
         "depth_val.pp", "depth_val.metric", "mesh", "pp_train", "model.input_size", "optax", "optax.b1", "lr.x",
         "model..width", "", ".", "seed", "model.keys", "__class__", "model.inputs.depth"]
deep = st.lists(st.sampled_from(["model", "a", "lr", ""]), max_size=40).map(".".join)
paths = st.one_of(st.sampled_from(PATHS), anything, deep)
values = st.one_of(literals, anything, broken, literals.map(lambda text: f"{{'a': {text}, 'b.c': 1, 3: 4}}"))


def apply(texts: list[str]) -> None:
  """Overrides, the check of the result, and its JSON."""
  config = configs.from_json(base())
  try:
    for text in texts:
      configs.override(config, text)
    configs.check(config)
    configs.to_json(config)
  except UserError as error:
    assert str(error).strip()
  assert isinstance(config, mlc.ConfigDict)


def test_overrides():
  check_overrides(FEW)


@pytest.mark.slow
def test_many_overrides():
  check_overrides(MANY)


def check_overrides(count: int) -> None:
  @settings(max_examples=count)
  @given(st.lists(st.one_of(st.tuples(paths, values).map("=".join), anything), min_size=1, max_size=3))
  def check(texts):
    apply(texts)
  check()


@settings(max_examples=FEW)
@given(st.lists(st.one_of(anything, st.sampled_from(["--config", "--config=", "--config.", "--config.lr", "-", "--"])),
                max_size=6))
def test_command_lines(argv):
  try:
    spec, overrides, rest = configs.split_argv(argv)
  except UserError:
    return
  assert len(overrides) + len(rest) + (spec is not None) <= len(argv)


@settings(max_examples=100)
@given(st.one_of(anything, st.just("x" * 5000), st.just("\0.py"), anything.map(lambda t: f"no/{t}.py:{t}")))
def test_names_of_config_files(spec):
  with pytest.raises(UserError):
    configs.load_file(spec)


@settings(max_examples=FEW)
@given(literals)
def test_values_are_literals(text):
  """What a value means is what Python's literals mean, and never more."""
  try:
    value = configs.parse_value(text, None)
  except UserError:
    return
  assert isinstance(value, str) or repr(value) == repr(ast.literal_eval(text))
