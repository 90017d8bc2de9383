"""MAD's masked inference: boxes, then masks, keypoints and a caption, all in one compiled call for a batch of images.

B images, S sequences an image, Q boxes, L response tokens, V tokens, J joints.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.decoding import masked
from uvim_like.models.mad import Picture
from uvim_like.ops import boxes as box_ops
from uvim_like.systems.mad import sequences
from uvim_like.systems.mad.vocabulary import (
  BOX_TOKENS,
  MASK_TOKEN,
  POINT_TOKENS,
  Vocabulary,
  instance_prompt,
  task_prompt,
)

Array = jax.Array
Call = Callable[..., Array]

# Shares of tokens that are hidden in each stage (section 4.3 of the paper; its code has (1.0,) for keypoints).
STAGES = {"boxes": (1.0,), "masks": (1.0,), "keypoints": (1.0, 0.7), "captions": (1.0, 0.8, 0.6, 0.4)}
# What is hidden again: anything at random (the paper); its code goes by confidence for all but captions.
ORDER = {"boxes": "random", "masks": "random", "keypoints": "random", "captions": "random"}
CHUNK = 25  # sequences of an image decoded at a time: masks on 25x42 places take 0.75 GB, all 100 at once 3.0 GB


class Network(NamedTuple):
  """The decoder with its parameters bound.

  Attributes:
    decode: (tokens (B, S, L), picture) -> outputs (B, S, L, D) of the last layer.
    logits: (outputs, rows) -> (..., V).
    picture: the encoded images.
    vocabulary: of all tasks.
    chunk: see `CHUNK`.
  """
  decode: Call
  logits: Call
  picture: Picture
  vocabulary: Vocabulary
  chunk: int = CHUNK


class Boxes(NamedTuple):
  """Detections.

  Attributes:
    tokens: (B, Q, 5) table ids, the prompts of what follows.
    bins: (B, Q, 4) int xyxy.
    classes: (B, Q) int 1..C.
    scores: (B, Q).
  """
  tokens: Array
  bins: Array
  classes: Array
  scores: Array


def response_logits(network: Network, prompts: Array, ids: Array, hidden: Array, rows) -> Array:
  """(B, S, L, V) logits of the responses `ids` (table ids), hidden ones as MASK, behind prompts (B, S, P)."""
  tokens = jnp.concatenate([prompts, jnp.where(hidden, MASK_TOKEN, ids)], axis=-1)
  one = functools.partial(_last_logits, network=network, prompt=prompts.shape[-1], rows=rows)
  batch, count, length = tokens.shape
  if count <= network.chunk:
    return one(tokens)
  chunks = -(-count // network.chunk)
  padded = jnp.pad(tokens, ((0, 0), (0, chunks * network.chunk - count), (0, 0)))
  split = padded.reshape(batch, chunks, network.chunk, length).swapaxes(0, 1)
  found = jax.lax.map(one, split).swapaxes(0, 1)  # (B, chunks, chunk, L, V)
  return found.reshape(batch, -1, *found.shape[3:])[:, :count]


def _last_logits(tokens: Array, *, network: Network, prompt: int, rows) -> Array:
  return network.logits(network.decode(tokens, network.picture)[:, :, prompt:], rows)


def refine(network: Network, task: str, prompts: Array, key: Array, *, stages: Mapping[str, Sequence[float]],
           order: Mapping[str, str], combine: str, draws: Sequence[Array] | None = None,
           all_rows: bool = False) -> masked.Decoded:
  """Staged decoding of one task; tokens are local, or ids of the table with `all_rows`.

  Args:
    network: the decoder.
    task: of `TASKS`.
    prompts: (B, S, P).
    key: random key.
    stages, order: of all tasks.
    combine: see `decoding.masked.decode`.
    draws: see there.
    all_rows: probabilities over every row before the text (the code's detections).
  """
  vocabulary = network.vocabulary
  rows = vocabulary.rows_of_all_vision() if all_rows else vocabulary.rows(task)
  legal = jnp.asarray(vocabulary.legal(task))
  if all_rows:
    legal = jnp.zeros((legal.shape[0], vocabulary.first_text), bool).at[
        :, vocabulary.to_table(task, jnp.arange(legal.shape[1]))].set(legal)

  def predict(tokens, hidden):
    ids = tokens if all_rows else vocabulary.to_table(task, tokens)
    return response_logits(network, prompts, ids, hidden, rows)

  return masked.decode(predict, key, shape=(*prompts.shape[:2], vocabulary.response(task)), ratios=stages[task],
                       legal=legal, order=order[task], combine=combine, draws=draws,
                       confidence=joint_confidence if task == "keypoints" else None)


def joint_confidence(probability: Array, stage: int) -> Array:
  """(B, S, 3 J) order of keypoint tokens by confidence (MAD's code).

  In the first stage a joint's place goes by the probability of its visibility and visibilities stay; later every token
  goes by its own probability.
  """
  if stage > 1:
    return probability
  joints = probability.reshape(*probability.shape[:-1], -1, POINT_TOKENS)
  seen = joints[..., 2]
  return jnp.stack([seen, seen, jnp.ones_like(seen)], axis=-1).reshape(probability.shape)


# --- what the logits mean -------------------------------------------------------------------------------------------


def read_boxes(logits: Array, vocabulary: Vocabulary, *, requantise: bool = False, all_rows: bool = False) -> Boxes:
  """Boxes from (B, 1, 5 Q, V) logits.

  Args:
    logits: of the last stage.
    vocabulary: of all tasks.
    requantise: bins go through floats and back as in MAD's code, where two of 501 come back one lower.
    all_rows: the logits are those of every row before the text.
  """
  probability = jax.nn.softmax(logits[:, 0].reshape(logits.shape[0], -1, BOX_TOKENS, logits.shape[-1]))
  first_class = vocabulary.no_object - vocabulary.classes
  offset = 0 if all_rows else -first_class
  bins = jnp.argmax(probability[..., :4, vocabulary.first_bin + offset:vocabulary.foreground + offset], axis=-1)
  real = probability[..., 4, first_class + offset:vocabulary.no_object + offset]
  classes = jnp.argmax(real, axis=-1)
  if requantise:
    bins = box_ops.quantise(box_ops.dequantise(bins, vocabulary.bins), vocabulary.bins)
  tokens = jnp.concatenate([bins + vocabulary.first_bin, (classes + first_class)[..., None]], axis=-1)
  return Boxes(tokens.astype(jnp.int32), bins.astype(jnp.int32), classes.astype(jnp.int32) + 1,
               jnp.max(real, axis=-1))


def given_boxes(batch: Mapping[str, Array], vocabulary: Vocabulary) -> Boxes:
  """The annotated boxes of a batch with score 1, for a model that does not detect."""
  found = sequences.objects(batch, vocabulary)
  return Boxes(found.tokens, found.tokens[..., :4] - vocabulary.first_bin, batch["box_labels"],
               found.valid.astype(jnp.float32))


def by_score(boxes: Boxes) -> Boxes:
  """The same boxes, the best first."""
  order = jnp.argsort(-boxes.scores, axis=-1, stable=True)
  return Boxes(*(jax.vmap(lambda x, i: x[i])(x, order) for x in boxes))


def read_masks(logits: Array, vocabulary: Vocabulary) -> Array:
  """(B, Q, side, side) probability of foreground from (B, Q, L, 2)."""
  side = vocabulary.mask_side
  return jax.nn.softmax(logits)[..., 0].reshape(*logits.shape[:2], side, side)


def read_keypoints(logits: Array, vocabulary: Vocabulary, *, half_bin: bool) -> Array:
  """(B, Q, J, 3): x, y as fractions of the picture and the probability of being visible rather than hidden."""
  logits = logits.reshape(*logits.shape[:2], -1, POINT_TOKENS, logits.shape[-1])
  places = jnp.argmax(logits[..., :2, :vocabulary.bins + 1], axis=-1)
  seen = jax.nn.softmax(logits[..., 2, vocabulary.bins + 1:])[..., 0]
  return jnp.concatenate([box_ops.dequantise(places, vocabulary.bins, half_bin=half_bin), seen[..., None]], axis=-1)


def end_caption(tokens: Array) -> Array:
  """(B, T) text pieces with nothing behind the first 0."""
  return jnp.where(jnp.cumsum(tokens == 0, axis=-1) > 0, 0, tokens)


def to_canvas(batch: Mapping[str, Array], points: Array) -> Array:
  """(B, ..., 2) x, y fractions of the picture to y, x fractions of the canvas."""
  factors = 1 / sequences.to_picture(batch)
  return points[..., ::-1] * factors.reshape(factors.shape[0], *[1] * (points.ndim - 2), 2)


def box_output(batch: Mapping[str, Array], boxes: Boxes, vocabulary: Vocabulary, *, half_bin: bool) -> dict[str, Array]:
  """{"boxes", "scores", "classes"} as evaluators want them; a box without area has score 0."""
  fractions = box_ops.dequantise(boxes.bins, vocabulary.bins, half_bin=half_bin)
  corners = to_canvas(batch, fractions.reshape(*fractions.shape[:-1], 2, 2))
  has_area = jnp.all(boxes.bins[..., 2:] > boxes.bins[..., :2], axis=-1)
  return {"boxes": corners.reshape(fractions.shape), "scores": jnp.where(has_area, boxes.scores, 0),
          "classes": boxes.classes}


def prompts_of(task: str, boxes: Boxes | None, vocabulary: Vocabulary, batch: int, count: int | None) -> Array:
  """(B, S, P) prompts of a task; the first `count` boxes, all for None."""
  if task in ("boxes", "captions"):
    return task_prompt(vocabulary, task, batch)
  tokens = boxes.tokens[:, :count]
  return instance_prompt(task, tokens, jnp.ones(tokens.shape[:2], bool))


def infer(decode: Callable[[str, Array, Array], Array], batch: Mapping[str, Array], key: Array, *,
          vocabulary: Vocabulary, tasks: Sequence[str], instances: int | None = None, half_bin: bool | Sequence[str] = False,
          requantise: bool = False, all_rows: bool = False) -> dict[str, Array]:
  """All tasks in turn, by any way of decoding one of them.

  Args:
    decode: (task, prompts (B, S, P), key) -> logits (B, S, L, V); of captions the tokens (B, 1, L) alone.
    batch: image, valid_size, and the boxes where "boxes" is not among the tasks.
    key: random key.
    vocabulary: of all tasks.
    tasks: which.
    instances: masks and keypoints of so many boxes, those of the highest scores (all boxes then come in that order);
      None for all in the order of the sequence.
    half_bin: coordinates are the middles of their bins: of all tasks, or of those named (boxes that end between two
      pixels are exact at the edges of bins, joints are not).
    requantise, all_rows: see `read_boxes`.
  """
  keys = dict(zip(tasks, jax.random.split(key, len(tasks))))
  size, boxes, out = batch["image"].shape[0], None, {}
  if "boxes" in tasks:
    logits = decode("boxes", prompts_of("boxes", None, vocabulary, size, None), keys["boxes"])
    boxes = read_boxes(logits, vocabulary, requantise=requantise, all_rows=all_rows)
  elif set(tasks) & {"masks", "keypoints"}:
    boxes = given_boxes(batch, vocabulary)
  if boxes is not None:
    boxes = boxes if instances is None else by_score(boxes)
    out |= box_output(batch, boxes, vocabulary, half_bin=_named(half_bin, "boxes"))
  if "masks" in tasks:
    logits = decode("masks", prompts_of("masks", boxes, vocabulary, size, instances), keys["masks"])
    out["masks"] = _all_slots(read_masks(logits, vocabulary), boxes)
  if "keypoints" in tasks:
    logits = decode("keypoints", prompts_of("keypoints", boxes, vocabulary, size, instances), keys["keypoints"])
    points = read_keypoints(logits, vocabulary, half_bin=_named(half_bin, "keypoints"))
    points = jnp.concatenate([to_canvas(batch, points[..., :2]), points[..., 2:]], axis=-1)
    out["keypoints"] = _all_slots(points, boxes)
  if "captions" in tasks:
    tokens = decode("captions", prompts_of("captions", None, vocabulary, size, None), keys["captions"])
    out["captions"] = end_caption(tokens[:, 0])
  return out


def _named(choice: bool | Sequence[str], task: str) -> bool:
  return choice if isinstance(choice, bool) else task in choice


def _all_slots(values: Array, boxes: Boxes) -> Array:
  """(B, S, ...) of the first boxes, zeros for the others."""
  missing = boxes.scores.shape[1] - values.shape[1]
  return jnp.pad(values, [(0, 0), (0, missing)] + [(0, 0)] * (values.ndim - 2))


def masked_decode(task: str, prompts: Array, key: Array, *, network: Network, stages: Mapping[str, Sequence[float]],
                  order: Mapping[str, str], combine: str, all_rows: bool) -> Array:
  """`decode` of `infer` by masked inference."""
  found = refine(network, task, prompts, key, stages=stages, order=order, combine=combine,
                 all_rows=all_rows and task == "boxes")
  return found.tokens if task == "captions" else found.logits
