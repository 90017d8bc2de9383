"""Weights for backbone tests without compiling an initialiser."""

import jax
import numpy as np
import pytest

from uvim_like.weights_rules import eval_shapes


@pytest.fixture(scope="session")
def weights_of():
  """Function (model, image) -> variables of the model with random values; scales around 1, variances positive."""
  def make(model, image, seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
      value = rng.normal(size=leaf.shape) / max(1, int(np.prod(leaf.shape[:-1]))) ** 0.5
      last = path[-1].key
      if last in ("scale", "layer_scale"):
        value = 1 + 0.1 * rng.normal(size=leaf.shape)
      return np.abs(value).astype(np.float32) + 0.5 if last == "var" else value.astype(np.float32)

    tree = jax.tree_util.tree_map_with_path(draw, eval_shapes(model, image.shape))
    return {part: values for part, values in tree.items() if values}

  return make
