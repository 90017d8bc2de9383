"""From a network's view to the picture: padding cut off, values only picked, squares in their place."""

import numpy as np

from uvim_like.inference import full_size as fs
from uvim_like.inference import model as models
from uvim_like.inference.full_size import Names
from uvim_like.inference.views import View
from uvim_like.tasks import classes
from uvim_like.training import stored

VIEW = View("val", "", "", "predict", {}, {"dataset": "scenes"}, 1)
NAMES = Names(classes.table("scenes"), None)


def picture(height, width):
  return np.zeros((height, width, 3), np.uint8)


def shown(output, image, entries=None, *, square=False):
  """The results of one picture."""
  return fs.full_size(output, entries or {}, image, view=VIEW, names=NAMES, square=square)


def test_maps_are_picked_and_strangers_void():
  out = shown({"semantics": np.array([[1, 2], [11, 0]])}, picture(4, 4))
  assert out["semantics"].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_the_padding_of_a_canvas_is_no_part_of_the_picture():
  depth = np.full((4, 4), 9.0, np.float32)
  depth[:2, :3] = [[1, 2, 3], [4, 5, 6]]
  entries = {"image": np.zeros((4, 4, 3), np.float32), "valid_size": np.array([2, 3])}
  out = shown({"depth": depth}, picture(2, 3), entries)
  assert out["depth"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_several_samples_keep_their_axis():
  out = shown({"depth": np.stack([np.full((2, 2), k, np.float32) for k in (1, 2, 3)])}, picture(3, 5))
  assert out["depth"].shape == (3, 3, 5) and out["depth"][:, 0, 0].tolist() == [1, 2, 3]


def test_a_square_view_lies_in_the_middle():
  out = shown({"depth": np.array([[1, 2], [3, 4]], np.float32)}, picture(2, 5), square=True)
  assert out["depth"].tolist() == [[0, 1, 2, 0, 0], [0, 3, 4, 0, 0]]
  image = np.full((2, 4, 3), 100, np.uint8)
  colour = np.zeros((2, 2, 3), np.float32)
  colour[..., 0] = 1
  out = shown({"color": colour}, image, square=True)
  assert out["color"][:, 0].tolist() == [[100] * 3] * 2 and out["color"][0, 1].tolist() == [255, 128, 128]


def test_stored_pictures_are_scaled_as_training_scales_them():
  """Finished bytes become x / 127.5 - 1, which rounds otherwise than (x / 255) · 2 - 1 now and then."""
  levels = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, -1)
  by_op = (levels.astype(np.float32) / np.float32(255)) * np.float32(2) + np.float32(-1)
  assert np.array_equal(models.as_stored("image", by_op), stored.convert("image", levels))
  between = by_op + np.float32(0.001)
  assert models.as_stored("image", between) is between
