"""The evaluator of objects on small images: nothing found, nothing there, padding, canvases, keypoints, hosts."""

import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.evaluators import coco_instances
from uvim_like.evaluators.paste import paste_mask

SIZE = (40, 60)


def target(number, boxes, *, ids=None, crowd=None, labels=None, points=None, size=SIZE):
  """Raw features of an image whose objects are the pixels of `boxes` [y0, x0, y1, x1] (n, 4)."""
  boxes = np.asarray(boxes, np.int64).reshape(-1, 4)
  n = len(boxes)
  ids = np.arange(1, n + 1) if ids is None else np.asarray(ids)
  panoptic = np.zeros((*size, 3), np.uint8)
  for i, (y0, x0, y1, x1) in zip(ids, boxes):
    panoptic[y0:y1, x0:x1, 0] = i
  out = {"image/id": np.int64(number), "panoptic_image": panoptic, "objects/id": ids,
         "objects/area": ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).astype(np.int64),
         "objects/bbox": (boxes / np.tile(size, 2)).astype(np.float32),
         "objects/label": np.zeros(n, np.int64) if labels is None else np.asarray(labels),
         "objects/is_crowd": np.zeros(n, bool) if crowd is None else np.asarray(crowd)}
  if points is not None:
    out |= {"objects/keypoints": points, "objects/num_keypoints": (points[..., 2] > 0).sum(-1)}
  return out


def output(boxes, *, slots=5, scores=None, classes=1, size=SIZE, **parts):
  """A prediction in padded slots; masks fill their boxes."""
  boxes = np.asarray(boxes, np.float64).reshape(-1, 4) / np.tile(size, 2)
  n = len(boxes)
  pad = lambda x: np.pad(np.asarray(x), [(0, slots - n)] + [(0, 0)] * (np.ndim(x) - 1))  # noqa: E731
  scores = np.linspace(0.9, 0.5, n) if scores is None else np.asarray(scores)
  return {"boxes": pad(boxes).astype(np.float32), "scores": pad(scores).astype(np.float32),
          "classes": pad(np.broadcast_to(classes, n)).astype(np.int32), "masks": pad(np.ones((n, 8, 8), np.float32)),
          **{key: pad(value) for key, value in parts.items()}}


def scored(metric, *pairs):
  stats = metric.init()
  for one, truth in pairs:
    stats = metric.update(stats, one, truth)
  return metric.compute(stats)


BOXES = [[4, 6, 20, 30], [22, 33, 38, 57]]


@pytest.fixture
def both():
  return coco_instances.make(kinds=("boxes", "masks"))


def test_the_truth_scores_one(both):
  got = scored(both, (output(BOXES), target(7, BOXES)))
  assert got["box_AP"] == pytest.approx(1) and got["mask_AP"] == pytest.approx(1) and got["images"] == 1


def test_nothing_found_and_nothing_there(both):
  empty, truth = output([]), target(1, BOXES)
  assert scored(both, (empty, truth))["box_AP"] == 0
  assert scored(both, (empty, target(1, [])))["box_AP"] == -1
  half = scored(both, (output(BOXES), truth), (output(BOXES, scores=[0.99, 0.98]), target(2, [])))
  assert 0.4 < half["box_AP"] < 0.6   # two false positives ahead of two hits, on an image without objects
  assert scored(both)["box_AP"] == -1 and scored(both)["images"] == 0


def test_slots_that_are_nothing_do_not_count(both):
  one = output([*BOXES, [5, 5, 5, 9], BOXES[0]], scores=[0.9, 0.8, 1.0, 0.0])
  one["classes"][0:0] = 0
  background = output([*BOXES, BOXES[0]], scores=[0.9, 0.8, 1.0])
  background["classes"][2] = 0
  for found in (one, background):
    assert scored(both, (found, target(1, BOXES)))["box_AP"] == pytest.approx(1)


def test_padded_truth_is_left_out(both):
  truth = target(1, BOXES)
  padded = {key: np.pad(value, [(0, 3)] + [(0, 0)] * (value.ndim - 1)) if key.startswith("objects/") else value
            for key, value in truth.items()}
  assert scored(both, (output(BOXES), padded)) == scored(both, (output(BOXES), truth))


