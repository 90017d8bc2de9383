"""Depth: each query stands for a bin's centre in metres, a pixel is their mean by its probabilities (PolyMaX, section 3).

What the paper leaves open is in `HEAD` and `LOSSES`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from uvim_like.errors import UserError, unknown
from uvim_like.models.kmax_predictor import Prediction
from uvim_like.ops import dense_losses
from uvim_like.systems.polymax.head import Head, Terms, options, stacked, weighted
from uvim_like.systems.polymax.maps import to_full
from uvim_like.tasks import depth as task

Array = jax.Array
# centers: how raw outputs become metres. upsample: the depth map, or the K logits before their softmax.
HEAD = {"centers": "softplus", "upsample": "map"}
CENTERS, UPSAMPLE = ("softplus", "sigmoid", "widths"), ("map", "logits")
# Finetuning on NYU: the first three. Pretraining on Taskonomy: Charbonnier alone, whose scale is in metres.
LOSSES = {"silog": 1.0, "relative": 1.0, "gradient": 0.5, "charbonnier": 0.0, "charbonnier_scale": 0.1, "layers": 1.0}
START = 2.5        # metres that raw outputs of 0 stand for: far off, the logarithms of the first steps would be huge
_SHIFT = 2.4141    # softplus(_SHIFT) = START


def make_head(config: Mapping[str, Any]) -> Head:
  """The head of a config: its depth range, `head` and `losses`; UserError for unknown options."""
  head, losses = options(config, "head", HEAD), options(config, "losses", LOSSES)
  for name, choices in (("centers", CENTERS), ("upsample", UPSAMPLE)):
    if head[name] not in choices:
      raise unknown("value", str(head[name]), choices, where=f"config.head.{name}")
  if not losses["charbonnier_scale"]:
    raise UserError("config.losses.charbonnier_scale: must be above 0 metres")
  depth_range = {name: config.get(name) if config.get(name) is not None else value
                 for name, value in (("min_depth", task.MIN_DEPTH), ("max_depth", task.MAX_DEPTH))}
  centers = functools.partial(to_metres, kind=head["centers"], **depth_range)
  one = "softplus" if head["centers"] == "widths" else head["centers"]  # of a pixel alone there are no widths
  shared = dict(weights=losses, depth_range=depth_range)
  return Head(
      value_dim=1, pixel_dim=1, channels=1, num_classes=0, semantic_classes=0, label_limits=None,
      query_losses=functools.partial(query_losses, centers=centers, upsample=head["upsample"], **shared),
      pixel_losses=functools.partial(pixel_losses, centers=functools.partial(centers, kind=one), **shared),
      query_outputs=functools.partial(query_outputs, centers=centers, upsample=head["upsample"], **depth_range),
      pixel_outputs=functools.partial(pixel_outputs, centers=functools.partial(centers, kind=one), **depth_range),
      centers=lambda prediction: centers(prediction.values), order=lambda centers: jnp.argsort(centers[..., 0], axis=-1))


def to_metres(raw: Array, *, kind: str, min_depth: float, max_depth: float) -> Array:
  """Raw outputs (B, K, 1) or (B, h, w, 1) to metres, same shape.

  Args:
    raw: 0 stands for `START`.
    kind: "softplus": min + softplus, without an upper bound (from Taskonomy's 128 m to NYU's 10 m it needs no change);
      "sigmoid": between the bounds (ViP-DeepLab); "widths": a softmax over K shares out the range, centres are the
      middles (AdaBins; only for queries).
    min_depth: metres.
    max_depth: metres.
  """
  span = max_depth - min_depth
  if kind == "softplus":
    return min_depth + jax.nn.softplus(raw + _SHIFT)
  if kind == "sigmoid":
    share = min(max((START - min_depth) / span, 1e-3), 1 - 1e-3)
    return min_depth + span * jax.nn.sigmoid(raw + jnp.log(share / (1 - share)))
  widths = jax.nn.softmax(raw, axis=-2)
  return min_depth + span * (jnp.cumsum(widths, axis=-2) - widths / 2)


def depth_map(prediction: Prediction, size: tuple[int, int], *, centers: Any, upsample: str) -> Array:
  """(B, H, W) metres of a prediction."""
  metres, logits = centers(prediction.values)[..., 0], prediction.logits
  logits = to_full(logits, size) if upsample == "logits" else logits
  depth = jnp.einsum("bhwk,bk->bhw", jax.nn.softmax(logits, axis=-1), metres)[..., None]
  return (depth if upsample == "logits" else to_full(depth, size))[..., 0]


def map_losses(depth: Array, labels: Array, *, weights: Mapping[str, float], depth_range: Mapping[str, float]) -> Terms:
  """{term: (B,)} of maps (B, H, W) against labels (B, H, W, 1), weighted."""
  target = labels[..., 0].astype(jnp.float32)
  valid = dense_losses.valid_depth(target, **depth_range)
  terms = {"silog": dense_losses.silog, "relative": dense_losses.relative_squared,
           "gradient": dense_losses.gradient_matching,
           "charbonnier": functools.partial(dense_losses.charbonnier, scale=weights["charbonnier_scale"])}
  return weighted({name: term(depth, target, valid) for name, term in terms.items() if weights[name]}, weights)


def query_losses(predictions: list[Prediction], semantic: Array | None, labels: Array, key: Array, *, centers: Any,
                 upsample: str, **shared: Any) -> Terms:
  """{term: (predictions, B)}."""
  del semantic, key
  def one(prediction):
    return map_losses(depth_map(prediction, labels.shape[1:3], centers=centers, upsample=upsample), labels, **shared)
  return jax.vmap(one)(stacked(predictions))


def pixel_losses(raw: Array, labels: Array, *, centers: Any, **shared: Any) -> Terms:
  """{term: (B,)} of the baseline's raw outputs (B, h, w, 1)."""
  return map_losses(to_full(centers(raw), labels.shape[1:3])[..., 0], labels, **shared)


def query_outputs(prediction: Prediction, size: tuple[int, int], *, centers: Any, upsample: str, min_depth: float,
                  max_depth: float) -> Terms:
  """{"depth": (B, H, W) metres} within the range."""
  return {"depth": jnp.clip(depth_map(prediction, size, centers=centers, upsample=upsample), min_depth, max_depth)}


def pixel_outputs(raw: Array, size: tuple[int, int], *, centers: Any, min_depth: float, max_depth: float) -> Terms:
  """{"depth": (B, H, W) metres} within the range."""
  return {"depth": jnp.clip(to_full(centers(raw), size)[..., 0], min_depth, max_depth)}
