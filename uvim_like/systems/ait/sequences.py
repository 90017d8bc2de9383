"""From a batch to what AiT's decoder reads and shall write: sequences of depth codes, of objects, and both in one
batch.

B batch, L tokens, N objects of the data, Q slots of a sequence, S side of an instance mask.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.ops.roi import roi_masks
from uvim_like.systems.ait import noise_boxes
from uvim_like.systems.ait.ait_vocab import BOX, JOINTS, Vocabulary, box_tokens, to_pixels

Array = jax.Array
IGNORED = -1


class Sequence(NamedTuple):
  """One task's sequences.

  Attributes:
    inputs: (B, L) int32 tokens that teach; the decoder reads all but the last, shifted by one.
    targets: (B, L) int32 tokens to write, IGNORED where nothing is asked.
    weights: (B, L) of the cross entropy.
    dense: (B, L) bool, tokens of maps and joints: the parallel decoder does not see them.
  """
  inputs: Array
  targets: Array
  weights: Array
  dense: Array


class Objects(NamedTuple):
  """What the auxiliary loss of masks needs.

  Attributes:
    masks: (B, Q, S, S) binary masks inside the slots' boxes; zeros where there is none.
    real: (B, Q) bool.
  """
  masks: Array
  real: Array


class Joints(NamedTuple):
  """Coordinates of the slots' joints.

  Attributes:
    tokens: (B, Q, 34) bins, x and y of each joint.
    labelled: (B, Q, 34) bool, those that the data knows.
  """
  tokens: Array
  labelled: Array


def of_map(codes: Array, start: int) -> Sequence:
  """Of a map's codes (B, L), words from 0: all are asked for, all are dense; `start` is their first row."""
  tokens = codes.astype(jnp.int32) + start
  return Sequence(tokens, tokens, jnp.ones(tokens.shape), jnp.ones(tokens.shape, bool))


def place_objects(key: Array, batch: Mapping[str, Array], size: Array, *,
                  slots: int) -> tuple[noise_boxes.Slots, Array]:
  """Slots (B, Q, …) of every image; see `noise_boxes.fill`.

  Args:
    key: random key.
    batch: "image", "boxes", "box_labels".
    size: (B, 2) rows and columns of the canvas that hold the image.
    slots: Q.

  Returns:
    the slots and the keys (B,) that are left for the corruption of classes.
  """
  canvas = batch["image"].shape[1:3]
  keys = jax.random.split(key, (len(batch["boxes"]), 2))
  fill = jax.vmap(lambda *args: noise_boxes.fill(*args, slots=slots))
  return fill(keys[:, 0], to_pixels(batch["boxes"], canvas), batch["box_labels"], size.astype(jnp.float32)), keys[:, 1]


def masks_of(slots: noise_boxes.Slots, batch: Mapping[str, Array], *, side: int) -> Array:
  """(B, Q, S, S) binary masks inside the boxes of the slots, cut anew for jittered ones; zeros where there is none.

  From the whole-canvas "masks", or, in a batch without them, from "box_masks" as pictures of their own boxes.
  """
  canvas = batch["image"].shape[1:3]
  gather = jax.vmap(lambda maps, source: maps[jnp.maximum(source, 0)])
  if "masks" in batch:
    maps = batch["masks"]
    scale = jnp.asarray([maps.shape[-1] / canvas[1], maps.shape[-2] / canvas[0]] * 2)
    boxes = slots.boxes * scale
  else:
    maps = batch["box_masks"]
    own = gather(to_pixels(batch["boxes"], canvas), slots.source)
    sides = jnp.maximum(own[..., 2:] - own[..., :2], 1e-6)
    boxes = ((slots.boxes.reshape(*own.shape[:2], 2, 2) - own[..., None, :2]) / sides[..., None, :]).reshape(own.shape)
    boxes = boxes * maps.shape[-1]
  crops = jax.vmap(lambda maps, boxes: roi_masks(maps, boxes, side=side))(gather(maps, slots.source), boxes)
  return jnp.where((slots.source >= 0)[..., None, None], crops, 0.0)


