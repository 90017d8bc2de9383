"""Images as tokens: cut pixel maps into patches and put them back."""

import jax
from einops import rearrange

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
  if x.ndim == 3:
    return rearrange(x, "b (gh ph) (gw pw) -> b (gh gw) (ph pw)", ph=ph, pw=pw)
  return rearrange(x, "b (gh ph) (gw pw) c -> b (gh gw) c (ph pw)", ph=ph, pw=pw)


def from_patches(x: Array, grid: tuple[int, int], patch: tuple[int, int]) -> Array:
  """The inverse of `to_patches`: (B, N, P) -> (B, H, W), (B, N, C, P) -> (B, H, W, C)."""
  gh, gw = grid
  ph, pw = patch
  if x.ndim == 3:
    return rearrange(x, "b (gh gw) (ph pw) -> b (gh ph) (gw pw)", gh=gh, gw=gw, ph=ph, pw=pw)
  return rearrange(x, "b (gh gw) c (ph pw) -> b (gh ph) (gw pw) c", gh=gh, gw=gw, ph=ph, pw=pw)