def test_ids_from_zero_are_objects():
  """As own tables may count them; the masks are features then."""
  metric = coco_instances.make(dataset="coco_instances")
  truth = target(1, BOXES, ids=[0, 1]) | {"image/size": np.array(SIZE)}
  assert scored(metric, (output(BOXES), truth))["box_AP"] == pytest.approx(1)
  assert scored(metric, (output(BOXES[1:]), truth))["box_AP"] < 0.6


def test_crowds_are_neither_hit_nor_missed(both):
  truth = target(1, BOXES, crowd=[False, True])
  assert scored(both, (output(BOXES[:1]), truth))["box_AP"] == pytest.approx(1)
  assert scored(both, (output(BOXES), truth))["mask_AP"] == pytest.approx(1)


def test_boxes_on_a_padded_canvas(both):
  """The image fills 30 of 45 rows and 45 of 50 columns of the canvas; truth keeps its own size."""
  truth = target(1, BOXES) | {"valid_size": np.array([30, 45]), "image": np.zeros((45, 50, 3))}
  scale = np.tile(np.array([30, 45]) / SIZE, 2)
  found = output(np.array(BOXES) * scale, size=(45, 50))
  got = scored(both, (found, truth))
  assert got["box_AP"] == pytest.approx(1) and got["mask_AP"] == pytest.approx(1)


def test_hosts_and_order_do_not_matter(both):
  pairs = [(output(BOXES, scores=[0.3 + 0.1 * i, 0.9 - 0.1 * i]), target(i, BOXES[i % 2:])) for i in range(4)]
  whole = scored(both, *pairs)
  parts = [both.init(), both.init()]
  for i, (one, truth) in enumerate(reversed(pairs)):
    parts[i % 2] = both.update(parts[i % 2], one, truth)
  assert both.compute(both.merge(*parts)) == whole


@pytest.mark.parametrize("dataset, person", [("scenes", 5), ("coco_instances", 1)])
def test_keypoints(dataset, person):
  rng = np.random.RandomState(0)
  points = np.zeros((2, 17, 3), np.float32)
  points[0, :, 0], points[0, :, 1] = rng.uniform(6, 30, 17), rng.uniform(4, 20, 17)
  points[0, :, 2] = [2] * 15 + [0] * 2
  points[0, 15:] = 0
  labels = [person - 1, 2]
  truth = target(1, BOXES, points=points, labels=labels) | {"image/size": np.array(SIZE)}
  metric = coco_instances.make(kinds="keypoints", dataset=dataset)
  assert {"objects/keypoints", "image/size" if dataset != "scenes" else "panoptic_image"} <= set(metric.target_keys)
  yx = np.concatenate([points[..., 1:2] / SIZE[0], points[..., 0:1] / SIZE[1], points[..., 2:]], -1)
  got = scored(metric, (output(BOXES, classes=[person, 3], keypoints=yx), truth))
  assert got["keypoint_AP"] == pytest.approx(1) and "box_AP" not in got
  shifted = yx + np.array([0.2, 0.2, 0], np.float32)
  assert scored(metric, (output(BOXES, classes=[person, 3], keypoints=shifted), truth))["keypoint_AP"] < 0.5
  assert scored(metric, (output(BOXES, classes=[3, 3], keypoints=yx), truth))["keypoint_AP"] == 0


def test_mistakes_name_the_entry(both):
  with pytest.raises(UserError, match="unknown kind 'boxs'; did you mean 'boxes'"):
    coco_instances.make(kinds=("boxs",))
  broken = output(BOXES)
  del broken["masks"]
  with pytest.raises(UserError, match="no 'masks'"):
    both.update(both.init(), broken, target(1, BOXES))
  with pytest.raises(UserError, match="number of slots"):
    both.update(both.init(), output(BOXES) | {"scores": np.ones(2)}, target(1, BOXES))


def test_paste():
  checker = np.array([[1., 0.], [0., 1.]])
  got = paste_mask(checker, np.array([1, 2, 5, 6]), (6, 8))
  np.testing.assert_array_equal(got, [[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0],
                                      [0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
  whole = paste_mask(np.ones((4, 4)), np.array([-3, 2, 3, 12]), (6, 8))
  assert whole[:3, 2:].all() and not whole[3:].any() and not whole[:, :2].any()
  for box in ([2, 2, 2, 5], [9, 1, 12, 4], [np.nan, 0, 3, 3], [3, 3, 1, 1]):
    assert not paste_mask(np.ones((4, 4)), np.array(box), (6, 8)).any()
