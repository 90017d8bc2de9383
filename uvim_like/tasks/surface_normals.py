"""Surface normals: every pixel has a unit vector, x right, y up, z towards the camera.

Labels are (B, H, W, 3) float unit vectors; zeros where there is no measurement. Mirroring an image negates x.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from uvim_like.ops.dense_losses import unit, valid_normals
from uvim_like.ops.patches import from_patches, to_patches
from uvim_like.ops.planes import Loss, Planes

Array = jax.Array
Spec = Mapping[str, tuple[int, int]]
PLANES = ("normals",)
OUTPUTS = ("normals",)
LABELS = jax.ShapeDtypeStruct((3,), jnp.float32)  # one pixel of the batch's labels


def to_planes(labels: Array, *, patch: tuple[int, int], spec: Spec) -> dict[str, Array]:
  """Labels (B, H, W, 3) to {"normals": (B, N, 3, P)}."""
  del spec
  return {"normals": to_patches(labels.astype(jnp.float32), patch)}


def losses(outputs: Mapping[str, Planes], planes: Mapping[str, Array]) -> dict[str, Loss]:
  """{"loss_normals"}: squared distance of unit vectors, 0 where there is no normal, averaged over all pixels."""
  pred, target = (jnp.swapaxes(x, -2, -1) for x in (outputs["normals"].values(), planes["normals"]))
  error = jnp.sum(jnp.square(unit(pred) - target), axis=-1)
  return {"loss_normals": Loss.of(jnp.where(valid_normals(target), error, 0.0))}


def from_planes(outputs: Mapping[str, Planes], *, grid: tuple[int, int], patch: tuple[int, int]) -> dict[str, Array]:
  """Planes {"normals": (B, N, 3, P)} to {"normals": (B, H, W, 3)} unit vectors."""
  return {"normals": unit(from_patches(outputs["normals"].values(), grid, patch))}
