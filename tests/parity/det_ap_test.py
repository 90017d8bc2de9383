"""Average precision of boxes, masks and keypoints against pycocotools' own numbers, for every stored case."""

import json

import numpy as np
import pytest
from pycocotools import mask as rle

from uvim_like.evaluators import average_precision as ap
from uvim_like.evaluators import coco_instances
from uvim_like.evaluators.paste import paste_mask

pytestmark = pytest.mark.parity

KINDS = {"det_box_ap": "bbox", "det_mask_ap": "segm", "kpt_ap": "keypoints"}


def scored(gt, detections, kind, **options):
  return ap.average_precision(gt["images"], gt["annotations"], detections, kind=kind, **options)


def check(ours, theirs, atol, where):
  for name, value in theirs.items():
    assert ours[name] == pytest.approx(value, abs=atol), (where, name)


@pytest.mark.parametrize("case_kind", KINDS)
def test_statistics_and_classes(stored_metrics, case_kind):
  for case, _ in stored_metrics(case_kind):
    kind = KINDS[case_kind]
    options = dict(sigmas=case["sigmas"]) if "sigmas" in case else {}
    gt, found, atol = case["gt"], case["detections"], case["tol"]["atol"]
    ids = [c["id"] for c in gt["categories"]]
    check(scored(gt, found, kind, categories=ids, **options), case["expected"]["stats"], atol, case["case"])
    for category, theirs in case["expected"]["per_category"].items():
      ours = scored(gt, found, kind, categories=[int(category)], **options)
      check(ours, {name: value for name, value in theirs.items() if name in ours}, atol, (case["case"], category))


def test_all_kinds_on_real_annotations(stored_metrics, golden_real_dir):
  for case, _ in stored_metrics("coco_multi", folder=golden_real_dir):
    assert set(case["expected"]) == set(KINDS.values())
    ids = [c["id"] for c in case["gt"]["categories"]]
    for kind, expected in case["expected"].items():
      found, atol = case["detections"][kind], case["tol"]["atol"]
      check(scored(case["gt"], found, kind, categories=ids), expected["stats"], atol, (case["case"], kind))
      for category, theirs in expected["per_category"].items():
        ours = scored(case["gt"], found, kind, categories=[int(category)])
        check(ours, {name: value for name, value in theirs.items() if name in ours}, atol, (kind, category))


def test_edge_cases_of_boxes(stored_metrics):
  for many, _ in stored_metrics("det_box_ap_many"):
    assert many["cases"]
    for name, case in many["cases"].items():
      ids = [c["id"] for c in case["gt"]["categories"]]
      ours = scored(case["gt"], case["detections"], "bbox", categories=ids)
      check(ours, case["expected"]["stats"], many["tol"]["atol"], (many["case"], name))


def test_boxes_through_the_evaluator(stored_metrics):
  """Image by image, with fractions in place of pixels and classes in place of category ids."""
  for case, _ in stored_metrics("det_box_ap"):
    gt, ids = case["gt"], [c["id"] for c in case["gt"]["categories"]]
    metric = coco_instances.make(kinds=("boxes",), dataset="coco_instances")
    stats, order = metric.init(), np.random.RandomState(0).permutation(len(gt["images"]))
    halves = [metric.init(), metric.init()]
    for position, i in enumerate(order):
      image = gt["images"][i]
      size = np.array([image["height"], image["width"]])
      truth = [a for a in gt["annotations"] if a["image_id"] == image["id"]]
      found = [d for d in case["detections"] if d["image_id"] == image["id"]]
      target = {"image/id": np.int64(image["id"]), "image/size": size, **objects(truth, ids, size)}
      output = {"boxes": fractions(found, size), "scores": np.array([d["score"] for d in found]),
                "classes": np.array([ids.index(d["category_id"]) + 1 for d in found], np.int32)}
      halves[position % 2] = metric.update(halves[position % 2], output, target)
    stats = metric.merge(*halves)
    assert metric.compute(stats)["images"] == len(gt["images"])
    # Boxes are clipped to the image and kept in single precision: equal to 1e-3, not to the last digit.
    clipped = [dict(d, bbox=clip(d["bbox"], gt["images"], d["image_id"])) for d in case["detections"]]
    theirs = scored(gt, [d for d in clipped if min(d["bbox"][2:]) > 0 and d["score"] > 0], "bbox", categories=ids)
    check({k.removeprefix("box_"): v for k, v in metric.compute(stats).items()}, theirs, 1e-3, case["case"])


def clip(box, images, image_id):
  image = next(im for im in images if im["id"] == image_id)
  x, y, w, h = box
  x0, x1 = np.clip([x, x + w], 0, image["width"])
  y0, y1 = np.clip([y, y + h], 0, image["height"])
  return [x0, y0, x1 - x0, y1 - y0]


def fractions(entries, size):
  boxes = np.array([e["bbox"] for e in entries], np.float64).reshape(-1, 4)
  x, y, w, h = boxes.T
  return np.stack([y, x, y + h, x + w], -1) / np.tile(size, 2)


def objects(entries, ids, size):
  return {"objects/id": np.array([e["id"] for e in entries], np.int64),
          "objects/area": np.array([e["area"] for e in entries], np.float64),
          "objects/bbox": fractions(entries, size),
          "objects/label": np.array([ids.index(e["category_id"]) for e in entries], np.int64),
          "objects/is_crowd": np.array([e["iscrowd"] for e in entries], bool)}


def test_polygons_are_drawn_as_coco_draws_them(stored_metrics):
  from uvim_like.own_data.tables import draw
  for case, arrays in stored_metrics("mask_raster"):
    masks, iou = arrays["masks"], arrays["iou"]
    drawn = [draw((np.array(p),), tuple(case["size"])) for p in case["polygons"]]
    np.testing.assert_array_equal(np.array(drawn).astype(bool), masks.astype(bool), err_msg=case["case"])
    assert [int(m.sum()) for m in drawn] == case["areas"]
    codes = [ap.encode(m) for m in drawn]
    n = len(iou)
    ours = rle.iou(codes[:n], codes[n:], [k % 3 == 0 for k in range(len(codes) - n)])
    np.testing.assert_allclose(ours, iou, atol=case["tol"]["iou_atol"])


def test_masks_are_pasted_as_mmdetection_pastes_them(stored):
  """AiT's stored detections: small masks inside boxes -> masks of the whole image, packed along x."""
  seen = 0
  for path in stored("ait_heads*.npz"):
    with np.load(path) as data:
      boxes, small, packed = (data[f"out/{key}"] for key in ("post_boxes", "post_small_masks_hard", "post_masks_hard"))
    size = tuple(json.loads(path.with_suffix(".json").read_text())["config"]["ori_shape"])
    wanted = np.unpackbits(packed, axis=-1, count=size[1]).astype(bool)
    for box, mask, theirs in zip(boxes, small, wanted, strict=True):
      ours = paste_mask(mask, box[[1, 0, 3, 2]], size).astype(bool)
      assert (ours != theirs).sum() <= 2, (path.name, box)   # pixels on the contour at exactly one half
      seen += int(theirs.sum())
  assert seen, "no pasted mask has a pixel"
