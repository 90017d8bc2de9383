"""The head that is never computed whole: its cross entropy and gradients against the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops import planes
from uvim_like.ops.planes import Loss, Planes


def example(pixels, *, classes=5, batch=2, tokens=3, width=4, dtype=jnp.float32):
  rng = np.random.default_rng(pixels)
  head = Planes(jnp.asarray(rng.normal(size=(batch, tokens, width)), dtype),
                jnp.asarray(rng.normal(size=(width, classes, pixels)), jnp.float32),
                jnp.asarray(rng.normal(size=(classes, pixels)), jnp.float32))
  labels = rng.integers(-1, classes + 1, (batch, tokens, pixels)).astype(np.int32)
  return head, jnp.asarray(labels)


def plain(head, labels):
  """(mean, per example) by the formula on the whole of the logits."""
  logprobs = jax.nn.log_softmax(head.values(), axis=-2)
  one_hot = jax.nn.one_hot(labels, head.bias.shape[0], axis=-2)
  per_example = -jnp.sum(logprobs * one_hot, axis=(1, 2, 3)) / (labels.shape[1] * labels.shape[2])
  return per_example.mean(), per_example


def both(head, labels, scale=1.0):
  """((mean, per example), gradients) of the chunked and the plain form."""
  def run(form):
    return jax.jit(jax.value_and_grad(lambda head: (scale * form(head)[0], form(head)[1]), has_aux=True))(head)
  return run(lambda head: head.cross_entropy(labels)), run(lambda head: plain(head, labels))


# 1 and 32: one piece; 64: two; 35: five of 7; 37 is prime: single pixels; 96: three.
@pytest.mark.parametrize("pixels", [1, 32, 35, 37, 64, 96])
def test_cross_entropy_is_the_plain_one(pixels):
  head, labels = example(pixels)
  ((mean, per_example), grads), ((want_mean, want_per_example), want) = both(head, labels)
  np.testing.assert_allclose(mean, want_mean, rtol=1e-6)
  np.testing.assert_allclose(per_example, want_per_example, rtol=1e-6)
  for got, expected, name in zip(grads, want, Planes._fields):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7, err_msg=name)


def test_value_without_gradient():
  head, labels = example(35)
  loss = head.cross_entropy(labels)
  for got, want in zip(loss, plain(head, labels)):
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_gradient_scales_with_the_weight_of_the_loss():
  head, labels = example(64)
  (_, grads), (_, want) = both(head, labels, scale=-2.5)
  for got, expected in zip(grads, want):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_bfloat16_features():
  head, labels = example(70, dtype=jnp.bfloat16, width=16)
  assert head.values().dtype == jnp.float32
  ((mean, _), grads), ((want_mean, _), want) = both(head, labels)
  np.testing.assert_allclose(mean, want_mean, rtol=1e-5)
  for got, expected, leaf in zip(grads, want, head):
    assert got.dtype == leaf.dtype
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(got.astype(jnp.float32), expected.astype(jnp.float32), atol=1e-2 * scale)


def test_pixels_without_label_count_in_the_mean():
  head, labels = example(32)
  half = labels.at[:, :, ::2].set(-1)
  loss, grads = jax.value_and_grad(lambda head: head.cross_entropy(half).mean)(head)
  assert 0 < loss < head.cross_entropy(labels).mean
  np.testing.assert_array_equal(grads.kernel[..., ::2], 0)
  np.testing.assert_array_equal(grads.bias[..., ::2], 0)
  assert np.all(np.any(grads.bias[..., 1::2], axis=0))
  loss, grads = jax.value_and_grad(lambda head: head.cross_entropy(jnp.full_like(labels, -1)).mean)(head)
  assert loss == 0 and not any(map(np.any, grads))


def test_values_are_the_head():
  head, _ = example(6)
  want = np.einsum("bnd,dcp->bncp", head.features, head.kernel) + np.asarray(head.bias)
  np.testing.assert_allclose(head.values(), want, rtol=1e-5, atol=1e-6)


def test_pieces_divide_and_are_small():
  for pixels in range(1, 300):
    size = planes._piece_size(pixels)
    assert pixels % size == 0 and 1 <= size <= planes.PIXELS_AT_ONCE
  assert [planes._piece_size(pixels) for pixels in (1, 32, 35, 37, 64, 256)] == [1, 32, 7, 1, 32, 32]


def test_memory_is_that_of_a_piece():
  """The gradient of 8 pieces never holds the logits of all of them."""
  head, labels = example(256, classes=40, tokens=16)
  run = jax.jit(jax.value_and_grad(lambda head: head.cross_entropy(labels).mean))
  temporary = run.lower(head).compile().memory_analysis().temp_size_in_bytes
  assert temporary < 2 * 2 * 16 * 40 * 256 * 4


def test_loss_of_pixels():
  per_pixel = jnp.arange(12.0).reshape(2, 3, 2)
  loss = Loss.of(per_pixel)
  np.testing.assert_allclose(loss.per_example, [2.5, 8.5])
  np.testing.assert_allclose(loss.mean, 5.5)
