"""What PolyMaX's systems know of a task: how queries and pixels become its maps, and what these cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvim_like import names
from uvim_like.errors import UserError, unknown
from uvim_like.models.kmax_predictor import Prediction
from uvim_like.ops.resize_align import resize_bilinear

Array = jax.Array
Terms = dict[str, Array]
HEADS = "uvim_like.systems.polymax.heads"


class Head(NamedTuple):
  """A task as pure functions.

  Attributes:
    value_dim: numbers that a query stands for (D_T of PolyMaX's table 1).
    pixel_dim: channels of the per-pixel baseline.
    channels: of the labels.
    num_classes: of the class head, 0 for none.
    semantic_classes: of the auxiliary semantic branch, 0 for none.
    label_limits, label_key: see `System`.
    query_losses: (predictions, final first and all at stride 4; semantic logits or None; labels; key) ->
      {name: (predictions, B)} weighted, their sum is minimised.
    pixel_losses: (logits (B, h, w, C), labels) -> {name: (B,)} weighted.
    query_outputs: (prediction, (H, W), **options) -> the task's outputs.
    pixel_outputs: (logits, (H, W)) -> the task's outputs.
    centers: prediction -> (B, K, D) what each query stands for.
    order: centers -> (B, K) order in which figures show the queries.
  """
  value_dim: int
  pixel_dim: int
  channels: int
  num_classes: int
  semantic_classes: int
  label_limits: tuple[int, ...] | None
  query_losses: Callable[..., Terms]
  pixel_losses: Callable[..., Terms]
  query_outputs: Callable[..., Terms]
  pixel_outputs: Callable[..., Terms]
  centers: Callable[[Prediction], Array]
  order: Callable[[Array], Array]
  label_key: str = ""


def load(config: Mapping[str, Any]) -> Head:
  """The head of `config.task`, with `config.head` and `config.losses`; UserError for an unknown task or option."""
  module = names.load(HEADS, config["task"], where="config.task", needs="make_head")
  return module.make_head(config)


def options(config: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
  """The block `config[key]` over its defaults.

  Raises:
    UserError: a name that is not among the defaults, with the nearest, or a value of another kind.
  """
  given = dict(config.get(key) or {})
  for name, value in given.items():
    if name not in defaults:
      raise unknown("option", name, defaults, where=f"config.{key}")
    number = isinstance(defaults[name], (int, float)) and not isinstance(defaults[name], bool)
    if number != (isinstance(value, (int, float)) and not isinstance(value, bool)) or (number and not value >= 0):
      raise UserError(f"config.{key}.{name}: {value!r} cannot stand here; its default is {defaults[name]!r}")
  return {**defaults, **given}


def at_stride_four(final: Prediction, layers: Sequence[Prediction]) -> list[Prediction]:
  """The final prediction and those of the layers, whose logits and features are resized to its grid."""
  size = final.logits.shape[1:3]
  return [final, *(layer.replace(logits=resize_bilinear(layer.logits, size),
                                 features=resize_bilinear(layer.features, size)) for layer in layers)]


def stacked(predictions: Sequence[Prediction]) -> Prediction:
  """One Prediction with a first axis over equally sized ones, for `jax.vmap`: a loss is compiled once for all."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *predictions)


def weighted(terms: Terms, weights: Mapping[str, float]) -> Terms:
  """Terms times their weights under the names that logs show; terms without weight are left out."""
  return {f"loss_{name}": weights[name] * term for name, term in terms.items() if weights[name]}
