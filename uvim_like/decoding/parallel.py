"""All tokens of a sequence from one pass (AiT-P, arXiv 2301.02229, section 3.4).

Every dense position is asked for by the same learned vector, so no input depends on an output: one pass of the decoder
under its causal mask gives the same logits as feeding those vectors step by step.
"""

import jax
import jax.numpy as jnp

from uvim_like.decoding.autoregressive import Sequences
from uvim_like.errors import UserError
from uvim_like.ops import sampling

Array = jax.Array


def decode(logits: Array, key: Array, *, num_samples: int = 1, temperature: float | Array = 0.0, top_k: int = 0,
           top_p: float = 0.0, forbidden: tuple[int, ...] = (), keep_logits: bool = False) -> Sequences:
  """Chooses every token by itself; the counterpart of `autoregressive.decode`, with the same options.

  Args:
    logits: (B, L, V) of one pass.
    key: random key.
    num_samples: S.
    temperature: 0 is greedy.
    top_k: keep the k likeliest; 0 is off.
    top_p: nucleus; 0 is off. Not together with top_k.
    forbidden: tokens that are never chosen.
    keep_logits: return the logits, too.

  Raises:
    UserError: top_k and top_p together.
  """
  if top_k and top_p:
    raise UserError(f"decoding: top_k={top_k} and top_p={top_p} exclude each other; set one to 0")
  allowed = sampling.hide_tokens(logits, forbidden)
  allowed = jnp.broadcast_to(allowed[:, None], (logits.shape[0], num_samples, *logits.shape[1:]))
  tokens = sampling.choose(key, allowed, temperature=temperature, top_k=top_k, top_p=top_p)
  probabilities = jax.nn.log_softmax(logits)[:, None]
  logprobs = jnp.take_along_axis(jnp.broadcast_to(probabilities, allowed.shape), tokens[..., None], axis=-1)[..., 0]
  kept = jnp.broadcast_to(logits[:, None], allowed.shape) if keep_logits else None
  return Sequences(tokens, logprobs, jnp.sum(logprobs, axis=-1), kept)
