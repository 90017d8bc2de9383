"""Geometry and colour: image, maps and objects stay together through every op; edges, padding, switches."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from pp_ops import builder, ops_augment
from tests.pp_ops.ops_instances_test import apply
from uvim_like import joints
from uvim_like.errors import UserError


def seeds(n):
  return [np.array([i, 3], np.int64) for i in range(n)]


def example(h=20, w=30):
  """An example whose every pixel knows its place: channel 0 is the row, 1 the column; objects are rectangles."""
  y, x = np.mgrid[:h, :w]
  boxes = np.array([[2, 3, 9, 12], [10, 15, 18, 29]])
  masks = np.array([(y >= a) & (y < c) & (x >= b) & (x < d) for a, b, c, d in boxes]).astype(np.uint8)
  points = np.zeros((2, 17, 3), np.float32)
  points[0, 0] = [5.5 / h, 4.5 / w, 2]
  points[0, 5] = [3.5 / h, 10.5 / w, 1]
  points[1, 9] = [17.5 / h, 28.5 / w, 2]
  image = np.stack([y * 5, x * 5, 0 * y], -1).astype(np.uint8)
  normals = np.where((x > 2)[..., None], np.stack([x * 8, y * 8, 0 * y + 200], -1), 0).astype(np.uint8)
  return {"image": image, "depth": (y + x / 100 + 1).astype(np.float32),
          "semantic": (x // 10)[..., None].astype(np.uint8), "normals": normals,
          "boxes": (boxes / [h, w, h, w]).astype(np.float32), "box_labels": np.array([1, 5], np.int32), "masks": masks,
          "keypoints": points, "captions/text": np.array([b"a box left of a leftover right"], object)}


def consistent(out, tolerance=1.0):
  """Boxes are tight around their masks, joints are on the pixels that they were on."""
  h, w = out["image"].shape[:2]
  for box, mask in zip(out["boxes"], out["masks"]):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    tight = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
    np.testing.assert_allclose(box * [h, w, h, w], tight, atol=tolerance)
  assert out["masks"].shape[1:] == (h, w) == out["depth"].shape == out["semantic"].shape[:2]


def place_of(out, point):
  """(row, column) in the source of the pixel under a joint (y, x, v)."""
  h, w = out["image"].shape[:2]
  y, x = int(point[0] * h), int(point[1] * w)
  return out["image"][y, x, :2] / 5


def test_flip_moves_everything():
  given = example()
  images = [apply("random_flip(0.5)", seed=s, **given)["image"] for s in seeds(8)]
  assert len({np.array_equal(image, given["image"]) for image in images}) == 2
  same = apply("random_flip(0.0)", **given)
  for key, value in given.items():
    np.testing.assert_array_equal(same[key], value, err_msg=key)
  out = apply("random_flip(1.0)", **given)
  for key in ("image", "depth", "semantic"):
    np.testing.assert_array_equal(out[key], given[key][:, ::-1], err_msg=key)
  np.testing.assert_array_equal(out["masks"], given["masks"][:, :, ::-1])
  consistent(out, 1e-3)
  left = joints.NAMES.index("left_shoulder")
  assert out["keypoints"][0, left, 2] == 0 and out["keypoints"][0, left + 1, 2] == 1   # it is the right one now
  np.testing.assert_allclose(place_of(out, out["keypoints"][0, left + 1]), [3, 10])
  np.testing.assert_allclose(place_of(out, out["keypoints"][0, 0]), [5, 4])
  assert (out["keypoints"][0, 3] == 0).all()
  assert out["captions/text"][0] == b"a box right of a leftover left"
  assert apply("random_flip(1.0, words=False)", **given)["captions/text"][0] == given["captions/text"][0]
  twice = apply("random_flip(1.0)|random_flip(1.0)", **given)
  for key, value in given.items():
    if value.dtype == object:
      assert list(twice[key]) == list(value)
    else:
      np.testing.assert_allclose(twice[key].astype(float), value.astype(float), atol=1e-6, err_msg=key)


def test_flip_turns_normals():
  given = example()
  out = apply("random_flip(1.0)|normal_labels", **given)["labels"]
  before = apply("normal_labels", **given)["labels"]
  np.testing.assert_allclose(out, before[:, ::-1] * [-1, 1, 1], atol=1e-6)
  assert (out == 0).all(-1).sum() == (before == 0).all(-1).sum() > 0
  floats = apply("random_flip(1.0)", image=given["image"], normals=before)["normals"]
  np.testing.assert_allclose(floats, before[:, ::-1] * [-1, 1, 1], atol=1e-6)


def test_flip_refuses_labels_that_may_be_normals():
  given = {k: example()[k] for k in ("image", "normals")}
  with pytest.raises(UserError, match="mirror before normal_labels"):
    apply("normal_labels|random_flip", **given)


def test_flip_needs_joints_that_it_knows():
  given = {k: v for k, v in example().items() if k != "keypoints"}
  with pytest.raises(UserError, match="17 joints"):
    apply("random_flip", keypoints=np.zeros((2, 5, 3), np.float32), **given)


@pytest.mark.parametrize("pp, size", [
    ("fit((40, 40))", (27, 40)), ("fit(10)", (7, 10)), ("resize_all((10, 30))", (10, 30)),
    ("resize_short(10, 1000)", (10, 15)), ("resize_short((10,), 12)", (8, 12)),
    ("jitter_scale(60, 0.5, 0.5)", (20, 30)),
    ("random_scale(2.0, 2.0, 0)", (40, 60)), ("random_scale(0.5, 0.5)", (10, 15))])
def test_scales(pp, size):
  given = example()
  out = apply(pp, **given)
  assert out["image"].shape[:2] == size and out["image"].dtype == np.uint8
  consistent(out, 1.0)
  np.testing.assert_array_equal(out["keypoints"], given["keypoints"])
  assert set(np.unique(out["depth"])) <= set(np.unique(given["depth"]))


def test_nothing_in_sight_goes_through_everything():
  given = example()
  empty = {k: v[:0] if k in ("boxes", "box_labels", "masks", "keypoints") else v for k, v in given.items()}
  pp = "random_flip|jitter_scale(40, 0.5, 2.0)|random_crop(24, tries=3)|canvas(24)|box_masks(4)|pad_instances(3)"
  out = apply(pp, **empty)
  assert out["boxes"].shape == (3, 4) and out["masks"].shape == (3, 24, 24) and not out["box_labels"].any()


def test_depth_grows_as_the_picture_shrinks():
  given = example()
  out = apply("random_scale(0.5, 0.5, divide_depth=True)", **given)
  assert out["depth"].min() >= given["depth"].min() * 2 and out["depth"].max() <= given["depth"].max() * 2


def test_jitter_covers_its_range():
  sides = [apply("jitter_scale(100, 0.2, 1.5)", seed=s, **example())["image"].shape[1] for s in seeds(40)]
  assert 20 <= min(sides) < 40 and 120 < max(sides) <= 150
  edges = {apply("resize_short((8, 10, 12), 99)", seed=s, **example())["image"].shape[0] for s in seeds(25)}
  assert edges == {8, 10, 12}


@pytest.mark.parametrize("boxes", ["masks", "clipped"])
def test_crops_cut_all_alike(boxes):
  given, kept = example(), set()
  for seed in seeds(25):
    out = apply(f"random_crop((12, 16), boxes='{boxes}')", seed=seed, **given)
    assert out["image"].shape == (12, 16, 3) and len(out["boxes"]) == len(out["masks"]) == len(out["keypoints"])
    top, left = out["image"][0, 0, :2] // 5
    np.testing.assert_array_equal(out["depth"], given["depth"][top:top + 12, left:left + 16])
    consistent(out, 1e-3)
    for label, joint in ((1, 0), (5, 9)):
      rows = np.flatnonzero(out["box_labels"] == label)
      inside = (given["masks"][0 if label == 1 else 1, top:top + 12, left:left + 16]).any()
      assert bool(len(rows)) == bool(inside)
      if len(rows) and out["keypoints"][rows[0], joint, 2]:
        source = given["keypoints"][0 if label == 1 else 1, joint] * [20, 30, 1]
        np.testing.assert_allclose(place_of(out, out["keypoints"][rows[0], joint]), source[:2].astype(int))
    kept.add(tuple(out["box_labels"]))
  assert len(kept) >= 2


def test_a_crop_takes_all_of_a_shorter_side_and_draws_sizes():
  assert apply("random_crop(64)", **example())["image"].shape == (20, 30, 3)
  shapes = {apply("random_crop((5, 6), (9, 50))", seed=s, **example())["image"].shape[:2] for s in seeds(30)}
  assert {h for h, _ in shapes} == {5, 6, 7, 8, 9}
  assert min(w for _, w in shapes) < 10 and max(w for _, w in shapes) >= 27


def test_a_window_is_cut_out_of_everything():
  out = apply("crop_window(4, 20, 10, 25)", **example())
  assert out["image"].shape == (16, 15, 3) and out["depth"].shape == (16, 15)
  assert out["image"][0, 0].tolist() == [20, 50, 0] and out["image"][-1, -1].tolist() == [95, 120, 0]
  assert out["box_labels"].tolist() == [1, 5]
  np.testing.assert_allclose(out["boxes"][1] * [16, 15, 16, 15], [6, 5, 14, 15], atol=1e-4)
  for window in ("4, 21, 10, 25", "4, 20, 10, 31", "-1, 20, 0, 25", "5, 5, 0, 25"):
    with pytest.raises((UserError, tf.errors.InvalidArgumentError), match="is not inside the image of"):
      apply(f"crop_window({window})", **example())


def test_hidden_objects_keep_tight_boxes_only_with_masks():
  """The mask's lower half is hidden: the annotated box is larger than what is left."""
  given = example()
  given["masks"][0, 5:] = 0
  tight = apply("random_crop(64)", **given)["boxes"][0] * [20, 30, 20, 30]
  np.testing.assert_allclose(tight, [2, 3, 5, 12], atol=1e-4)
  clipped = apply("random_crop(64, boxes='clipped')", **given)["boxes"][0] * [20, 30, 20, 30]
  np.testing.assert_allclose(clipped, [2, 3, 9, 12], atol=1e-4)
  with pytest.raises(UserError, match="boxes='masks' needs masks"):
    apply("random_crop(5)", **{k: v for k, v in given.items() if k != "masks"})
  with pytest.raises(UserError, match="must be 'masks' or 'clipped'"):
    apply("random_crop(5, boxes='tight')", **given)


