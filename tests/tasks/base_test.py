"""Tasks by name, with the config's options bound."""

import jax.numpy as jnp
import pytest

from uvim_like import names
from uvim_like.errors import UserError
from uvim_like.tasks.base import bind

TASKS = ("panoptic_segmentation", "depth", "depth_regression", "colorization")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_complete(name):
  task = bind(name, {})
  assert task.outputs and task.labels.shape and task.labels.dtype in (jnp.int32, jnp.float32)


def test_only_tasks_are_offered():
  found = names.module_names("uvim_like.tasks", needs="to_planes")
  assert set(TASKS) <= set(found) and not {"base", "classes"} & set(found)


@pytest.mark.parametrize("name, nearest", [("panoptic_segmentaton", "panoptic_segmentation"),
                                           ("colorisation", "colorization"), ("depht", "depth"), ("proj.depht", "depth")])
def test_unknown_task(name, nearest):
  short = name.removeprefix("proj.")
  with pytest.raises(UserError, match=rf"^config.task: unknown name '{short}'; did you mean '{nearest}'\?$"):
    bind(name, {})


def test_place_of_the_name():
  with pytest.raises(UserError, match="^config.oracle.task: unknown name 'classes'; valid: "):
    bind("classes", {}, where="config.oracle.task")


def test_options_are_those_of_the_task():
  assert bind("depth", {"max_depth": 80.0, "min_depth": None, "lr": 1.0}).to_planes.keywords == {"max_depth": 80.0}
  assert bind("colorization", {"max_depth": 80.0}).to_planes.keywords == {}


def test_limits_of_integer_labels():
  spec = {"semantics": (134, 256), "instances": (100, 256)}
  assert bind("panoptic_segmentation", {}).limits(spec) == (134, 100)
  assert bind("depth", {}).limits({"depth": (256, 256)}) is None
