"""Metrics against the numbers of the official code, for every stored case of the kinds that exist here."""

import re

import numpy as np
import pytest

from uvim_like.evaluators import coco_panoptic, fid, nyu_depth, psnr
from uvim_like.evaluators import panoptic_quality as pq
from uvim_like.evaluators.depth_metrics import depth_metrics, depth_sums
from uvim_like.evaluators.resize import resize_nearest
from uvim_like.tasks import classes

pytestmark = pytest.mark.parity

# Their names of a depth metric -> ours.
DEPTH_NAMES = dict(d1="delta1", d2="delta2", d3="delta3", abs_rel="abs_RE", sq_rel="sq_rel", rmse="RMSE",
                   rmse_log="rmse_log", log10="log10", silog="silog")


def close(ours, theirs, rtol):
  return ours == pytest.approx(theirs, rel=rtol, abs=1e-12)


def check_panoptic(case: dict, arrays: dict) -> None:
  """One pq or pq_2ch file: group means, class sums and the counts."""
  table = classes.from_categories(case["categories"])
  stats = np.zeros((len(table.ids), 4))
  for k, image in enumerate(case["images"]):
    if case["kind"] == "pq_2ch":
      pred_ids, pred_segments = pq.two_channel_to_segments(arrays[f"pred_sem_{k}"], arrays[f"pred_ins_{k}"], table)
    else:
      pred_ids, pred_segments = arrays[f"pred_id_{k}"], image["pred_segments"]
    matched = pq.match_segments(pred_ids, pred_segments, arrays[f"gt_id_{k}"], image["gt_segments"])
    stats = stats + pq.stats_array(matched, table)
  rtol, expected = case["tol"]["rtol"], case["expected"]
  ours = pq.pq_compute(stats, table)
  for group in pq.GROUPS:
    for name, value in expected[group].items():
      assert close(ours[f"{group}_{name}"], value, rtol), (case["case"], group, name)
  per_class = pq.pq_per_class(stats)
  for label, category in enumerate(table.ids):
    theirs = expected.get("per_class", {}).get(str(category))
    if theirs is None:
      continue
    mine = dict(zip(("pq", "sq", "rq"), per_class[label])) | dict(zip(("iou_sum", "tp", "fp", "fn"), stats[label]))
    for name, value in theirs.items():
      assert close(mine[name], value, rtol), (case["case"], category, name)


def test_panoptic_quality_of_segment_maps(stored_metrics):
  for case, arrays in stored_metrics("pq"):
    check_panoptic(case, arrays)


def test_panoptic_quality_of_two_channel_predictions(stored_metrics):
  for case, arrays in stored_metrics("pq_2ch"):
    check_panoptic(case, arrays)


def test_panoptic_quality_on_real_annotations(stored_metrics, golden_real_dir):
  for case, arrays in stored_metrics("pq", "pq_2ch", folder=golden_real_dir):
    check_panoptic(case, arrays)


def test_panoptic_evaluator_from_features(stored):
  """From class-index predictions and raw features to the numbers, with the nearest resize in between."""
  arrays = dict(np.load(*stored("j_pq.npz")))
  categories = [dict(id=int(i), isthing=int(thing))
                for i, thing in zip(arrays["categories_id"], arrays["categories_isthing"])]
  metric = coco_panoptic.make(categories=categories)
  label = {c["id"]: k for k, c in enumerate(categories)}
  stats = metric.init()
  for k, shape in enumerate(arrays["sizes"]):
    pred = arrays["pred"][k]
    resized = resize_nearest(pred, tuple(shape))
    to_category = np.array([0] + [c["id"] for c in categories])
    np.testing.assert_array_equal(np.stack([to_category[resized[..., 0]], resized[..., 1]], -1),
                                  arrays[f"pred{k}/resized"])
    segments = arrays[f"gt{k}/segments_id_cat_crowd_area"]
    target = {"panoptic_image": pq.id_to_rgb(arrays[f"gt{k}/id_map"]), "panoptic_objects/id": segments[:, 0],
              "panoptic_objects/label": np.array([label[c] for c in segments[:, 1]]),
              "panoptic_objects/is_crowd": segments[:, 2].astype(bool)}
    stats = metric.update(stats, dict(semantics=pred[..., 0], instances=pred[..., 1]), target)
  ours = metric.compute(stats)
  for key, value in arrays.items():
    if key.startswith("out/") and not value.shape:
      assert close(ours[key.removeprefix("out/")], float(value), 1e-9), key
  np.testing.assert_allclose(pq.pq_per_class(stats), arrays["out/per_class_pq_sq_rq"], rtol=1e-9, atol=1e-12)


