"""Each op on small pictures, eagerly and inside tf.data; nobody's dict is changed."""

import numpy as np
import pytest
import tensorflow as tf

from pp_ops import builder, pipeline
from uvim_like.errors import UserError

SEED = np.array([5, 7], np.int64)


def apply(pp, **features):
  """Runs a string eagerly and inside tf.data, checks that both agree and that the input dict is as before."""
  features = {k: np.asarray(v) if not isinstance(v, bytes) else v for k, v in features.items()} | {"_seed": SEED}
  program = builder.compile_string(pp)
  given = {k: tf.constant(v) for k, v in features.items()}
  kept = dict(given)
  eager = {k: v.numpy() for k, v in builder.run(program, given).items()}
  assert list(given) == list(kept) and all(given[k] is kept[k] for k in kept)
  (graph,) = tf.data.Dataset.from_tensors(features).map(lambda x: builder.run(program, x)).as_numpy_iterator()
  assert sorted(graph) == sorted(eager)
  for key, value in eager.items():
    np.testing.assert_array_equal(graph[key], value, err_msg=key)
  return eager


def noise(*shape, dtype=np.uint8, seed=0):
  return np.random.RandomState(seed).randint(0, 255, shape).astype(dtype)


# --- general ------------------------------------------------------------------------------------------------------

def test_keep_drop_copy_concat():
  x, y = noise(2, 3, 1), noise(2, 3, 2)
  assert set(apply("keep('x')", x=x, y=y)) == {"x", "_seed"}
  assert set(apply("drop('x')", x=x, y=y)) == {"y", "_seed"}
  np.testing.assert_array_equal(apply("copy('x', 'z')", x=x)["z"], x)
  np.testing.assert_array_equal(apply("copy(inkey='x', outkey='z')", x=x)["z"], x)
  np.testing.assert_array_equal(apply("concat(['x','y'], 'z')", x=x, y=y)["z"], np.concatenate([x, y], -1))
  np.testing.assert_array_equal(apply("concat(('x','x'), axis=0)", x=x)["x"], np.concatenate([x, x], 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.float32])
def test_value_range(dtype):
  x = np.array([[[0], [51], [255]]], dtype)
  np.testing.assert_allclose(apply("value_range(-1, 1)", image=x)["image"][0, :, 0], [-1, -0.6, 1], atol=1e-6)
  np.testing.assert_allclose(apply("value_range(0, 2, 51, 153)", image=x)["image"][0, :, 0], [-1, 0, 4], atol=1e-6)
  got = apply("value_range(0, 2, 51, 153, clip_values=True, key='y')", y=x)["y"]
  np.testing.assert_allclose(got[0, :, 0], [0, 0, 2], atol=1e-6)


