"""Mean IoU: void on either side, absent classes, other sizes and number types."""

import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.evaluators import mean_iou
from uvim_like.evaluators import run as evaluation


def score(pred, truth, **options):
  metric = mean_iou.make(**options)
  return metric.compute(metric.update(metric.init(), {"semantics": np.asarray(pred)}, {"labels": np.asarray(truth)}))


def test_by_hand():
  truth = [[1, 1, 2], [2, 0, 3]]
  pred = [[1, 2, 2], [2, 1, 0]]
  got = score(pred, truth, num_classes=5)
  # class 1: 1 of 2; class 2: 2 of 3; class 3: missed; 4 and 5 occur nowhere; the void pixel of the truth is left out
  assert got["mIoU"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
  assert got["pixel_acc"] == pytest.approx(3 / 5) and got["classes_counted"] == 3
  assert got["mean_acc"] == pytest.approx((1 / 2 + 1 + 0) / 3)
  assert got["fw_iou"] == pytest.approx(2 / 5 * 1 / 2 + 2 / 5 * 2 / 3)


def test_void_prediction_is_a_miss_and_no_false_positive():
  matrix = mean_iou.confusion(np.array([0, -1, 7]), np.array([0, 0, 1]), 2)
  np.testing.assert_array_equal(matrix, [[1, 0, 1], [0, 0, 1]])
  np.testing.assert_allclose(mean_iou.per_class(matrix), [0.5, 0.0])


def test_only_predicted_class_counts_as_zero():
  assert score([[1, 2]], [[1, 1]], num_classes=3)["mIoU"] == pytest.approx(0.25)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.float32, bool])
def test_number_types(dtype):
  truth = np.array([[1, 0], [1, 1]])
  assert score(truth.astype(dtype), truth.astype(dtype)[..., None], num_classes=1)["mIoU"] == 1.0


def test_values_that_are_no_classes_are_void():
  got = score(np.array([[np.nan, 1.5, 1.0]]), np.array([[1.0, 1.0, np.inf]]), num_classes=2)
  assert got["mIoU"] == 0.0 and got["classes_counted"] == 1


def test_nothing_measured_is_nan():
  got = score(np.ones((2, 3)), np.zeros((2, 3)), num_classes=4)
  assert np.isnan(got["mIoU"]) and np.isnan(got["pixel_acc"]) and got["classes_counted"] == 0
  assert np.isnan(mean_iou.make(num_classes=2).compute(np.zeros((2, 3)))["mIoU"])


def test_beside_a_raw_feature_the_canvas_is_cut():
  pred = np.pad([[1, 1, 2], [1, 1, 2]], ((0, 2), (0, 1)), constant_values=2)
  on_canvas = {"image": np.zeros((8, 8, 3)), "valid_size": np.array([4, 6])}
  metric = mean_iou.make(num_classes=2, target_key="semantic")
  raw = on_canvas | {"semantic": np.kron([[0, 0, 1]], np.ones((6, 4), np.uint8))}
  assert metric.compute(metric.update(metric.init(), {"semantics": pred}, raw))["mIoU"] == 1.0
  metric = mean_iou.make(num_classes=2)  # labels of the batch are on the canvas too
  assert metric.compute(metric.update(metric.init(), {"semantics": pred}, on_canvas | {"labels": pred}))["mIoU"] == 1.0


def test_prediction_is_resized_and_raw_features_are_shifted():
  truth = np.repeat(np.repeat([[0, 1], [255, 1]], 3, 0), 5, 1)
  metric = mean_iou.make(num_classes=2, target_key="semantic")
  stats = metric.update(metric.init(), {"semantics": np.array([[1, 2], [1, 2]])},
                        {"semantic": truth.astype(np.uint8)[..., None], "labels": np.zeros((4, 4))})
  assert metric.compute(stats)["mIoU"] == 1.0 and stats.sum() == 45


@pytest.mark.parametrize(("ignore", "counted"), [(255, 6), (None, 8)])
def test_void_among_more_than_255_classes(ignore, counted):
  raw = np.array([[0, 254, 255, 256], [255, 299, 299, 299]], np.uint16)
  metric = mean_iou.make(num_classes=300, target_key="labels", ignore=ignore)
  stats = metric.update(metric.init(), {"semantics": raw.astype(np.int64) + 1}, {"labels": raw[..., None]})
  assert stats.sum() == counted and metric.compute(stats)["mIoU"] == 1.0


def test_class_table_of_a_dataset():
  assert mean_iou.make(dataset="scenes").init().shape == (10, 11)
  with pytest.raises(UserError, match="num_classes"):
    mean_iou.make()
  with pytest.raises(UserError, match="at least 1"):
    mean_iou.make(num_classes=-1)
  with pytest.raises(UserError, match="no 'semantics'"):
    metric = mean_iou.make(num_classes=2)
    metric.update(metric.init(), {}, {"labels": np.zeros((2, 2))})


def test_padded_rows_change_nothing():
  rng = np.random.default_rng(0)
  pred, truth = rng.integers(1, 4, (5, 6, 7)), rng.integers(0, 4, (5, 6, 7, 1))
  metric = mean_iou.make(num_classes=3)

  def batches(size):
    for start in range(0, 5, size):
      rows = slice(start, start + size)
      real = len(truth[rows])
      pad = [(0, size - real)] + [(0, 0)] * 3
      yield ({"labels": np.pad(truth[rows], pad, constant_values=2), "_mask": np.arange(size) < real,
              "pred": np.pad(pred[rows], pad[:3], constant_values=1)}, [{}] * real)

  one, two = (evaluation.evaluate(lambda batch: {"semantics": batch["pred"]}, batches(size), metric) for size in (5, 3))
  assert one == two
