"""Trees under path names: there and back, patterns, and patterns that match nothing."""

import flax.struct
import jax.numpy as jnp
import pytest

from uvim_like import trees
from uvim_like.errors import UserError


class Pair(flax.struct.PyTreeNode):
  left: object
  right: object


TREE = {"decoder": {"kernel": 1, "bias": 2}, "encoder": {"block_0": {"kernel": 3}}}


def test_names_there_and_back():
  flat = trees.flatten_names(TREE)
  assert flat == [("decoder/bias", 2), ("decoder/kernel", 1), ("encoder/block_0/kernel", 3)]
  assert trees.unflatten_names(dict(flat)) == TREE


def test_names_of_lists_and_attributes():
  assert [name for name, _ in trees.flatten_names(Pair([1, {"a": 2}], (3,)))] == ["left/0", "left/1/a", "right/0"]


def test_map_names():
  got = trees.map_names(lambda name, leaf, other: f"{name}={leaf + other}", TREE, {
      "decoder": {"kernel": 10, "bias": 20}, "encoder": {"block_0": {"kernel": 30}}})
  assert got == {"decoder": {"kernel": "decoder/kernel=11", "bias": "decoder/bias=22"},
                 "encoder": {"block_0": {"kernel": "encoder/block_0/kernel=33"}}}
  assert trees.map_names(lambda name, leaf: leaf, {"a": jnp.ones(2)})["a"].shape == (2,)


def test_first_match_is_of_the_full_name():
  patterns = ["kernel", "decoder/.*", ".*"]
  assert trees.match_first("decoder/kernel", patterns) == 1
  assert trees.match_first("encoder/kernel", patterns) == 2
  assert trees.match_first("encoder/kernel", patterns[:2]) is None


def test_pattern_that_matches_nothing():
  names = [name for name, _ in trees.flatten_names(TREE)]
  trees.check_patterns_used(["decoder/.*", ".*", "encoder/.*"], names, where="config.lr_mults")  # shadowed is fine
  message = r"^config.lr_mults: pattern 'decodr' matches no parameter; did you mean 'decoder'\?$"
  with pytest.raises(UserError, match=message):
    trees.check_patterns_used(["decodr"], names, where="config.lr_mults")
