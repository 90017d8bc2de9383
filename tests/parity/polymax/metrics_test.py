"""Mean IoU, surface normals and the 40-class map of NYU against stored numbers of the official code."""

import numpy as np
import pytest

from uvim_like.evaluators import mean_iou, surface_normals
from uvim_like.tasks import nyu40

pytestmark = pytest.mark.parity
NAMES = {"miou": "mIoU", "pixel_acc": "pixel_acc", "mean_acc": "mean_acc", "fw_iou": "fw_iou",
         "n_classes_counted": "classes_counted"}


def shifted(classes: np.ndarray, ignore: int) -> np.ndarray:
  """Classes from 0 with a void value to our labels: 0 = void, class + 1."""
  return np.where(classes == ignore, 0, classes.astype(np.int64) + 1)


def test_mean_iou(stored_metrics):
  for case, arrays in stored_metrics("miou"):
    metric, ignore = mean_iou.make(num_classes=case["num_classes"]), case["ignore_label"]
    halves = [metric.init(), metric.init()]
    for i, (pred, gt) in enumerate(zip(arrays["pred"], arrays["gt"])):
      halves[i % 2] = metric.update(halves[i % 2], {"semantics": shifted(pred, ignore)},
                                    {"labels": shifted(gt, ignore)[..., None]})
    matrix, atol = metric.merge(*halves), case["tol"]["atol"]
    ours, expected = metric.compute(matrix), case["expected"]
    for theirs, name in NAMES.items():
      if theirs in expected:
        assert ours[name] == pytest.approx(expected[theirs], abs=atol, rel=0), (case["case"], name)
    want = np.array([np.nan if value is None else value for value in expected["iou_per_class"]])
    np.testing.assert_allclose(mean_iou.per_class(matrix), want, atol=atol, rtol=0)
    if "confusion_rows_gt" in case:
      np.testing.assert_array_equal(matrix[:, :-1], case["confusion_rows_gt"])
    for name, value in case.get("variants", {}).items():
      assert ours["mIoU"] != pytest.approx(value, abs=1e-6), name


def test_normals(stored_metrics):
  for case, arrays in stored_metrics("normals"):
    metric = surface_normals.make(target_key="normals")
    halves = [metric.init(), metric.init()]
    for i, (pred, gt) in enumerate(zip(arrays["pred"], arrays["gt_u8"])):
      halves[i % 2] = metric.update(halves[i % 2], {"normals": pred}, {"normals": gt})
    ours = metric.compute(metric.merge(*halves))
    for expected, tolerance in ((case["expected"], case["tol"]), (case.get("expected_f64", {}), {"rtol": 0, "atol": 2e-4})):
      for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, **tolerance, err_msg=f"{case['case']}: {name}")
    assert ours["pixels"] == case["n_valid"]


def test_forty_classes(stored_metrics):
  for case, arrays in stored_metrics("nyu40"):
    if "names40" in case:
      assert tuple(case["names40"]) == nyu40.NAMES
    # The official table is a file of its own; here it is what the stored pixels tell of it.
    raw, labels = arrays["raw"].astype(np.int64), arrays["label40"]
    table = np.zeros(raw.max(), np.uint8)
    table[raw[raw > 0] - 1] = labels[raw > 0]
    mapped = nyu40.to_classes(raw, table)
    np.testing.assert_array_equal(mapped, labels)
    np.testing.assert_array_equal(nyu40.to_train_ids(mapped), arrays["train_id"])
