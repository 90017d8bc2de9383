"""Panoptic segmentation as kMaX-DeepLab itself does it: queries matched one to one with segments, a class head.

Labels are (B, H, W, 2): semantics (0 = void, class k is k + 1) and instance ids. Things are one mask an instance, stuff
one mask a class, whatever its instance ids say.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.errors import UserError
from uvim_like.models.kmax_predictor import Prediction
from uvim_like.ops import mask_losses, matching
from uvim_like.ops.clusters import areas
from uvim_like.systems.fields import check_choice
from uvim_like.systems.polymax.head import Head, Terms, options, stacked, weighted
from uvim_like.systems.polymax.heads import semantic_segmentation
from uvim_like.systems.polymax.maps import at_masks, to_full

Array = jax.Array
# num_things: the first classes are things. max_instances: ids above it are void.
HEAD = {"num_things": 80, "max_instances": 100, "solver": "device"}
LOSSES = semantic_segmentation.LOSSES | {"class": 3.0}


def make_head(config: Mapping[str, Any]) -> Head:
  """The head of a config; UserError for unknown options or a missing number of classes."""
  head, losses = options(config, "head", HEAD), options(config, "losses", LOSSES)
  classes = config["model"].get("num_classes")
  if not classes:
    raise UserError("config.model.num_classes is missing: the classes of the class head, without 'no object'")
  if head["num_things"] > classes:
    raise UserError(f"config.head.num_things: {head['num_things']} of {classes} classes; nearest: {classes}")
  check_choice(head["solver"], matching.SOLVERS, where="config.head.solver")
  things = dict(num_classes=int(classes), num_things=int(head["num_things"]))
  return Head(
      value_dim=0, pixel_dim=0, channels=2, num_classes=int(classes),
      semantic_classes=int(classes) if losses["semantic"] else 0, label_limits=(int(classes) + 1, 2 ** 31 - 1),
      query_losses=functools.partial(query_losses, weights=losses, max_instances=int(head["max_instances"]),
                                     solver=head["solver"], **things),
      pixel_losses=no_baseline, query_outputs=functools.partial(query_outputs, num_things=things["num_things"]),
      pixel_outputs=no_baseline, centers=semantic_segmentation.centers, order=semantic_segmentation.order,
      label_key="config.model.num_classes")


def no_baseline(*arguments: Any, **options: Any) -> Terms:
  """A per-pixel model cannot tell instances apart."""
  raise UserError("config.task: a per-pixel model does not do panoptic segmentation; model_name 'polymax.kmax' does")


def to_masks(labels: Array, *, num_classes: int, num_things: int, max_instances: int, queries: int) -> mask_losses.Masks:
  """Labels (B, h, w, 2) as masks, unmatched; at most as many as there are queries, the largest first.

  Args:
    labels: semantics and instance ids.
    num_classes: C.
    num_things: classes 0..num_things - 1 have one mask an instance id (1..max_instances).
    max_instances: ids above it are void, and so is id 0 of a thing.
    queries: K.
  """
  semantics, instances = (labels[..., i].reshape(labels.shape[0], -1) for i in range(2))
  kind = semantics - 1
  is_thing = (kind >= 0) & (kind < num_things)
  is_stuff = (kind >= num_things) & (kind < num_classes)
  known = (instances >= 1) & (instances <= max_instances)
  index = jnp.where(is_thing & known, instances - 1, mask_losses.VOID)
  index = jnp.where(is_stuff, max_instances + kind - num_things, index)
  count = max_instances + num_classes - num_things
  area = areas(index, count)
  classes = jax.vmap(lambda kind, index: jnp.full(count, mask_losses.VOID).at[index].max(kind, mode="drop"))(
      kind, jnp.where(index < 0, count, index))
  keep = min(count, queries)
  _, chosen = jax.lax.top_k(area, keep)  # (B, keep) masks; those of no pixels have no class
  place = jax.vmap(lambda chosen: jnp.full(count, mask_losses.VOID).at[chosen].set(jnp.arange(keep)))(chosen)
  index = jnp.where(index < 0, mask_losses.VOID, jnp.take_along_axis(place, jnp.maximum(index, 0), axis=1))
  classes = jnp.take_along_axis(classes, chosen, axis=1)
  return mask_losses.Masks(index, classes, jnp.full_like(classes, mask_losses.VOID))


class Matched(NamedTuple):
  """Masks with their queries, and the weights that the final prediction gives; they serve every layer.

  Attributes:
    masks: matched.
    dice: (B, M) of the dice loss: the probability of the mask's class.
    classes: (B, K) of the class loss: the overlap.
  """
  masks: mask_losses.Masks
  dice: Array
  classes: Array


def match(final: Prediction, labels: Array, *, num_classes: int, num_things: int, max_instances: int,
          solver: str = "device") -> Matched:
  """Labels (B, h, w, 2) at the size of the final prediction as masks, matched with its queries."""
  logits = flatten(final.logits)
  masks = to_masks(labels, num_classes=num_classes, num_things=num_things, max_instances=max_instances,
                   queries=logits.shape[-1])
  masks = mask_losses.match(logits, final.classes, masks, solver=solver)
  found = mask_losses.overlaps(logits, masks)
  return Matched(masks, mask_losses.class_weight(final.classes, masks), mask_losses.slot_weight(found, masks))


def query_losses(predictions: list[Prediction], semantic: Array | None, labels: Array, key: Array, *,
                 weights: Mapping[str, float], **settings: Any) -> Terms:
  """{term: (predictions, B)}; matched once, on the final prediction; the semantic branch has one row."""
  labels = at_masks(labels)
  matched = match(predictions[0], labels, **settings)

  def one(prediction, key):
    return weighted(matched_terms(prediction, matched, key, weights=weights), weights)

  terms = jax.vmap(one)(stacked(predictions), jax.random.split(key, len(predictions)))
  if semantic is not None:
    branch = semantic_segmentation.cross_entropy(semantic, labels[..., 0] - 1)
    terms |= weighted({"semantic": branch[None]}, weights)
  return terms


def matched_terms(prediction: Prediction, matched: Matched, key: Array, *, weights: Mapping[str, float]) -> Terms:
  """{term: (B,)} unweighted."""
  logits, features = flatten(prediction.logits), flatten(prediction.features)
  found = mask_losses.overlaps(logits, matched.masks)
  terms = semantic_segmentation.mask_terms(logits, features, matched.masks, found, key, weights=weights,
                                           dice_weight=matched.dice)
  return terms | {"class": mask_losses.mask_class(prediction.classes, matched.masks, matched.classes)}


def flatten(x: Array) -> Array:
  """(B, h, w, C) -> (B, P, C)."""
  return x.reshape(x.shape[0], -1, x.shape[-1])


def query_outputs(prediction: Prediction, size: tuple[int, int], *, num_things: int, thing_threshold: float = 0.7,
                  stuff_threshold: float = 0.5, pixel_threshold: float = 0.4, overlap: float = 0.8) -> Terms:
  """{"semantics" (0 = void, 1..C), "instances" (0 = void, query + 1)}: (B, H, W) int32.

  Merged mask-wise, with the thresholds of MaX-DeepLab (arXiv 2012.00759, section 3.4).

  Args:
    prediction: the final one.
    size: (H, W) of the image.
    num_things: the first classes are things.
    thing_threshold, stuff_threshold: a query below its kind's class confidence says nothing.
    pixel_threshold: nor does a pixel below this probability,
    overlap: nor a mask of which less than this share of the pixels above one half is left to it.
  """
  probs = jax.nn.softmax(to_full(prediction.logits, size), axis=-1)
  confidence, kind = best_class(prediction.classes)
  keep = confidence >= jnp.where(kind < num_things, thing_threshold, stuff_threshold)
  # A query that says nothing leaves its pixels to the next one.
  best = jnp.where(keep[:, None, None], probs, -1.0)
  owner, height = jnp.argmax(best, axis=-1), jnp.max(best, axis=-1)
  owner = jnp.where(height >= pixel_threshold, owner, -1)
  queries = probs.shape[-1]
  sure = jnp.sum(probs > 0.5, axis=(1, 2))
  keep &= areas(owner, queries) >= overlap * sure
  keep &= areas(owner, queries) > 0
  rows = jnp.arange(owner.shape[0])[:, None, None]
  shown = (owner >= 0) & keep[rows, jnp.maximum(owner, 0)]
  semantics = jnp.where(shown, kind[rows, jnp.maximum(owner, 0)] + 1, 0)
  return {"semantics": semantics.astype(jnp.int32), "instances": jnp.where(shown, owner + 1, 0).astype(jnp.int32)}


def best_class(classes: Array) -> tuple[Array, Array]:
  """Class logits (B, K, C + 1) -> probability and index of the best class, (B, K); 0 where "no object" is the best."""
  chance = jax.nn.softmax(classes, axis=-1)
  kind = jnp.argmax(chance[..., :-1], axis=-1)
  confidence = jnp.max(chance[..., :-1], axis=-1)
  return jnp.where(confidence > chance[..., -1], confidence, 0.0), kind
