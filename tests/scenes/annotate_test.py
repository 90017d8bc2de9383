"""Annotations on arrays that a reader can check by eye; views that are thrown away; captions."""

import numpy as np

from uvim_like.scenes import annotate, captions, people, render, sensors
from uvim_like.scenes import world as worlds
from uvim_like.scenes.classes import CLUTTER, LABELS

OWNER = np.array([[-1, -1, -1, -1, -1, -1],
                  [-1, 0, 0, -1, 1, -1],
                  [-1, 0, 0, -1, 1, -1],
                  [-1, 0, 0, 0, 1, -1],
                  [-1, -1, -1, -1, -1, -1],
                  [-1, -1, -1, -1, -1, -1]])
THINGS = [worlds.Thing(LABELS["box"], "red"), worlds.Thing(CLUTTER, "green")]


def a_picture(owner):
  flat = np.ones(owner.shape, np.float32)
  label = np.full(owner.shape, LABELS["wall"])
  label[4:] = LABELS["floor"]
  return render.Picture(flat, flat, flat, flat, owner, label)


def a_world(things):
  return worlds.World(*[None] * len(worlds.World._fields))._replace(things=things)


def ids_for(things):
  return annotate.draw_ids(a_world(things), np.random.RandomState(0))


def test_segments_have_areas_boxes_and_leave_clutter_void():
  ids = ids_for(THINGS)
  panoptic, segments = annotate.segment(a_world(THINGS), a_picture(OWNER), ids, band=False)
  by_label = {s.label: s for s in segments}
  assert set(by_label) == {LABELS["box"], LABELS["wall"], LABELS["floor"]}
  assert (panoptic == by_label[0].id).sum() == by_label[0].area == 7
  np.testing.assert_allclose(by_label[0].bbox, np.array([1, 1, 4, 4]) / 6)
  assert (panoptic == 0).sum() == 3 and (panoptic[1:4, 4] == 0).all()
  assert by_label[LABELS["floor"]].area == 12 and by_label[LABELS["floor"]].thing == -1


def test_the_band_lies_where_the_right_or_lower_neighbour_differs():
  panoptic, segments = annotate.segment(a_world(THINGS), a_picture(OWNER), ids_for(THINGS), band=True)
  expected = np.array([[0, 1, 1, 0, 1, 0],
                       [1, 0, 1, 1, 1, 0],
                       [1, 0, 1, 1, 1, 0],
                       [1, 1, 1, 1, 1, 1],
                       [0, 0, 0, 0, 0, 0],
                       [0, 0, 0, 0, 0, 0]], bool)
  box_gone = 0 in {s.label for s in segments}  # 2 pixels of the box remain: fewer than the smallest segment of 3
  assert not box_gone
  expected[1:3, 1] = True
  np.testing.assert_array_equal(panoptic == 0, expected)
  assert all((panoptic == s.id).sum() == s.area for s in segments)


def test_ids_are_unique_and_survive_their_encoding():
  ids = annotate.draw_ids(a_world([THINGS[0]] * 200), np.random.RandomState(1))
  assert len(set(ids)) == len(ids) == 205 and ids.min() >= 1 and ids.max() < 2 ** 24
  rgb = annotate.encode_ids(ids.reshape(5, 41))
  np.testing.assert_array_equal(rgb.astype(np.int64) @ [1, 256, 65536], ids.reshape(5, 41))
  assert annotate.encode_ids(np.array([[1 + 2 * 256 + 3 * 65536]])).tolist() == [[[1, 2, 3]]]


def test_views_filled_by_one_thing_or_without_a_thing_are_refused(monkeypatch):
  def judged(owner, things):
    monkeypatch.setattr(render, "owner_map", lambda world, size: owner)
    return annotate.is_good_view(a_world(things))
  box, clutter = THINGS
  empty = np.full((32, 32), -1)
  some, most, few = empty.copy(), empty.copy(), empty.copy()
  some[8:16, 8:16], most[:, :20], few[3, 3:5] = 0, 0, 0
  assert judged(some, [box]) and not judged(most, [box]) and not judged(few, [box]) and not judged(empty, [])
  assert not judged(some, [clutter])  # what nobody annotates does not count as a thing


def test_depth_sensor_leaves_holes_where_it_must():
  depth, cosine = np.full((64, 128), 3.0, np.float32), np.ones((64, 128), np.float32)
  depth[20:40, 60:80] = 1.0  # near: casts the projector's shadow to its left
  depth[:10] = 12.0  # out of range
  cosine[50:, :] = 0.05  # grazing
  measured = sensors.measure_depth(depth, cosine, np.zeros_like(depth, bool), np.random.RandomState(0))
  assert measured.dtype == np.float16
  assert (measured[:10] == 0).all() and (measured[50:] == 0).all() and (measured[22:38, 58:60] == 0).all()
  seen = measured[12:48, 84:120].astype(np.float32)
  assert (seen > 0).mean() > 0.93 and np.abs(seen[seen > 0] - 3).max() < 0.1


def test_a_blur_is_the_mean_of_the_window():
  image = np.random.RandomState(0).uniform(size=(7, 9)).astype(np.float32)
  padded = np.pad(image, 2, mode="edge")
  expected = [[padded[y:y + 5, x:x + 5].mean() for x in range(9)] for y in range(7)]
  np.testing.assert_allclose(sensors.box_blur(image, 2), expected, rtol=1e-5)


def a_segment(label, thing, *, area=100, box=(0, 0, 1, 1), crowd=False):
  return annotate.Segment(thing + 1, label, area, np.array(box, np.float32), crowd, thing)


def test_captions_name_piles_counts_relations_and_supports():
  joints = np.zeros((len(people.JOINTS), 3), np.float32)
  things = [worlds.Thing(LABELS["sphere"], "orange", is_crowd=True),
            worlds.Thing(LABELS["person"], "red", joints=joints),
            worlds.Thing(LABELS["cylinder"], "cyan", on=LABELS["table"]), worlds.Thing(LABELS["table"], "brown")]
  segments = [a_segment(1, 0, area=50, box=(0, 0.8, 1, 1), crowd=True),
              a_segment(4, 1, area=90, box=(0, 0, 0.9, 0.1)), a_segment(2, 2, area=9), a_segment(3, 3, area=60)]
  texts = captions.describe(things, segments, np.random.RandomState(0))
  assert texts[1] == "there is a pile of spheres and a cylinder and a table and a person"
  assert texts[2].startswith("a person in a red shirt to the left of a")
  assert texts[4] == "a cyan cylinder on a table"
  pile = captions.describe(things[:1], segments[:1], np.random.RandomState(0))
  assert "a pile of orange spheres" in pile[3]


def test_captions_draw_the_same_amount_whatever_is_seen():
  one, two = np.random.RandomState(3), np.random.RandomState(3)
  captions.describe([], [], one)
  captions.describe(THINGS, [a_segment(0, 0)], two)
  assert one.uniform() == two.uniform()