def test_depth_over_given_pixels(stored_metrics):
  for case, arrays in stored_metrics("depth_flat"):
    ours = depth_metrics(depth_sums(arrays["pred"], arrays["gt"]))
    for name, value in case["expected"].items():
      assert close(ours[DEPTH_NAMES[name]], value, case["tol"]["rtol"]), name
    for name, value in case.get("expected_f64", {}).items():
      assert close(ours[DEPTH_NAMES[name]], value, 1e-9), name
    others = case.get("other_definitions", {})
    for name, mine in dict(silog_x100_lambda1="silog", sq_rel_kitti="sq_rel").items():
      assert name not in others or not close(ours[mine], others[name], 1e-2)


def full_depth(arrays: dict, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Prediction and truth (H, W) of image k, rebuilt as the file's note says."""
  block = np.ones((8, 8), np.float32)
  gt, pred = (np.kron(arrays[f"{name}8_{k}"].astype(np.float32), block) for name in ("gt", "pred"))
  gt[np.unpackbits(arrays[f"hole_{k}"])[:gt.size].reshape(gt.shape).astype(bool)] = 0
  pred.flat[arrays[f"nan_{k}"]] = np.nan
  pred.flat[arrays[f"inf_{k}"]] = np.inf
  gt.flat[arrays[f"ten_{k}"]] = 10
  return pred, gt


def run_depth(metric, images) -> dict[str, float]:
  stats = metric.init()
  for pred, gt in images:
    stats = metric.update(stats, dict(depth=pred), dict(depth=gt))
  return metric.compute(stats)


def test_depth_protocol_per_image_and_its_variants(stored_metrics):
  for case, arrays in stored_metrics("depth_images"):
    images, rtol = [full_depth(arrays, k) for k in range(case["n"])], case["tol"]["rtol"]
    ours = run_depth(nyu_depth.make("nyu_eigen"), images)
    for name, value in case["expected"].items():
      assert close(ours[DEPTH_NAMES[name]], value, rtol), name
    for image, theirs in zip(images, case.get("per_image", [])):
      single = run_depth(nyu_depth.make("nyu_eigen"), [image])
      assert all(close(single[DEPTH_NAMES[name]], value, rtol) for name, value in theirs.items() if name != "n_valid")
    variants = dict(pixel_pooled=dict(average="pixel"), uvim_crop_54_480=dict(crop=(54, 480, 41, 601)),
                    no_crop=dict(crop=None))
    for variant, theirs in case.get("variants", {}).items():
      assert not close(ours["RMSE"], theirs["rmse"], rtol), f"indistinguishable from {variant}"
      if variant in variants:
        other = run_depth(nyu_depth.make("nyu_eigen", **variants[variant]), images)
        for name, value in theirs.items():
          assert close(other[DEPTH_NAMES[name]], value, rtol), (variant, name)


@pytest.fixture
def h_eval(stored) -> dict:
  """The authors' evaluators of UViM, run on made-up maps."""
  return dict(np.load(*stored("h_eval.npz")))


def test_uvim_depth_evaluator(h_eval):
  arrays = h_eval
  height, width = map(int, re.search(r"y<(\d+), x<(\d+)", str(arrays["depth/gt_note"])).groups())
  y, x = np.mgrid[:height, :width].astype(np.float32)
  a, b = arrays["depth/a_b"]
  gt = (5 + 5.5 * np.sin(a * y / 50) * np.cos(b * x / 60)).astype(np.float32)
  pred = arrays["depth/pred"]
  resized = resize_nearest(pred, gt.shape)
  np.testing.assert_array_equal(resized[100], arrays["depth/pred_resized_row100"])
  assert resized.sum(dtype=np.float64) == pytest.approx(float(arrays["depth/pred_resized_sum"]), rel=1e-9)
  metric = nyu_depth.make("nyu_uvim")
  ours = metric.compute(metric.update(metric.init(), dict(depth=pred), dict(ground_truth=gt[..., None])))
  assert int(((gt > 1e-3) & (gt < 10)).sum()) == arrays["depth/valid_count"]
  for name in ("RMSE", "abs_RE", "log10", "delta1", "delta2", "delta3"):
    assert close(ours[name], float(arrays[f"depth/{name}"]), 2e-5), name


def test_uvim_panoptic_resize(h_eval):
  arrays = h_eval
  ours = resize_nearest(arrays["pan/mask"], tuple(arrays["pan/target"]))
  np.testing.assert_array_equal(ours.astype(np.uint8), arrays["pan/resized"])


def test_uvim_psnr(h_eval):
  arrays = h_eval
  for a, b, theirs in zip(arrays["psnr/a"], arrays["psnr/b"], arrays["psnr/out"]):
    assert close(psnr.peak_signal_to_noise(a, b, 2.0), float(theirs), 1e-5)


def test_psnr_is_the_mean_over_images(stored_metrics):
  for case, arrays in stored_metrics("psnr"):
    metric, rtol = psnr.make(), case["tol"]["rtol"]
    stats = metric.init()
    for a, b, theirs in zip(arrays["a"], arrays["b"], case["expected"]["per_image"]):
      assert close(psnr.peak_signal_to_noise(a, b, 2.0), theirs, rtol)
      stats = metric.update(stats, dict(color=a), dict(labels=b))
    ours = metric.compute(stats)["psnr"]
    assert close(ours, case["expected"]["psnr"], rtol)
    for variant, value in case.get("variants", {}).items():
      assert not close(ours, value, rtol), variant


def test_frechet_distance(stored_metrics):
  for case, arrays in stored_metrics("fid"):
    for name, theirs in case["expected"].items():
      x, y, rtol = arrays[f"{name}_x"], arrays[f"{name}_y"], case["tol"][name]["rtol"]
      ours = fid.frechet_distance(x, y)
      assert close(ours, theirs["fid"], rtol) and close(ours, theirs["via_eigvals"], rtol)
      assert close(fid.frechet_distance(y, x), theirs["fid"], rtol)
      assert fid.frechet_distance(x, x) == pytest.approx(0.0, abs=1e-6)
      assert not close(ours, theirs["fid_ddof0"], rtol), "the covariance is the biased one"


def test_coltran_images(h_eval):
  arrays = h_eval
  for key, theirs in arrays.items():
    if key.startswith("coltran/preprocess"):
      ours = fid.square_image(arrays["coltran/image"], theirs.shape[0])
      # The reference sums in float32: a mean that lies on a half may round either way, nothing else may differ.
      assert np.abs(ours - theirs).max() <= 1 and (ours != theirs).mean() < 2e-3, key
    if key.startswith("coltran/normalized"):
      whole = arrays[key.replace("normalized", "preprocess")]
      np.testing.assert_array_equal(fid.normalise(whole), theirs)
    if key.startswith("coltran/pred_area"):
      for color, quantised, final in zip(next(arrays[k] for k in arrays if re.fullmatch(r"coltran/pred\d+", k)), theirs,
                                         arrays["coltran/pred_for_inception"]):
        np.testing.assert_array_equal(fid.quantise(fid.resize_area(color, quantised.shape[:2])), quantised)
        np.testing.assert_array_equal(fid.predicted_image(color, quantised.shape[0]), final)
