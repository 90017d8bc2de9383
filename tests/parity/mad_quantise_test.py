"""Quantised coordinates and prompts of MAD's real vocabulary against the authors' program, bin for bin."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops import boxes
from uvim_like.systems.mad.sequences import box_tokens
from uvim_like.systems.mad.vocabulary import Vocabulary, instance_prompt

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def cases(stored):
  """(json, arrays) of every stored set."""
  found = []
  for path in stored("mad_quantise*.json"):
    with np.load(path.with_suffix(".npz")) as data:
      found.append((json.loads(path.read_text()), {key: data[key] for key in data.files}))
  return found


def vocabulary_of(config):
  first, end = config["vocab"]["class_range"]
  text = config["vocab"]["text_range"]
  return Vocabulary(classes=end - first, bins=config["num_bins"], text=text[1] - text[0])


def prompts(values, classes, vocabulary):
  """(n, 6) mask prompts of boxes whose four coordinates are the same value."""
  tokens = box_tokens(jnp.tile(values[:, None], (1, 4)), classes, vocabulary)
  return instance_prompt("masks", tokens, jnp.ones(len(values), bool))


@pytest.mark.parametrize("compiled", [False, True])
def test_round_trip(cases, compiled):
  for case, arrays in cases:
    bins = case["config"]["num_bins"]
    dequantise, quantise = (jax.jit(f, static_argnums=1) if compiled else f for f in (boxes.dequantise, boxes.quantise))
    values = dequantise(jnp.asarray(arrays["in/bins"]), bins)
    np.testing.assert_array_equal(values, arrays["out/dequantised"])
    back = quantise(values, bins)
    np.testing.assert_array_equal(back, arrays["out/requantised_bins"])


def test_prompts(cases):
  for case, arrays in cases:
    vocabulary = vocabulary_of(case["config"])
    assert vocabulary.size == case["config"]["vocab"]["vocab_length"]
    for name, values in (("prompt_tokens", arrays["out/dequantised"]), ("value_tokens", arrays["in/values"])):
      want = arrays[f"out/{name}"]
      classes = jnp.asarray(want[:, 5] - case["config"]["vocab"]["class_range"][0])
      np.testing.assert_array_equal(prompts(jnp.asarray(values), classes, vocabulary), want)
