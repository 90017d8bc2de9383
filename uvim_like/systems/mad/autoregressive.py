"""The autoregressive baseline on MAD's vocabulary: token after token, as Pix2Seq (arXiv 2109.10852, 2206.07669).

The same network under a causal mask. Objects come in random order, followed by noise objects whose answer is "no
object"; the classes that the model reads are always wrong or missing, so that it cannot learn that one noise object
means that only noise follows. B images, N object slots, Q queries, S sequences, L response tokens, P prompt tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.decoding import autoregressive
from uvim_like.ops.boxes import from_centres, to_centres
from uvim_like.systems.mad.sequences import Objects, Training, box_tokens
from uvim_like.systems.mad.vocabulary import BOX_TOKENS, Vocabulary, task_prompt

Array = jax.Array
JITTER = 0.05       # standard deviation of a copied box's corners, in sides of the box
RANDOM_SIDE = 0.5   # standard deviation of the sides of a random box
WRONG_CLASS = 0.5   # share of read classes that are random ones; the others read "no object"
# Nucleus for boxes, the likeliest token for the rest.
TOP_P = {"boxes": 0.4, "masks": 0.0, "keypoints": 0.0, "captions": 0.0}
_ILLEGAL, _CHOSEN = -1e30, 1e4


def causal_inputs(training: Training) -> Array:
  """(B, S, P + L - 1) table ids: what stands before each token of the response."""
  return jnp.concatenate([training.prompts, training.responses[..., :-1]], axis=-1)


def box_training(found: Objects, key: Array, *, vocabulary: Vocabulary, noise_weight: float = 1.0) -> Training:
  """The detection sequence: real objects in random order, then noise, with targets and weights for the true answers."""
  order_key, noise_key, class_key, which_key = jax.random.split(key, 4)
  batch, queries = found.valid.shape[0], vocabulary.queries
  number = jnp.sum(found.valid, axis=-1, keepdims=True)
  order = jnp.argsort(jnp.where(found.valid, jax.random.uniform(order_key, found.valid.shape), jnp.inf), axis=-1)
  rank = jnp.argsort(order, axis=-1)
  slot = jnp.where(found.valid, rank, queries)  # outside: dropped
  boxes = noise_boxes(noise_key, found, queries)
  noise_class = jnp.zeros((batch, queries), jnp.int32)
  tokens = jax.vmap(lambda noise, slot, real: noise.at[slot].set(real, mode="drop"))(
      box_tokens(boxes, noise_class, vocabulary), slot, found.tokens)
  real = (jnp.arange(queries) < number)[..., None]
  is_class = jnp.arange(BOX_TOKENS) == BOX_TOKENS - 1
  answers = jnp.where(is_class & ~real, vocabulary.no_object, tokens)
  wrong = vocabulary.no_object - vocabulary.classes + jax.random.randint(
      class_key, (batch, queries, 1), 0, vocabulary.classes)
  wrong = jnp.where(jax.random.uniform(which_key, wrong.shape) < WRONG_CLASS, wrong, vocabulary.no_object)
  weights = jnp.where(real, 1.0, jnp.where(is_class, noise_weight, 0.0))
  flat = (batch, 1, queries * BOX_TOKENS)
  return Training(task_prompt(vocabulary, "boxes", batch), jnp.where(is_class, wrong, tokens).reshape(flat),
                  jnp.ones(flat, bool), vocabulary.to_local("boxes", answers).reshape(flat), weights.reshape(flat))


def noise_boxes(key: Array, found: Objects, queries: int) -> Array:
  """(B, Q, 4) xyxy: jittered copies of objects, boxes of their sizes elsewhere, random boxes.

  The number of copies is uniform from 0 to the number of noise objects; without objects all boxes are random.
  """
  keys = jax.random.split(key, 7)
  shape = found.valid.shape[0], queries
  number = jnp.sum(found.valid, axis=-1, keepdims=True)
  packed = jnp.argsort(~found.valid, axis=-1, stable=True)
  pick = jnp.floor(jax.random.uniform(keys[0], shape) * jnp.maximum(number, 1)).astype(jnp.int32)
  source = jnp.take_along_axis(packed, pick, axis=-1)
  boxes = jnp.take_along_axis(found.boxes, source[..., None], axis=1)
  sides = boxes[..., 2:] - boxes[..., :2]
  jitter = JITTER * jax.random.truncated_normal(keys[1], -2, 2, boxes.shape)
  copies = boxes + jitter * jnp.concatenate([sides, sides], axis=-1)
  centres = jax.random.uniform(keys[2], (*shape, 2))
  moved = from_centres(jnp.concatenate([centres, to_centres(boxes)[..., 2:]], axis=-1))
  random_sides = jnp.abs(RANDOM_SIDE * jax.random.truncated_normal(keys[3], -2, 2, (*shape, 2)))
  anywhere = from_centres(jnp.concatenate([centres, random_sides], axis=-1))
  share = jax.random.uniform(keys[4], (shape[0], 1))  # the number of copies over all noise
  copied = (jax.random.uniform(keys[5], shape) < share)[..., None]
  shifted = (jax.random.uniform(keys[6], shape) < 0.5)[..., None]
  noise = jnp.where(copied, copies, jnp.where(shifted, moved, anywhere))
  return jnp.clip(jnp.where(number[..., None] > 0, noise, anywhere), 0, 1)


def caption_training(captions: Array, *, vocabulary: Vocabulary) -> Training:
  """One sequence for every reference (B, R, L), 0 behind its end."""
  valid = jnp.any(captions > 0, axis=-1, keepdims=True)
  prompt = task_prompt(vocabulary, "captions", captions.shape[0])
  return Training(jnp.broadcast_to(prompt, (*captions.shape[:2], prompt.shape[-1])),
                  vocabulary.to_table("captions", captions), jnp.ones(captions.shape, bool), captions,
                  jnp.broadcast_to(valid, captions.shape).astype(jnp.float32))


class Stepper(NamedTuple):
  """The network with its parameters bound, for decoding step by step.

  Attributes:
    start: (batch, sequences, tokens of prompt and response) -> caches.
    step: (tokens (B, S, n) of the table, how many stand before them, caches, rows) -> (logits (B, S, V), caches).
    vocabulary: of all tasks.
  """
  start: Callable[[int, int, int], Any]
  step: Callable[..., tuple[Array, Any]]
  vocabulary: Vocabulary


class _State(NamedTuple):
  """The cache of `decode`: the decoder's and what the first step needs."""
  caches: Any
  last_of_prompt: Array  # (B, S)


