"""Depth protocols: which pixels count, how images are averaged, what happens to bad ones."""

import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.evaluators import nyu_depth
from uvim_like.evaluators.depth_metrics import ALL_METRICS, depth_metrics, depth_sums


def score(metric, examples) -> dict[str, float]:
  stats = metric.init()
  for pred, truth in examples:
    stats = metric.update(stats, dict(depth=pred), truth)
  return metric.compute(stats)


def test_values_of_two_pixels():
  ours = depth_metrics(depth_sums(np.array([1.0, 4.0]), np.array([2.0, 4.0])))
  assert ours["RMSE"] == pytest.approx(np.sqrt(0.5)) and ours["abs_RE"] == 0.25 and ours["sq_rel"] == 0.25
  assert ours["log10"] == pytest.approx(np.log10(2) / 2)
  assert ours["rmse_log"] == pytest.approx(np.log(2) / np.sqrt(2))
  assert ours["silog"] == pytest.approx(np.sqrt(np.log(2) ** 2 / 2 - 0.5 * (np.log(2) / 2) ** 2))
  assert (ours["delta1"], ours["delta2"], ours["delta3"]) == (0.5, 0.5, 0.5)
  assert set(ours) == set(ALL_METRICS)


def test_threshold_of_delta_is_strict():
  assert depth_metrics(depth_sums(np.array([1.25]), np.array([1.0])))["delta1"] == 0.0


def test_valid_range_is_strict_in_single_precision():
  gt = np.array([[1e-3, 10.0, 0.0, 5.0, np.nan, 9.999]], np.float32)
  pred = np.full((1, 6), 5.0)
  results = score(nyu_depth.make("plain", average="pixel"), [(pred, dict(depth=gt))])
  assert results["abs_RE"] == pytest.approx((0 + 4.999 / 9.999) / 2, rel=1e-5)


def marked_label(top, bottom, left, right) -> np.ndarray:
  """A 480x640 label that is 2 m inside a window and 4 m outside."""
  label = np.full((480, 640), 4.0, np.float16)
  label[top:bottom, left:right] = 2.0
  return label


@pytest.mark.parametrize("preset, window", [("nyu_uvim", (54, 480, 41, 601)), ("nyu_eigen", (45, 471, 41, 601))])
def test_crop_of_each_preset(preset, window):
  label = marked_label(*window)
  metric = nyu_depth.make(preset)
  # Seen through the crop there is only 2 m; a whole-image prediction that is right everywhere is right here as well.
  pred = np.full((32, 32), 2.0) if preset == "nyu_uvim" else label
  assert score(metric, [(pred, dict(depth=label))])["RMSE"] == 0.0
  assert f"rows {window[0]}:{window[1]}, columns 41:601" in metric.protocol
  shifted = marked_label(window[0] + 1, window[1], window[2], window[3])
  assert score(metric, [(np.full((32, 32), 2.0), dict(depth=shifted))])["RMSE"] > 0.0


def test_ground_truth_of_the_batch_is_taken_as_cropped():
  view = np.full((426, 560, 1), 3.0, np.float32)
  results = score(nyu_depth.make("nyu_uvim"), [(np.full((8, 8, 1), 3.0), dict(ground_truth=view, depth=view * 0 + 9))])
  assert results["RMSE"] == 0.0 and set(results) == {"RMSE", "abs_RE", "log10", "delta1", "delta2", "delta3", "images",
                                                     "images_without_valid"}


def test_labels_of_the_batch_and_a_size_that_is_not_square():
  labels = np.linspace(1, 9, 20 * 35).reshape(20, 35, 1).astype(np.float32)
  results = score(nyu_depth.make("plain", target_key=None), [(labels[..., 0], dict(labels=labels))])
  assert results["RMSE"] == 0.0 and results["silog"] == 0.0 and results["delta1"] == 1.0


