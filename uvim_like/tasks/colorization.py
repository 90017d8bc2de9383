"""Colorization: an RGB image from its grey version (UViM, section 4.2).

Labels are (B, H, W, 3) float RGB in [-1, 1].
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from uvim_like.ops.patches import from_patches, to_patches
from uvim_like.ops.planes import Loss, Planes

Array = jax.Array
Spec = Mapping[str, tuple[int, int]]
PLANES = ("color",)
OUTPUTS = ("color",)
LABELS = jax.ShapeDtypeStruct((3,), jnp.float32)  # one pixel of the batch's labels


def to_planes(labels: Array, *, patch: tuple[int, int], spec: Spec) -> dict[str, Array]:
  """Labels (B, H, W, 3) to {"color": (B, N, 3, P)}."""
  del spec
  return {"color": to_patches(labels.astype(jnp.float32), patch)}


def losses(outputs: Mapping[str, Planes], planes: Mapping[str, Array]) -> dict[str, Loss]:
  """{"loss_color"}: mean squared error."""
  return {"loss_color": Loss.of(jnp.square(outputs["color"].values() - planes["color"]))}


def from_planes(outputs: Mapping[str, Planes], *, grid: tuple[int, int], patch: tuple[int, int]) -> dict[str, Array]:
  """Planes {"color": (B, N, 3, P)} to {"color": (B, H, W, 3)} clamped to [-1, 1]."""
  return {"color": from_patches(jnp.clip(outputs["color"].values(), -1.0, 1.0), grid, patch)}
