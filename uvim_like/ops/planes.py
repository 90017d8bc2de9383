"""A linear head over patches whose output is only computed where it is needed, and its cross entropy without it.

The logits of 134 + 100 classes at 512x512 are 234 MiB an image, and so are their probabilities and their gradient. The
softmax runs over classes only, so pixels are independent: `Planes.cross_entropy` works through a few of a patch's pixels
at a time and, when it is differentiated, makes the gradient of each piece while its logits are at hand. No
multiplication and no exponential is done twice, and each piece of the kernel's gradient is written once, in its place.
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


def _piece_size(pixels: int) -> int:
  """How many of a patch's pixels are worked on at once: the most that divide them, up to PIXELS_AT_ONCE."""
  return next(size for size in range(min(PIXELS_AT_ONCE, pixels), 0, -1) if pixels % size == 0)


def _piece(x: Array, index: Array, size: int) -> Array:
  """Pixels index * size … of x (..., P). A slice of what lies there: cutting all pieces beforehand would copy it whole."""
  return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=-1)


def _put(whole: Array, piece: Array, index: Array) -> Array:
  """`whole` (..., P) with the pixels of a piece, in place inside a loop."""
  return jax.lax.dynamic_update_slice_in_dim(whole, piece, index * piece.shape[-1], axis=-1)


@jax.custom_vjp
def _chunked_cross_entropy(features: Array, kernel: Array, bias: Array, labels: Array) -> tuple[Array, Array]:
  size = _piece_size(labels.shape[-1])

  def add_piece(sums, index):
    logits = _logits(features, _piece(kernel, index, size), _piece(bias, index, size))
    loss = softmax_cross_entropy(logits, _piece(labels, index, size), -2)
    return sums + jnp.sum(loss, axis=(1, 2)), None

  start = jnp.zeros(features.shape[:1], jnp.float32)
  sums, _ = scan(add_piece, start, jnp.arange(labels.shape[-1] // size))
  return _means(sums, labels)


def _means(sums: Array, labels: Array) -> tuple[Array, Array]:
  per_example = sums / (labels.shape[1] * labels.shape[2])
  return jnp.mean(per_example), per_example


def _forward(features: Array, kernel: Array, bias: Array, labels: Array) -> tuple[tuple[Array, Array], Any]:
  """The loss, and its gradient made on the way: two dimensions (tokens of all examples, D) keep every product one matmul."""
  batch, _, width = features.shape
  x, flat_labels = features.reshape(-1, width), labels.reshape(-1, labels.shape[-1])
  size, classes, total = _piece_size(labels.shape[-1]), kernel.shape[1], labels.size
  matmul = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

  def add_piece(carry, index):
    sums, d_x, d_kernel, d_bias = carry
    weights = _piece(kernel, index, size).astype(x.dtype).reshape(width, -1)
    logits = matmul(x, weights).reshape(-1, classes, size) + _piece(bias, index, size)
    loss, d_logits = _loss_and_gradient(logits, _piece(flat_labels, index, size), total=total)
    d_bias = _put(d_bias, jnp.sum(d_logits, axis=0), index)
    d_logits = d_logits.reshape(-1, classes * size).astype(x.dtype)
    d_weights = matmul(x.T, d_logits).reshape(width, classes, size)
    return (sums + loss.reshape(batch, -1).sum(-1), d_x + matmul(d_logits, weights.T),
            _put(d_kernel, d_weights.astype(kernel.dtype), index), d_bias), None

  start = (jnp.zeros([batch], jnp.float32), jnp.zeros(x.shape, jnp.float32), jnp.zeros_like(kernel), jnp.zeros_like(bias))
  (sums, d_x, d_kernel, d_bias), _ = scan(add_piece, start, jnp.arange(labels.shape[-1] // size))
  return _means(sums, labels), (d_x.astype(features.dtype).reshape(features.shape), d_kernel, d_bias)


def _loss_and_gradient(logits: Array, labels: Array, *, total: int) -> tuple[Array, Array]:
  """(T, p) losses of logits (T, C, p), and the gradient of their sum over `total`; the exponentials serve both."""
  highest = jnp.max(logits, axis=1, keepdims=True)
  exponentials = jnp.exp(logits - highest)
  normalizer = jnp.sum(exponentials, axis=1, keepdims=True)
  labels = labels[:, None]
  valid = (labels >= 0) & (labels < logits.shape[1])
  picked = jnp.take_along_axis(logits, jnp.where(valid, labels, 0), axis=1)
  loss = jnp.where(valid, jnp.log(normalizer) + highest - picked, 0.0)
  weight = jnp.where(valid, 1 / total, 0.0)
  hit = jax.lax.broadcasted_iota(labels.dtype, logits.shape, 1) == labels
  return loss[:, 0], exponentials * (weight / normalizer) - jnp.where(hit, weight, 0.0)


def _backward(grads: Any, cotangent: tuple[Array, Array]) -> tuple[Array, Array, Array, None]:
  scale, _ = cotangent  # the reported per-example values are not differentiated
  return *jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads), None


_chunked_cross_entropy.defvjp(_forward, _backward)
