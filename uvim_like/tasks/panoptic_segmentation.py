"""Panoptic segmentation: every pixel has a semantic class and an instance id.

Labels are (B, H, W, 2) int: semantics (0 = void, class k of the dataset's table is k + 1) and instances (0 = none, then
canonical order). A value outside the model's classes, -1 among them, has no loss.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from uvim_like.ops.patches import from_patches, to_patches
from uvim_like.ops.planes import Loss, Planes

Array = jax.Array
Spec = Mapping[str, tuple[int, int]]
PLANES = ("semantics", "instances")
OUTPUTS = PLANES
LABELS = jax.ShapeDtypeStruct((2,), jnp.int32)  # one pixel of the batch's labels


def to_planes(labels: Array, *, patch: tuple[int, int], spec: Spec) -> dict[str, Array]:
  """Labels (B, H, W, 2) int to {"semantics", "instances"}: (B, N, P) int."""
  del spec  # the classes bound the loss and the embedding, not the labels
  return {name: to_patches(labels[..., i].astype(jnp.int32), patch) for i, name in enumerate(PLANES)}


def losses(outputs: Mapping[str, Planes], planes: Mapping[str, Array]) -> dict[str, Loss]:
  """{"loss_semantics", "loss_instances"}: mean cross entropy over all pixels (UViM, section 4.1)."""
  return {f"loss_{name}": outputs[name].cross_entropy(planes[name]) for name in PLANES}


def from_planes(outputs: Mapping[str, Planes], *, grid: tuple[int, int], patch: tuple[int, int],
                min_fraction: float = 0.0) -> dict[str, Array]:
  """Planes {name: (B, N, C, P)} to {"semantics", "instances"}: (B, H, W) int32.

  Args:
    outputs: as the model gives them.
    grid: (gh, gw) patches.
    patch: (ph, pw) pixels.
    min_fraction: see `merge`.
  """
  return merge(*(from_patches(outputs[name].values(), grid, patch) for name in PLANES), min_fraction=min_fraction)


def merge(semantics: Array, instances: Array, *, min_fraction: float = 0.0) -> dict[str, Array]:
  """One class an instance: the one with the largest sum of raw semantic logits over the instance's pixels.

  Args:
    semantics: (B, H, W, C) logits.
    instances: (B, H, W, M) logits; index 0 is treated like any other.
    min_fraction: instances covering at most this share of the image are void in both outputs.

  Returns:
    {"semantics", "instances"}: (B, H, W) int32.
  """
  instance = jnp.argmax(instances, axis=-1)
  classes, slots = semantics.shape[-1], instances.shape[-1]
  pixels = instance.shape[1] * instance.shape[2]

  def one_image(semantics, instance):
    ids = instance.reshape(-1)
    votes = jax.ops.segment_sum(semantics.reshape(-1, classes).astype(jnp.float32), ids, num_segments=slots)
    area = jnp.bincount(ids, length=slots)
    large = area > min_fraction * pixels
    return jnp.where(large, jnp.argmax(votes, -1), 0)[instance], jnp.where(large, jnp.arange(slots), 0)[instance]

  semantic, instance = jax.vmap(one_image)(semantics, instance)
  return {"semantics": semantic.astype(jnp.int32), "instances": instance.astype(jnp.int32)}
