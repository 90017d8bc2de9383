"""Cross entropy of integer labels against optax, and what labels outside the classes do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uvim_like.ops.losses import example_mean, softmax_cross_entropy


def example(axis, dtype=jnp.float32):
  rng = np.random.default_rng(1)
  logits = jnp.moveaxis(jnp.asarray(3 * rng.normal(size=(2, 3, 4, 5)), dtype), -1, axis)
  return logits, jnp.asarray(rng.integers(0, 5, (2, 3, 4)))


@pytest.mark.parametrize("axis", [-1, -2, -4])
def test_same_as_optax(axis):
  logits, labels = example(axis)
  reference = functools.partial(optax.softmax_cross_entropy_with_integer_labels, axis=axis)
  loss = softmax_cross_entropy(logits, labels, axis)
  np.testing.assert_allclose(loss, reference(logits, labels), rtol=1e-6, atol=1e-6)
  weight = jax.random.normal(jax.random.key(0), labels.shape)
  got, want = (jax.jit(jax.grad(lambda x, f=f: jnp.sum(f(x, labels) * weight)))(logits)
               for f in (functools.partial(softmax_cross_entropy, axis=axis), reference))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("label", [-1, 5, 1000, -1000, np.iinfo(np.int32).max, np.iinfo(np.int32).min])
def test_label_outside_the_classes(label):
  logits, labels = example(-2)
  labels = labels.at[0, 1, 2].set(label)
  loss, pullback = jax.vjp(lambda x: softmax_cross_entropy(x, labels, -2), logits)
  gradient, = pullback(jnp.ones_like(loss))
  assert loss[0, 1, 2] == 0 and not np.any(gradient[0, 1, :, 2])
  assert np.all(np.delete(np.asarray(loss).ravel(), 1 * 4 + 2) > 0)
  assert np.all(np.any(np.asarray(gradient) != 0, axis=-2).ravel()[np.asarray(labels).ravel() != label])


def test_large_logits_stay_finite():
  logits = jnp.array([[1e4, -1e4, 0.0], [-jnp.inf, 0.0, 0.0]])
  loss, pullback = jax.vjp(lambda x: softmax_cross_entropy(x, jnp.array([1, 2])), logits)
  np.testing.assert_allclose(loss, [2e4, np.log(2)], rtol=1e-6)
  assert np.all(np.isfinite(pullback(jnp.ones(2))[0]))


def test_bfloat16_logits():
  logits, labels = example(-1, jnp.bfloat16)
  loss, pullback = jax.vjp(lambda x: softmax_cross_entropy(x, labels), logits)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(
      loss, optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels), rtol=1e-5, atol=1e-5)
  assert pullback(jnp.ones_like(loss))[0].dtype == jnp.bfloat16


def test_example_mean():
  np.testing.assert_allclose(example_mean(jnp.arange(24.0).reshape(2, 3, 4)), [5.5, 17.5])
  np.testing.assert_allclose(example_mean(jnp.arange(2.0)), [0, 1])
