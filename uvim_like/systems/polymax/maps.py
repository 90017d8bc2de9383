"""From images of any size to the network's 32k + 1 pixels, and from its maps at stride 4 back to whole images."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from uvim_like.errors import UserError
from uvim_like.models.kmax_pixel_decoder import MAX_LENGTH
from uvim_like.ops.resize_align import resize_bilinear

Array = jax.Array
STRIDE = 32          # of the coarsest level
OUTPUT_STRIDE = 4    # of the masks
MAX_SIDE = 16 * (MAX_LENGTH - 1) + 1  # pixels; the relative tables at stride 16 reach no further


def padded_side(side: int) -> int:
  """The smallest 32k + 1 that is not below `side`, 33 at least: every level then has (side - 1) / stride + 1 pixels."""
  return STRIDE * max(1, -(-(side - 1) // STRIDE)) + 1


def pad(x: Array) -> Array:
  """(B, H, W, C) with zeros added at the bottom and the right, up to the network's size.

  Zero is grey in an image in [-1, 1] (127.5, as the authors pad), void in class maps, no measurement in depth and normals.
  """
  below, right = (padded_side(side) - side for side in x.shape[1:3])
  return jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0))) if below or right else x


def fit(image: Array) -> Array:
  """An image that the network can take: longer sides than `MAX_SIDE` are reduced, then `pad`."""
  size = tuple(min(side, MAX_SIDE) for side in image.shape[1:3])
  if size != image.shape[1:3]:
    image = jax.image.resize(image, (image.shape[0], *size, image.shape[3]), "bilinear")
  return pad(image)


def to_full(x: Array, size: tuple[int, int]) -> Array:
  """Maps (B, h, w, C) at stride 4 of a padded image, upsampled with aligned corners and cut to the image (H, W)."""
  inner = tuple(min(side, MAX_SIDE) for side in size)
  x = resize_bilinear(x, tuple(padded_side(side) for side in inner))[:, :inner[0], :inner[1]]
  return x if inner == tuple(size) else jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear")


def at_masks(labels: Array) -> Array:
  """Labels (B, H, W, C) at the positions of the masks: every fourth pixel of the padded map, as kMaX trains."""
  return pad(labels)[:, ::OUTPUT_STRIDE, ::OUTPUT_STRIDE]


def check_labels(batch: Mapping[str, Any], channels: int) -> None:
  """Raises UserError unless labels have the image's size and the task's channels."""
  if "labels" not in batch:
    raise UserError(f"batch: no 'labels'; there are {sorted(batch)}")
  image, labels = batch["image"].shape, batch["labels"].shape
  if len(labels) != 4 or labels[1:3] != image[1:3] or labels[-1] != channels:
    raise UserError(f"batch: labels {labels} do not go with images {image}; {(*image[:3], channels)} is needed")
