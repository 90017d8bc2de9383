"""Monocular depth as regression of one number a pixel: the plain baseline beside the binned task.

Labels as in `depth`: (B, H, W, 1) float metres, 0 = missing.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from uvim_like.ops.patches import from_patches, to_patches
from uvim_like.ops.planes import Loss, Planes
from uvim_like.tasks.depth import MAX_DEPTH, MIN_DEPTH

Array = jax.Array
Spec = Mapping[str, tuple[int, int]]
PLANES = ("depth",)
OUTPUTS = ("depth",)
LABELS = jax.ShapeDtypeStruct((1,), jnp.float32)  # one pixel of the batch's labels
OPTIONS = ("min_depth", "max_depth")  # config keys that bound the prediction
_MIDDLE = (MIN_DEPTH + MAX_DEPTH) / 2


def to_planes(labels: Array, *, patch: tuple[int, int], spec: Spec, **depth_range: float) -> dict[str, Array]:
  """Labels (B, H, W, 1) metres to {"depth": (B, N, 1, P) float metres}."""
  del spec, depth_range
  return {"depth": to_patches(labels.astype(jnp.float32), patch)}


def losses(outputs: Mapping[str, Planes], planes: Mapping[str, Array]) -> dict[str, Loss]:
  """{"loss_depth"}: squared error in metres², 0 where depth is missing, averaged over all pixels."""
  error = jnp.square(to_metres(outputs["depth"].values()) - planes["depth"])
  return {"loss_depth": Loss.of(jnp.where(planes["depth"] > MIN_DEPTH, error, 0.0))}


def to_metres(x: Array) -> Array:
  """Network output, 0 at the start of training, to metres around the middle of the range."""
  return _MIDDLE * (1 + x)


def from_planes(outputs: Mapping[str, Planes], *, grid: tuple[int, int], patch: tuple[int, int],
                min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH) -> dict[str, Array]:
  """Planes {"depth": (B, N, 1, P)} to {"depth": (B, H, W) float32 metres} clamped to the range."""
  depth = jnp.clip(to_metres(outputs["depth"].values()), min_depth, max_depth)
  return {"depth": from_patches(depth, grid, patch)[..., 0]}
