"""Monocular depth as classification over equal bins (UViM, section 4.3).

Labels are (B, H, W, 1) float metres; 0 and everything else in the first bin is a missing measurement.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from uvim_like.errors import unknown
from uvim_like.ops.patches import from_patches, to_patches
from uvim_like.ops.planes import Loss, Planes

Array = jax.Array
Spec = Mapping[str, tuple[int, int]]
MIN_DEPTH, MAX_DEPTH = 1e-3, 10.0  # metres, NYU Depth V2
PLANES = ("depth",)
OUTPUTS = ("depth",)
LABELS = jax.ShapeDtypeStruct((1,), jnp.float32)  # one pixel of the batch's labels
OPTIONS = ("min_depth", "max_depth")  # config keys that every function below takes


def to_bins(depth: Array, bins: int, *, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH) -> Array:
  """Metres to bins 0..bins-1 of equal width over min_depth..max_depth, clamped at both ends; int32."""
  scaled = (depth.astype(jnp.float32) - min_depth) / (max_depth - min_depth)
  return jnp.clip(jnp.floor(scaled * bins), 0, bins - 1).astype(jnp.int32)


def from_bins(index: Array, bins: int, *, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH) -> Array:
  """Bins to the metres of their centres, float32."""
  return (index + 0.5) / bins * (max_depth - min_depth) + min_depth


def to_planes(labels: Array, *, patch: tuple[int, int], spec: Spec, **depth_range: float) -> dict[str, Array]:
  """Labels (B, H, W, 1) metres to {"depth": (B, N, P) int bins}; the number of bins is spec["depth"][0]."""
  return {"depth": to_patches(to_bins(labels[..., 0], spec["depth"][0], **depth_range), patch)}


def losses(outputs: Mapping[str, Planes], planes: Mapping[str, Array]) -> dict[str, Loss]:
  """{"loss_depth"}: cross entropy, 0 where depth is missing, averaged over all pixels."""
  bins = planes["depth"]
  measured = jnp.where(bins > 0, bins, -1)
  return {"loss_depth": outputs["depth"].cross_entropy(measured)}


def from_planes(outputs: Mapping[str, Planes], *, grid: tuple[int, int], patch: tuple[int, int],
                estimate: str = "mode", min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH) -> dict[str, Array]:
  """Planes {"depth": (B, N, bins, P)} to {"depth": (B, H, W) float32 metres}.

  Args:
    outputs: as the model gives them.
    grid: (gh, gw) patches.
    patch: (ph, pw) pixels.
    estimate: "mode", the centre of the most probable bin, as the paper's authors do; or "mean", the expectation over
      the bins, which squared error asks for.
    min_depth, max_depth: as in `to_bins`.
  """
  logits = outputs["depth"].values()
  bins, depth_range = logits.shape[-2], dict(min_depth=min_depth, max_depth=max_depth)
  if estimate == "mode":
    depth = from_bins(jnp.argmax(logits, axis=-2), bins, **depth_range)
  elif estimate == "mean":
    depth = from_bins(jnp.einsum("bncp,c->bnp", jax.nn.softmax(logits, axis=-2), jnp.arange(bins)), bins, **depth_range)
  else:
    raise unknown("estimate", estimate, ("mode", "mean"), where="depth prediction")
  return {"depth": from_patches(depth, grid, patch)}
