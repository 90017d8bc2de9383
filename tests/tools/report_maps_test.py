"""Errors of all kinds of maps by hand, and their pictures: also empty truths, nan, large and narrow images."""

import io

import numpy as np
import pytest
from PIL import Image

from tools.reporting import figures_maps, report_maps
from tools.reporting.examples import FORMS, Examples, families_of
from tools.reporting.report_families import FAMILIES, mean_error, with_error
from tools.reporting.report_seen import given


def example(family, truth, size, **further):
  image = np.linspace(-1, 1, int(np.prod(size)) * 3).reshape(1, *size, 3)
  return Examples("x", family, (), {"image": image}, {}, truth, truth, 0.0, **further)


def test_errors_by_hand():
  truth = {"depth": np.array([[[1.0, 3.0, 0.0]], [[0, 0, 0]]])}
  base = example("depth", truth, (1, 3))
  predicted = {"depth": np.array([[[2.0, 3.0, 9.0]], [[1, 1, 1]]])}
  np.testing.assert_allclose(report_maps.depth_errors(base, predicted), [np.sqrt(0.5), np.nan])
  far = example("depth", {"depth": np.array([[[50.0, 1.0]]])}, (1, 2))
  assert report_maps.measured(far).tolist() == [[[False, True]]]
  assert report_maps.measured(far._replace(max_depth=128.0)).all()
  classes = example("semantic", {"semantics": np.array([[[1, 2, 0, 0]]])}, (1, 4))
  np.testing.assert_allclose(report_maps.class_errors(classes, {"semantics": np.array([[[1, 1, 1, 1]]])}), [50])
  normals = example("normals", {"normals": np.array([[[[0, 0, 1.0], [1, 0, 0], [0, 0, 0]]]])}, (1, 3))
  np.testing.assert_allclose(report_maps.normal_errors(normals, {"normals": np.array([[[[0, 0, 2.0], [0, 1, 0], [0, 1, 0]]]])}),
                             [45])
  gray = example("colour", {"color": np.zeros((1, 2, 2, 3))}, (2, 2))
  np.testing.assert_allclose(report_maps.color_errors(gray, {"color": np.full((1, 2, 2, 3), 2 / 255)}), [1])


LABELS = {"depth": lambda rng, size: rng.uniform(0, 9, (1, *size, 1)),
          "semantic": lambda rng, size: rng.integers(0, 4, (1, *size, 1)),
          "panoptic": lambda rng, size: rng.integers(0, 4, (1, *size, 2)),
          "normals": lambda rng, size: rng.normal(size=(1, *size, 3)),
          "colour": lambda rng, size: rng.uniform(-1, 1, (1, *size, 3))}


@pytest.mark.parametrize("size", [(12, 20), (1, 7), (700, 90)])
@pytest.mark.parametrize("family", LABELS)
def test_every_kind_draws(family, size):
  rng = np.random.default_rng(0)
  truth = FORMS[family].truth({"labels": LABELS[family](rng, size)})
  predicted = FORMS[family].truth({"labels": LABELS[family](rng, size)})
  assert families_of(truth) == [family]
  base, what = example(family, truth, size), FAMILIES[family]
  assert mean_error(base, truth) == pytest.approx(0, abs=1e-4) and mean_error(base, predicted) > 0
  cells = [*given(base, 0), with_error(base, predicted, 0, what.errors(base, predicted), alt="a")]
  shapes = {Image.open(io.BytesIO(cell.png)).size for cell in cells}
  assert len(shapes) == 1 and cells[-1].caption and what.label(base, 0)
  pictures, legend = what.draw_errors(base, [("a", truth), ("b", predicted)], 1)
  assert pictures[0][0] != pictures[0][1] and legend
  assert Image.open(io.BytesIO(pictures[0][1])).size in shapes
  assert all(isinstance(text, str) for text in what.legend(base, 1))


def test_a_truth_without_labels_has_no_error():
  empty = {"depth": np.zeros((1, 4, 4)), "semantics": np.zeros((1, 4, 4), int), "normals": np.zeros((1, 4, 4, 3))}
  for family, key in (("depth", "depth"), ("semantic", "semantics"), ("normals", "normals")):
    base = example(family, {key: empty[key]}, (4, 4))
    assert np.isnan(mean_error(base, {key: empty[key] + 1}))
    assert with_error(base, {key: empty[key] + 1}, 0, np.array([np.nan]), alt="").caption == "–"
    assert FAMILIES[family].draw_errors(base, [("a", {key: empty[key] + 1})], 1)[0][0][0].startswith(b"\x89PNG")


def test_errors_share_one_scale():
  base = example("depth", {"depth": np.full((1, 2, 2), 1.0)}, (2, 2))
  columns = [("near", {"depth": np.full((1, 2, 2), 1.1)}), ("far", {"depth": np.full((1, 2, 2), 3.0)})]
  (near, far), = report_maps.numeric_errors(base, columns, 1, values=report_maps.depth_differences, unit="m")[0]
  dark, bright = (np.asarray(Image.open(io.BytesIO(png)).convert("L")).mean() for png in (near, far))
  assert dark < 30 < bright


@pytest.mark.parametrize("value,expected", [(0.234, 0.25), (130, 150), (1.0, 1.0), (9.1, 10), (0, 1), (np.nan, 1), (-2, 1)])
def test_round_up(value, expected):
  assert figures_maps.round_up(value) == pytest.approx(expected)
