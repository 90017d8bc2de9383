"""Which evaluations a run predicts by, with which options, at which sizes, and what its classes are called."""

import jax
import ml_collections as mlc
import numpy as np
import pytest

from tests.inference.conftest import RUNS
from uvim_like import config as configs
from uvim_like.errors import UserError
from uvim_like.inference import model, sizes, tables, views
from uvim_like.inference.views import View
from uvim_like.training import setup


def config_of(system="uvim.lm", evals=(), **values):
  return mlc.ConfigDict(dict(model_name=system, dataset="scenes/mini", evals=list(evals), pp_eval=None, batch_size=8,
                             task=None, model={}, **values))


def block(pp="decode", **values):
  return dict(pp=pp, pred="predict", pred_kw={}, metric={}, dataset="scenes/mini", batch_size=4) | values


def test_evaluations_that_predict_the_same_are_one():
  evals = [("train", "coco_panoptic"), ("val", "coco_panoptic"), ("saved", "save_predictions"), ("psnr", "psnr")]
  config = config_of(evals=evals, train=block(), val=block(), saved=block(), psnr=block(pp="other"))
  found = views.views(config)
  assert [(v.name, v.evaluator, v.batch_size) for v in found] == [("train", "coco_panoptic", 4), ("psnr", "psnr", 4)]
  assert found[0].metric == {"dataset": "scenes/mini"}


def test_without_evaluations_the_validation_string_serves():
  config = config_of()
  with pytest.raises(UserError, match="neither evals nor pp_eval"):
    views.views(config)
  config.pp_eval = "decode|resize(8)"
  assert views.views(config) == [View("pp_eval", "", "decode|resize(8)", "predict", {}, {"dataset": "scenes/mini"}, 8)]


@pytest.mark.parametrize("values, message", [
    (dict(system="proj.uvim.vit"), "UViM stage I cannot predict"),
    (dict(system="ait.vqvae"), "an AiT tokenizer .* cannot predict"),
    (dict(system="mad.decoder", objectives=dict(tasks=("masks",))), "inside given boxes"),
])
def test_trainings_that_need_labels_say_so(values, message):
  with pytest.raises(UserError, match=message):
    views.check_predictable(config_of(**values))


def test_a_base_model_without_code_and_captions_alone_predict():
  config = config_of("proj.uvim.vit")
  config.model.zero_decoder_seq = True
  views.check_predictable(config)
  views.check_predictable(config_of("mad.decoder", objectives=dict(tasks=("captions",))))


def test_options_over_those_of_the_evaluation():
  view = View("val", "nyu_depth", "", "predict", {"task_options": {"estimate": "mean"}, "temperature": 0.0}, {}, 1)
  changed = views.with_options(view, config_of(), temperature=0.7, decode="cached", samples=3)
  assert changed.options == {"task_options": {"estimate": "mean"}, "temperature": 0.7, "decode": "cached",
                             "num_samples": 3}
  assert views.with_options(view, config_of()).options == view.options
  mad = views.with_options(view._replace(options={}), config_of("mad.decoder"), decode="one_stage")
  assert set(mad.options["stages"].values()) == {(1.0,)}
  single = view._replace(options={"stages": {"keypoints": (1.0,), "captions": (1.0, 0.5)}})
  mad = views.with_options(single, config_of("mad.decoder"), decode="masked")   # keypoints in the system's own stages
  assert mad.options == {"stages": {"captions": (1.0, 0.5)}}
  autoregressive = config_of("mad.decoder", objectives=dict(form="autoregressive"))
  greedy = views.with_options(view._replace(options={}), autoregressive, temperature=0)
  assert set(greedy.options["top_p"].values()) == {0.0}


def test_forms_that_a_system_does_not_have():
  view = View("val", "nyu_depth", "", "predict", {}, {}, 1)
  for system, options, message in (("ait.solver", {"decode": "cached"}, "unknown form 'cached'; valid: ar, parallel"),
                                   ("ait.solver", {"samples": 2}, "gives one prediction a picture"),
                                   ("uvim.lm", {"temperature": -1.0}, "is below 0"),
                                   ("uvim.lm", {"samples": 0}, "at least 1"),
                                   ("uvim.vit", {"temperature": 1.0}, "does not sample")):
    with pytest.raises(UserError, match=message):
      views.with_options(view, config_of(system), **options)


def test_a_masked_language_model_has_samples_and_no_temperature():
  view, config = View("val", "nyu_depth", "", "predict", {}, {}, 1), config_of()
  config.model.masked = True
  for temperature in (0, 1):
    with pytest.raises(UserError, match="--temperature: a masked language model takes the likeliest words"):
      views.with_options(view, config, temperature=temperature)
  assert views.with_options(view, config, samples=2).options == {"num_samples": 2}


