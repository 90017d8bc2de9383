"""Semantic segmentation with K = C: query k stands for class k, no matching and no class head (PolyMaX, section 3).

"The same losses as kMaX" with the identity as matching: mask-id cross entropy, dice over the classes that an image has,
instance discrimination with regions of a class as instances, the auxiliary semantic branch.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from uvim_like.errors import UserError
from uvim_like.models.kmax_predictor import Prediction
from uvim_like.ops import mask_losses
from uvim_like.ops.dense_losses import masked_mean
from uvim_like.ops.losses import softmax_cross_entropy
from uvim_like.systems.polymax.head import Head, Terms, options, stacked, weighted
from uvim_like.systems.polymax.maps import at_masks, to_full

Array = jax.Array
# Weights of kMaX's configurations; `sample` pixels are contrasted, drawn with probability 1 / area^`sample_exponent`.
LOSSES = {"mask_id": 0.3, "dice": 3.0, "instance": 1.0, "semantic": 1.0, "pixel": 1.0, "layers": 1.0, "sample": 4096,
          "sample_exponent": 1.5}


def make_head(config: Mapping[str, Any]) -> Head:
  """The head of a config; UserError for unknown options, or a number of queries that is not that of the classes."""
  options(config, "head", {})
  losses = options(config, "losses", LOSSES)
  model = config["model"]
  classes = class_count(model)
  shared = dict(num_classes=classes)
  return Head(
      value_dim=0, pixel_dim=classes, channels=1, num_classes=0, semantic_classes=classes if losses["semantic"] else 0,
      label_limits=(classes + 1,), query_losses=functools.partial(query_losses, weights=losses, **shared),
      pixel_losses=functools.partial(pixel_losses, weights=losses), query_outputs=query_outputs,
      pixel_outputs=pixel_outputs, centers=centers, order=order, label_key="config.model.num_queries")


def class_count(model: Mapping[str, Any]) -> int:
  """C: the kMaX model's `num_queries`, or the baseline's `outputs`; UserError when a class head is asked for as well."""
  if model.get("num_classes"):
    raise UserError("config.model.num_classes: with one query a class there is no class head; leave it out")
  for key in ("num_queries", "outputs"):
    if isinstance(model.get(key), int) and model[key] > 0:
      return model[key]
  raise UserError("config.model: 'num_queries' is missing: one query a class (a per-pixel model: 'outputs')")


def mask_terms(logits: Array, features: Array, masks: mask_losses.Masks, found: mask_losses.Overlaps, key: Array, *,
               weights: Mapping[str, float], dice_weight: Array | float = 1.0) -> Terms:
  """{term: (B,)} unweighted, of logits (B, P, K), features (B, P, D) and their overlaps with matched masks."""
  terms = {"mask_id": mask_losses.mask_id_cross_entropy(logits, masks),
           "dice": mask_losses.POSITIVE / logits.shape[-1] * mask_losses.mask_dice(found, masks, dice_weight)}
  if weights["instance"]:
    sample = mask_losses.sample_pixels(key, masks, int(weights["sample"]), exponent=weights["sample_exponent"])
    terms["instance"] = mask_losses.instance_discrimination(features, masks, sample)
  return terms


def query_losses(predictions: list[Prediction], semantic: Array | None, labels: Array, key: Array, *, num_classes: int,
                 weights: Mapping[str, float]) -> Terms:
  """{term: (predictions, B)}; the semantic branch has one row."""
  index = at_masks(labels)[..., 0] - 1
  masks = mask_losses.identity_masks(index.reshape(index.shape[0], -1), num_classes)

  def one(prediction, key):
    logits, features = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (prediction.logits, prediction.features))
    found = mask_losses.overlaps(logits, masks)
    return weighted(mask_terms(logits, features, masks, found, key, weights=weights), weights)

  terms = jax.vmap(one)(stacked(predictions), jax.random.split(key, len(predictions)))
  if semantic is not None:
    terms |= weighted({"semantic": cross_entropy(semantic, index)[None]}, weights)
  return terms


def cross_entropy(logits: Array, index: Array) -> Array:
  """(B,) mean over labelled pixels of the cross entropy of classes (B, h, w) int, -1 = void."""
  return masked_mean(softmax_cross_entropy(logits, index), index >= 0)


def pixel_losses(logits: Array, labels: Array, *, weights: Mapping[str, float]) -> Terms:
  """{"loss_pixel": (B,)}: cross entropy of the baseline's logits (B, h, w, C), upsampled to the image."""
  index = labels[..., 0] - 1
  return weighted({"pixel": cross_entropy(to_full(logits, index.shape[1:3]), index)}, weights)


def query_outputs(prediction: Prediction, size: tuple[int, int]) -> Terms:
  """{"semantics": (B, H, W) int32 classes 1..C}."""
  return pixel_outputs(prediction.logits, size)


def pixel_outputs(logits: Array, size: tuple[int, int]) -> Terms:
  """{"semantics": (B, H, W) int32 classes 1..C}; the logits are upsampled, then compared."""
  return {"semantics": (1 + jnp.argmax(to_full(logits, size), axis=-1)).astype(jnp.int32)}


def centers(prediction: Prediction) -> Array:
  """(B, K, 1) class of each query."""
  batch, queries = prediction.logits.shape[0], prediction.logits.shape[-1]
  return jnp.broadcast_to(jnp.arange(1.0, queries + 1)[None, :, None], (batch, queries, 1))


def order(centers: Array) -> Array:
  """(B, K) queries in the order of their classes."""
  return jnp.argsort(centers[..., 0], axis=-1)
