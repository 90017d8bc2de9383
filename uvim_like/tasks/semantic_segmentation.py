"""Semantic segmentation: every pixel has a class.

Labels are (B, H, W, 1) int: 0 = void, class k of the dataset's table is k + 1. Void pixels have no loss, and no prediction
is void.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from uvim_like.ops.patches import from_patches, to_patches
from uvim_like.ops.planes import Loss, Planes

Array = jax.Array
Spec = Mapping[str, tuple[int, int]]
PLANES = ("semantics",)
OUTPUTS = ("semantics",)
LABELS = jax.ShapeDtypeStruct((1,), jnp.int32)  # one pixel of the batch's labels
VOID = 0


def to_planes(labels: Array, *, patch: tuple[int, int], spec: Spec) -> dict[str, Array]:
  """Labels (B, H, W, 1) int to {"semantics": (B, N, P) int}; the spec's classes count void as well."""
  del spec  # the classes bound the loss and the embedding, not the labels
  return {"semantics": to_patches(labels[..., 0].astype(jnp.int32), patch)}


def losses(outputs: Mapping[str, Planes], planes: Mapping[str, Array]) -> dict[str, Loss]:
  """{"loss_semantics"}: cross entropy, 0 on void, averaged over all pixels."""
  labels = planes["semantics"]
  return {"loss_semantics": outputs["semantics"].cross_entropy(jnp.where(labels == VOID, -1, labels))}


def from_planes(outputs: Mapping[str, Planes], *, grid: tuple[int, int], patch: tuple[int, int]) -> dict[str, Array]:
  """Planes {"semantics": (B, N, C + 1, P)} to {"semantics": (B, H, W) int32}, the best class other than void."""
  best = 1 + jnp.argmax(outputs["semantics"].values()[:, :, 1:], axis=-2)
  return {"semantics": from_patches(best.astype(jnp.int32), grid, patch)}
