"""Cached decoding, one token a step, of any sequence decoder, inside one compiled call for a batch of images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.decoding import soft as soft_tokens
from uvim_like.errors import UserError
from uvim_like.ops import sampling

Array = jax.Array
Cache = Any
NO_END = -1


class Sequences(NamedTuple):
  """What was decoded, S sequences an image.

  Attributes:
    tokens: (B, S, L) int32; 0 after an end token.
    logprobs: (B, S, L) log-probability of each token under the unscaled logits.
    scores: (B, S) their sums.
    logits: (B, S, L, V) of every step, untouched, where they were asked for.
  """
  tokens: Array
  logprobs: Array
  scores: Array
  logits: Array | None = None


class _Progress(NamedTuple):
  position: Array
  last: Array       # (B, S), or (B, S, V) when it is soft
  tokens: Array     # (B, S, L)
  logprobs: Array   # (B, S, L)
  ended: Array      # (B, S) bool
  key: Array
  cache: Cache
  logits: Array | None = None  # (B, S, L, V)


def decode(step: Callable[[Array, Array, Cache], tuple[Array, Cache]], cache: Cache, key: Array, *, batch: int,
           length: int, num_samples: int = 1, temperature: float | Array = 0.0, top_k: int = 0, top_p: float = 0.0,
           prompts: Array | None = None, forbidden: tuple[int, ...] = (0,), eos_token: int = NO_END,
           soft: float | None = None, keep_logits: bool = False, vocab_size: int | None = None) -> Sequences:
  """Writes `num_samples` sequences an image.

  Args:
    step: (tokens (B, S), position (), cache) -> (logits (B, S, V), cache); with `soft` its first argument is
      probabilities (B, S, V), zeros at position 0.
    cache: as the decoder starts it.
    key: random key; each step splits it once.
    batch: B.
    length: L, the number of tokens, exactly, unless every sequence meets `eos_token`.
    num_samples: S.
    temperature: 0 is greedy.
    top_k: keep the k likeliest; 0 is off.
    top_p: nucleus; 0 is off. Not together with top_k.
    prompts: (B, L) int, non-zero entries are forced.
    forbidden: tokens that are never chosen; UViM's start token 0 by default (the published code could sample it, and
      its code -1 then meant the last word: pass () for that behaviour).
    eos_token: ends a sequence; NO_END for codes of fixed length.
    soft: factor on the logits of the mixture of all allowed tokens that is fed back in place of the chosen one (AiT's
      soft token, whose factor is 1); None feeds the token back.
    keep_logits: return the logits of every step, too.
    vocab_size: V, needed with `soft` and `keep_logits`.

  Raises:
    UserError: top_k and top_p together; V is needed and not given.
  """
  if top_k and top_p:
    raise UserError(f"decoding: top_k={top_k} and top_p={top_p} exclude each other; set one to 0")
  if vocab_size is None and (soft is not None or keep_logits):
    raise UserError("decoding: soft tokens and kept logits need vocab_size, the number of logits of a step")
  empty = jnp.zeros((batch, num_samples, length), jnp.int32)
  forced = jnp.zeros((batch, length), jnp.int32) if prompts is None else prompts

  def unfinished(now: _Progress) -> Array:
    return (now.position < length) & ~jnp.all(now.ended)

  def advance(now: _Progress) -> _Progress:
    logits, cache = step(now.last, now.position, now.cache)
    choose_key, key = jax.random.split(now.key)
    allowed = sampling.hide_tokens(logits, forbidden)
    token = sampling.choose(choose_key, allowed, temperature=temperature, top_k=top_k, top_p=top_p)
    prompt = forced[:, now.position, None]
    token = jnp.where(prompt != 0, prompt, token)
    token = jnp.where(now.ended, 0, token)
    logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[..., None], axis=-1)[..., 0]
    logprob = jnp.where(now.ended, 0.0, logprob)
    fed = token if soft is None else _mixture(allowed, soft, token, (prompt != 0) | now.ended)
    kept = now.logits.at[:, :, now.position].set(logits) if keep_logits else None
    return _Progress(now.position + 1, fed, now.tokens.at[:, :, now.position].set(token),
                     now.logprobs.at[:, :, now.position].set(logprob), now.ended | (token == eos_token), key, cache,
                     kept)

  last = empty[..., 0] if soft is None else jnp.zeros((batch, num_samples, vocab_size))
  kept = jnp.zeros((*empty.shape, vocab_size)) if keep_logits else None
  start = _Progress(jnp.int32(0), last, empty, empty.astype(jnp.float32), jnp.zeros((batch, num_samples), bool), key,
                    cache, kept)
  end = jax.lax.while_loop(unfinished, advance, start)
  return Sequences(end.tokens, end.logprobs, jnp.sum(end.logprobs, axis=-1), end.logits)


def _mixture(logits: Array, factor: float, token: Array, given: Array) -> Array:
  """Probabilities (B, S, V) that are fed back: all of the given token where it was not the decoder's to choose."""
  return jnp.where(given[..., None], soft_tokens.one_hot_of(token, logits.shape[-1]),
                   soft_tokens.mixture(logits, factor))
