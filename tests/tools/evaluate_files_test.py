"""Saved predictions score as the model that made them: for every task, to the last digit; and mistakes are one line."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from pp_ops.sources import open_source
from tools import evaluate, make_data
from tools.evaluating import evaluate_files
from tools.predicting import predict_files
from tools.predicting.predict_inputs import Source
from uvim_like.errors import UserError
from uvim_like.evaluators import captions, coco_instances, coco_panoptic, mean_iou, nyu_depth, surface_normals
from uvim_like.inference.full_size import Names, full_size
from uvim_like.inference.views import View
from uvim_like.own_data import facts as own
from uvim_like.scenes import classes as scene_classes
from uvim_like.tasks.classes import ClassTable, from_categories

SIDE = 24   # of the made-up model's maps
THINGS = ClassTable("own data", scene_classes.CATEGORY_IDS[:5], scene_classes.THINGS, (True,) * 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Five pictures of 40x56 with everything that a folder may have, in one split."""
  out = tmp_path_factory.mktemp("data")
  assert make_data.main(["scenes", f"--out={out}", "--format=folder", "--num=validation:5", "--size=40x56",
                         "--workers=1"]) == 0
  return out


def outputs(index: int) -> dict[str, np.ndarray]:
  """What a model could say of one picture, nothing of it true or round."""
  draw = np.random.RandomState(index)
  corners = np.sort(draw.uniform(0, 1, (6, 2, 2)), axis=1).reshape(6, 4)
  blocks = draw.randint(0, 6, (SIDE // 6, SIDE // 6)).repeat(6, 0).repeat(6, 1)
  return {"depth": draw.uniform(0.5, 9, (SIDE, SIDE)).astype(np.float32),
          "normals": draw.normal(size=(SIDE, SIDE, 3)).astype(np.float32),
          "semantics": (blocks + index) % 10 + 1, "instances": blocks + 1,
          "boxes": corners.astype(np.float32), "scores": draw.choice([0.9, 0.5, 0.25], 6).astype(np.float32),
          "classes": draw.randint(1, 6, 6), "masks": draw.uniform(0, 1, (6, 8, 8)).astype(np.float32),
          "keypoints": draw.uniform(0, 1, (6, 17, 3)).astype(np.float32), "captions": draw.randint(3, 90, 12)}


def near(made, target):
  """The same with boxes and joints about where objects are, so that some are found."""
  count = min(len(target["objects/id"]), 6)
  made["boxes"][:count] = np.clip(target["objects/bbox"][:count] + 0.01, 0, 1)
  made["classes"][:count] = target["objects/label"][:count] + 1
  made["masks"][:count] = 0.9
  x, y, _ = np.moveaxis(target["objects/keypoints"][:count], -1, 0)
  made["keypoints"][:count, :, :2] = np.stack([y / 40, x / 56], -1)
  return made


# Task -> (keys of the output, sort of names, metric as a config of the form `folder` has it).
def tasks(folder):
  listed = own.read(str(folder.parent / "both"), {"panoptic"}).class_names["panoptic"]
  kinds = ("boxes", "masks", "keypoints")
  return {
      "depth": (("depth",), nyu_depth.make(preset="plain", max_depth=9.9)),
      "semantic_segmentation": (("semantics",), mean_iou.make(num_classes=10, target_key="semantic")),
      "panoptic_segmentation": (("semantics", "instances"), coco_panoptic.make(categories=listed)),
      "surface_normals": (("normals",), surface_normals.make(target_key="normals")),
      "instance_segmentation": (("boxes", "scores", "classes", "masks", "keypoints"),
                                coco_instances.make(kinds=kinds, dataset="coco_instances", person=5)),
      "captions": (("captions",), captions.make())}


def names_for(keys):
  semantic = from_categories(scene_classes.categories(), name="own data")
  return Names(semantic if "instances" in keys else semantic._replace(ids=tuple(range(1, 11))), THINGS, person=5)


def both_ways(folder, out, task, keys, metric):
  """({name: value} of the metric on the model's outputs, the same from files)."""
  source = open_source("folder", "validation", data_dir=str(folder))
  view = View(task, "", "", "predict", {}, {"dataset": "coco_instances", "person": 5}, 1)
  form = predict_files.Form(out, names_for(keys))
  stats, entries, index = metric.init(), [], []
  for i in range(len(source)):
    target = source.fetch(i, source.features)
    made = {key: value for key, value in near(outputs(i), target).items() if key in keys}
    stats = metric.update(stats, made, target)
    picture = Source(pathlib.Path(target["image/filename"].decode()), source.example_id(i), 700 + i)
    results = full_size(made, {"image": np.zeros((SIDE, SIDE, 3))}, target["image"], view=view, names=form.names,
                        square=False)
    entries.append(predict_files.write_one(form, picture, {**results, "image": target["image"]}, copy=False))
    index.append(dict(name=picture.name, id=picture.number, file=str(picture.path)))
  predict_files.write_documents(form, entries)
  semantic = dict(categories=predict_files.coco_categories(form.names.semantic))
  (out / "predictions.json").write_text(json.dumps(dict(pictures=index, classes=dict(semantic=semantic))))
  return metric.compute(stats), evaluate_files.evaluate(task, out, folder)


@pytest.fixture(scope="module")
def table(folder):
  (folder.parent / "both").mkdir(exist_ok=True)
  for part in ("train", "validation"):
    if not (folder.parent / "both" / part).exists():
      (folder.parent / "both" / part).symlink_to(folder / "validation")
  return tasks(folder)


@pytest.mark.parametrize("task", ["depth", "semantic_segmentation", "panoptic_segmentation", "surface_normals",
                                  "instance_segmentation", "captions"])
def test_both_forms_agree_to_the_last_digit(folder, table, tmp_path, task):
  direct, files = both_ways(folder, tmp_path, task, *table[task])
  assert files.values == direct
  varied = [value for name, value in direct.items() if name not in ("images", "images_without_valid", "pixels")]
  assert any(np.isfinite(value) and value > 0 for value in varied), direct
  protocol = table[task][1].protocol.split(";")[0].replace("of the config", "of the predictions and the truth")
  assert files.protocol.split(";")[0] == protocol


def test_depth_from_millimetres_is_near_and_options_reach_the_metric(folder, table, tmp_path):
  direct, _ = both_ways(folder, tmp_path, "depth", *table["depth"])
  for path in (tmp_path / "depth").glob("*.npz"):
    path.unlink()
  rounded = evaluate_files.evaluate("depth", tmp_path, folder)
  assert rounded.values["RMSE"] == pytest.approx(direct["RMSE"], abs=1e-3) and rounded.values != direct
  pooled = evaluate_files.evaluate("depth", tmp_path, folder, options={"average": "pixel", "max_depth": 3.0})
  assert "all pixels pooled" in pooled.protocol and "truth < 3 m" in pooled.protocol


def test_the_command_prints_the_protocol_and_writes_json(folder, table, tmp_path, capsys):
  both_ways(folder, tmp_path, "depth", *table["depth"])
  assert evaluate.main(["--task=depth", f"--pred={tmp_path}", f"--gt={folder}/validation/depth",
                        "--metric.clip_prediction=True"]) == 0
  out = capsys.readouterr().out
  assert "RMSE" in out and "protocol: plain: no crop" in out and "clipped to [0.001" in out
  document = json.loads((tmp_path / "evaluation.json").read_text())
  (one,) = document["evaluations"]
  assert one["evaluator"] == "nyu_depth" and one["metric"] == {"clip_prediction": True}
  assert one["values"]["images"] == 5.0


def test_some_pictures_are_told_and_a_split_wants_all(folder, table, tmp_path):
  both_ways(folder, tmp_path, "semantic_segmentation", *table["semantic_segmentation"])
  next((tmp_path / "semantic").glob("*.png")).unlink()
  some = evaluate_files.evaluate("semantic", tmp_path, folder)
  assert some.protocol.endswith("; 1 of the truth's 5 pictures have no prediction and are left out")
  with pytest.raises(UserError, match="--pred: 1 of 5 pictures have no prediction"):
    evaluate_files.evaluate("semantic", tmp_path, folder, split="validation")


def test_results_in_cocos_own_form_use_the_truths_ids(folder, tmp_path):
  truth = json.loads((folder / "validation" / "instances.json").read_text())
  found = [dict(image_id=a["image_id"], category_id=a["category_id"], bbox=a["bbox"], score=0.9,
                segmentation=a["segmentation"]) for a in truth["annotations"]]
  (tmp_path / "instances.json").write_text(json.dumps(found))
  measured = evaluate_files.evaluate("instances", tmp_path / "instances.json", folder / "validation" / "instances.json")
  assert measured.values["box_AP"] == 1.0 and measured.values["mask_AP"] == 1.0 and measured.values["images"] == 5


@pytest.mark.parametrize(("words", "message"), [
    (["--task=dept"], "--pred is missing: --workdir=D, or --task=T --pred=P --gt=G"),
    (["--task=dept", "--pred={here}", "--gt={here}"], "--task: unknown task 'dept'; did you mean 'depth'?"),
    (["--task=depth", "--pred={here}", "--gt=/nowhere/x"], "--gt: there is no folder or file '/nowhere/x'"),
    (["--task=depth", "--pred={here}/no", "--gt={data}"], "--pred: there is no folder or file '{here}/no'"),
    (["--task=depth", "--pred={here}", "--gt={data}"], "--pred: no depth/ with files (.npz, .npy, .png) in '{here}'"),
    (["--task=depth", "--pred={maps}", "--gt={data}"],
     "--pred: 1 predictions have no truth in {data}: other; valid: 000002000000, 000002000001, 000002000002, "
     "000002000003, 000002000004"),
    (["--task=depth", "--pred={maps}", "--gt={data}", "--split=test"],
     "--split: unknown split 'test'; valid: validation"),
    (["--task=depth", "--pred={maps}", "--gt={data}", "--metric.croop=1"], None),
    (["--workdir=/nowhere/w", "--task=depth"], "--workdir evaluates a run, --task saved predictions; leave one out"),
    (["--workdir=/nowhere/w"], "--workdir: /nowhere/w: no such folder; give the folder of a training"),
    (["--workdir=/nowhere/w", "--metric.preset=plain"],
     "--metric.preset: a run is evaluated as its config says; change that by --config.<evaluation>.metric.preset=…"),
    (["--workdirs=/nowhere/w"], "unknown flag '--workdirs'; did you mean '--workdir'?")])
def test_mistakes_are_one_line(folder, tmp_path, capsys, words, message):
  (tmp_path / "maps" / "depth").mkdir(parents=True)
  Image.fromarray(np.ones((4, 4), np.uint16)).save(tmp_path / "maps" / "depth" / "other.png")
  if message is None:
    (tmp_path / "maps" / "depth" / "other.png").rename(tmp_path / "maps" / "depth" / "000002000000.png")
    message = "--metric: unknown option 'croop'; did you mean 'crop'?"
  places = dict(here=tmp_path, data=folder, maps=tmp_path / "maps")
  assert evaluate.main([word.format(**places) for word in words]) == 2
  assert capsys.readouterr().err == f"evaluate: {message.format(**places)}\n"
