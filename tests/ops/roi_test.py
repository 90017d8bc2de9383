"""RoIAlign against its definition, sample by sample, and pictures of binary crops."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops.roi import roi_align, roi_masks


def bilinear(image, y, x):
  """One sample: 0 more than a pixel outside, clamped to the image before that."""
  height, width = image.shape
  if not (-1 <= y <= height and -1 <= x <= width):
    return 0.0
  y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
  y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
  y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
  fy, fx = y - y0, x - x0
  return ((1 - fy) * (1 - fx) * image[y0, x0] + (1 - fy) * fx * image[y0, x1] + fy * (1 - fx) * image[y1, x0]
          + fy * fx * image[y1, x1])


def by_definition(image, box, side):
  x0, y0, x1, y1 = box
  bin_h, bin_w = (y1 - y0) / side, (x1 - x0) / side
  rows, columns = math.ceil((y1 - y0) / side), math.ceil((x1 - x0) / side)
  out = np.zeros((side, side))
  for i in range(side):
    for j in range(side):
      samples = [bilinear(image, y0 - 0.5 + (i + (a + 0.5) / rows) * bin_h, x0 - 0.5 + (j + (b + 0.5) / columns) * bin_w)
                 for a in range(rows) for b in range(columns)]
      out[i, j] = np.mean(samples) if samples else 0.0
  return out


@pytest.mark.parametrize("box", [(0, 0, 11, 9), (1.3, 2.2, 9.8, 8.1), (3, 3, 4.5, 3.7), (-2.5, -1, 6, 12.5), (5, 5, 5, 8)])
def test_is_the_definition(box):
  image = np.random.default_rng(0).normal(size=(9, 11))
  got = roi_align(jnp.asarray(image, jnp.float32)[None], jnp.asarray([box], jnp.float32), side=4)
  np.testing.assert_allclose(got[0], by_definition(image, box, 4), atol=1e-5)


def test_a_box_on_whole_pixels_is_cut_out():
  mask = np.zeros((1, 8, 6), np.uint8)
  mask[0, 2:4, 1:5] = [[1, 0, 0, 1], [1, 1, 0, 0]]
  got = roi_masks(jnp.asarray(mask), jnp.asarray([[1.0, 2.0, 5.0, 4.0]]), side=4)[0]
  np.testing.assert_array_equal(got[::2], [[1, 0, 0, 1], [1, 1, 0, 0]])  # two rows of the box are four of the crop


def test_boxes_of_one_call_do_not_mix():
  rng = np.random.default_rng(1)
  maps = jnp.asarray(rng.normal(size=(3, 7, 7)), jnp.float32)
  boxes = jnp.asarray([[0, 0, 7, 7], [1, 1, 3, 6], [2, 0, 5, 4]], jnp.float32)
  together = roi_align(maps, boxes, side=3)
  for i in range(3):
    np.testing.assert_allclose(together[i], roi_align(maps[i:i + 1], boxes[i:i + 1], side=3)[0], atol=1e-6)
