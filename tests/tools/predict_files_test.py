"""Files of predictions: what an earlier command left, and pictures that are copied as they are."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tools import predict
from tools.evaluating import prediction_files
from tools.predicting import predict_files
from tools.predicting.predict_inputs import Source
from uvim_like import pictures
from uvim_like.errors import UserError
from uvim_like.inference.full_size import Names
from uvim_like.tasks.classes import ClassTable

SOURCE = Source(pathlib.Path("a.png"), "a", 0)


def written(out, depth, **form):
  """The files of a depth map (H, W), or of samples (S, H, W), below depth/."""
  results = {"image": np.zeros((*depth.shape[-2:], 3), np.uint8), "depth": depth.astype(np.float32)}
  predict_files.write_one(predict_files.Form(out, Names(None, None), **form), SOURCE, results, copy=False)
  return sorted(str(path.relative_to(out / "depth")) for path in (out / "depth").rglob("*.*"))


def test_nothing_of_an_earlier_prediction_is_left_beside_the_new_one(tmp_path):
  """Arrays are read before PNGs and samples before all: either would be scored in the place of the new map."""
  assert written(tmp_path, np.ones((2, 2))) == ["a.npz", "a.png"]
  assert written(tmp_path, np.full((2, 2), 2.0), npz=False) == ["a.png"]
  assert prediction_files.read(tmp_path, "depth").map("a").tolist() == [[2, 2], [2, 2]]
  assert written(tmp_path, np.ones((3, 2, 2))) == ["a.npz", "a/sample1.png", "a/sample2.png", "a/sample3.png"]
  assert written(tmp_path, np.ones((1, 2, 2))) == ["a.npz", "a/sample1.png"]
  assert written(tmp_path, np.ones((2, 2))) == ["a.npz", "a.png"] and not (tmp_path / "depth" / "a").exists()


def test_lists_go_with_the_index_that_they_are_of(tmp_path):
  """A list without an index may be somebody's own."""
  form = predict_files.Form(tmp_path, Names(None, None))
  (tmp_path / "instances.json").write_text("[]")
  predict_files.clear_documents(form, tmp_path / "predictions.json")
  assert (tmp_path / "instances.json").exists()
  (tmp_path / "predictions.json").write_text("{}")
  predict_files.clear_documents(form, tmp_path / "predictions.json")
  assert not (tmp_path / "instances.json").exists()


def test_the_pictures_of_the_same_command(tmp_path):
  path = tmp_path / "predictions.json"
  index = dict(workdir="w", step=3, labels=True, pictures=[dict(name="a", file="b/a.png", error="not yet")])
  assert predict_files.pictures_of(path, index) == set()
  path.write_text(json.dumps(index | {"temperature": 1}))
  assert predict_files.pictures_of(path, index) == {"a"}
  other = [dict(name="a", file="c/a.png")]
  for changed in (dict(step=4), dict(workdir="v"), dict(labels=False), dict(pictures=other), dict(pictures=3)):
    path.write_text(json.dumps(index | changed))
    assert predict_files.pictures_of(path, index) == set()
  path.write_text("no JSON")
  assert predict_files.pictures_of(path, index) == set()


def test_an_index_of_nothing_is_told(tmp_path):
  written(tmp_path, np.ones((2, 2)))
  pictures = [dict(name="a", file="a.png", id=0, error="no")]
  (tmp_path / "predictions.json").write_text(json.dumps(dict(pictures=pictures)))
  with pytest.raises(UserError, match="no picture was predicted"):
    prediction_files.read(tmp_path, "depth")


def test_joints_beyond_the_picture_are_none(tmp_path):
  """The canvas of a network is larger; a training refuses a folder with annotations outside their images."""
  points = [[3, 4, 0.9], [5.5, 2, 0.1], [20, 2, 0.9], [-3, 2, 0.9], [3, 40, 0.2], [-1, 7.5, 0.9]]
  found = predict_files.visible(np.ravel(points), (6, 8))
  assert np.reshape(found["keypoints"], (-1, 3)).tolist() == [
      [3, 4, 2], [5.5, 2, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [-0.5, 7.5, 2]]
  assert found["num_keypoints"] == 3
  form = predict_files.Form(tmp_path, Names(None, ClassTable("own", (1,), ("person",), (True,)), 1), labels=True)
  document = predict_files.annotations(
      [dict(id=5, width=6, height=8)],
      [dict(image_id=5, category_id=1, score=0.9, bbox=[0, 0, 3, 4], keypoints=np.ravel(points).tolist())], form)
  assert document["annotations"][0]["num_keypoints"] == 3


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".webp"])
def test_pictures_that_trainings_read_are_copied(tmp_path, suffix):
  path = tmp_path / f"b{suffix}"
  Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(path)
  copied = predict.trains_as(path, np.zeros((4, 5, 3), np.uint8))
  assert copied == (suffix != ".webp") and not predict.trains_as(path, np.zeros((5, 4, 3), np.uint8))
  if copied:
    assert pictures.read_rgb(path).shape == (4, 5, 3)