def test_sizes():
  assert sizes.capped((300, 400)) == (300, 400)
  assert sizes.capped((3000, 4000)) == (961, 1281)
  assert sizes.capped((1, 5000)) == (1, 1281)
  assert sizes.on_canvas((480, 480), (480, 480)) == (480, 480)
  assert sizes.on_canvas((300, 200), (480, 480)) == (300, 200)
  assert sizes.on_canvas((3000, 200), (480, 480)) == (480, 480)
  # NYU's frames stay as they are under two windows; a photograph keeps its ratio, a panorama what the windows reach.
  assert sizes.on_canvas((480, 640), (480, 480), windows=2) == (480, 640)
  assert sizes.on_canvas((3000, 4000), (480, 480), windows=2) == (480, 640)
  assert sizes.on_canvas((100, 900), (480, 480), windows=2) == (480, 960)
  assert sizes.on_canvas((900, 100), (480, 480), windows=2) == (480, 480)


def test_a_joint_training_sees_depth_at_its_codes_size():
  """AiT's joint recipe puts objects on 640 pixels and depth into the upper left 480 of them."""
  config = configs.with_defaults(configs.load_file("configs/ait/joint.py"))
  objects, depth = views.views(config)
  assert views.canvas_of(config, objects) == (640, 640) and views.canvas_of(config, depth) == (480, 480)
  assert model.network_size((960, 1280), config=config, view=depth, max_side=1281) == (480, 640)
  alone = configs.with_defaults(configs.load_file("configs/ait/depth.py"))
  assert views.canvas_of(alone, views.views(alone)[0]) == (480, 480)


def test_a_map_smaller_than_the_canvas_is_predicted():
  tiny = RUNS["ait_depth"]
  config = configs.with_defaults(mlc.ConfigDict(tiny | dict(
      dataset="folder", batch_size=1, model=tiny["model"] | dict(input_size=(56, 56)), solver=dict(
          tasks=("depth",), map_size=(40, 40)))))
  view = views.views(config)[0]
  size = model.network_size((80, 112), config=config, view=view, max_side=1281)
  system = setup.make_system(config)
  batch = {"image": np.zeros((1, *size, 3), np.float32)}
  found = jax.eval_shape(lambda key, frozen: system.predict[view.pred](
      system.init(key, {"image": np.zeros((1, 56, 56, 3), np.float32)}), frozen, batch, key, **view.options),
                         jax.random.key(0), system.frozen)
  assert found["depth"].shape == (1, 40, 56)


@pytest.mark.parametrize("values, names", [
    (dict(task="semantic_segmentation", model=dict(num_queries=10)), ["box", "sphere"]),
    (dict(task="semantic_segmentation", model=dict(num_queries=133), dataset="coco/2017_panoptic"),
     ["person", "bicycle"]),
    (dict(task="semantic_segmentation", model=dict(outputs=40), dataset="nyu_depth_v2"), ["wall", "floor"]),
    (dict(task="semantic_segmentation", model=dict(num_queries=3), dataset="folder",
          class_names=dict(semantic=["road", "sky", "tree"])), ["road", "sky", "tree"]),
    (dict(task="semantic_segmentation", model=dict(num_queries=3), dataset="folder"),
     ["class 1", "class 2", "class 3"]),
    (dict(task="panoptic_segmentation", model=dict(num_classes=2), dataset="folder", class_names=dict(
        panoptic=[dict(id=7, name="cup", isthing=1), dict(id=9, name="lawn", isthing=0)])), ["cup", "lawn"]),
    (dict(oracle=dict(model=dict(outputs=dict(semantics=(11, 64)))), task="panoptic_segmentation"), ["box", "sphere"]),
    (dict(tokenizers=dict(semantics=dict(model=dict(classes=10))), task="semantic_segmentation"), ["box", "sphere"]),
])
def test_names_of_maps(values, names):
  config = config_of()
  config.update(values)
  view = View("val", "", "", "predict", {}, {"dataset": config.dataset}, 1)
  found = tables.semantic_table(config, view)
  assert list(found.names[:len(names)]) == names
  assert tables.object_table(config, view) is None


def test_names_of_objects_and_who_is_a_person():
  config = config_of("mad.decoder", sequences=dict(classes=80))
  view = View("val", "coco_instances", "", "predict", {}, {"dataset": "coco_instances"}, 1)
  table = tables.object_table(config, view)
  assert table.ids[-1] == 90 and table.names[0] == "person" and tables.person_label(table, view) == 1
  config.sequences.classes = 5
  scenes = View("val", "coco_instances", "", "predict", {}, {"dataset": "scenes"}, 1)
  table = tables.object_table(config, scenes)
  assert table.names == ("box", "sphere", "cylinder", "table", "person") and tables.person_label(table, scenes) == 5
  config.class_names = dict(objects=[dict(id=0, name="cup"), dict(id=9, name="person")])
  own = tables.object_table(config, view)
  assert own.names == ("cup", "person") and own.ids == (0, 9) and tables.person_label(own, view) == 2
