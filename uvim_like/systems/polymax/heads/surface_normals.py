"""Surface normals: each query stands for a vector, a pixel is their sum by its probabilities, normalised (PolyMaX, 3).

What the paper leaves open is in `HEAD` and `LOSSES`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from uvim_like.errors import UserError, unknown
from uvim_like.models.kmax_predictor import Prediction
from uvim_like.ops.dense_losses import normals_l2, unit, valid_normals
from uvim_like.systems.polymax.head import Head, Terms, options, stacked, weighted
from uvim_like.systems.polymax.maps import to_full

Array = jax.Array
# unit_vectors: normalise each query's vector too. upsample: the map of normals, or the K logits before their softmax.
HEAD = {"unit_vectors": True, "upsample": "map"}
UPSAMPLE = ("map", "logits")
LOSSES = {"normals": 1.0, "layers": 1.0}


def make_head(config: Mapping[str, Any]) -> Head:
  """The head of a config: `head` and `losses`; UserError for unknown options."""
  head, losses = options(config, "head", HEAD), options(config, "losses", LOSSES)
  if head["upsample"] not in UPSAMPLE:
    raise unknown("value", str(head["upsample"]), UPSAMPLE, where="config.head.upsample")
  if not isinstance(head["unit_vectors"], bool):
    raise UserError(f"config.head.unit_vectors: must be True or False, not {head['unit_vectors']!r}")
  centers = functools.partial(vectors, normalise=head["unit_vectors"])
  settings = dict(centers=centers, upsample=head["upsample"])
  return Head(
      value_dim=3, pixel_dim=3, channels=3, num_classes=0, semantic_classes=0, label_limits=None,
      query_losses=functools.partial(query_losses, weights=losses, **settings),
      pixel_losses=functools.partial(pixel_losses, weights=losses),
      query_outputs=functools.partial(query_outputs, **settings), pixel_outputs=pixel_outputs, centers=centers,
      order=lambda centers: jnp.argsort(centers[..., 0], axis=-1))  # from left-facing to right-facing


def vectors(prediction: Prediction, *, normalise: bool) -> Array:
  """(B, K, 3) what the queries stand for."""
  return unit(prediction.values) if normalise else prediction.values


def normal_map(prediction: Prediction, size: tuple[int, int], *, centers: Any, upsample: str) -> Array:
  """(B, H, W, 3) unit normals of a prediction."""
  logits = to_full(prediction.logits, size) if upsample == "logits" else prediction.logits
  normals = jnp.einsum("bhwk,bkd->bhwd", jax.nn.softmax(logits, axis=-1), centers(prediction))
  return unit(normals if upsample == "logits" else to_full(unit(normals), size))


def query_losses(predictions: list[Prediction], semantic: Array | None, labels: Array, key: Array, *,
                 weights: Mapping[str, float], **settings: Any) -> Terms:
  """{"loss_normals": (predictions, B)}."""
  del semantic, key
  valid = valid_normals(labels)
  def one(prediction):
    return weighted({"normals": normals_l2(normal_map(prediction, labels.shape[1:3], **settings), labels, valid)}, weights)
  return jax.vmap(one)(stacked(predictions))


def pixel_losses(raw: Array, labels: Array, *, weights: Mapping[str, float]) -> Terms:
  """{"loss_normals": (B,)} of the baseline's raw outputs (B, h, w, 3)."""
  normals = pixel_outputs(raw, labels.shape[1:3])["normals"]
  return weighted({"normals": normals_l2(normals, labels, valid_normals(labels))}, weights)


def query_outputs(prediction: Prediction, size: tuple[int, int], *, centers: Any, upsample: str) -> Terms:
  """{"normals": (B, H, W, 3)} unit vectors."""
  return {"normals": normal_map(prediction, size, centers=centers, upsample=upsample)}


def pixel_outputs(raw: Array, size: tuple[int, int]) -> Terms:
  """{"normals": (B, H, W, 3)} unit vectors."""
  return {"normals": unit(to_full(raw, size))}