def joints_of(slots: noise_boxes.Slots, batch: Mapping[str, Array], *, vocabulary: Vocabulary, norm: float) -> Joints:
  """Joints of the slots' objects, from "keypoints" (B, N, 17, 3), (y, x, visibility) in fractions of the canvas.

  Where nothing is labelled (visibility 0, other things than persons, boxes of nothing) the decoder reads the middle of
  the box.
  """
  points = jax.vmap(lambda points, source: points[jnp.maximum(source, 0)])(batch["keypoints"], slots.source)
  labelled = (points[..., 2:] > 0) & (slots.source >= 0)[..., None, None]  # (B, Q, J, 1)
  middle = (slots.boxes[..., :2] + slots.boxes[..., 2:]) / 2
  places = jnp.where(labelled, to_pixels(points[..., :2], batch["image"].shape[1:3]), middle[..., None, :])
  tokens = box_tokens(places, vocabulary, norm).reshape(*slots.source.shape, JOINTS)
  return Joints(tokens, jnp.repeat(labelled[..., 0], 2, axis=-1))


def of_objects(slots: noise_boxes.Slots, keys: Array, codes: Array | None, *, vocabulary: Vocabulary, norm: float,
               mask_weight: float = 1.0, corrupt: bool = True, joints: Joints | None = None) -> Sequence:
  """Five tokens a slot, and those of its mask or joints: every coordinate, class and code of what is real, the class
  alone of noise.

  Args:
    slots: (B, Q, …).
    keys: (B,) random keys: the decoder never reads the true classes.
    codes: (B, Q, T) words of the masks, or None for boxes and classes alone.
    vocabulary: rows.
    norm: pixels that the coordinate table spans.
    mask_weight: of the cross entropy of mask codes; that of joints counts as the box's.
    corrupt: let the decoder read false classes, as the release does at every object; else the true ones.
    joints: in place of codes; only labelled ones are asked for.
  """
  corners = box_tokens(slots.boxes, vocabulary, norm)
  true = class_tokens(slots.classes, vocabulary)
  seen = slots.classes if not corrupt else jax.vmap(lambda key: noise_boxes.corrupt_classes(
      key, slots.classes.shape[1], num_classes=vocabulary.num_classes))(keys)
  seen = class_tokens(seen, vocabulary)
  if joints is not None:
    more, asked = joints.tokens, jnp.where(joints.labelled, joints.tokens, IGNORED)
  else:
    more = jnp.zeros((*true.shape, 0), jnp.int32) if codes is None else codes.astype(jnp.int32) + vocabulary.masks.start
    asked = more
  inputs = jnp.concatenate([corners, seen[..., None], more], axis=-1)
  targets = object_targets(jnp.concatenate([corners, true[..., None], asked], axis=-1), slots.real)
  dense = jnp.broadcast_to(jnp.arange(inputs.shape[-1]) > BOX, inputs.shape)
  weights = jnp.where(dense, mask_weight if joints is None else 1.0, 1.0)
  flat = lambda x: x.reshape(x.shape[0], -1)  # noqa: E731
  return Sequence(flat(inputs), flat(targets), flat(weights), flat(dense))


def class_tokens(classes: Array, vocabulary: Vocabulary) -> Array:
  """Labels 1..C, 0 for noise, as rows."""
  return jnp.where(classes > 0, vocabulary.classes.start + classes - 1, vocabulary.noise)


def object_targets(tokens: Array, real: Array) -> Array:
  """(B, Q, T) targets from tokens (B, Q, T) with the true classes: of noise (real (B, Q) False) only the class
  counts."""
  is_class = jnp.arange(tokens.shape[-1]) == BOX
  return jnp.where(real[..., None] | is_class, tokens, IGNORED)


def select(task: Array, sequences: Mapping[int, Sequence]) -> Sequence:
  """Every example's own task's sequence, shorter ones padded at the end with input 0 and nothing asked.

  Args:
    task: (B,) ids.
    sequences: {id: sequences of all B examples}.
  """
  length = max(sequence.inputs.shape[1] for sequence in sequences.values())
  blank = Sequence(0, IGNORED, 0.0, False)
  out = None
  for number, sequence in sequences.items():
    padded = Sequence(*(jnp.pad(x, ((0, 0), (0, length - x.shape[1])), constant_values=value)
                        for x, value in zip(sequence, blank)))
    own = (task == number)[:, None]
    out = padded if out is None else Sequence(*(jnp.where(own, new, old) for new, old in zip(padded, out)))
  return out
