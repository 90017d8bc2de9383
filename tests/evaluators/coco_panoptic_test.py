"""Panoptic quality on pictures small enough to check by eye."""

import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.evaluators import coco_panoptic
from uvim_like.evaluators import panoptic_quality as pq
from uvim_like.tasks import classes

CATEGORIES = [dict(id=3, name="cat", isthing=1), dict(id=7, name="dog", isthing=1), dict(id=20, name="sky", isthing=0)]
TABLE = classes.from_categories(CATEGORIES)


def picture(text: str) -> np.ndarray:
  """Rows of digits, "." = 0."""
  return np.array([[int(c) if c != "." else 0 for c in row] for row in text.split()])


def segment(number, category, **more):
  return dict(id=number, category_id=category, **more)


def test_overlap_of_exactly_one_half_is_no_match():
  gt = picture("111... 111... 111... 111... 111... 111...")
  pred = picture("111111 111111 111111 111111 111111 111111")
  # The other half of the truth is another segment, so the union is the whole picture.
  gt = np.where(gt == 0, 2, gt)
  stats = pq.match_segments(pred, [segment(1, 3)], gt, [segment(1, 3), segment(2, 7)])
  assert stats == {3: (0.0, 0, 1, 1), 7: (0.0, 0, 0, 1)}


def test_void_of_the_truth_is_taken_out_of_the_union():
  gt = picture("111... 111... 111... 111... 111... 111...")
  pred = picture("111111 111111 111111 111111 111111 111111")
  assert pq.match_segments(pred, [segment(1, 3)], gt, [segment(1, 3)]) == {3: (1.0, 1, 0, 0)}


def test_void_of_the_prediction_stays_in_the_union():
  gt = picture("111111 111111 111111 111111 111111 111111")
  pred = picture("1111.. 1111.. 1111.. 1111.. 1111.. 1111..")
  assert pq.match_segments(pred, [segment(1, 3)], gt, [segment(1, 3)]) == {3: (pytest.approx(2 / 3), 1, 0, 0)}


@pytest.mark.parametrize("crowd_category, rows, false_positives", [(3, 4, 0), (3, 3, 1), (7, 4, 1)])
def test_prediction_in_a_crowd_of_its_class_is_ignored_above_one_half(crowd_category, rows, false_positives):
  """The prediction covers six rows of which `rows` are the crowd's, the rest sky."""
  gt = np.full((6, 6), 2)
  gt[:rows] = 1
  pred = np.full((6, 6), 5)
  stats = pq.match_segments(pred, [segment(5, 3)], gt,
                            [segment(1, crowd_category, iscrowd=1), segment(2, 20, iscrowd=0)])
  assert stats[3][2] == false_positives
  assert stats[crowd_category][3] == 0 and stats[20][3] == 1


@pytest.mark.parametrize("rows, false_positives", [(4, 0), (3, 1)])
def test_prediction_in_void_is_ignored_above_one_half(rows, false_positives):
  gt = np.full((6, 6), 2)
  gt[:rows] = 0
  stats = pq.match_segments(np.full((6, 6), 5), [segment(5, 3)], gt, [segment(2, 20)])
  assert stats == {3: (0.0, 0, false_positives, 0), 20: (0.0, 0, 0, 1)}


def test_area_of_the_annotation_wins_over_the_counted_one():
  gt = picture("11 11")
  stats = pq.match_segments(gt, [segment(1, 3)], gt, [segment(1, 3, area=8)])
  assert stats == {3: (0.0, 0, 1, 1)}, "4 / (8 + 4 - 4) is not above one half"


def test_map_and_list_of_a_prediction_must_agree():
  gt = picture("11 11")
  for segments in ([], [segment(1, 3), segment(2, 3)]):
    with pytest.raises(UserError, match="panoptic prediction: ids in the map"):
      pq.match_segments(gt, segments, gt, [segment(1, 3)])
  with pytest.raises(UserError, match="differ in size"):
    pq.match_segments(gt[:1], [segment(1, 3)], gt, [segment(1, 3)])


def test_pieces_of_one_stuff_class_merge_and_things_stay_apart():
  semantics = picture("33.33. 33.33. ...... 1.1.2. 1.1.2. ......")
  instances = picture("11.22. 11.22. ...... 1.2.1. 1.2.1. ......")
  ids, segments = pq.two_channel_to_segments(semantics, instances, TABLE)
  found = {(s["category_id"], s["area"]) for s in segments}
  assert found == {(20, 8), (3, 2), (7, 2)} and len(segments) == 4
  assert len(np.unique(ids)) == 5 and (ids[2] == 0).all()
  assert {3001, 3002, 7001} < {s["id"] for s in segments}


def test_many_instances_do_not_run_into_the_next_category():
  semantics = np.ones((1, 1200), int)
  ids, segments = pq.two_channel_to_segments(semantics, np.arange(1200)[None] * 5, TABLE)
  assert len(segments) == 1200 and {s["category_id"] for s in segments} == {3}


def test_class_that_the_dataset_does_not_have_is_void():
  """Heads of 134 classes are trained on datasets with fewer; an untrained one predicts any of them."""
  metric = coco_panoptic.make(categories=CATEGORIES)
  ids = picture("11 22")
  target = {"panoptic_image": np.stack([ids, 0 * ids, 0 * ids], -1).astype(np.uint8),
            "panoptic_objects/id": np.array([1, 2]), "panoptic_objects/label": np.array([0, 2]),
            "panoptic_objects/is_crowd": np.array([False, False])}
  stats = metric.update(metric.init(), {"semantics": picture("11 99"), "instances": picture("11 11")}, target)
  assert stats[:, 1:].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]  # TP, FP, FN of cat, dog, sky


