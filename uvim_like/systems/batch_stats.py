"""Running statistics of batch norms over the micro batches of a step: `System.advance` of every system that has them."""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any


def sums(state: Tree) -> Tree:
  """What `LossOut.stats` holds of one micro batch's next state; `advance` finishes what is summed over them."""
  return {"state": state, "count": jnp.float32(1.0)}


def advance(state: Tree, stats: Tree, key: Array) -> Tree:
  """The running statistics after one step of several micro batches.

  A batch norm sees one micro batch at a time, and normalises by its statistics. So the running ones move once a step,
  towards the mean of the micro batches' means and variances; with one micro batch this is what the step itself gives.
  """
  del state, key
  return jax.tree.map(lambda total: total / stats["count"], stats["state"])
