"""MAD's encoder, decoder and head against stored outputs of the authors' program."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.mad import Model
from uvim_like.models.mad_layers import sine_positions
from uvim_like.systems.mad.pretrained import from_detectron
from uvim_like.systems.mad.vocabulary import Vocabulary

pytestmark = pytest.mark.parity
TASKS = {"det": "boxes", "seg": "masks", "keypoint": "keypoints", "caption": "captions"}
TOLERANCE = 2e-5


def vocabulary_of(config):
  return Vocabulary(classes=config["nc"], bins=config["nb"], text=config["words"], queries=config["nq"],
                    mask_side=config["ms"], joints=config["nk"], caption_length=config["cap"], prompt_tokens=6)


def model_of(config):
  return Model(vocab_size=config["vocab"]["vocab_length"], max_length=config["seqpos"], backbone={"name": "stem"},
               width=config["d"], num_heads=config["heads"], mlp_dim=config["ff"], encoder_layers=config["enc"],
               decoder_layers=config["dec"])


def params_of(arrays, config):
  state = {key.removeprefix("sd/"): value for key, value in arrays.items() if key.startswith("sd/")}
  params, rest = from_detectron(state, num_heads=config["heads"])
  assert not rest
  return jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def runs(stored):
  """(arrays, vocabulary, call) of every case; `call` applies a method with the stored weights."""
  found = []
  for path in stored("mad_model*.json"):
    case, arrays = json.loads(path.read_text()), dict(np.load(path.with_suffix(".npz")))
    model, variables = model_of(case["config"]), {"params": params_of(arrays, case["config"])}

    def call(*args, method, model=model, variables=variables, **kwargs):
      return model.apply(variables, *args, method=method, **kwargs)

    found.append((arrays, vocabulary_of(case["config"]), call, case["config"]))
  return found


def picture_of(arrays, call):
  features = jnp.asarray(arrays["in/features"]).transpose(0, 2, 3, 1)
  return call(features, ~jnp.asarray(arrays["in/img_mask"]), method="encode_features")


def test_vocabulary_is_the_stored_one(runs):
  for _, vocabulary, _, config in runs:
    stored = config["vocab"]
    assert vocabulary.size == stored["vocab_length"]
    assert [20, vocabulary.no_object] == stored["class_range"] and vocabulary.no_object == stored["fake_class_token"]
    assert [vocabulary.first_bin, vocabulary.foreground] == stored["coord_range"]
    bits = [stored["foreground_token"], stored["background_token"], stored["visible_token"], stored["invisible_token"]]
    assert bits == [vocabulary.foreground + i for i in range(4)] and vocabulary.visible == bits[2]
    assert [vocabulary.first_text, vocabulary.size] == stored["text_range"]


def test_positions_and_memory(runs):
  for arrays, _, call, config in runs:
    valid = ~jnp.asarray(arrays["in/img_mask"])
    positions = sine_positions(valid, config["d"]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(positions, arrays["out/pos_embed"], atol=TOLERANCE)
    memory, _, _ = call(jnp.asarray(arrays["in/features"]).transpose(0, 2, 3, 1), valid, method="memory")
    want = arrays["out/memory"]
    np.testing.assert_allclose(memory.transpose(0, 2, 1).reshape(want.shape), want, atol=TOLERANCE)


@pytest.mark.parametrize("kind", TASKS)
def test_logits(runs, kind):
  for arrays, vocabulary, call, _ in runs:
    tokens, want = jnp.asarray(arrays[f"in/seq_{kind}"]), arrays[f"out/logits_{kind}"]
    outputs = call(tokens, picture_of(arrays, call), method="decode")
    everything = call(outputs[-1], ((0, want.shape[-1]),), method="logits")
    np.testing.assert_allclose(everything, want, atol=TOLERANCE)
    task = TASKS[kind]
    sliced = call(outputs[-1], vocabulary.rows(task), method="logits")
    ids = np.asarray(vocabulary.to_table(task, np.arange(vocabulary.width(task))))
    np.testing.assert_allclose(sliced, want[..., ids], atol=TOLERANCE)


def test_every_layer(runs):
  for arrays, _, call, _ in runs:
    outputs = call(jnp.asarray(arrays["in/seq_keypoint"]), picture_of(arrays, call), method="decode")
    np.testing.assert_allclose(jnp.stack(outputs), arrays["out/embeds_all_layers_keypoint"], atol=TOLERANCE)
    want = arrays["out/logits_all_layers_keypoint"]
    logits = call(jnp.stack(outputs), ((0, want.shape[-1]),), method="logits")
    np.testing.assert_allclose(logits, want, atol=TOLERANCE)
