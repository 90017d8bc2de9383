"""Masked decoding of any sequence model: everything at once, then some tokens hidden again and asked for once more.

As in MAD (Masked AutoDecoder, CVPR 2024, section 3.3), over any function from partly hidden tokens to logits. B images,
S sequences an image, L positions, V tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.errors import UserError, unknown

Array = jax.Array
ORDERS = ("random", "confidence")
COMBINE = ("average", "replace")
_ILLEGAL = -1e30  # finite: a place where nothing is legal stays free of NaN


class Decoded(NamedTuple):
  """What was decoded.

  Attributes:
    tokens: (B, S, L) int32, the likeliest legal ones.
    logprobs: (B, S, L) float32 of these tokens among all V.
    logits: (B, S, L, V) float32 after the last stage.
  """
  tokens: Array
  logprobs: Array
  logits: Array


def lowest(values: Array, count: int | Array) -> Array:
  """(..., L) bool: exactly the `count` lowest of each row; equal ones in order."""
  rank = jnp.argsort(jnp.argsort(values, axis=-1, stable=True), axis=-1, stable=True)
  return rank < count


def choose(logits: Array, legal: Array | None = None) -> tuple[Array, Array]:
  """The likeliest legal tokens and their log-probabilities among all V: (B, S, L) each.

  Args:
    logits: (B, S, L, V).
    legal: bool, broadcastable to it.
  """
  allowed = logits if legal is None else jnp.where(legal, logits, _ILLEGAL)
  tokens = jnp.argmax(allowed, axis=-1).astype(jnp.int32)
  logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
  return tokens, logprobs


def decode(predict: Callable[[Array, Array], Array], key: Array, *, shape: tuple[int, int, int],
           ratios: Sequence[float] = (1.0,), legal: Array | None = None, order: str = "random",
           confidence: Callable[[Array, int], Array] | None = None, combine: str = "average",
           draws: Sequence[Array] | None = None) -> Decoded:
  """Decodes in as many calls of the model as there are ratios.

  Args:
    predict: (tokens (B, S, L) int32, hidden (B, S, L) bool) -> logits (B, S, L, V); tokens that are hidden must not
      matter to it.
    key: random key.
    shape: (B, S, L).
    ratios: 1.0 first, then the share that is hidden again in each later stage: int(L · ratio) tokens.
    legal: bool, broadcastable to (B, S, L, V); others are never chosen but count in probabilities.
    order: what is hidden again: "random" places, or those of the lowest "confidence".
    confidence: (probability of each token (B, S, L), stage from 1) -> the value to order by; the probability itself by
      default.
    combine: "average": the mean of old and new logits where tokens were hidden, so that later stages weigh more (MAD's
      code); "replace": the new ones there.
    draws: uniform (B, S, L) numbers of each stage after the first in place of `key`.

  Raises:
    UserError: an unknown order or combination, ratios that do not begin with 1 or are none.
  """
  if order not in ORDERS:
    raise unknown("order", order, ORDERS, where="masked decoding")
  if combine not in COMBINE:
    raise unknown("combination", combine, COMBINE, where="masked decoding")
  if not ratios or ratios[0] != 1 or not all(0 <= ratio <= 1 for ratio in ratios):
    raise UserError(f"masked decoding: ratios {tuple(ratios)} must begin with 1.0 and lie in 0..1")
  length = shape[-1]
  logits = predict(jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)).astype(jnp.float32)
  for stage, ratio in enumerate(ratios[1:], start=1):
    tokens, logprobs = choose(logits, legal)
    if order == "random":
      values = jax.random.uniform(jax.random.fold_in(key, stage), shape) if draws is None else draws[stage - 1]
    else:
      values = jnp.exp(logprobs) if confidence is None else confidence(jnp.exp(logprobs), stage)
    hidden = lowest(values, int(length * ratio))
    new = predict(tokens, hidden)
    new = (logits + new) / 2 if combine == "average" else new
    logits = jnp.where(hidden[..., None], new, logits)
  return Decoded(*choose(logits, legal), logits)
