"""Images as tokens: cut pixel maps into patches and put them back.

Plain reshapes: einops asks every framework named in `sys.modules`, and fails where TensorFlow is blocked there.
"""

import jax

Array = jax.Array


def grid_of(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
  """Patches along height and width of an image of `size` pixels; both must divide."""
  return size[0] // patch[0], size[1] // patch[1]


def to_patches(x: Array, patch: tuple[int, int]) -> Array:
  """(B, H, W) or (B, H, W, C) pixel maps to (B, N, P) or (B, N, C, P) tokens, both row-major.

  Args:
    x: a pixel map; H and W are multiples of the patch.
    patch: (ph, pw) pixels.
  """
  ph, pw = patch
  batch, height, width, *channels = x.shape
  gh, gw = grid_of((height, width), patch)
  x = x.reshape(batch, gh, ph, gw, pw, *channels).swapaxes(2, 3)  # (B, gh, gw, ph, pw[, C])
  x = x.reshape(batch, gh * gw, ph * pw, *channels)
  return x.swapaxes(2, 3) if channels else x


def from_patches(x: Array, grid: tuple[int, int], patch: tuple[int, int]) -> Array:
  """The inverse of `to_patches`: (B, N, P) -> (B, H, W), (B, N, C, P) -> (B, H, W, C)."""
  (gh, gw), (ph, pw) = grid, patch
  if x.ndim == 4:
    x = x.swapaxes(2, 3)  # (B, N, P, C)
  batch, _, _, *channels = x.shape
  x = x.reshape(batch, gh, gw, ph, pw, *channels).swapaxes(2, 3)  # (B, gh, ph, gw, pw[, C])
  return x.reshape(batch, gh * ph, gw * pw, *channels)
