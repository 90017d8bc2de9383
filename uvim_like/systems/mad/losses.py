"""MAD's losses: set matching with the visible-token override, choice among captions, cross entropy of what is masked.

Matching is done for every decoder layer and every copy by itself. K decoder layers, B images, S sequences, L response
tokens, V local tokens, Q queries, N object slots, R references.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.ops import matching
from uvim_like.ops.losses import softmax_cross_entropy
from uvim_like.systems.mad.sequences import Training
from uvim_like.systems.mad.vocabulary import BOX_TOKENS, Vocabulary

Array = jax.Array
VISIBLE = 20.0       # a shown token counts as if it had this logit and all others its negative
NO_REFERENCE = 100.0  # added to the cost of a reference that does not exist


class Targets(NamedTuple):
  """What each layer is asked for: `tokens` (K, B, S, L) local int32, `weights` (K, B, S, L) float32."""
  tokens: Array
  weights: Array


class Sums(NamedTuple):
  """Of cross entropy times weight, and of weights, over layers, sequences and tokens: (B,) each."""
  loss: Array
  weight: Array

  @property
  def mean(self) -> Array:
    """() over everything: one denominator for the whole batch (section 3.2 of the paper)."""
    return jnp.sum(self.loss) / jnp.maximum(jnp.sum(self.weight), 1)

  @property
  def per_example(self) -> Array:
    """(B,) each image over its own weights; its mean is not quite `mean`, and no padding enters it."""
    return self.loss / jnp.maximum(self.weight, 1)


def cross_entropy(logits: Array, targets: Targets) -> Sums:
  """Of (K, B, S, L, V) logits."""
  losses = softmax_cross_entropy(logits, targets.tokens) * targets.weights
  return Sums(jnp.sum(losses, axis=(0, 2, 3)), jnp.sum(targets.weights, axis=(0, 2, 3)))


def every_layer(layers: int, training: Training) -> Targets:
  """Targets that need no matching: masks and keypoints."""
  shape = (layers, *training.targets.shape)
  return Targets(jnp.broadcast_to(training.targets, shape), jnp.broadcast_to(training.weights, shape))


# --- boxes ----------------------------------------------------------------------------------------------------------


def box_costs(logits: Array, shown: Array, masked: Array, tokens: Array) -> Array:
  """Mean cross entropy of an object's five tokens in each slot.

  A shown token has a known answer: its logits are replaced by VISIBLE there and -VISIBLE elsewhere, so that a slot that
  shows a part of an object stays with it.

  Args:
    logits: (K, B, S, L, V) with L = 5 Q.
    shown: (B, S, L) local tokens of the input.
    masked: (B, S, L) bool, False where `shown` is visible.
    tokens: (B, N, 5) local tokens of the objects.

  Returns:
    (K, B, S, Q, N) float32.
  """
  layers, batch, copies, length, width = logits.shape
  queries = length // BOX_TOKENS
  logits = jax.lax.stop_gradient(logits)
  normalizer = jax.nn.logsumexp(logits, axis=-1).reshape(layers, batch, copies, queries, BOX_TOKENS, 1)
  wanted = jnp.swapaxes(tokens, 1, 2)[None, :, None, None]  # (1, B, 1, 1, 5, N)
  picked = jnp.take_along_axis(logits.reshape(*normalizer.shape[:-1], width), wanted, axis=-1)
  shape = (1, batch, copies, queries, BOX_TOKENS, 1)
  known = jnp.logaddexp(VISIBLE, jnp.log(max(width - 1, 1)) - VISIBLE)
  cost_of_shown = known - jnp.where(shown.reshape(shape) == wanted, VISIBLE, -VISIBLE)
  return jnp.mean(jnp.where(masked.reshape(shape), normalizer - picked, cost_of_shown), axis=-2)


def match_boxes(costs: Array, tokens: Array, valid: Array, masked: Array, *, vocabulary: Vocabulary,
                noise_weight: float = 1.0, solver: str = "device") -> Targets:
  """Gives every object the slot of its assignment, and every other slot the class of no object.

  Args:
    costs: (K, B, S, Q, N).
    tokens: (B, N, 5) local tokens of the objects.
    valid: (B, N) bool.
    masked: (B, S, L) bool.
    vocabulary: of all tasks.
    noise_weight: of slots without object; 1 in all released configs.
    solver: see `ops.matching.assign`.
  """
  layers, batch, copies, queries, _ = costs.shape
  slots = matching.assign(costs, valid[None, :, None], solver=solver)  # (K, B, S, N)
  owner = matching.invert(slots, queries)  # (K, B, S, Q)
  owned = (owner != matching.NONE)[..., None]
  image = jnp.arange(batch)[None, :, None, None]
  is_class = jnp.arange(BOX_TOKENS) == BOX_TOKENS - 1
  nothing = vocabulary.local("boxes", vocabulary.no_object)
  targets = jnp.where(owned, tokens[image, jnp.maximum(owner, 0)], nothing)
  weights = jnp.where(owned, 1.0, jnp.where(is_class, noise_weight, 0.0))
  shape = (layers, batch, copies, queries * BOX_TOKENS)
  return Targets(targets.reshape(shape), weights.reshape(shape) * masked)


# --- captions -------------------------------------------------------------------------------------------------------


def choose_caption(logits: Array, training: Training, captions: Array, full: int | None) -> Targets:
  """Targets of all caption sequences: the fully masked one gets the reference that it is nearest to, layer by layer.

  "Hungarian" in the paper; with one prediction that is the cheapest reference.

  Args:
    logits: (K, B, S, L, V).
    training: the sequences.
    captions: (B, R, L) text pieces, rows of 0 where there is none.
    full: which sequence is fully masked; None when none is.
  """
  targets = every_layer(logits.shape[0], training)
  if full is None:
    return targets
  own = jax.lax.stop_gradient(logits[:, :, full])  # (K, B, L, V)
  normalizer = jax.nn.logsumexp(own, axis=-1)[:, :, None]
  picked = jnp.take_along_axis(own[:, :, None], captions[None, ..., None], axis=-1)[..., 0]  # (K, B, R, L)
  valid = jnp.any(captions > 0, axis=-1)
  best = jnp.argmin(jnp.mean(normalizer - picked, axis=-1) + jnp.where(valid, 0, NO_REFERENCE), axis=-1)  # (K, B)
  image = jnp.arange(captions.shape[0])
  tokens = targets.tokens.at[:, :, full].set(captions[image, best])
  weights = targets.weights.at[:, :, full].set(valid[image, best][..., None].astype(jnp.float32))
  return Targets(tokens, weights)
