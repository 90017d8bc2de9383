"""Sums over the pixels that belong to a cluster: the k-means update, areas and overlaps of masks."""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array


def assigned_sums(values: Array, index: Array, clusters: int) -> Array:
  """Sum of the values of each cluster's pixels.

  A scatter-add on CPU, one product elsewhere. On two cores, with its gradient, for 4941 pixels of 256 channels: 1.0 ms
  against 20.6 ms for 128 clusters, 1.1 against 5.4 ms for 40.

  Args:
    values: (B, …, D) of pixels.
    index: (B, …) int, the one cluster of each pixel; pixels outside 0..K-1 belong to none.
    clusters: K.

  Returns:
    (B, K, D) float32.
  """
  batch, width = values.shape[0], values.shape[-1]
  return jax.lax.platform_dependent(values.reshape(batch, -1, width), index.reshape(batch, -1),
                                    cpu=functools.partial(sums_by_segment, clusters=clusters),
                                    default=functools.partial(sums_by_one_hot, clusters=clusters))


def sums_by_one_hot(values: Array, index: Array, clusters: int) -> Array:
  """`assigned_sums` of (B, P, D) as one product; XLA makes the one-hot rows on the fly."""
  one_hot = jax.nn.one_hot(index, clusters, dtype=values.dtype)  # zero outside 0..K-1
  return jnp.einsum("bpk,bpd->bkd", one_hot, values, preferred_element_type=jnp.float32)


def sums_by_segment(values: Array, index: Array, clusters: int) -> Array:
  """`assigned_sums` of (B, P, D) as a scatter-add into one more cluster that is dropped."""
  valid = (index >= 0) & (index < clusters)
  slot = jnp.where(valid, index, clusters)
  add = jax.vmap(lambda v, i: jax.ops.segment_sum(v, i, num_segments=clusters + 1))
  return add(values.astype(jnp.float32), slot)[:, :clusters]


def areas(index: Array, clusters: int) -> Array:
  """(B, …) int -> (B, K) float32 number of pixels of each cluster."""
  return assigned_sums(jnp.ones((*index.shape, 1), jnp.float32), index, clusters)[..., 0]
