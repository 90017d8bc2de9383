"""Angles of normals: pooling, validity, lengths, and predictions that are no direction."""

import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.evaluators import surface_normals


def score(pred, truth, **options):
  metric = surface_normals.make(**options)
  stats = metric.init()
  for p, t in zip(pred, truth):
    stats = metric.update(stats, {"normals": np.asarray(p, np.float32)}, {"labels": np.asarray(t)})
  return metric.compute(stats)


def turned(degrees):
  """Unit vectors (1, n, 3) turned from z towards x."""
  theta = np.radians(np.atleast_1d(degrees))
  return np.stack([np.sin(theta), 0 * theta, np.cos(theta)], -1)[None]


def test_by_hand():
  theta = np.array([0.0, 10.0, 20.0, 40.0])
  got = score([turned(theta)], [np.tile([0.0, 0.0, 1.0], (1, 4, 1))])
  assert got["mean"] == pytest.approx(17.5, abs=1e-4) and got["median"] == pytest.approx(15.0, abs=1e-3)
  assert got["rms"] == pytest.approx(np.sqrt(np.mean(theta ** 2)), abs=1e-4)
  assert (got["pct_11_25"], got["pct_22_5"], got["pct_30"], got["pixels"]) == (50.0, 75.0, 75.0, 4.0)


def test_median_is_that_of_all_pixels():
  small, large = turned([30.0]), turned([1.0, 2.0, 3.0, 4.0])
  truths = [np.tile([0.0, 0.0, 1.0], (1, n, 1)) for n in (1, 4)]
  assert score([small, large], truths)["median"] == pytest.approx(3.0, abs=1e-3)


def test_lengths_do_not_matter_and_opposite_is_180():
  truth = np.array([[[0.0, 3.0, 4.0], [0.0, 0.0, 2.0]]])
  got = score([truth * 0.01], [truth])
  assert got["mean"] == pytest.approx(0.0, abs=1e-4)
  assert score([-truth], [truth])["mean"] == pytest.approx(180.0, abs=1e-4)


def test_invalid_truth_is_left_out_and_predictions_without_direction_count():
  truth = np.array([[[0.0, 0, 0], [0, 0, 1], [np.nan, 0, 1], [0, 1, 0]]])
  pred = np.array([[[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [np.inf, 0, 1]]])
  got = score([pred], [truth])
  assert got["pixels"] == 2 and got["mean"] == pytest.approx(90.0)
  none = score([pred], [np.zeros((1, 4, 3))])
  assert none["pixels"] == 0 and np.isnan(none["mean"]) and np.isnan(none["median"])


def test_raw_features_crop_and_resize():
  raw = np.zeros((6, 8, 3), np.uint8)
  raw[1:5, 2:6] = (128, 128, 255)
  metric = surface_normals.make(target_key="normals", crop=(0, 3, 0, 4))
  stats = metric.update(metric.init(), {"normals": np.tile([0.0, 0.0, 1.0], (3, 4, 1))}, {"normals": raw})
  got = metric.compute(stats)
  assert got["pixels"] == 4 and got["mean"] < 0.5 and metric.target_keys == ("normals",)
  assert "rows 0:3, columns 0:4" in metric.protocol
  vectors, valid = surface_normals.decode(raw)
  np.testing.assert_allclose(vectors[1, 2], [1 / 255, 1 / 255, 1.0], atol=1e-12)
  assert valid.sum() == 16


def test_beside_a_raw_feature_the_canvas_is_cut():
  raw = np.tile(np.array([127, 127, 255], np.uint8), (6, 12, 1))
  pred = np.tile([1.0, 0.0, 0.0], (4, 4, 1))
  pred[:2, :3] = 0, 0, 1
  on_canvas = {"image": np.zeros((8, 8, 3)), "valid_size": np.array([4, 6])}
  metric = surface_normals.make(target_key="normals")
  assert metric.compute(metric.update(metric.init(), {"normals": pred}, on_canvas | {"normals": raw}))["mean"] < 0.5
  metric = surface_normals.make()  # labels of the batch are on the canvas too
  assert metric.compute(metric.update(metric.init(), {"normals": pred}, on_canvas | {"labels": pred}))["mean"] == 0


def test_shapes_are_checked():
  with pytest.raises(UserError, match=r"\(h, w, 3\)"):
    score([np.zeros((2, 2, 2))], [np.ones((2, 2, 3))])
  with pytest.raises(UserError, match=r"\(H, W, 3\)"):
    score([np.zeros((2, 2, 3))], [np.ones((2, 2))])
