"""Objects and captions of the report: matching, scores and pictures by hand, on padded canvases and empty images."""

import io

import numpy as np
import pytest
from PIL import Image

from tools.reporting import report_objects
from tools.reporting.examples import Examples
from tools.reporting.report_families import FAMILIES, cell, mean_error
from uvim_like.tasks import text

NAMES = {0: "void", 1: "box", 2: "person"}


def made(boxes, classes, scores, **further):
  return {"boxes": np.array([boxes], np.float32), "classes": np.array([classes]),
          "scores": np.array([scores], np.float32), **further}


def example(truth, predicted, *, size=(20, 30), valid=None, names=NAMES, family="objects", text_model=None):
  batch = {"image": np.zeros((1, *size, 3), np.float32)}
  if valid:
    batch["valid_size"] = np.array([valid])
  return Examples("x", family, (), batch, {}, truth, predicted, 0.0, names=names, text_model=text_model)


TRUTH = made([[0, 0, .5, .5], [.5, .5, 1, 1], [0, 0, 0, 0]], [1, 2, 0], [1, 1, 0])


@pytest.mark.parametrize("boxes,classes,scores,found,f1", [
    ([[0, 0, .5, .5], [.5, .5, 1, 1]], [1, 2], [.9, .8], [True, True], 100),
    ([[0, 0, .5, .5], [.5, .5, 1, 1]], [2, 2], [.9, .8], [False, True], 50),      # a wrong class
    ([[0, 0, .5, .5], [0, 0, .5, .49]], [1, 1], [.6, .9], [True, False], 50),     # the same object twice
    ([[0, 0, .5, .5], [.5, .5, 1, 1]], [1, 2], [.9, .4], [True, False], 200 / 3),  # below the score
    ([[0, 0, .5, .24], [.5, .5, .5, 1]], [1, 2], [.9, .9], [False, False], 0)])    # too little overlap; no area
def test_matching(boxes, classes, scores, found, f1):
  base = example(TRUTH, made(boxes, classes, scores))
  true, predicted = (report_objects.shown_objects(base, x, 0) for x in (base.truth, base.predicted))
  matched = report_objects.match(true, predicted)
  assert matched.truth.tolist() == found and matched.predicted.sum() == sum(found)
  np.testing.assert_allclose(report_objects.object_scores(base, base.predicted), [f1], rtol=1e-6)


def test_an_image_without_objects():
  none = made(np.zeros((2, 4)), [0, 0], [0, 0])
  base = example(none, none)
  assert np.isnan(report_objects.object_scores(base, none)).all() and np.isnan(mean_error(base, none))
  invented = made([[0, 0, 1, 1], [0, 0, 0, 0]], [1, 0], [.9, 0])
  assert report_objects.object_scores(example(none, invented), invented).tolist() == [0]
  pictures, _ = report_objects.found_and_missed(base, [("a", none), ("b", invented)], 1)
  assert len(pictures[0]) == 2 and pictures[0][0] != pictures[0][1]


def test_boxes_that_are_given_are_called_so():
  assert report_objects.given_boxes(example(TRUTH, TRUTH)) == "true boxes given"
  assert report_objects.given_boxes(example(TRUTH, made([[0, 0, .5, .5], [.5, .5, 1, 1]], [1, 2], [.9, .8]))) == ""


def test_boxes_on_a_padded_canvas_are_those_of_the_image():
  half = made([[0, 0, .25, .5]], [1], [1.0])   # of a canvas whose upper half is the image
  base = example(half, half, valid=(10, 30))
  np.testing.assert_allclose(report_objects.shown_objects(base, half, 0).boxes, [[0, 0, .5, .5]])
  picture = Image.open(io.BytesIO(FAMILIES["objects"].draw(base, half, 0)))
  assert picture.size == (270, 90)  # nine times the image without its padding


def test_masks_and_joints_of_found_objects():
  side = np.zeros((1, 3, 4, 4), np.float32)
  side[:, :, :, :2] = 1
  pose = np.zeros((1, 3, 17, 3), np.float32)
  pose[0, 1, :2] = [[.6, .6, 2], [.7, .7, 1]]
  truth = TRUTH | {"masks": side, "keypoints": pose}
  moved = pose.copy()
  moved[0, 1, :2, 0] += .1
  base = example(truth, truth, size=(40, 40))
  overlap = report_objects.mask_overlaps(base, truth)
  np.testing.assert_allclose(overlap, [100, 100])
  other = report_objects.mask_overlaps(base, truth | {"masks": 1 - side})
  assert (other < 15).all()  # the other half; seams may touch
  np.testing.assert_allclose(report_objects.joint_distances(base, truth), [0])
  # A tenth of the canvas, on a box whose diagonal is half of the canvas's.
  np.testing.assert_allclose(report_objects.joint_distances(base, truth | {"keypoints": moved}), [100 * .1 / np.sqrt(.5)],
                             rtol=1e-5)
  assert not report_objects.mask_overlaps(base, TRUTH).size and not report_objects.joint_distances(base, TRUTH).size


def test_only_persons_have_joints_where_classes_have_names():
  pose = np.full((1, 3, 17, 3), .6, np.float32)
  truth = TRUTH | {"keypoints": pose}
  drawn = {str(names): FAMILIES["objects"].draw(example(truth, truth, names=names), truth, 0) for names in (
      NAMES, {0: "void", 1: "box", 2: "sphere"}, {0: "void"})}
  poses = report_objects._poses(example(truth, truth), truth, report_objects.shown_objects(example(truth, truth), truth, 0), 0)
  assert [pose is None for pose in poses] == [True, False] and len(set(drawn.values())) == 3


def test_without_a_class_of_persons_those_have_joints_that_the_truth_marks():
  pose = np.full((1, 3, 17, 3), .6, np.float32)
  pose[:, 0, :, 2] = 0  # of the object of class 1
  truth = TRUTH | {"keypoints": pose}
  assert report_objects.jointed_classes(example(truth, truth, names={})) == {2}
  assert report_objects.jointed_classes(example(truth, truth, names={1: "person", 2: "dog"})) == {1}


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "captions.model"
  text.train(["a red box on the floor", "a person beside a table"] * 20, path, pieces=40)
  return str(path)


def test_captions(text_model):
  tokenizer = text.load(text_model)
  ids = {s: text.encode(tokenizer, s, length=32) for s in ("a red box on the floor", "a box", "")}
  truth = {"captions": np.stack([ids["a red box on the floor"], ids[""]])[None]}
  same, short, none = ({"captions": ids[s][None]} for s in ids)
  base = example(truth, same, family="captions", text_model=text_model)
  assert cell(base, truth, 0, alt="").words == "a red box on the floor"
  np.testing.assert_allclose(report_objects.caption_scores(base, same), [100])
  assert 0 < report_objects.caption_scores(base, short)[0] < 60 and report_objects.caption_scores(base, none)[0] == 0
  untold = base._replace(truth={"captions": np.zeros((1, 2, 32), np.int32)})
  assert np.isnan(report_objects.caption_scores(untold, same)).all()
  numbers = base._replace(text_model=None)
  assert cell(numbers, same, 0, alt="").words.split()[0].isdigit() and report_objects.image_legend(numbers, 1)
