"""Two small UViM configs and batches for them; non-square everywhere."""

import copy

import numpy as np
import pytest

STAGE_ONE = {
    "task": "panoptic_segmentation",
    "model": {"input_size": [8, 12], "patch_size": [4, 3], "code_len": 4, "width": 8, "oracle_depth": 1,
              "base_model_depth": 1, "mlp_dim": 12, "num_heads": 2, "dict_size": 12, "codeword_dim": 6,
              "with_encoder_ctx": True, "with_decoder_ctx": True, "code_dropout": "none",
              "inputs": {"semantics": [5, 12], "instances": [4, 12]},
              "outputs": {"semantics": [5, 12], "instances": [4, 12]}},
    "w_commitment": 0.25, "freeze_dict": False}
STAGE_TWO = {
    "oracle": {"task": "panoptic_segmentation", "model": STAGE_ONE["model"]},
    "model": {"input_size": [8, 12], "patches": {"size": [4, 4]}, "vocab_size": 13, "seq_len": 4, "num_layers": 1,
              "num_heads": 2, "mlp_dim": 12, "emb_dim": 16, "posemb_type": "learn"}}


def changed(config, **changes):
  """A copy; a name like "model__width" is a key of a block, None removes it."""
  config = copy.deepcopy(config)
  for path, value in changes.items():
    *blocks, key = path.split("__")
    block = config
    for name in blocks:
      block = block[name]
    block.pop(key, None)
    if value is not None:
      block[key] = value
  return config


@pytest.fixture(scope="session")
def stage_one_config():
  """Makes the stage I config with changes."""
  return lambda **changes: changed(STAGE_ONE, **changes)


@pytest.fixture(scope="session")
def stage_two_config():
  """Makes the stage II config with changes."""
  return lambda **changes: changed(STAGE_TWO, **changes)


@pytest.fixture(scope="session")
def make_batch():
  """Makes a panoptic batch of a size."""
  def make(batch, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(-1, n, (batch, 8, 12)) for n in (6, 5)], axis=-1)
    return {"image": rng.uniform(-1, 1, (batch, 8, 12, 3)).astype(np.float32), "labels": labels.astype(np.int32)}
  return make
