"""Files of predictions: what an earlier command left, and pictures that are copied as they are."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from tools import predict
from tools.evaluating import prediction_files
from tools.predicting import predict_files
from tools.predicting.predict_inputs import Source
from uvim_like import pictures
from uvim_like.inference.full_size import Names

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


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".webp"])
def test_pictures_that_trainings_read_are_copied(tmp_path, suffix):
  path = tmp_path / f"b{suffix}"
  Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(path)
  copied = predict.trains_as(path, np.zeros((4, 5, 3), np.uint8))
  assert copied == (suffix != ".webp") and not predict.trains_as(path, np.zeros((5, 4, 3), np.uint8))
  if copied:
    assert pictures.read_rgb(path).shape == (4, 5, 3)