def test_more_tries_find_an_object():
  given = {k: v[:1] if k in ("boxes", "box_labels", "masks", "keypoints") else v for k, v in example().items()}
  once = sum(len(apply("random_crop((4, 4))", seed=s, **given)["boxes"]) for s in seeds(30))
  often = sum(len(apply("random_crop((4, 4), tries=8)", seed=s, **given)["boxes"]) for s in seeds(30))
  assert once < 15 and often > once + 12


def test_canvas_pads_below_and_right():
  given = example()
  out = apply("canvas((24, 40), value=(1, 2, 3))", **given)
  assert out["valid_size"].tolist() == [20, 30] and out["image"].shape == (24, 40, 3)
  np.testing.assert_array_equal(out["image"][:20, :30], given["image"])
  assert (out["image"][20:] == [1, 2, 3]).all() and (out["image"][:, 30:] == [1, 2, 3]).all()
  assert (out["semantic"][20:] == 255).all() and (out["depth"][:, 30:] == 0).all() and (out["normals"][20:] == 0).all()
  consistent(out, 1e-3)
  np.testing.assert_allclose(place_of(out, out["keypoints"][1, 9]), [17, 28])
  with pytest.raises(UserError, match="does not fit into the canvas of 16x40"):
    apply("canvas((16, 40))", **given)
  with pytest.raises(tf.errors.InvalidArgumentError, match="does not fit into the canvas of 16x40"):
    apply("jitter_scale(60, 0.9, 0.9)|canvas((16, 40))", **given)   # a size that is known only when it runs


