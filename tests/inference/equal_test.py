"""Predictions of files are the evaluator's on the same pictures, number for number, for every system and task."""

import functools
import inspect

import jax
import numpy as np
import pytest

from pp_ops import pipeline
from uvim_like.evaluators import run as evaluation
from uvim_like.inference import model as models
from uvim_like.training import setup

# One run of every task; other systems of the same task take a minute of compilation.
QUICK = ("uvim_depth", "uvim_panoptic", "deeplab_normals", "deeplab_semantic")
SLOW = ("polymax_depth", "polymax_normals", "polymax_panoptic", "ait_depth")


def pictures_of(data_dir):
  """The folder's files in its order."""
  return sorted((data_dir / "train" / "images").iterdir(), key=lambda path: path.stem)


def predicted(model, data_dir):
  """Results of all files, in order."""
  pairs = [(i, models.read(path, dataset="folder")) for i, path in enumerate(pictures_of(data_dir))]
  found = dict(models.predict_all(model, pairs))
  return [found[i] for i in range(len(pairs))]


def evaluations(run, name):
  """(metric, [(output, target)]) of an evaluation, as the trainer runs it."""
  block = run.config[name]
  kind = dict(run.config.evals)[name]
  options = dict(block.metric)
  make = evaluation.load(kind).make
  if "dataset" in inspect.signature(make).parameters:
    options.setdefault("dataset", block.dataset)
  metric = make(**options)
  batches = pipeline.eval_batches(dataset=block.dataset, split=block.split, pp=block.pp, batch_size=block.batch_size,
                                  data_dir=block.data_dir, target_keys=metric.target_keys)
  predict = jax.jit(functools.partial(run.system.predict[block.pred], **block.pred_kw))
  examples = []
  for batch, targets in batches:
    inputs = {key: value for key, value in batch.items() if key in setup.DEVICE_KEYS}
    outputs = jax.device_get(predict(run.vars, run.frozen, inputs, jax.random.key(run.config.seed)))
    for row, target in enumerate(targets):
      examples.append(({key: value[row] for key, value in outputs.items()},
                       evaluation.example_target(batch, row, target)))
  return metric, examples


def numbers(metric, pairs):
  stats = metric.init()
  for output, target in pairs:
    stats = metric.update(stats, output, target)
  return metric.compute(stats)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_maps(name, workdir_of, data_dir):
  model = models.load(workdir_of(name))
  metric, examples = evaluations(model.trained, model.trained.config.evals[0][0])
  results = predicted(model, data_dir)
  assert len(results) == len(examples) == 5
  want = numbers(metric, examples)
  got = numbers(metric, [(result, target) for result, (_, target) in zip(results, examples)])
  assert got == pytest.approx(want, rel=0, abs=0, nan_ok=True)
  first = results[0]
  key = next(key for key in ("depth", "semantics", "normals") if key in first)
  assert first[key].shape[:2] == (40, 56) and len(np.unique(first[key])) > 1


@pytest.mark.slow
def test_detections_of_ait_are_sampled_alike(workdir_of, data_dir):
  check_detections("ait_instances", ("bbox", "segmentation"), workdir_of, data_dir)


def test_detections_and_captions_of_mad(workdir_of, data_dir):
  model, results = check_detections("mad", ("bbox", "segmentation", "keypoints"), workdir_of, data_dir)
  metric, examples = evaluations(model.trained, "captions_val")
  for result, (output, _) in zip(results, examples):
    lens = model.lenses[1]
    assert result["caption"] == models.full_size(output, {}, result["image"], view=lens.view, names=lens.names,
                                                 square=False)["caption"]


def check_detections(name, keys, workdir_of, data_dir):
  """Every detection has the numbers that COCO's code is given by the evaluator."""
  model = models.load(workdir_of(name))
  metric, examples = evaluations(model.trained, model.trained.config.evals[0][0])
  results = predicted(model, data_dir)
  total = 0
  for result, (output, target) in zip(results, examples):
    found = sorted(metric.update(metric.init(), output, target).found, key=lambda d: -d["score"])
    assert [d["score"] for d in result["objects"]] == [d["score"] for d in found]
    for got, want in zip(result["objects"], found):
      assert got["category_id"] == want["category_id"]
      assert got["bbox"] == want["bbox"]
      if "segmentation" in keys:
        assert got["segmentation"]["counts"].encode() == want["segmentation"]["counts"]
      if "keypoints" in got:
        assert got["keypoints"] == want["keypoints"]
    total += len(found)
  assert total >= 2
  return model, results


def test_batches_of_other_sizes_and_single_calls_agree(workdir_of, data_dir):
  """The number of pictures at a time changes no class."""
  model = models.load(workdir_of("deeplab_semantic"))
  results = predicted(model, data_dir)
  path = pictures_of(data_dir)[3]
  alone = model(path)
  assert np.array_equal(alone["image"], results[3]["image"])
  assert np.array_equal(alone["semantics"], results[3]["semantics"])


def test_three_lines(workdir_of, data_dir):
  from uvim_like import load
  model = load(workdir_of("deeplab_semantic"))
  out = model(str(pictures_of(data_dir)[2]))
  assert out["semantics"].shape == (40, 56) and out["image"].dtype == np.uint8
  again = model(out["image"])
  assert np.array_equal(again["semantics"], out["semantics"])