def legal(vocabulary: Vocabulary, task: str) -> Array:
  """(L, V) bool: the tokens of the format; "no object" is an answer here, since the model reads what it writes."""
  table = jnp.asarray(vocabulary.legal(task))
  if task == "boxes":
    table = table.at[BOX_TOKENS - 1::BOX_TOKENS, vocabulary.local(task, vocabulary.no_object)].set(True)
  return table


def decode(task: str, prompts: Array, key: Array, *, stepper: Stepper, top_p: Mapping[str, float]) -> Array:
  """`decode` of `inference.infer`, one token a step with cached keys and values.

  Returns:
    Logits (B, S, L, V) whose largest legal entries are the tokens that were written; of captions these tokens.
  """
  vocabulary = stepper.vocabulary
  batch, count, prompt = prompts.shape
  length, rows, width = vocabulary.response(task), vocabulary.rows(task), vocabulary.width(task)
  caches = stepper.start(batch, count, prompt + length)
  if prompt > 1:
    _, caches = stepper.step(prompts[..., :-1], jnp.int32(0), caches, rows)
  formats = legal(vocabulary, task)

  def step(tokens, position, state):
    ids = jnp.where(position == 0, state.last_of_prompt, vocabulary.to_table(task, tokens))
    logits, caches = stepper.step(ids[..., None], position + prompt - 1, state.caches, rows)
    return jnp.where(formats[position], logits, _ILLEGAL), state._replace(caches=caches)

  keep = task != "captions"
  written = autoregressive.decode(
      step, _State(caches, prompts[..., -1]), key, batch=batch, length=length, num_samples=count, forbidden=(),
      temperature=1.0 if top_p[task] else 0.0, top_p=top_p[task], eos_token=autoregressive.NO_END if keep else 0,
      keep_logits=keep, vocab_size=width)
  if not keep:
    return written.tokens
  if task != "boxes":
    return written.logits
  is_class = jnp.arange(length) % BOX_TOKENS == BOX_TOKENS - 1
  chosen = jnp.arange(width) == written.tokens[..., None]
  return jnp.where(chosen & ~is_class[:, None], _CHOSEN, written.logits)
