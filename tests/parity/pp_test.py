"""Preprocessing against outputs of the authors' ops, and the images of the colour evaluation."""

import ast
import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from pp_ops import builder, ops_image
from tests.parity.conftest import missing

pytestmark = pytest.mark.parity

# One level of 256 after value_range(-1, 1) is 0.0078; the authors' arithmetic is ours up to the last float32 bit.
FLOAT = dict(rtol=1e-6, atol=1e-6)


def files(folder: pathlib.Path, marker: str) -> list[pathlib.Path]:
  """The npz files of the set that have an array of this name, at least one."""
  return [p for p in sorted(folder.rglob("*.npz")) if marker in np.load(p).files] or missing(f"array {marker}")


def apply(pp: str, **features) -> dict[str, np.ndarray]:
  """Runs a string on one example, eagerly; "__" in a name stands for "/"."""
  example = {k.replace("__", "/"): tf.constant(v) for k, v in features.items()}
  example["_seed"] = tf.constant([0, 0], tf.int64)
  out = builder.run(builder.compile_string(pp), example)
  return {k: v.numpy() for k, v in out.items()}


def labelled(golden, image: str = "coco/in/image", **more) -> dict:
  return dict(image=golden[image] if image in golden else image, panoptic_image=golden["coco/in/panoptic_image"],
              panoptic_objects__id=golden["coco/in/ids"], panoptic_objects__label=golden["coco/in/labels"], **more)


def same(got, want):
  assert got.dtype == want.dtype and got.shape == want.shape
  if want.dtype.kind == "f":
    np.testing.assert_allclose(got, want, **FLOAT)
  else:
    np.testing.assert_array_equal(got, want)


def test_panoptic_labels_and_canonical_order(golden_dir):
  for path in files(golden_dir, "coco/out/canonical"):
    golden = np.load(path)
    got = apply('coco_panoptic|concat(["semantics","instances"],"labels")|copy("labels","x")|make_canonical'
                '|make_canonical(main_axis="x", key="x")', **labelled(golden))
    for key, name in (("semantics", "semantics"), ("instances", "instances"), ("labels", "canonical"),
                      ("x", "canonical_x")):
      same(got[key], golden[f"coco/out/{name}"])
    for name in golden.files:
      if re.fullmatch(r"canon/.*/in", name):
        same(apply("make_canonical", labels=golden[name])["labels"], golden[name[:-2] + "out"])


def test_listing_strings_with_given_draws(golden_dir):
  for path in files(golden_dir, "coco/out/canonical"):
    golden = np.load(path)
    res = int(golden["res"])
    head = 'decode|coco_panoptic|concat(["semantics","instances"], "labels")|'
    crops = 'det_fliplr(key="image")|det_fliplr(key="labels")|crop_box(key="image")|crop_box(key="labels")|'
    tail = (f'resize({res})|resize({res}, key="labels", method="nearest")|value_range(-1, 1)|make_canonical'
            '|keep("image","labels")')
    encoded = labelled(golden) | {"image": golden["coco/in/image_png"].tobytes()}
    for example in (labelled(golden), encoded):
      got = apply(head + tail, **example)
      same(got["image"], golden["coco/eval/image"])
      same(got["labels"], golden["coco/eval/labels"])
      for name in sorted({n.split("/")[1] for n in golden.files if n.startswith("coco/train")}):
        given = dict(fliplr=golden[f"coco/{name}/fliplr"], box=golden[f"coco/{name}/box"])
        got = apply(head + crops + tail, **example, **given)
        same(got["image"], golden[f"coco/{name}/image"])
        same(got["labels"], golden[f"coco/{name}/labels"])


def string_of(name: str) -> str | None:
  """"ops/resize(9, 20)_nearest/u8" -> the op that the golden's name describes."""
  op = name.split("/")[1]
  if match := re.fullmatch(r"resize(\d+|\(\d+, \d+\))(_nearest)?", op):
    size, nearest = ast.literal_eval(match[1]), match[2] is not None
    return f"resize({size}, method='nearest')" if nearest else f"resize({size})"
  if match := re.fullmatch(r"value_range\((.*?)(,clip)?\)", op):
    return f"value_range({match[1]}, clip_values={match[2] is not None})"
  return op if op == "rgb_to_grayscale_to_rgb" else None


def test_ops_one_by_one(golden_dir):
  for path in files(golden_dir, "ops/u8"):
    golden, done = np.load(path), 0
    for name in golden.files:
      pp = string_of(name) if name.startswith("ops/") and name.count("/") == 2 else None
      if pp is not None:
        same(apply(pp, image=golden[f"ops/{name.split('/')[2]}"])["image"], golden[name])
        done += 1
    assert done >= 10
    same(apply("nyu_depth", depth=golden["ops/depth_f16"])["labels"], golden["ops/nyu_depth/labels"])
    for name in golden.files:
      if match := re.fullmatch(r"ops/det_fliplr/(.*)", name):
        same(apply("det_fliplr", image=golden["ops/u8"], fliplr=np.float32(match[1]))["image"], golden[name])
      if match := re.fullmatch(r"ops/crop_box/(.*)/box", name):
        got = apply("crop_box", image=golden["ops/u8"], box=golden[name])["image"]
        same(got, golden[f"ops/crop_box/{match[1]}/out"])


