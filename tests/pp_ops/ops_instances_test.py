"""Objects in slots: from annotations to boxes, masks, joints; pictures of a few pixels that a reader checks by eye."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from pp_ops import builder, ops_instances, pipeline
from tools.rendering import instance_arrays
from uvim_like import joints, scenes
from uvim_like.errors import UserError
from uvim_like.tasks import text

SEED = np.array([5, 7], np.int64)


def apply(pp, seed=SEED, **features):
  """Runs a string in a graph whose numbers of objects are unknown; the graph is kept for other seeds."""
  specs = tuple((k, (*((None,) if k.startswith(("objects/", "captions/")) else np.shape(v)[:1]), *np.shape(v)[1:]),
                 tf.as_dtype(np.asarray(v).dtype)) for k, v in features.items())
  given = {k: tf.constant(v) for k, v in features.items()}
  return {k: v.numpy() for k, v in graph(pp, specs)({**given, "_seed": tf.constant(seed)}).items()}


@functools.lru_cache(maxsize=64)
def graph(pp, specs):
  """A string as a compiled function of examples of these (key, shape, type)."""
  program = builder.compile_string(pp)
  features = {k: tf.TensorSpec(shape, dtype) for k, shape, dtype in specs}
  builder.check_keys(program, features)
  run = tf.function(lambda x: builder.run(program, x), autograph=False)
  return run.get_concrete_function({**features, "_seed": tf.TensorSpec([2], tf.int64)})


def scene(n=3):
  """A 6 x 8 image with n objects that are rectangles; the last one is a crowd if there are three."""
  boxes = np.array([[0, 0, 3, 4], [2, 3, 6, 8], [4, 0, 6, 2]])[:n].reshape(-1, 4)
  ids = np.array([70000, 300, 5], np.int64)[:n]
  panoptic = np.zeros((6, 8), np.int64)
  for i, (y0, x0, y1, x1) in zip(ids, boxes):
    panoptic[y0:y1, x0:x1] = i
  points = np.zeros((n, 17, 3), np.float32)
  points[:1, 0] = [2, 3, 2]
  points[:1, 5] = [1, 1.5, 1]
  return {"image": np.arange(6 * 8 * 3).reshape(6, 8, 3).astype(np.uint8),
          "panoptic_image": np.stack([panoptic & 255, panoptic >> 8 & 255, panoptic >> 16], -1).astype(np.uint8),
          "objects/id": ids, "objects/bbox": (boxes / [6, 8, 6, 8]).astype(np.float32),
          "objects/label": np.array([4, 0, 2], np.int64)[:n], "objects/is_crowd": np.arange(n) == 2,
          "objects/keypoints": points}


def test_objects_of_a_panoptic_image():
  got = apply("panoptic_masks|instances|pad_instances(4)", **scene())
  assert got["box_labels"].tolist() == [5, 1, 0, 0] and got["box_labels"].dtype == np.int32   # the crowd is gone
  np.testing.assert_allclose(got["boxes"], [[0, 0, .5, .5], [1 / 3, 3 / 8, 1, 1], [0] * 4, [0] * 4])
  np.testing.assert_array_equal(got["masks"][0], [[1, 1, 1, 1, 0, 0, 0, 0]] * 2 + [[1, 1, 1, 0, 0, 0, 0, 0]]
                                + [[0] * 8] * 3)   # the second object hides a pixel
  assert not got["masks"][2:].any() and got["masks"].dtype == np.uint8
  np.testing.assert_allclose(got["keypoints"][0, [0, 5, 6]], [[.5, .25, 2], [.25, .125, 1], [0, 0, 0]])
  with_crowd = apply("panoptic_masks|instances(crowd=True)|pad_instances(2)", **scene())
  assert with_crowd["boxes"].shape == (2, 4)   # more objects than slots


def test_nothing_to_see():
  got = apply("panoptic_masks|instances|box_masks(3)|downscale_masks(2)|pad_instances(2)", **scene(0))
  assert not got["box_labels"].any() and got["box_masks"].shape == (2, 3, 3) and got["masks"].shape == (2, 3, 4)
  assert got["keypoints"].shape == (2, 17, 3)


def test_parts_are_optional_and_missing_keys_are_named():
  got = apply("instances(masks=False, keypoints=False)|pad_instances(3)",
              **{k: v for k, v in scene().items() if "keypoints" not in k})
  assert "masks" not in got and "keypoints" not in got
  program = builder.compile_string("instances")
  with pytest.raises(UserError, match="instances reads 'objects/masks', which is not there"):
    builder.check_keys(program, ["image", "objects/bbox", "objects/label", "objects/is_crowd", "objects/keypoints"])


def test_box_masks_are_covered_cells():
  mask = np.zeros((1, 4, 6), np.uint8)
  mask[0, 1:3, 1:4] = 1
  given = {"masks": mask, "boxes": np.array([[.25, 0, 1, 5 / 6]], np.float32)}   # rows 1..4, columns 0..5
  got = apply("box_masks(3)", **given)["box_masks"]
  # Columns of 5/3 pixels: [0, 1.67) covers one of 1.67 filled, [1.67, 3.33) all, [3.33, 5) 0.67 of 1.67.
  np.testing.assert_array_equal(got[0], [[0, 1, 0], [0, 1, 0], [0, 0, 0]])
  np.testing.assert_array_equal(instance_arrays.rasterise(mask, given["boxes"], 3), got)
  rng = np.random.RandomState(0)
  masks = (rng.uniform(size=(5, 20, 31)) < 0.6).astype(np.uint8)
  corners = np.sort(rng.uniform(size=(5, 2, 2)), 1).reshape(5, 4).astype(np.float32)
  np.testing.assert_array_equal(instance_arrays.rasterise(masks, corners, 7),
                                apply("box_masks(7)", masks=masks, boxes=corners)["box_masks"])
  assert apply("box_masks(2)", masks=mask, boxes=np.array([[.5, .5, .5, .5]], np.float32))["box_masks"].shape[-1] == 2


def test_downscaled_masks():
  mask = np.array([[[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1]]], np.uint8)
  np.testing.assert_array_equal(apply("downscale_masks(2)", masks=mask)["masks"], [[[1, 0], [1, 0]]])
  with pytest.raises(UserError, match="do not divide by 3"):
    apply("downscale_masks(3)", masks=mask)


def test_labels_of_maps():
  semantic = np.array([[[0], [255]], [[9], [3]]], np.uint8)
  got = apply("semantic_labels", semantic=semantic)["labels"]
  assert got.dtype == np.int32 and got[..., 0].tolist() == [[1, 0], [10, 4]]
  normals = np.array([[[128, 128, 255], [0, 0, 0]], [[255, 128, 128], [0, 128, 128]]], np.uint8)
  got = apply("normal_labels", normals=normals)["labels"]
  assert not got[0, 1].any() and got.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(got, axis=-1), [[1, 0], [1, 1]], atol=1e-6)
  np.testing.assert_allclose(got[[0, 1, 1], [0, 0, 1]], [[0, 0, 1], [1, 0, 0], [-1, 0, 0]], atol=0.006)
  depth = np.array([[1.5, 0]], np.float16)
  assert apply("depth_labels", depth=depth)["labels"].tolist() == [[[1.5], [0.0]]]
  with pytest.raises(UserError, match="uint8 normals"):
    apply("normal_labels", normals=normals.astype(np.float32))


def test_captions_become_tokens(tmp_path):
  text.train_scenes(tmp_path / "small.model", examples=16)
  given = {"captions/text": np.array([b"Two boxes in a room", b"an empty room"], object)}
  got = apply(f"tokenize_captions('{tmp_path}/small.model', length=9, references=3)", **given)["captions"]
  assert got.shape == (3, 9) and got.dtype == np.int32 and not got[2].any()
  tokenizer = text.load(tmp_path / "small.model")
  assert [text.decode(tokenizer, row) for row in got] == ["two boxes in a room", "an empty room", ""]
  with pytest.raises(UserError, match="there is no such file"):
    apply("tokenize_captions('/nowhere.model')", **given)


def test_scenes_in_one_string():
  """Finished batches of scenes: fixed shapes, the arrays of the form without TensorFlow."""
  pp = ("panoptic_masks|instances|box_masks(16)|pad_instances(20)|value_range(-1, 1)|"
        "keep('image', 'boxes', 'box_labels', 'masks', 'box_masks', 'keypoints')")
  batches = pipeline.eval_batches(dataset="scenes/tiny", split="test[:3]", pp=pp, batch_size=3)
  (batch, _), = batches
  path = text.scenes_model()
  for i in range(3):
    ours = instance_arrays.finish_instances(scenes.example("test", i, size=128), tokenizer=text.load(path))
    ours["masks"] = np.unpackbits(ours.pop("masks/packed"), axis=-1, count=128)
    for key in ("boxes", "box_labels", "masks", "box_masks", "keypoints"):
      np.testing.assert_allclose(batch[key][i], ours[key], atol=1e-6, err_msg=key)
  assert (batch["box_labels"] > 0).any()


def test_names_of_the_joints():
  assert len(joints.NAMES) == len(joints.MIRROR) == len(joints.SIGMAS) == 17
  swapped = [name.replace("left", "?").replace("right", "left").replace("?", "right") for name in joints.NAMES]
  assert [joints.NAMES[i] for i in joints.MIRROR] == swapped
  assert ops_instances.GROUP[0] == "boxes"
