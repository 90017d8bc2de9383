"""Objects over images: sizes, colours and text stay inside, whatever comes."""

import io

import numpy as np
import pytest
from PIL import Image

from tools.reporting import figures_maps, figures_objects


def decode(png):
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_size_in_which_an_image_is_shown():
  assert figures_objects.shown_size((64, 32)) == (256, 128)
  assert figures_objects.shown_size((300, 200)) == (300, 200)
  assert figures_objects.shown_size((2048, 1024)) == (512, 256)
  assert figures_objects.shown_size((1, 1)) == (256, 256)


def test_a_mask_tints_its_pixels_alone_and_a_box_frames_them():
  size = figures_objects.shown_size((32, 32))
  mask = np.zeros((1, *size), bool)
  mask[0, 100:150, 100:150] = True
  black = np.full((32, 32, 3), -1.0)
  plain = decode(figures_objects.objects_image(black, np.zeros((0, 4)), labels=()))
  drawn = decode(figures_objects.objects_image(black, np.array([[.2, .2, .8, .8]]), labels=[""], masks=mask))
  assert plain.max() < 4
  paint = np.array(figures_objects.color(0)) * 255
  np.testing.assert_allclose(drawn[125, 125], paint * 0.45, atol=6)
  assert drawn[220, 220].max() < 8 and np.abs(drawn[128, 52] - paint).max() < 60


@pytest.mark.parametrize("boxes", [[[0, 0, 1, 1]], [[-3, np.nan, 9, np.inf]], [[.99, .99, 1, 1]], [[.5, .9, .1, .2]]])
@pytest.mark.parametrize("size", [(64, 64), (9, 200), (1, 1)])
def test_odd_boxes_and_images(boxes, size):
  image = np.full((*size, 3), np.nan)
  pose = np.array([[.5, .5, 1], [np.nan, 2, 1], [0, 0, 0]])
  png = figures_objects.objects_image(image, np.array(boxes), labels=["a very long name of a class 100%"], points=[pose],
                                      remark="nothing")
  assert decode(png).shape[:2] == figures_objects.shown_size(size)


def test_a_skeleton_has_limbs_of_two_colours():
  pose = np.random.default_rng(0).uniform(.1, .9, (17, 3))
  pose[:, 2] = 1
  pixels = decode(figures_objects.objects_image(np.full((64, 64, 3), -1.0), np.array([[0, 0, 1, 1]]), labels=[""],
                                                points=[pose])).reshape(-1, 3)
  for paint in ("4cc9ff", "ff9f40", "ffffff"):
    wanted = np.array([int(paint[i:i + 2], 16) for i in (0, 2, 4)])
    assert (np.abs(pixels - wanted).max(1) < 30).any(), paint
  pose[:, 2] = 0
  hidden = decode(figures_objects.objects_image(np.full((64, 64, 3), -1.0), np.zeros((0, 4)), labels=(), points=[pose]))
  assert hidden.max() < 8
  assert len(figures_objects.LIMBS) == 16


def test_found_and_missed_have_their_colours():
  image = np.full((64, 64, 3), -1.0)
  pixels = decode(figures_objects.found_image(image, {figures_objects.MISSED: np.array([[.2, .2, .8, .8]]),
                                                      figures_objects.FOUND: np.zeros((0, 4))}))
  assert pixels[..., 0].max() > 200 and pixels[..., 1].max() < 120


def test_semantics_and_normals():
  classes = decode(figures_maps.semantic_image(np.array([[0, 1], [-1, 2]])))
  side = len(classes) // 2
  np.testing.assert_array_equal(classes[0, 0], classes[side, 0])   # below 0 is void
  assert len({tuple(classes[y, x]) for y in (0, side) for x in (0, side)}) == 3
  normals = np.array([[[0, 0, 1.0], [1, 0, 0]], [[0, 0, 0], [np.nan, 0, 1]]])
  pixels = decode(figures_maps.normals_image(normals))
  np.testing.assert_allclose(pixels[0, 0], [128, 128, 255], atol=1)
  np.testing.assert_allclose(pixels[0, -1], [255, 128, 128], atol=1)
  assert np.ptp(pixels[side:], axis=-1).max() < 12   # hatched grey
  ball = np.asarray(Image.open(io.BytesIO(figures_maps.normals_ball())))
  assert ball.shape[-1] == 4 and ball[0, 0, 3] == 0 and ball[48, 48, 2] > 250
  wrong = decode(figures_maps.wrong_pixels_image(np.zeros((2, 2, 3)), np.array([[1, 0], [0, 0]]), np.array([[1, 1], [1, 0]])))
  assert wrong[0, 0, 0] > 200 and wrong[0, 0, 1] < 60 and np.ptp(wrong[0, -1]) == 0
