"""A linear head over patches whose output is only computed where it is needed, and its cross entropy without it.

The logits of 134 + 100 classes at 512x512 are 234 MiB an image, and so are their probabilities and their gradient. The
softmax runs over classes only, so pixels are independent: `Planes.cross_entropy` works through a few of a patch's pixels
at a time and, when it is differentiated, makes the gradient of each piece while its logits are at hand. No
multiplication is done twice, and each piece of the kernel's gradient is written once.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvim_like.ops.loops import scan
from uvim_like.ops.losses import example_mean, softmax_cross_entropy

Array = jax.Array
PIXELS_AT_ONCE = 32  # of a patch: 17 MiB of logits for 1024 patches and 134 classes


class Loss(NamedTuple):
  """A loss that is minimised and reported.

  Attributes:
    mean: () what is differentiated.
    per_example: (B,) what is reported; its gradient may be cut.
  """
  mean: Array
  per_example: Array

  @staticmethod
  def of(per_pixel: Array) -> "Loss":
    """From a loss a pixel, (B, …)."""
    per_example = example_mean(per_pixel)
    return Loss(jnp.mean(per_example), per_example)


class Planes(NamedTuple):
  """The output of a linear head that is yet to be computed.

  Attributes:
    features: (B, N, D).
    kernel: (D, C, P).
    bias: (C, P).
  """
  features: Array
  kernel: Array
  bias: Array

  def values(self) -> Array:
    """(B, N, C, P) float32."""
    return _logits(self.features, self.kernel, self.bias)

  def cross_entropy(self, labels: Array) -> Loss:
    """Mean over all pixels of the cross entropy of labels (B, N, P) int; outside 0..C-1 the loss is 0 but counts."""
    return Loss(*_chunked_cross_entropy(self.features, self.kernel, self.bias, labels))


def _logits(features: Array, kernel: Array, bias: Array) -> Array:
  out = jnp.einsum("bnd,dcp->bncp", features, kernel.astype(features.dtype), preferred_element_type=jnp.float32)
  return out + bias


def _pieces(pixels: int) -> int:
  """Into how many equal pieces a patch's pixels are cut."""
  return next(count for count in range(-(-pixels // PIXELS_AT_ONCE), pixels + 1) if pixels % count == 0)


def _cut(x: Array) -> Array:
  """(..., P) to (pieces, ..., P / pieces)."""
  return jnp.moveaxis(x.reshape(*x.shape[:-1], _pieces(x.shape[-1]), -1), -2, 0)


def _join(x: Array) -> Array:
  """The inverse of `_cut`."""
  x = jnp.moveaxis(x, 0, -2)
  return x.reshape(*x.shape[:-2], -1)


@jax.custom_vjp
def _chunked_cross_entropy(features: Array, kernel: Array, bias: Array, labels: Array) -> tuple[Array, Array]:
  def add_piece(sums, piece):
    kernel, bias, labels = piece
    loss = softmax_cross_entropy(_logits(features, kernel, bias), labels, -2)
    return sums + jnp.sum(loss, axis=(1, 2)), None

  start = jnp.zeros(features.shape[:1], jnp.float32)
  sums, _ = scan(add_piece, start, (_cut(kernel), _cut(bias), _cut(labels)))
  return _means(sums, labels)


def _means(sums: Array, labels: Array) -> tuple[Array, Array]:
  per_example = sums / (labels.shape[1] * labels.shape[2])
  return jnp.mean(per_example), per_example


def _forward(features: Array, kernel: Array, bias: Array, labels: Array) -> tuple[tuple[Array, Array], Any]:
  def add_piece(carry, piece):
    sums, d_features = carry
    kernel, bias, labels = piece
    logits, pullback = jax.vjp(_logits, features, kernel, bias)
    loss, d_logits = _piece_loss(logits, labels, total=total)
    d_x, d_kernel, d_bias = pullback(d_logits)
    return (sums + loss, d_features + d_x.astype(jnp.float32)), (d_kernel, d_bias)

  total = labels.size
  start = jnp.zeros(features.shape[:1], jnp.float32), jnp.zeros(features.shape, jnp.float32)
  (sums, d_features), (d_kernel, d_bias) = scan(add_piece, start, (_cut(kernel), _cut(bias), _cut(labels)))
  return _means(sums, labels), (d_features.astype(features.dtype), _join(d_kernel), _join(d_bias))


def _piece_loss(logits: Array, labels: Array, *, total: int) -> tuple[Array, Array]:
  """(B,) summed loss of one piece and the gradient of the mean over `total` pixels with respect to its logits."""
  loss, pullback = jax.vjp(functools.partial(softmax_cross_entropy, axis=-2), logits, labels)
  d_logits, _ = pullback(jnp.full(loss.shape, 1 / total, loss.dtype))
  return jnp.sum(loss, axis=(1, 2)), d_logits


def _backward(grads: Any, cotangent: tuple[Array, Array]) -> tuple[Array, Array, Array, None]:
  scale, _ = cotangent  # the reported per-example values are not differentiated
  return *jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads), None


_chunked_cross_entropy.defvjp(_forward, _backward)
