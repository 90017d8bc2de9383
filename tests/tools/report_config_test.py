"""Differences of configs; where validation examples come from; names of classes and of text models."""

import types

import numpy as np
import pytest

from tests.tools.report_runs import ROOT
from tools.reporting import html, report_config, validation
from tools.reporting.examples import FORMS
from uvim_like import config as configs


def loaded(name, *overrides, arguments="scenes,runlocal"):
  return configs.with_defaults(configs.load_file(f"{ROOT}/configs/{name}.py:{arguments}", overrides))


def test_only_what_differs_is_listed():
  a, b = loaded("polymax/depth"), loaded("polymax/depth", "lr=0.5", "model.num_queries=4")
  rows = report_config.differing({"a": a, "key": b})
  assert rows == {"lr": {"a": str(a.lr), "key": "0.5"},
                  "model.num_queries": {"a": str(a.model.num_queries), "key": "4"}}
  table, = report_config.differences({"a": a, "key": b})[1:]
  assert isinstance(table, html.Html) and "num_queries" in table and "0.5" in table
  assert report_config.differences({"a": a}) == [] and "same" in report_config.differences({"a": a, "b": a})[0]


def test_many_differences_are_folded_and_missing_values_are_dashes():
  pieces = report_config.differences({"<a>": loaded("polymax/depth"), "b": loaded("mad/r50")})
  assert len(pieces) == 1 and pieces[0].startswith("<details>") and "&lt;a&gt;" in pieces[0] and "–" in pieces[0]
  assert report_config.shortened("x" * 200).endswith("…") and report_config.shortened((1, 2)) == "(1, 2)"


def test_what_is_asked_of_each_system():
  def asked(name, **kwargs):
    return [(what, options, [source.split for source in sources], [source.dataset for source in sources])
            for what, options, sources in validation.asked(loaded(name, **kwargs))]

  assert asked("polymax/depth") == [("predict", {}, ["validation"] * 2, ["scenes/mini"] * 2)]
  assert [options for _, options, *_ in asked("mad/r50")] == [
      {"tasks": ("boxes", "masks", "keypoints"), "half_bin": ("keypoints",)}, {"tasks": ("captions",)}]
  # Two parts of one batch have no validation split of their own: each evaluation brings its data.
  joint = asked("ait/joint")
  assert [options["task"] for _, options, *_ in joint] == ["instances", "depth"]
  assert [splits for _, _, splits, _ in joint] == [["validation"], ["validation"]]
  # Three evaluators of the same prediction are asked for once.
  assert len(asked("uvim/panoptic_stage1", arguments="runlocal")) == 1


def test_names_of_classes():
  names = validation.class_names(loaded("polymax/semantic"), objects=False)
  assert names[0] == "void" and names[1] == "box" and len(names) == 11
  things = validation.class_names(loaded("mad/r50"), objects=True)
  assert list(things.values()) == ["void", "box", "sphere", "cylinder", "table", "person"]
  assert validation.class_names(loaded("ait/vqvae_mask"), objects=True)[5] == "person"
  assert validation.class_names(loaded("mad/r50", arguments="runlocal"), objects=True)[1] == "person"
  own = loaded("polymax/semantic", "dataset=npz", "semantic_val.dataset=npz")
  assert validation.class_names(own, objects=False)[3] == "class 3"


def test_text_models(tmp_path):
  assert validation.text_model(loaded("mad/r50")) == "scenes"
  assert validation.text_model(loaded("mad/r50", arguments="runlocal")) == "t5_coco_caption.model"
  alone = loaded("mad/r50", "evals=[]")
  assert validation.text_model(alone) == "scenes"
  beside = loaded("polymax/depth", f"data_dir={tmp_path}")
  assert validation.text_model(beside) is None
  (tmp_path / "captions.model").write_bytes(b"")
  assert validation.text_model(beside) == str(tmp_path / "captions.model")


def test_whole_masks_become_those_inside_boxes(monkeypatch):
  masks = np.zeros((2, 1, 8, 8), np.uint8)
  masks[:, :, 2:6, 2:4] = 1
  batch = {"image": np.zeros((2, 8, 8, 3)), "boxes": np.full((2, 1, 4), [.25, .25, .75, .75]),
           "box_labels": np.ones((2, 1), int), "masks": masks, "_mask": np.array([1.0, 0.0]), "_index": np.arange(2)}
  provider = types.SimpleNamespace(eval_batches=lambda **options: [(batch, None)] * 3)
  monkeypatch.setattr(validation.train, "data_provider", lambda dataset: provider)
  source = validation.Source("npz", None, "validation", "")
  found = validation.first_examples({"batch_size": 2}, source, 2)
  assert set(found) == {"image", "boxes", "box_labels", "box_masks"} and len(found["image"]) == 2
  side = validation.MASK_SIDE
  assert found["box_masks"].shape == (2, 1, side, side)
  np.testing.assert_array_equal(found["box_masks"][0, 0], np.tile(np.arange(side) < side // 2, (side, 1)))
  truth = FORMS["objects"].truth(found)
  assert truth["scores"].tolist() == [[1], [1]] and "keypoints" not in truth


def test_large_examples_are_fewer(monkeypatch):
  batch = {"image": np.zeros((4, 8, 8, 3), np.float32), "_mask": np.ones(4)}
  provider = types.SimpleNamespace(eval_batches=lambda **options: [(batch, None)] * 9)
  monkeypatch.setattr(validation.train, "data_provider", lambda dataset: provider)
  source = validation.Source("npz", None, "validation", "")
  assert len(validation.first_examples({"batch_size": 4}, source, 30)["image"]) == 30
  monkeypatch.setattr(validation, "MOST_BYTES", 10 * batch["image"][:1].nbytes)
  assert len(validation.first_examples({"batch_size": 4}, source, 30)["image"]) == 10
  monkeypatch.setattr(validation, "MOST_BYTES", 1)
  assert len(validation.first_examples({"batch_size": 4}, source, 30)["image"]) == validation.FEWEST


def test_a_dataset_that_needs_a_missing_package(monkeypatch):
  def missing(dataset):
    raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
  monkeypatch.setattr(validation.train, "data_provider", missing)
  with pytest.raises(ValueError, match="needs a package that is not installed .tensorflow."):
    validation.first_examples({}, validation.Source("coco", None, "validation", ""), 2)