def test_beside_a_raw_feature_the_canvas_is_cut():
  pred = np.pad([[1.0, 2.0, 3.0]] * 2, ((0, 2), (0, 1)), constant_values=9.0)
  on_canvas = {"image": np.zeros((8, 8, 3)), "valid_size": np.array([4, 6])}
  metric = nyu_depth.make("plain")
  assert score(metric, [(pred, on_canvas | {"depth": np.kron([[1.0, 2.0, 3.0]], np.ones((6, 4)))})])["RMSE"] == 0.0
  assert score(metric, [(pred, on_canvas | {"labels": pred[..., None]})])["RMSE"] == 0.0  # on the canvas too


def test_an_image_without_a_valid_pixel_is_counted_and_left_out():
  good, empty = np.full((4, 4), 2.0), np.zeros((4, 4))
  for average in nyu_depth.AVERAGES:
    metric = nyu_depth.make("plain", average=average)
    results = score(metric, [(good + 1, dict(depth=good)), (good, dict(depth=empty)), (good + 1, dict(depth=good))])
    assert results["RMSE"] == pytest.approx(1.0)
    assert (results["images"], results["images_without_valid"]) == (2, 1)
    none = score(metric, [(good, dict(depth=empty))])
    assert np.isnan(none["RMSE"]) and none["images_without_valid"] == 1
    assert np.isnan(score(metric, [])["RMSE"])


def test_mean_of_images_is_not_the_mean_of_pixels():
  small = (np.full((2, 2), 3.0), dict(depth=np.full((2, 2), 2.0)))  # error 1 over 4 pixels
  large = (np.full((4, 4), 2.0), dict(depth=np.full((4, 4), 2.0)))  # error 0 over 16 pixels
  assert score(nyu_depth.make("plain"), [small, large])["RMSE"] == pytest.approx(0.5)
  assert score(nyu_depth.make("plain", average="pixel"), [small, large])["RMSE"] == pytest.approx(np.sqrt(4 / 20))


def test_predictions_that_are_not_finite():
  label = np.full((480, 640), 5.0, np.float32)
  pred = label.copy()
  pred[100, 100], pred[200, 200] = np.inf, np.nan
  eigen = score(nyu_depth.make("nyu_eigen"), [(pred, dict(depth=label))])
  assert eigen["RMSE"] == pytest.approx(np.sqrt((25 + 4.999 ** 2) / (426 * 560)), rel=1e-5)
  assert np.isnan(score(nyu_depth.make("plain"), [(pred, dict(depth=label))])["RMSE"]), "no silent repair elsewhere"
  clipped = score(nyu_depth.make("plain", clip_prediction=True), [(label + 95, dict(depth=label))])
  assert clipped["RMSE"] == pytest.approx(5.0)


@pytest.mark.parametrize("average", nyu_depth.AVERAGES)
def test_merged_halves_are_one_pass(average):
  rng = np.random.default_rng(1)
  metric = nyu_depth.make("plain", average=average)
  examples = [(rng.uniform(1, 9, (5, 7)), dict(depth=rng.uniform(0, 11, (10, 14)))) for _ in range(5)]
  halves = []
  for half in (examples[:1], examples[1:], []):
    stats = metric.init()
    for pred, truth in half:
      stats = metric.update(stats, dict(depth=pred), truth)
    halves.append(stats)
  merged = metric.merge(metric.merge(halves[2], halves[0]), halves[1])
  assert metric.compute(merged) == pytest.approx(score(metric, examples), rel=1e-12)


def test_mistakes_are_named():
  square = np.ones((128, 128))
  with pytest.raises(UserError, match="'plain' takes any size"):
    score(nyu_depth.make("nyu_uvim"), [(square, dict(depth=square))])
  with pytest.raises(UserError, match="unknown preset 'nyu_uvm'; did you mean 'nyu_uvim'"):
    nyu_depth.make("nyu_uvm")
  with pytest.raises(UserError, match="unknown average"):
    nyu_depth.make(average="pixels-of-all")
  with pytest.raises(UserError, match="no 'depth' among its entries"):
    nyu_depth.view(dict(color=square), dict(depth=square), nyu_depth.PRESETS["plain"], "depth")
