"""Options of functions: which there are, behind partials and **options, and what is said of wrong ones."""

import functools
import importlib
import re

import pytest

from uvim_like import config as configs
from uvim_like import keywords
from uvim_like.errors import UserError
from uvim_like.evaluators import nyu_depth, save_predictions


def code(batch, key, *, model, samples=1, top_p=0.0):
  """What gets the rest."""


def depth(outputs, *, grid, estimate="mode"):
  """What gets a block."""


def predict(batch, key, *, model, task_options=None, **options):
  """Takes options of three kinds."""


DESCRIBED = keywords.describe(functools.partial(predict, model=1), rest=functools.partial(code, model=1),
                              task_options=functools.partial(depth, grid=None))


def test_what_a_function_still_takes():
  assert keywords.names(DESCRIBED, after_data=True) == {"task_options": False, "samples": False, "top_p": False}
  assert DESCRIBED.keywords == {"model": 1} and DESCRIBED.func is predict
  assert keywords.names(save_predictions.make, after_data=False)["out_dir"]


@pytest.mark.parametrize("given, message", [
    ({"top_q": 1}, "here: unknown option 'top_q'; did you mean 'top_p'?"),
    ({"model": 2}, "here: unknown option 'model'; valid: samples, task_options, top_p"),
    ({"task_options": {"estimte": 1}}, "here.task_options: unknown option 'estimte'; did you mean 'estimate'?")])
def test_wrong_names(given, message):
  with pytest.raises(UserError, match=re.escape(message)):
    keywords.check(DESCRIBED, given, where="here")
  keywords.check(DESCRIBED, {"samples": 2, "task_options": {"estimate": "mean"}}, where="here")


def test_evaluators():
  with pytest.raises(UserError, match="here: unknown option 'avrage'; did you mean 'average'"):
    keywords.check(nyu_depth.make, {"avrage": "pixel"}, where="here", after_data=False)
  with pytest.raises(UserError, match="here: option 'out_dir' is missing"):
    keywords.check(save_predictions.make, {}, where="here", after_data=False)


@pytest.mark.parametrize("name, wanted", [
    ("uvim/depth_stage1", {"corrupt", "fraction", "task_options"}),
    ("uvim/depth_stage2", {"num_samples", "task_options", "temperature", "stages"}),
    ("ait/depth", {"windows", "flip", "tau"}), ("ait/vqvae_depth", {"masked"}), ("mad/r50", {"tasks", "stages"}),
    ("polymax/panoptic", {"thing_threshold", "overlap"}), ("polymax/depth", set())])
def test_every_system_says_what_its_predictions_take(name, wanted):
  config = configs.with_defaults(configs.load_file(f"configs/{name}.py:scenes,runlocal"))
  system = importlib.import_module(configs.resolve(config.model_name, "uvim_like.systems")).make(config)
  for function in system.predict.values():
    found = keywords.names(function, after_data=True)
    assert not any(found.values()), "a prediction can be made without options"
    with pytest.raises(UserError, match="unknown option 'no_such_thing'"):
      keywords.check(function, {"no_such_thing": 1}, where="config")
  found = set(keywords.names(system.predict["predict"], after_data=True))
  assert wanted <= found and not found & {"model", "parts", "head", "frozen", "batch", "key"}
  for block, _ in config.evals:
    keywords.check(system.predict[config[block].pred], config[block].pred_kw, where=block)