def test_detr_scales():
  pp = "detr_scale((20, 24), 40, first=(24, 30), crop=(12, 18), p={})"
  whole = [apply(pp.format(0.0), seed=s, **example()) for s in seeds(6)]
  assert {out["image"].shape[:2] for out in whole} == {(20, 30), (24, 36)}
  cut = [apply(pp.format(1.0), seed=s, **example()) for s in seeds(12)]
  assert len({out["image"].shape[:2] for out in cut}) > 4
  for out in whole + cut:
    assert min(out["image"].shape[:2]) <= 24 and max(out["image"].shape[:2]) <= 40
    consistent(out, 1.5)
  assert any(len(out["boxes"]) < 2 for out in cut)


# --- colours ------------------------------------------------------------------------------------------------------

def test_cut_depth_shows_a_band_of_depth():
  given = {"image": np.full((4, 50, 3), 7, np.uint8), "depth": np.full((4, 50), 0.3, np.float32)}
  bands = []
  for seed in seeds(30):
    out = apply("cut_depth(1.0)", seed=seed, **given)["image"]
    changed = np.flatnonzero((out != 7).any((0, 2)))
    assert len(changed) >= 1 and (np.diff(changed) == 1).all()
    assert (out[:, changed] == 300 % 256).all()   # millimetres in a byte wrap
    bands.append(len(changed))
    assert (apply("cut_depth(1.0, wrap=False)", seed=seed, **given)["image"][:, changed] == int(0.03 * 255)).all()
  assert max(bands) <= 0.75 * 50 + 1 and max(bands) > 10
  kept = sum((apply("cut_depth", seed=s, **given)["image"] == 7).all() for s in seeds(40))
  assert 22 <= kept <= 38   # one in four is cut