def test_values_outside_the_table_are_named():
  with pytest.raises(UserError, match="semantics 0..3"):
    pq.two_channel_to_segments(picture("14 11"), picture("11 11"), TABLE)
  with pytest.raises(UserError, match="instances from -1"):
    pq.two_channel_to_segments(picture("11 11"), picture("11 11") - 2, TABLE)


def test_png_bytes_and_ids():
  ids = np.array([[0, 255, 256], [65536, 16777215, 70000]])
  np.testing.assert_array_equal(pq.rgb_to_id(pq.id_to_rgb(ids)), ids)
  assert pq.id_to_rgb(np.array([[1 + 2 * 256 + 3 * 65536]])).tolist() == [[[1, 2, 3]]]
  with pytest.raises(ValueError, match="24 bits"):
    pq.id_to_rgb(np.array([[1 << 24]]))


def target(gt: np.ndarray, objects: list[tuple[int, int, bool]]) -> dict:
  """Raw features from a map of ids and (id, label, crowd)."""
  columns = list(zip(*objects)) if objects else [(), (), ()]
  return {"panoptic_image": pq.id_to_rgb(gt), "panoptic_objects/id": np.array(columns[0], np.int64),
          "panoptic_objects/label": np.array(columns[1], np.int64),
          "panoptic_objects/is_crowd": np.array(columns[2], bool)}


def score(metric, examples) -> dict[str, float]:
  stats = metric.init()
  for output, truth in examples:
    stats = metric.update(stats, output, truth)
  return metric.compute(stats)


def test_a_perfect_prediction_at_half_the_size_of_a_non_square_image():
  semantics = np.array([[1, 1, 3, 3, 0], [2, 2, 3, 3, 0]])
  instances = np.array([[4, 4, 9, 9, 0], [7, 7, 8, 8, 0]])
  gt = np.kron(np.array([[11, 11, 30, 30, 0], [22, 22, 30, 30, 0]]), np.ones((2, 2), int))
  metric = coco_panoptic.make(categories=CATEGORIES)
  results = score(metric, [(dict(semantics=semantics, instances=instances),
                            target(gt, [(11, 0, False), (22, 1, False), (30, 2, False)]))])
  assert results["All_pq"] == results["Things_sq"] == results["Stuff_rq"] == 1.0
  assert (results["All_n"], results["Things_n"], results["Stuff_n"]) == (3, 2, 1)


def test_what_lies_beside_the_image_on_its_canvas_does_not_count():
  semantics = np.array([[1, 1, 3, 3, 2], [1, 1, 3, 3, 2], [2, 2, 2, 2, 2]])
  gt = np.kron(np.array([[11, 30]]), np.ones((5, 7), int))
  truth = target(gt, [(11, 0, False), (30, 2, False)])
  output = dict(semantics=semantics, instances=np.ones_like(semantics))
  metric = coco_panoptic.make(categories=CATEGORIES)
  assert score(metric, [(output, truth)])["All_pq"] < 0.7
  on_canvas = truth | {"image": np.zeros((30, 50, 3)), "valid_size": np.array([20, 40])}
  results = score(metric, [(output, on_canvas)])
  assert results["All_pq"] == 1.0 and results["All_n"] == 2


def test_empty_prediction_and_truth_without_any_segment():
  metric = coco_panoptic.make(categories=CATEGORIES)
  gt, nothing = np.full((4, 6), 9), np.zeros((3, 3), np.int32)
  empty = dict(semantics=nothing, instances=nothing)
  results = score(metric, [(empty, target(gt, [(9, 0, False)]))])
  assert results["All_pq"] == 0.0 and results["All_n"] == 1 and np.isnan(results["Stuff_pq"])
  # All void: whatever is predicted there is ignored, and no class is left to average.
  results = score(metric, [(dict(semantics=nothing + 1, instances=nothing), target(gt * 0, []))])
  assert np.isnan(results["All_pq"]) and results["All_n"] == 0
  assert np.isnan(score(metric, [])["All_pq"]) and "nan" in metric.protocol


def random_example(rng, size):
  gt_labels = rng.integers(0, 4, (3, 3))
  gt = np.kron(np.arange(1, 10).reshape(3, 3) * (gt_labels > 0), np.ones((4, 5), int))
  objects = [(int(i), int(label) - 1, bool(rng.random() < 0.2)) for i, label in
             zip(range(1, 10), gt_labels.reshape(-1)) if label]
  output = dict(semantics=rng.integers(0, 4, (size, size)), instances=rng.integers(0, 3, (size, size)))
  return output, target(gt, objects)


def test_merged_halves_are_one_pass():
  rng = np.random.default_rng(0)
  metric = coco_panoptic.make(categories=CATEGORIES)
  examples = [random_example(rng, 3) for _ in range(6)]
  halves = []
  for half in (examples[:2], examples[2:]):
    stats = metric.init()
    for output, truth in half:
      stats = metric.update(stats, output, truth)
    halves.append(stats)
  merged = metric.compute(metric.merge(*halves))
  assert merged == pytest.approx(score(metric, examples), rel=1e-12, nan_ok=True)


def test_what_does_not_fit_is_named():
  gt = np.full((4, 4), 9)
  one = np.ones((4, 4), int)
  metric = coco_panoptic.make(dataset="scenes")
  with pytest.raises(UserError, match="labels 40..40 in the data, but 'scenes' has 10 classes"):
    score(metric, [(dict(semantics=one, instances=one), target(gt, [(9, 40, False)]))])
  with pytest.raises(UserError, match="no 'semantics'"):
    score(metric, [(dict(depth=one), target(gt, [(9, 0, False)]))])
  with pytest.raises(UserError, match="did you mean 'coco/2017_panoptic'"):
    coco_panoptic.make(dataset="coco/2017_panoptik")
