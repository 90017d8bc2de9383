"""Sequences of equal objects, each some groups of tokens with a legal range of their own (boxes, class, mask codes).

Hard, soft and parallel positions, one compiled call for all objects. B batch, N objects, T tokens, K size of a range.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.decoding import soft
from uvim_like.errors import UserError
from uvim_like.ops import sampling

Array = jax.Array
Cache = Any
FEEDBACK = ("hard", "soft", "parallel")


class Group(NamedTuple):
  """Neighbouring tokens of an object that share a range of the vocabulary.

  Attributes:
    name: of the result.
    length: T.
    start: first token of the range.
    size: K; logits are computed for these only.
    legal: how many of them, from the first on, may be chosen; the rest only takes part in scores. None for all.
    feedback: what the next step reads: the chosen token ("hard"), the mixture of all ("soft"), or the same vector
      everywhere, which allows all T at once ("parallel").
    keep_logits: whether the result holds them.
  """
  name: str
  length: int
  start: int
  size: int
  legal: int | None = None
  feedback: str = "hard"
  keep_logits: bool = False


class Decoder(NamedTuple):
  """A sequence decoder that works on embeddings.

  Attributes:
    step: (x (B, T, D), position (), cache) -> (hidden (B, T, D), cache); T tokens, causal among themselves.
    logits: (hidden, start, size) -> (B, T, size).
    embed: (tokens (B, T) of the vocabulary) -> (B, T, D).
    mix: (probabilities (B, T, K), start) -> (B, T, D); for soft feedback.
    fill: (B, T) -> (B, T, D); for parallel feedback.
  """
  step: Callable[[Array, Array, Cache], tuple[Array, Cache]]
  logits: Callable[[Array, int, int], Array]
  embed: Callable[[Array], Array]
  mix: Callable[[Array, int], Array] | None = None
  fill: Callable[[int, int], Array] | None = None


class Written(NamedTuple):
  """One group of every object.

  Attributes:
    tokens: (B, N, T) int32, counted from the start of the range.
    logits: (B, N, T, K), or None.
  """
  tokens: Array
  logits: Array | None


def decode(decoder: Decoder, cache: Cache, first: Array, key: Array, *, num_objects: int, groups: tuple[Group, ...],
           temperature: float = 0.0, top_p: float = 0.0) -> dict[str, Written]:
  """Writes `num_objects` objects one after the other.

  Args:
    decoder: see there.
    cache: as the decoder starts it, long enough for all tokens.
    first: (B, 1, D) what the first position reads.
    key: random key.
    num_objects: N.
    groups: of one object, in order.
    temperature: 0 is greedy.
    top_p: nucleus; 0 is off.

  Returns:
    {group's name: Written}.

  Raises:
    UserError: an unknown kind of feedback.
  """
  for group in groups:
    if group.feedback not in FEEDBACK:
      raise UserError(f"decoding: feedback '{group.feedback}' of '{group.name}' is none of {', '.join(FEEDBACK)}")
  choose = dict(temperature=temperature, top_p=top_p)

  def one_object(carry, key):
    written = {}
    for group, group_key in zip(groups, jax.random.split(key, len(groups)), strict=True):
      run = at_once if group.feedback == "parallel" else one_by_one
      carry, written[group.name] = run(decoder, carry, group_key, group=group, **choose)
    return carry, written

  start = (first, jnp.int32(0), cache)
  _, written = jax.lax.scan(one_object, start, jax.random.split(key, num_objects))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), written)  # (N, B, …) to (B, N, …)


def one_by_one(decoder: Decoder, carry: tuple, key: Array, *, group: Group, temperature: float,
               top_p: float) -> tuple[tuple, Written]:
  """The tokens of a group in as many steps."""
  def advance(carry, key):
    x, position, cache = carry
    hidden, cache = decoder.step(x, position, cache)
    logits = decoder.logits(hidden, group.start, group.size)
    token = _choose(key, logits, group, temperature, top_p)
    if group.feedback == "soft":
      x = decoder.mix(soft.mixture(logits[..., :group.legal]), group.start)
    else:
      x = decoder.embed(token + group.start)
    return (x, position + 1, cache), Written(token[:, 0], logits[:, 0] if group.keep_logits else None)

  carry, written = jax.lax.scan(advance, carry, jax.random.split(key, group.length))
  return carry, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), written)


def at_once(decoder: Decoder, carry: tuple, key: Array, *, group: Group, temperature: float,
            top_p: float) -> tuple[tuple, Written]:
  """The tokens of a group in one step: what came before asks for the first, the parallel token for all others.

  The parallel token also asks for what follows the group, since it stands wherever a dense token would.
  """
  x, position, cache = carry
  inputs = jnp.concatenate([x, decoder.fill(x.shape[0], group.length - 1)], axis=1)
  hidden, cache = decoder.step(inputs, position, cache)
  logits = decoder.logits(hidden, group.start, group.size)
  token = _choose(key, logits, group, temperature, top_p)
  carry = decoder.fill(x.shape[0], 1), position + group.length, cache
  return carry, Written(token, logits if group.keep_logits else None)


def _choose(key: Array, logits: Array, group: Group, temperature: float, top_p: float) -> Array:
  """(B, T) tokens counted from the start of the range."""
  return sampling.choose(key, logits[..., :group.legal], temperature=temperature, top_p=top_p)