@pytest.mark.parametrize("pp, low, high", [
    ("brightness_contrast(p=1.0)", 100 * 0.8 - 51, 100 * 1.2 + 51), ("random_gamma(p=1.0)", 82, 121),
    ("hue_saturation(0, 0, 20, p=1.0)", 80, 120)])
def test_levels_stay_in_their_range(pp, low, high):
  grey = np.full((2, 3, 3), 100, np.uint8)
  levels = {int(apply(pp, seed=s, image=grey)["image"][0, 0, 0]) for s in seeds(40)}
  assert low - 1 <= min(levels) < 95 and 105 < max(levels) <= high + 1
  assert (apply(pp.replace("p=1.0", "p=0.0"), image=grey)["image"] == 100).all()


def test_colours():
  red = np.zeros((1, 1, 3), np.uint8) + np.array([200, 0, 0], np.uint8)
  turned = [apply("hue_saturation(20, 0, 0, p=1.0)", seed=s, image=red)["image"][0, 0] for s in seeds(20)]
  assert all(c[0] == 200 for c in turned) and {c[1] > 5 for c in turned} == {True, False}   # hue alone: to both sides
  ends = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
  for s in seeds(5):
    np.testing.assert_array_equal(apply("random_gamma(p=1.0)", seed=s, image=ends)["image"], ends)
  with pytest.raises(UserError, match="must be uint8"):
    apply("random_gamma", image=ends.astype(np.float32))


# --- kMaX's colours: each op against PIL's of the same name ---

NOISE = np.random.RandomState(0).randint(0, 256, (24, 30, 3)).astype(np.uint8)


@pytest.mark.parametrize("name, level, tolerance", [("color", 9, 3), ("brightness", 10, 1), ("sharpness", 7, 2),
                                                    ("sharpness", 1, 2)])
def test_enhancements_are_those_of_pil(name, level, tolerance):
  ours = ops_augment._COLOURS[name](tf.constant(NOISE), level).numpy()
  theirs = getattr(ImageEnhance, name.capitalize())(Image.fromarray(NOISE)).enhance(1.8 * level / 10 + 0.1)
  np.testing.assert_allclose(ours.astype(int), np.asarray(theirs).astype(int), atol=tolerance)


@pytest.mark.parametrize("image", [NOISE, NOISE // 4 + 90, np.full((4, 5, 3), 7, np.uint8)])
def test_levels_are_those_of_pil(image):
  ours = {name: ops_augment._COLOURS[name](tf.constant(image), 7).numpy() for name in ("equalize", "solarize", "contrast")}
  np.testing.assert_array_equal(ours["equalize"], ImageOps.equalize(Image.fromarray(image)))
  np.testing.assert_array_equal(ours["solarize"], ImageOps.solarize(Image.fromarray(image), 179))
  grey = image.shape[0] * image.shape[1] // 256
  np.testing.assert_allclose(ours["contrast"], np.clip(grey + 1.36 * (image.astype(float) - grey), 0, 255), atol=1)


def test_kmax_colours_are_one_pair_of_five():
  given = {"image": np.tile(NOISE, (12, 10, 1))}   # large enough for the authors' grey of `contrast` to be white
  outs = [apply("kmax_colours", seed=s, **given)["image"] for s in seeds(60)]
  same = sum(np.array_equal(out, given["image"]) for out in outs)
  # No op of the pair: 0.6·0.8, 0.8, 0.8², 0.8·0.4, 0.8², a fifth each; the second pair's first op never happens.
  assert same == pytest.approx(60 * (0.48 + 0.8 + 0.64 + 0.32 + 0.64) / 5, abs=12)
  assert len({out.tobytes() for out in outs}) >= 6
  with pytest.raises(UserError, match="must be uint8"):
    apply("kmax_colours", image=NOISE.astype(np.float32))


def test_the_same_seed_gives_the_same_example():
  pp = ("random_flip|jitter_scale(40, 0.5, 2.0)|random_crop(24)|canvas(24)|"
        "brightness_contrast|random_gamma|hue_saturation")
  for key, value in apply(pp, **example()).items():
    np.testing.assert_array_equal(apply(pp, **example())[key], value, err_msg=key)


def test_an_op_names_what_it_reads():
  program = builder.compile_string("cut_depth")
  with pytest.raises(UserError, match="cut_depth reads 'depth', which is not there"):
    builder.check_keys(program, ["image", "labels"])
