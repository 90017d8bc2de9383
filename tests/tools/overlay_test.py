"""Overlays hold what was predicted: colours at their places, ticks in metres, names, boxes, for any size of picture."""

import numpy as np
import pytest

from tools.predicting import overlay
from tools.predicting.overlay import maps, objects, page
from uvim_like.inference import tables
from uvim_like.inference.full_size import Names
from uvim_like.scenes import people
from uvim_like.tasks import classes

TABLE = classes.table("scenes")
NAMES = Names(TABLE, tables.things_of(TABLE), 5)
RNG = np.random.default_rng(0)


def results_of(height, width):
  """One of everything."""
  image = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
  normals = np.zeros((height, width, 3), np.float32)
  normals[..., 2] = 1
  joints = np.column_stack([RNG.uniform(0, [width, height], (17, 2)), RNG.uniform(size=17)])
  found = [{"category_id": 44, "name": "person", "score": 0.9, "bbox": [0.0, 0.0, width / 2, height / 2],
            "keypoints": joints.ravel().tolist()},
           {"category_id": 1, "name": "box", "score": 0.2, "bbox": [0.0, 0.0, 1.0, 1.0]}]
  return {"image": image, "depth": RNG.uniform(1, 5, (height, width)).astype(np.float32),
          "semantics": RNG.integers(0, 11, (height, width)), "instances": RNG.integers(0, 4, (height, width)),
          "normals": normals, "color": image[..., ::-1], "objects": found, "caption": "a box in a room"}


@pytest.mark.parametrize("size", [(40, 56), (1, 90), (90, 1), (1, 1), (700, 900)])
def test_everything_at_once_for_any_size(size):
  shown = overlay.overlay(results_of(*size), NAMES)
  assert shown.mode == "RGB" and 300 < max(shown.size) < 6000
  assert len(np.unique(np.asarray(shown).reshape(-1, 3), axis=0)) > 10


def test_each_alone_and_samples_side_by_side():
  whole = results_of(30, 40)
  for key in ("depth", "semantics", "normals", "color", "objects"):
    overlay.overlay({"image": whole["image"], key: whole[key]}, NAMES)
  one = overlay.overlay({"image": whole["image"], "depth": whole["depth"]}, NAMES)
  three = overlay.overlay({"image": whole["image"], "depth": np.stack([whole["depth"]] * 3)}, NAMES)
  assert three.width > one.width and three.height < one.height   # more of them, and smaller


def test_depth_has_one_scale_with_ticks_in_metres():
  near, far = np.full((8, 8), 1.0, np.float32), np.full((8, 8), 3.0, np.float32)
  far[0, 0] = 0
  (first, second), bar = maps.depth([near, far])
  assert first[0, 0].sum() > second[4, 4].sum()   # near is bright
  assert second[0, 0].std() < 3 and not np.array_equal(second[0, 0], second[4, 4])   # none is hatched grey
  assert [text for _, text in bar.ticks][0] == "1 m" and [text for _, text in bar.ticks][-1] == "3 m"
  places = [place for place, _ in bar.ticks]
  assert places == sorted(places) and places[0] == 0 and places[-1] == 1


@pytest.mark.parametrize("depth", [np.zeros((4, 4)), np.full((4, 4), 2.0), np.full((4, 4), np.nan)])
def test_flat_and_missing_depth(depth):
  (drawn,), bar = maps.depth([depth.astype(np.float32)])
  assert drawn.shape == (4, 4, 3) and len(bar.ticks) >= 1


def test_classes_by_area_with_counts():
  semantics = np.array([[5, 5, 6, 6], [5, 5, 6, 6], [6, 6, 6, 6], [6, 6, 6, 0]])
  instances = np.array([[1, 2, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
  keys = maps.class_keys([(semantics, instances)], TABLE)
  assert [text for _, text in keys.entries] == ["wall  69 %", "person ×2  25 %", "void  6 %"]
  (drawn,), _ = maps.segments([(semantics, instances)], np.zeros((4, 4, 3), np.uint8), TABLE)
  assert drawn.shape == (4, 4, 3) and (drawn == 255).all(-1).any()   # white lines between segments


def test_normals_are_their_colours():
  normals = np.zeros((2, 2, 3), np.float32)
  normals[0, 0], normals[0, 1] = (0, 0, 1), (1, 0, 0)
  (drawn,), legend = maps.normals([normals])
  assert drawn[0, 0].tolist() == [128, 128, 255] and drawn[0, 1].tolist() == [255, 128, 128]
  middle = legend.pixels[legend.pixels.shape[0] // 2, legend.pixels.shape[1] // 2]
  assert abs(int(middle[2]) - 255) < 3 and abs(int(middle[0]) - 128) < 3   # the ball's middle looks at us


def test_only_objects_that_are_sure_are_drawn():
  whole = results_of(40, 40)
  (drawn,), keys = objects.draw(whole["objects"], whole["image"], NAMES.objects, scale=1.0, score=0.5)
  assert [text for _, text in keys.entries] == ["person  0.90"]
  assert not np.array_equal(drawn, whole["image"])
  (drawn,), keys = objects.draw(whole["objects"], whole["image"], NAMES.objects, scale=1.0, score=0.95)
  assert keys.nothing == "no object above 0.95; the best 0.90" and np.array_equal(drawn, whole["image"])


def test_sides_of_the_skeleton():
  for name, color in zip(people.JOINTS, objects.SIDES, strict=True):
    side = name.split("_")[0]
    assert color == {"left": objects.LEFT, "right": objects.RIGHT}.get(side, objects.MIDDLE)


def test_scales():
  assert page.scale_of((64, 64), panels=2) == 15   # whole pixels
  assert page.panel_size((3000, 4000), page.scale_of((3000, 4000), panels=2)) == (720, 960)
  assert page.scale_of((1, 1), panels=2) == page.MAX_ENLARGED