def test_randu_is_uniform_and_differs_by_place():
  draws = np.array([builder.run(builder.compile_string("randu('a')|randu('b')"), {"_seed": tf.constant([i, 1], tf.int64)})
                    ["ab"[j]].numpy() for i in range(300) for j in (0, 1)]).reshape(300, 2)
  assert ((draws >= 0) & (draws < 1)).all() and len(np.unique(draws)) > 590
  np.testing.assert_allclose(np.quantile(draws, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.07)
  assert abs(np.corrcoef(draws.T)[0, 1]) < 0.15


def test_check_range_by_channel():
  labels = np.array([[[0, 99], [133, 0]]], np.int32)
  np.testing.assert_array_equal(apply("check_range(0, [133, 99])", labels=labels)["labels"], labels)
  with pytest.raises(UserError, match="check_range: .*outside the model's range"):
    apply("check_range(0, [132, 99])", labels=labels)
  apply("check_range(0, 10, ignore=[255])", labels=np.array([[[3], [255]]], np.uint8))
  with pytest.raises(UserError, match="254"):
    apply("check_range(0, 10, ignore=[255])", labels=np.array([[[3], [254]]], np.uint8))


# --- images -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.io.encode_jpeg])
def test_decode(encode):
  image = np.repeat(np.repeat(noise(4, 5, 3), 8, 0), 8, 1)
  got = apply("decode", image=encode(image).numpy())["image"]
  assert got.dtype == np.uint8 and got.shape == image.shape
  assert np.abs(got.astype(int) - image).mean() < 12
  np.testing.assert_array_equal(apply("decode", image=image)["image"], image)


def test_decode_grey_png_and_sixteen_bits():
  grey = noise(6, 7, 1)
  np.testing.assert_array_equal(apply("decode", image=tf.io.encode_png(grey).numpy())["image"], np.repeat(grey, 3, -1))
  deep = (grey.astype(np.uint16) * 257)
  np.testing.assert_array_equal(apply("decode", image=tf.io.encode_png(deep).numpy())["image"], np.repeat(grey, 3, -1))
  with pytest.raises(UserError, match="decode needs encoded bytes or uint8"):
    apply("decode", image=np.zeros((2, 2, 3), np.float32))


def test_resize_truncates_integers_and_keeps_the_type():
  row = np.array([[[0], [255]]], np.uint8)
  np.testing.assert_array_equal(apply("resize((1, 4))", image=row)["image"][0, :, 0], [0, 63, 191, 255])
  for dtype in (np.uint8, np.int32, np.float16, np.float32):
    assert apply("resize((3, 5))", image=noise(4, 4, 2, dtype=dtype))["image"].dtype == dtype
  labels = noise(5, 7, 2, dtype=np.int32)
  out = apply("resize(4, inkey='labels', outkey='small', method='nearest')", labels=labels)
  assert out["small"].shape == (4, 4, 2) and set(np.unique(out["small"])) <= set(np.unique(labels))
  np.testing.assert_array_equal(out["labels"], labels)


@pytest.mark.parametrize("number, flipped", [(0.2, False), (0.5, False), (0.51, True)])
def test_det_fliplr(number, flipped):
  x = noise(3, 4, 2)
  got = apply("det_fliplr(key='x')", x=x, fliplr=np.float32(number))["x"]
  np.testing.assert_array_equal(got, x[:, ::-1] if flipped else x)


def test_flip_lr_flips_half_of_the_time():
  x = tf.constant(noise(2, 3, 1))
  program = builder.compile_string("flip_lr")
  run = tf.function(lambda i: tf.reduce_all(
      builder.run(program, {"image": x, "_seed": tf.stack([i, i])})["image"] == x), autograph=False)
  kept = np.mean([run(tf.constant(i, tf.int64)).numpy() for i in range(300)])
  assert 0.4 < kept < 0.6


def test_inception_box_and_crop_cut_image_and_labels_alike():
  y, x = np.mgrid[:31, :45]
  grid = np.stack([y, x, y], -1).astype(np.uint8)
  out = apply("inception_box|crop_box|crop_box(key='labels')", image=grid, labels=grid[..., :2].astype(np.int32))
  np.testing.assert_array_equal(out["image"][..., :2], out["labels"])
  assert 0.04 < out["image"][..., 0].size / grid[..., 0].size <= 1
  np.testing.assert_array_equal(np.diff(out["labels"][:, 0, 0]), 1)


def test_crop_box_truncates_and_never_empties():
  x = noise(11, 13, 3)
  got = apply("crop_box", image=x, box=np.array([[0.3333, 0.1], [0.6, 0.77]], np.float32))["image"]
  np.testing.assert_array_equal(got, x[3:9, 1:11])
  got = apply("crop_box", image=x, box=np.array([[0.99, 0.5], [0.01, 0.01]], np.float32))["image"]
  np.testing.assert_array_equal(got, x[10:11, 6:7])


def test_jpeg_crop_equals_crop_of_the_decoded_image():
  image = np.repeat(np.repeat(noise(6, 7, 3), 8, 0), 8, 1)
  jpeg = tf.io.encode_jpeg(image).numpy()
  decoded = tf.io.decode_jpeg(jpeg).numpy()
  for size in ("", "size=12"):
    pp = f"decode_jpeg_and_inception_crop({size})"
    np.testing.assert_array_equal(apply(pp, image=jpeg)["image"], apply(pp, image=decoded)["image"])
    png = tf.io.encode_png(decoded).numpy()
    np.testing.assert_array_equal(apply(pp, image=png)["image"], apply(pp, image=decoded)["image"])


def test_grey_is_luma_in_three_equal_channels():
  x = noise(4, 5, 3)
  got = apply("rgb_to_grayscale_to_rgb", image=x)["image"]
  assert got.dtype == np.uint8
  want = x @ np.array([0.2989, 0.587, 0.114])
  assert np.abs(got - want[..., None]).max() <= 1 and (got == got[..., :1]).all()


def test_square_area_resize_averages_blocks():
  x = noise(8, 12, 3)
  want = np.round(x[:, 2:10].reshape(4, 2, 4, 2, 3).mean((1, 3)))
  assert np.abs(apply("square_area_resize(4)", image=x)["image"] - want).max() == 0


# --- labels -------------------------------------------------------------------------------------------------------

def panoptic(ids, objects, labels):
  ids = np.asarray(ids, np.int64)
  rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
  return {"panoptic_image": rgb, "panoptic_objects/id": np.array(objects, np.int64),
          "panoptic_objects/label": np.array(labels, np.int64)}


def test_coco_panoptic_by_eye():
  big = 70000
  out = apply("coco_panoptic", **panoptic([[0, 3, 3], [big, 300, 9]], [big, 3, 300], [7, 0, 132]))
  np.testing.assert_array_equal(out["semantics"][..., 0], [[0, 1, 1], [8, 133, 0]])   # 9 is no object
  np.testing.assert_array_equal(out["instances"][..., 0], [[0, 2, 2], [1, 3, 0]])
  assert out["semantics"].dtype == out["instances"].dtype == np.int32


def test_coco_panoptic_without_objects():
  out = apply("coco_panoptic", **panoptic([[0, 5]], [], []))
  assert not out["semantics"].any() and not out["instances"].any()


@pytest.mark.parametrize("axis, want", [
    ("y", [[1, 1, 0, 2], [1, 1, 0, 2], [-1, 3, 3, 3]]), ("x", [[1, 1, 0, 3], [1, 1, 0, 3], [-1, 2, 2, 2]])])
def test_canonical_order_by_eye(axis, want):
  ids = np.array([[7, 7, 0, 2], [7, 7, 0, 2], [-5, 4, 4, 4]], np.int32)
  labels = np.stack([ids * 0 + 9, ids], -1)
  out = apply(f"make_canonical(main_axis='{axis}')", labels=labels)["labels"]
  np.testing.assert_array_equal(out[..., 1], want)
  np.testing.assert_array_equal(out[..., 0], 9)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("ids", [[[0, 0]], [[5, 5]], [[0, 200]]])
def test_canonical_order_of_one_or_none(ids, dtype):
  got = apply("make_canonical(key='x')", x=np.array(ids, dtype)[..., None])["x"]
  np.testing.assert_array_equal(got[..., 0], np.array(ids) > 0)
  assert got.dtype == dtype


def test_random_order_is_a_permutation_that_depends_on_the_seed():
  ids = np.arange(1, 13, dtype=np.int32).reshape(3, 4, 1)
  run = builder.compile_string("make_canonical(random=True)")
  orders = {tuple(builder.run(run, {"labels": ids, "_seed": tf.constant([i, 0], tf.int64)})["labels"].numpy().ravel())
            for i in range(5)}
  assert len(orders) == 5 and all(sorted(o) == list(range(1, 13)) for o in orders)


# --- NYU ----------------------------------------------------------------------------------------------------------

def test_nyu_ops():
  depth = np.random.RandomState(0).rand(480, 640).astype(np.float16)
  image = noise(480, 640, 3)
  out = apply("nyu_depth|nyu_eval_crop", image=image, depth=depth)
  np.testing.assert_array_equal(out["labels"][..., 0], depth[54:480, 41:601].astype(np.float32))
  np.testing.assert_array_equal(out["image"], image[54:480, 41:601])
  with pytest.raises(UserError, match="needs depth"):
    apply("nyu_depth", depth=depth[..., None])


def test_nyu_crop_of_another_size_found_while_data_flows():
  jpeg = tf.io.encode_jpeg(noise(60, 80, 3)).numpy()
  with pytest.raises((tf.errors.InvalidArgumentError, UserError), match="480x640"):
    apply("decode|copy('image','labels')|nyu_eval_crop", image=jpeg)


def test_private_seed_depends_on_all_of_seed_epoch_index():
  seeds = {tuple(pipeline.example_seed(*t).numpy()) for t in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2 ** 40, 0, 0)]}
  assert len(seeds) == 5
