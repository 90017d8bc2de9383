"""The gathered label embedding against the one-hot product that defines it, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops import embed

FAR = np.iinfo(np.int32)


def example(classes=5, pixels=6, width=7, dtype=jnp.float32):
  rng = np.random.default_rng(classes)
  labels = rng.integers(-2, classes + 2, (2, 3, pixels)).astype(np.int32)
  labels[0, 0, :4] = [-1, classes, FAR.max, FAR.min]
  return jnp.asarray(labels), jnp.asarray(rng.normal(size=(classes, pixels, width)), dtype)


def explicit(labels, kernel):
  """Sum of the selected rows, in numpy."""
  labels, kernel = np.asarray(labels), np.asarray(kernel, np.float64)
  out = np.zeros((*labels.shape[:2], kernel.shape[-1]))
  for (b, n, p), label in np.ndenumerate(labels):
    if 0 <= label < kernel.shape[0]:
      out[b, n] += kernel[label, p]
  return out


@pytest.mark.parametrize("form", [embed.embed_labels, embed.embed_by_gather, embed.embed_by_one_hot])
@pytest.mark.parametrize("sizes", [(5, 6, 7), (1, 1, 3), (2, 9, 1)])
def test_values(form, sizes):
  labels, kernel = example(*sizes) if sizes[1] >= 4 else (jnp.array([[[0], [-1], [3]]]), example(1, 4, 3)[1][:, :1])
  np.testing.assert_allclose(form(labels, kernel), explicit(labels, kernel), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", [embed.embed_labels, embed.embed_by_gather])
def test_gradient(form):
  labels, kernel = example()
  weight = jax.random.normal(jax.random.key(0), (2, 3, kernel.shape[-1]))
  gradient = jax.jit(jax.grad(lambda kernel, form: jnp.sum(form(labels, kernel) * weight)), static_argnums=1)
  want = gradient(kernel, embed.embed_by_one_hot)
  np.testing.assert_allclose(gradient(kernel, form), want, rtol=1e-5, atol=1e-6)
  assert float(jnp.abs(want).max()) > 0


def test_labels_of_no_class_give_nothing():
  labels = jnp.asarray([[[-1, 5, FAR.max, FAR.min, 6, -100]]])
  _, kernel = example()
  for form in (embed.embed_labels, embed.embed_by_gather, embed.embed_by_one_hot):
    out, pullback = jax.vjp(lambda kernel, form=form: form(labels, kernel), kernel)
    assert not np.any(out) and not np.any(pullback(jnp.ones_like(out))[0])


def test_bfloat16():
  labels, kernel = example(dtype=jnp.bfloat16)
  out = embed.embed_labels(labels, kernel)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), explicit(labels, kernel), rtol=1e-2, atol=1e-2)
  gradient = jax.grad(lambda kernel: embed.embed_labels(labels, kernel).astype(jnp.float32).sum())(kernel)
  assert gradient.dtype == jnp.bfloat16
  np.testing.assert_array_equal(gradient, jax.grad(
      lambda kernel: embed.embed_by_one_hot(labels, kernel).astype(jnp.float32).sum())(kernel))


def test_no_one_hot_array_on_cpu():
  labels, kernel = jnp.zeros((2, 16, 64), jnp.int32), jnp.zeros((50, 64, 8))
  compiled = jax.jit(embed.embed_labels).lower(labels, kernel).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * 16 * 64 * 50 * 4
