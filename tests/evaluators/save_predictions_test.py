"""Saved predictions can be read back and scored by themselves."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from uvim_like.errors import UserError
from uvim_like.evaluators import panoptic_quality as pq
from uvim_like.evaluators import run as evaluation
from uvim_like.evaluators import save_predictions
from uvim_like.tasks import classes


def test_panoptic_files_are_in_the_results_format(tmp_path):
  metric = save_predictions.make(str(tmp_path), dataset="scenes", size_key="image")
  semantics, instances = np.array([[1, 6], [0, 2]], np.int32), np.array([[4, 1], [9, 2]], np.int32)
  target = {"image/id": np.int64(42), "image": np.zeros((4, 6, 3), np.uint8)}
  stats = metric.update(metric.init(), dict(semantics=semantics, instances=instances), target)
  assert metric.compute(stats) == dict(saved=1.0) and metric.target_keys == ("image",)

  found = json.loads((tmp_path / "panoptic.json").read_text())
  (annotation,) = found["annotations"]
  assert annotation["image_id"] == 42 and found["categories"][1] == dict(id=3, name="sphere", isthing=1)
  ids = pq.rgb_to_id(np.asarray(Image.open(tmp_path / "panoptic" / annotation["file_name"])))
  assert ids.shape == (4, 6) and (ids[2:, :3] == 0).all()
  assert {(s["category_id"], s["area"]) for s in annotation["segments_info"]} == {(1, 6), (3, 6), (92, 6)}
  assert set(np.unique(ids)) - {0} == {s["id"] for s in annotation["segments_info"]}
  matched = pq.match_segments(ids, annotation["segments_info"], ids, annotation["segments_info"])
  assert pq.pq_compute(pq.stats_array(matched, classes.table("scenes")), classes.table("scenes"))["All_pq"] == 1.0
  with np.load(tmp_path / "000000000042.npz") as saved:
    np.testing.assert_array_equal(saved["semantics"], semantics)


@pytest.mark.parametrize("size_key, shape", [("image", (4, 6)), (None, (2, 3))])
def test_a_picture_is_without_the_padding_of_its_canvas(size_key, shape, tmp_path):
  metric = save_predictions.make(str(tmp_path), size_key=size_key)
  depth = np.where(np.arange(4) < 3, 1.0, 9.0) * np.where(np.arange(4) < 2, 1.0, 9.0)[:, None]
  batch = {"image": np.zeros((1, 8, 8, 3)), "valid_size": np.array([[4, 6]]), "_index": np.array([7])}
  raw = {} if size_key is None else {"image": np.zeros((4, 6, 3), np.uint8)}
  metric.update(metric.init(), dict(depth=depth), evaluation.example_target(batch, 0, raw))
  picture = np.asarray(Image.open(tmp_path / "depth" / "000000000007.png"))
  assert picture.shape == shape and (picture == 1000).all()
  with np.load(tmp_path / "000000000007.npz") as saved:
    assert saved["depth"].shape == (4, 4)


def test_classes_of_own_data(tmp_path):
  categories = [dict(id=4, name="car", isthing=1), dict(id=9, name="road", isthing=0)]
  metric = save_predictions.make(str(tmp_path), dataset="folder", categories=categories)
  output = dict(semantics=np.array([[1, 2]], np.int32), instances=np.array([[1, 2]], np.int32))
  metric.compute(metric.update(metric.init(), output, {"_index": np.int64(0)}))
  assert json.loads((tmp_path / "panoptic.json").read_text())["categories"] == categories
  without = save_predictions.make(str(tmp_path), dataset="folder")   # is for depth and the like
  assert without.compute(without.update(without.init(), dict(depth=np.ones((2, 2))), {"_index": np.int64(1)}))
  with pytest.raises(UserError, match="metric.categories = "):
    without.update(without.init(), output, {"_index": np.int64(1)})
  with pytest.raises(UserError, match="must be positive"):
    save_predictions.make(str(tmp_path), categories=[dict(id=0, name="void", isthing=0)])


def test_depth_in_millimetres_and_colour(tmp_path):
  metric = save_predictions.make(str(tmp_path))
  depth = np.array([[1.2344, 0.0], [100.0, np.nan]], np.float32)
  color = np.array([[[-1.0, 0.0, 1.0], [1.2, -7.0, 0.5]]], np.float32)
  target = {"_index": np.int64(7)}
  stats = metric.update(metric.init(), dict(depth=depth, color=color), target)
  saved = np.asarray(Image.open(tmp_path / "depth" / "000000000007.png"))
  np.testing.assert_array_equal(saved, [[1234, 0], [65535, 0]])
  assert saved.dtype == np.uint16
  picture = np.asarray(Image.open(tmp_path / "color" / "000000000007.png"))
  np.testing.assert_array_equal(picture, [[[0, 128, 255], [255, 0, 191]]])
  both = metric.merge(stats, metric.update(metric.init(), dict(depth=depth), {"_index": np.int64(8)}))
  assert metric.compute(both) == dict(saved=2.0) and not (tmp_path / "panoptic.json").exists()


@pytest.mark.parametrize("value, name", [(b"val/a.jpg", "val_a"), ("../../x.png", "_.._x"),
                                         (np.int64(5), "000000000005")])
def test_names_stay_inside_the_folder(value, name):
  assert save_predictions.image_name({"image/id": np.asarray(value)}, None) == name


def test_half_precision_can_be_read_back(tmp_path):
  metric = save_predictions.make(str(tmp_path))
  metric.update(metric.init(), dict(depth=np.asarray(jnp.full((2, 3), 1.5, jnp.bfloat16))), {"_index": np.int64(0)})
  with np.load(tmp_path / "000000000000.npz") as saved:
    np.testing.assert_array_equal(saved["depth"], np.full((2, 3), 1.5, np.float32))


def test_an_image_without_a_name_is_refused(tmp_path):
  metric = save_predictions.make(str(tmp_path), id_key="image/filename")
  with pytest.raises(UserError, match="no 'image/filename'"):
    metric.update(metric.init(), dict(depth=np.ones((2, 2))), {"_index": np.int64(1)})
