"""Training sequences of MAD's four tasks from a batch of annotations: what is shown, what is asked, what counts.

Tokens are whole bins from here on. Boxes are xyxy fractions of the picture without its padding. B images, N object
slots, S sequences, L response tokens, P prompt tokens, J joints, R references.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.decoding.masked import lowest
from uvim_like.ops import boxes as box_ops
from uvim_like.systems.mad import masking
from uvim_like.systems.mad.masking import Ratio
from uvim_like.systems.mad.vocabulary import MASK_TOKEN, Vocabulary, instance_prompt, task_prompt

Array = jax.Array


class Objects(NamedTuple):
  """The annotated objects of a batch.

  Attributes:
    tokens: (B, N, 5) table ids [x0, y0, x1, y1, class].
    boxes: (B, N, 4) xyxy fractions.
    valid: (B, N) bool.
  """
  tokens: Array
  boxes: Array
  valid: Array


class Training(NamedTuple):
  """The sequences of one task in one step.

  Attributes:
    prompts: (B, S, P) table ids, never masked.
    responses: (B, S, L) table ids, what would be shown without masks.
    masked: (B, S, L) bool.
    targets: (B, S, L) local tokens.
    weights: (B, S, L) float32 of the targets, 0 where nothing is masked.
  """
  prompts: Array
  responses: Array
  masked: Array
  targets: Array
  weights: Array

  @property
  def inputs(self) -> Array:
    """(B, S, P + L) table ids that the decoder sees."""
    return jnp.concatenate([self.prompts, jnp.where(self.masked, MASK_TOKEN, self.responses)], axis=-1)


def picture_size(batch: Mapping[str, Array]) -> Array:
  """(B, 2) rows and columns that hold the picture; all of the canvas without "valid_size"."""
  image = batch["image"]
  if "valid_size" in batch:
    return jnp.maximum(batch["valid_size"], 1)
  return jnp.broadcast_to(jnp.array(image.shape[1:3]), (image.shape[0], 2))


def to_picture(batch: Mapping[str, Array]) -> Array:
  """(B, 2) factors for y and x from fractions of the canvas to fractions of the picture."""
  return jnp.array(batch["image"].shape[1:3]) / picture_size(batch)


def objects(batch: Mapping[str, Array], vocabulary: Vocabulary) -> Objects:
  """The objects of "boxes" (B, N, 4), yxyx of the canvas, and "box_labels" (B, N)."""
  labels = batch["box_labels"]
  boxes = box_ops.swap_axes(jnp.clip(box_ops.rescale(batch["boxes"], to_picture(batch)), 0, 1))
  return Objects(box_tokens(boxes, labels - 1, vocabulary), boxes, labels > 0)


def box_tokens(boxes: Array, classes: Array, vocabulary: Vocabulary) -> Array:
  """(..., 4) xyxy fractions and (...,) classes from 0 to (..., 5) table ids."""
  bins = box_ops.quantise(boxes, vocabulary.bins) + vocabulary.first_bin
  first_class = vocabulary.no_object - vocabulary.classes
  return jnp.concatenate([bins, (first_class + jnp.maximum(classes, 0))[..., None]], axis=-1).astype(jnp.int32)


def box_training(found: Objects, draws: masking.BoxDraws, *, vocabulary: Vocabulary, ratios: Sequence[Ratio],
                 key: Array | None = None) -> Training:
  """Detection: objects at random among noise objects, one sequence a ratio.

  Targets and weights here say what is shown; matching replaces them (`losses.match_boxes`).
  """
  end = jnp.minimum(draws.corner + draws.size, 1)
  noise = box_tokens(jnp.concatenate([draws.corner, end], axis=-1), draws.label, vocabulary)  # (B, Q, 5)
  slots = jnp.argsort(draws.order, axis=-1)
  rank = jnp.cumsum(found.valid, axis=-1) - 1
  slot = jnp.take_along_axis(slots, jnp.clip(rank, 0, vocabulary.queries - 1), axis=-1)
  slot = jnp.where(found.valid, slot, vocabulary.queries)  # outside: dropped
  shown = jax.vmap(lambda noise, slot, tokens: noise.at[slot].set(tokens, mode="drop"))(noise, slot, found.tokens)
  responses = shown.reshape(shown.shape[0], 1, -1)
  prompts = task_prompt(vocabulary, "boxes", responses.shape[0])
  local = vocabulary.to_local("boxes", responses)
  return _copies(prompts, responses, local, jnp.ones(local.shape, jnp.float32), draws.masks, ratios, key)


def choose_masks(valid: Array, order: Array, instances: int) -> Array:
  """(B, S) slots of the objects whose masks are trained: at random where there are enough, else all in order."""
  enough = jnp.sum(valid, axis=-1, keepdims=True) >= instances
  return _choose(jnp.where(enough, order, _in_order(valid)), valid, instances)


def choose_keypoints(valid: Array, has_points: Array, instances: int) -> Array:
  """(B, S) slots of the objects whose keypoints are trained: with a visible joint first where there are enough."""
  enough = jnp.sum(valid, axis=-1, keepdims=True) >= instances
  return _choose(jnp.where(enough, 2 * ~has_points + _in_order(valid), _in_order(valid)), valid, instances)


def _in_order(valid: Array) -> Array:
  return jnp.broadcast_to(jnp.arange(valid.shape[-1]) / valid.shape[-1], valid.shape)


def _choose(rank: Array, valid: Array, instances: int) -> Array:
  return jnp.argsort(jnp.where(valid, rank, jnp.inf), axis=-1, stable=True)[:, :instances]


def _take(values: Array, slots: Array) -> Array:
  """(B, N, ...) at (B, S)."""
  return jax.vmap(lambda value, slot: value[slot])(values, slots)


def mask_training(found: Objects, bits: Array, draws: masking.MaskDraws, *, vocabulary: Vocabulary,
                  ratios: Sequence[Ratio], instances: int, key: Array | None = None) -> Training:
  """Instance masks as bits inside their box.

  Args:
    found: the objects.
    bits: (B, N, side, side), not 0 where the object is.
    draws: random draws.
    vocabulary: of all tasks.
    ratios: of masking.
    instances: S, sequences an image and ratio.
    key: for ratios that are intervals.
  """
  slots = choose_masks(found.valid, draws.order, instances)
  valid = _take(found.valid, slots)
  bits = _take(bits, slots).reshape(*slots.shape, -1)
  local = jnp.where((bits > 0) & valid[..., None], 0, 1)  # foreground, background
  weights = jnp.broadcast_to(valid[..., None], local.shape).astype(jnp.float32)
  prompts = instance_prompt("masks", _take(found.tokens, slots), valid)
  return _copies(prompts, vocabulary.to_table("masks", local), local, weights, draws.masks, ratios, key)


def keypoint_training(found: Objects, points: Array, visible: Array, draws: masking.KeypointDraws, *,
                      vocabulary: Vocabulary, ratios: Sequence[Ratio], instances: int,
                      key: Array | None = None) -> Training:
  """Keypoints as [x, y, visibility] for every joint; a hidden joint shows a random place inside the box.

  Args:
    found: the objects.
    points: (B, N, J, 2) x, y fractions of the picture.
    visible: (B, N, J) bool, the joints whose place counts.
    draws: random draws.
    vocabulary: of all tasks.
    ratios: of masking.
    instances: S, sequences an image and ratio.
    key: for ratios that are intervals.
  """
  visible = visible & found.valid[..., None]
  slots = choose_keypoints(found.valid, jnp.any(visible, axis=-1), instances)
  tokens = _take(point_tokens(found.boxes, points, visible, draws.points, vocabulary), slots)
  shown, valid = _take(visible, slots), _take(found.valid, slots)
  weights = jnp.stack([shown, shown, jnp.ones_like(shown)], axis=-1) & jnp.any(shown, axis=-1)[..., None, None]
  prompts = instance_prompt("keypoints", _take(found.tokens, slots), valid)
  responses = tokens.reshape(*slots.shape, -1)
  return _copies(prompts, responses, vocabulary.to_local("keypoints", responses),
                 weights.reshape(responses.shape).astype(jnp.float32), draws.masks, ratios, key)


def point_tokens(boxes: Array, points: Array, visible: Array, draws: Array, vocabulary: Vocabulary) -> Array:
  """(B, N, J, 3) table ids of joints; arguments as in `keypoint_training`."""
  start, end = boxes[..., None, :2], boxes[..., None, 2:]
  places = jnp.where(visible[..., None], points, start + draws * (end - start))
  bins = box_ops.quantise(places, vocabulary.bins) + vocabulary.first_bin
  flags = jnp.where(visible, vocabulary.visible, vocabulary.visible + 1)
  return jnp.concatenate([bins, flags[..., None]], axis=-1).astype(jnp.int32)


def caption_training(captions: Array, draws: masking.CaptionDraws, *, vocabulary: Vocabulary, ratios: Sequence[Ratio],
                     noise: bool = True, noise_masked: bool = False, key: Array | None = None) -> Training:
  """Captions: one sequence for a ratio of 1, one for every reference for others.

  Targets of the former are those of the first reference until `losses.choose_caption` sets them.

  Args:
    captions: (B, R, L) text pieces, all 0 where a reference is missing.
    draws: random draws.
    vocabulary: of all tasks.
    ratios: of masking.
    noise: one shown word of each sequence is a random one.
    noise_masked: so is one MASK of the fully masked sequence, which shows no word (MAD's code).
    key: for ratios that are intervals.
  """
  parts = []
  prompt = task_prompt(vocabulary, "captions", captions.shape[0])
  for i, ratio in enumerate(ratios):
    count = draws.masks[i].shape[1]
    local = captions[:, :count]
    valid = jnp.any(local > 0, axis=-1, keepdims=True)
    masked = lowest(draws.masks[i], masking.masked_count(local.shape[-1], ratio, _ratio_key(key, i)))
    shown = vocabulary.to_table("captions", local)
    full = ratio == 1
    hit = jnp.zeros_like(masked)
    if noise and (noise_masked or not full):
      hit = lowest(draws.noise_place[i] + (masked & (not full)), 1)
      shown = jnp.where(hit, vocabulary.first_text + draws.noise_word[i][..., None], shown)
    weights = (masked & valid).astype(jnp.float32)
    parts.append(Training(jnp.broadcast_to(prompt, (*local.shape[:2], prompt.shape[-1])), shown, masked & ~hit, local,
                          weights))
  return Training(*(jnp.concatenate(arrays, axis=1) for arrays in zip(*parts)))


def fit_captions(captions: Array, *, references: int, length: int) -> Array:
  """(B, R, T) text pieces cut to at most `references` references and padded or cut to (B, R, length)."""
  captions = captions[:, :references, :length]
  return jnp.pad(captions, ((0, 0), (0, 0), (0, length - captions.shape[-1])))


def _ratio_key(key: Array | None, index: int) -> Array | None:
  return None if key is None else jax.random.fold_in(key, index)


def _copies(prompts: Array, responses: Array, local: Array, weights: Array, draws: Sequence[Array],
            ratios: Sequence[Ratio], key: Array | None) -> Training:
  """The same sequences once for every ratio, each with masks of its own, along S."""
  length = responses.shape[-1]
  masked = jnp.concatenate([
      lowest(draw, masking.masked_count(length, ratio, _ratio_key(key, i)))
      for i, (draw, ratio) in enumerate(zip(draws, ratios))], axis=1)
  repeat = lambda x: jnp.tile(x, (1, len(ratios), 1))  # noqa: E731
  return Training(repeat(prompts), repeat(responses), masked, repeat(local), repeat(weights) * masked)
