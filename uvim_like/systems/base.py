"""What the loop knows of a training problem: three pure functions and what they hold fixed."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax

Array = jax.Array
Tree = Any
Batch = Mapping[str, Array]


class Vars(flax.struct.PyTreeNode):
  """All that a system learns.

  Attributes:
    params: learned by gradient.
    state: codebook, batch statistics: replaced by `loss`, never differentiated.
  """
  params: Tree
  state: Tree = ()


class LossOut(NamedTuple):
  """What `System.loss` returns.

  Attributes:
    loss: () what is minimised.
    state: the next `Vars.state` (the present one when not training).
    parts: {name: (B,)} logged in training, averaged exactly with `_mask` in evaluation.
    stats: sums over the batch from which `System.advance` makes the next state; the accumulation of gradients
      over micro batches adds them up, so that a state advances once per step as with one big batch.
  """
  loss: Array
  state: Tree
  parts: dict[str, Array]
  stats: Tree = ()


class System(NamedTuple):
  """A training problem as pure functions; no inheritance.

  Attributes:
    init: (key, batch) -> Vars; also run under `jax.eval_shape`.
    loss: (vars, frozen, batch, key, train) -> LossOut.
    predict: {name: (vars, frozen, batch, key, **options) -> {key: (B, …) array}}.
    frozen: a stage-I tokenizer and the like: never donated, optimised or saved twice.
    advance: (state, stats, key) -> state, or None when the state does not learn from `LossOut.stats`.
    load: (vars) -> (vars, report): puts the pretrained weights that the config names into fresh ones; None: there are
      none to load.
    label_limits: number of classes in each channel of integer labels, for the check of the data; None: no classes.
    label_key: of the config, which says how many there are.
  """
  init: Callable[[Array, Batch], Vars]
  loss: Callable[[Vars, Tree, Batch, Array, bool], LossOut]
  predict: Mapping[str, Callable[..., dict[str, Array]]]
  frozen: Tree = ()
  advance: Callable[[Tree, Tree, Array], Tree] | None = None
  load: Callable[[Vars], tuple[Vars, str]] | None = None
  label_limits: tuple[int, ...] | None = None
  label_key: str = ""