def test_copy_concat_drop_and_the_colour_string(golden_dir):
  for path in files(golden_dir, "ops/u8"):
    golden = np.load(path)
    got = apply('copy("image","labels")|concat(["image","labels"], "cat", axis=1)|drop("image")', image=golden["ops/u8"])
    assert sorted(set(got) - {"_seed"}) == sorted(golden["ops/copy_concat_drop/keys"].tolist())
    same(got["cat"], golden["ops/copy_concat_drop/cat"])
    res = golden["ops/color_stage2/labels"].shape[0]
    got = apply(f'copy("image","labels")|resize({res}, key="labels", method="nearest")|value_range(-1,1,key="labels")'
                '|rgb_to_grayscale_to_rgb|value_range(-1,1)'
                f'|resize({res}, inkey="image", outkey="image_ctx")', image=golden["ops/u8"])
    for key in ("image", "labels", "image_ctx"):
      same(got[key], golden[f"ops/color_stage2/{key}"])


def draw_boxes(shape, count: int) -> np.ndarray:
  """(count, 2, 2) with the default ranges, one seed each."""
  draw = lambda i: ops_image.sample_box(tf.constant(shape), tf.stack([i, i]), area=(0.05, 1), aspect=(0.75, 1.33))  # noqa: E731
  return tf.map_fn(tf.function(draw), tf.range(count, dtype=tf.int64), fn_output_signature=tf.float32).numpy()


def test_inception_box_has_the_distribution_of_the_reference(golden_dir):
  for path in files(golden_dir, "stats/inception_box/area_quantiles"):
    golden = np.load(path)
    shape = golden["coco/in/image"].shape
    boxes = draw_boxes(shape, 4000)
    (h, w), size = shape[:2], boxes[:, 1]
    share = np.linspace(0, 1, len(golden["stats/inception_box/area_quantiles"]))
    area, aspect = size.prod(-1), size[:, 1] * w / (size[:, 0] * h)
    # The inner quantiles of 4000 draws vary by 0.02 (area) and 0.015 (aspect); a wrong range moves them by 0.05 and more.
    np.testing.assert_allclose(np.quantile(area, share), golden["stats/inception_box/area_quantiles"], atol=0.03)
    np.testing.assert_allclose(np.quantile(aspect, share)[1:-1], golden["stats/inception_box/aspect_quantiles"][1:-1],
                               atol=0.02)
    mean = np.concatenate([boxes[:, 0].mean(0), size.mean(0)])
    np.testing.assert_allclose(mean, golden["stats/inception_box/y0x0hw_mean"], atol=0.015)


def test_nyu_crop_and_evaluation_string(golden_dir):
  for path in files(golden_dir, "out/labels_corners"):
    golden = np.load(path)
    y, x = np.mgrid[:480, :640]
    image = np.stack([y % 256, x % 256, (y // 256) * 16 + x // 256], -1).astype(np.uint8)
    depth = (((y * 640 + x) % 1000) / 100).astype(np.float16)
    got = apply("nyu_depth|nyu_eval_crop", image=image, depth=depth)
    for key in ("image", "labels"):
      corners = np.stack([got[key][i, j] for i in (0, -1) for j in (0, -1)])
      np.testing.assert_array_equal(corners, golden[f"out/{key}_corners"])
      assert tuple(golden[f"out/{key}_shape"]) == got[key].shape
      assert got[key].astype(np.float64).sum() == pytest.approx(float(golden[f"out/{key}_sum"]), rel=1e-9)
    res = int(golden["eval/res"])
    got = apply(f'decode|nyu_depth|nyu_eval_crop|resize({res})|resize({res}, key="labels", method="nearest")'
                '|value_range(-1, 1)|keep("image","labels")', image=image, depth=depth)
    same(got["image"], golden["eval/image"])
    same(got["labels"], golden["eval/labels"])


def test_coltran_protocol(golden_dir):
  for path in files(golden_dir, "coltran/image"):
    golden = np.load(path)
    for name in golden.files:
      if match := re.fullmatch(r"coltran/preprocess(\d+)", name):
        square = f"square_area_resize({match[1]})"
        same(apply(square, image=golden["coltran/image"])["image"], golden[name])
        if (other := f"coltran/normalized{match[1]}") in golden.files:
          same(apply(f"{square}|value_range(-1, 1, 0, 256)", image=golden["coltran/image"])["image"], golden[other])


def test_real_panoptic_labels(golden_real_dir):
  (path,) = golden_real_dir.rglob("uvim_coco_panoptic_pp.json")
  case, golden = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
  top, left, bottom, right = 40, 60, 300, 400
  for i in range(len(case["image_ids"])):
    example = dict(panoptic_image=golden[f"panoptic_image_{i}"], panoptic_objects__id=golden[f"obj_id_{i}"],
                   panoptic_objects__label=golden[f"obj_label_{i}"])
    got = apply('coco_panoptic|concat(["semantics","instances"],"labels")|copy("labels","x")|make_canonical'
                '|make_canonical(main_axis="x", key="x")', **example)
    labels = np.concatenate([got["semantics"], got["instances"]], -1)
    crop = apply("make_canonical", labels=labels[top:bottom, left:right])["labels"]
    np.testing.assert_array_equal(got["semantics"][..., 0], golden[f"semantics_{i}"])
    np.testing.assert_array_equal(got["instances"][..., 0], golden[f"instances_{i}"])
    np.testing.assert_array_equal(got["labels"], golden[f"canonical_y_{i}"])
    np.testing.assert_array_equal(got["x"][..., 1], golden[f"canonical_x_{i}"])
    np.testing.assert_array_equal(crop, golden[f"canonical_crop_{i}"])
