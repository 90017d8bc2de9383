"""`tools.predict` from flags to files: odd pictures, names, forms of every task, labels that train, mistakes."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from pp_ops import pipeline
from tools import predict
from tools.predicting import predict_files
from uvim_like.evaluators import panoptic_quality as pq
from uvim_like.inference import model as models

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(workdir, out, *words):
  """The command; always two pictures at a time, since every other number is another program to compile."""
  return predict.main([f"--workdir={workdir}", f"--out={out}", "--batch_size=2", *map(str, words)])


@pytest.fixture(autouse=True, scope="module")
def loaded_once():
  """Equal loads give the same model, which is then traced and compiled once for all commands of this file."""
  kept, load = {}, models.load

  def again(source, **options):
    key = repr((str(source), sorted(options.items())))
    if key not in kept:
      kept[key] = load(source, **options)
    return kept[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models, "load", again)
    yield


def some(data_dir, count=3):
  return sorted((data_dir / "train" / "images").iterdir(), key=lambda p: p.stem)[:count]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
  """Pictures as people have them, and files that are none."""
  folder = tmp_path_factory.mktemp("odd")
  (folder / "sub").mkdir()
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (30, 44, 3)).astype(np.uint8)
  large = np.kron(pixels, np.ones((30, 30, 1), np.uint8))   # 900 x 1320
  Image.fromarray(large).save(folder / "large.jpg")
  Image.fromarray(rng.integers(0, 2 ** 16, (30, 44)).astype(np.uint16)).save(folder / "deep.png")
  Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
  Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(folder / "alpha.png")
  turned = Image.fromarray(pixels)
  exif = turned.getexif()
  exif[0x0112] = 6
  turned.save(folder / "turned.jpg", exif=exif)
  Image.fromarray(pixels[:1]).save(folder / "line.png")
  Image.fromarray(pixels).save(folder / "a.jpg")
  Image.fromarray(pixels).save(folder / "A.png")
  Image.fromarray(pixels).save(folder / "sub" / "ü b.webp")
  whole = (folder / "large.jpg").read_bytes()
  (folder / "cut.jpg").write_bytes(whole[:len(whole) // 2])
  (folder / "text.png").write_text("no picture")
  (folder / "empty.png").write_bytes(b"")
  (folder / "notes.txt").write_text("left out")
  (folder / ".hidden.png").write_text("left out")
  return folder


def test_odd_pictures(odd, workdir_of, tmp_path, capsys):
  out = tmp_path / "out"
  assert run(workdir_of("deeplab_semantic"), out, "--image", odd) == 1
  said = capsys.readouterr()
  lines = [line for line in said.err.splitlines() if line.startswith("predict: ")]
  assert len(lines) == 3 and all(any(name in line for line in lines) for name in ("cut.jpg", "text.png", "empty.png"))
  assert "9 of 12 pictures" in said.out and "notes.txt" in said.out
  sizes = {path.stem: Image.open(path).size[::-1] for path in (out / "semantic").iterdir()}
  assert sizes == {"large": (900, 1320), "deep": (30, 44), "grey": (30, 44), "alpha": (30, 44), "turned": (44, 30),
                   "line": (1, 44), "a_jpg": (30, 44), "A_png": (30, 44), "sub_ü b": (30, 44)}
  assert {path.stem for path in (out / "overlay").iterdir()} == set(sizes)
  index = json.loads((out / "predictions.json").read_text())
  assert [p["name"] for p in index["pictures"] if "error" in p] == ["cut", "empty", "text"]
  assert len(index["classes"]["semantic"]["categories"]) == 10
  values = np.asarray(Image.open(out / "semantic" / "large.png"))
  assert values.dtype == np.uint8 and values.max() < 10 and len(np.unique(values)) > 1


def test_what_the_network_is_shown(odd):
  """Grey, 16 bits, alpha and turned pictures are what they say."""
  names = ("A.png", "alpha.png", "grey.png", "deep.png", "turned.jpg", "a.jpg")
  seen = {name: models.read(odd / name, dataset="folder") for name in names}
  pixels = np.asarray(Image.open(odd / "A.png"))
  assert np.array_equal(seen["alpha.png"], pixels)
  assert np.array_equal(seen["grey.png"], np.repeat(pixels[..., :1], 3, -1))
  deep = np.asarray(Image.open(odd / "deep.png"))
  assert np.array_equal(seen["deep.png"][..., 1], deep >> 8)
  turned, straight = seen["turned.jpg"], seen["a.jpg"]
  assert turned.shape == (44, 30, 3) and np.array_equal(turned, np.rot90(straight, -1))


def test_depth_files_and_samples(workdir_of, data_dir, tmp_path):
  first = some(data_dir, 1)[0]
  assert run(workdir_of("uvim_depth"), tmp_path, "--image", first, "--samples=2", "--temperature=1") == 0
  with np.load(tmp_path / "depth" / f"{first.stem}.npz") as arrays:
    depth = arrays["depth"]
  assert depth.shape == (2, 40, 56) and depth.dtype == np.float32 and not np.array_equal(*depth)
  for i in (0, 1):
    shown = np.asarray(Image.open(tmp_path / "depth" / first.stem / f"sample{i + 1}.png"))
    assert shown.dtype == np.uint16 and np.array_equal(shown, np.round(depth[i].astype(np.float64) * 1000))
  width = Image.open(tmp_path / "overlay" / f"{first.stem}.png").width
  assert width > 3 * 384   # input and both samples


def test_panoptic_files_are_cocos(workdir_of, data_dir, tmp_path):
  assert run(workdir_of("uvim_panoptic"), tmp_path, "--image", *some(data_dir), "--overlay=false") == 0
  assert not (tmp_path / "overlay").exists()
  document = json.loads((tmp_path / "panoptic.json").read_text())
  assert len(document["images"]) == len(document["annotations"]) == 3 and len(document["categories"]) == 10
  for entry in document["annotations"]:
    ids = pq.rgb_to_id(np.asarray(Image.open(tmp_path / "panoptic" / entry["file_name"])))
    assert {s["id"] for s in entry["segments_info"]} == set(np.unique(ids).tolist()) - {0}
    for segment in entry["segments_info"]:
      mask = ids == segment["id"]
      x, y, w, h = segment["bbox"]
      assert segment["area"] == mask.sum() == mask[y:y + h, x:x + w].sum()


def test_normals(workdir_of, data_dir, tmp_path):
  assert run(workdir_of("deeplab_normals"), tmp_path, "--image", *some(data_dir, 1), "--overlay=false") == 0
  name = some(data_dir, 1)[0].stem
  with np.load(tmp_path / "normals" / f"{name}.npz") as arrays:
    normals = arrays["normals"]
  np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
  stored = np.asarray(Image.open(tmp_path / "normals" / f"{name}.png"))
  assert np.abs(stored / 127.5 - 1 - normals).max() < 0.004


@pytest.mark.slow
def test_colour_of_the_central_square(workdir_of, data_dir, tmp_path):
  name = some(data_dir, 1)[0].stem
  assert run(workdir_of("uvim_color"), tmp_path, "--image", *some(data_dir, 1)) == 0
  colour = np.asarray(Image.open(tmp_path / "color" / f"{name}.png"))
  assert colour.shape == (40, 56, 3)
  assert (colour[:, :8] == colour[:, :8, :1]).all() and not (colour[:, 8:48] == colour[:, 8:48, :1]).all()


def test_objects_joints_and_captions(workdir_of, data_dir, tmp_path):
  assert run(workdir_of("mad"), tmp_path, "--image", data_dir / "train" / "images", "--score=0.01") == 0
  found = json.loads((tmp_path / "instances.json").read_text())
  assert len(found) >= 2
  for detection in found:
    assert rle.decode(detection["segmentation"]).shape == (40, 56)
    x, y, w, h = detection["bbox"]
    assert 0 <= x and x + w <= 56 and 0 <= y and y + h <= 40 and w > 0 and h > 0
  captions = json.loads((tmp_path / "captions.json").read_text())
  assert len(captions) == 5 and all(isinstance(entry["caption"], str) for entry in captions)
  index = json.loads((tmp_path / "predictions.json").read_text())
  assert [p["id"] for p in index["pictures"]] == [1_000_000 + i for i in range(5)]   # the names are numbers


# --- labels -----------------------------------------------------------------------------------------------------------


def batch_of(folder, pp, count):
  """Everything that a training of the folder's pictures is given, in the order of the names."""
  (batch, _), = pipeline.eval_batches(dataset="folder", split="train", pp=pp, batch_size=count, data_dir=str(folder))
  return batch


def test_labels_are_read_as_predicted(workdir_of, data_dir, tmp_path):
  """Depth, classes, normals and segments come back from the training's own reader."""
  pictures = some(data_dir)
  for name, kind, op in (("uvim_depth", "depth", "depth_labels"), ("deeplab_semantic", "semantics", "semantic_labels"),
                         ("deeplab_normals", "normals", "normal_labels"),
                         ("uvim_panoptic", "panoptic", 'coco_panoptic|concat(["semantics", "instances"], "labels")')):
    out = tmp_path / name
    assert run(workdir_of(name), out, "--image", *pictures, "--labels", "--overlay=false") == 0
    assert [p.read_bytes() for p in sorted((out / "images").iterdir())] == [p.read_bytes() for p in pictures]
    batch = batch_of(out, f'decode|{op}|resize_all((40, 56))|value_range(-1, 1)|keep("image", "labels")', 3)
    model = models.load(workdir_of(name), step=None, temperature=None, decode=None, samples=1, seed=None, max_side=1281,
                        overrides=[])
    read = [(i, models.read(path, dataset="folder")) for i, path in enumerate(pictures)]
    for i, results in models.predict_all(model, read):
      np.testing.assert_allclose(batch["image"][i], results["image"] / 127.5 - 1, atol=1e-6)
      labels = batch["labels"][i]
      if kind == "depth":
        assert np.abs(labels[..., 0] - results["depth"]).max() <= 0.0005 + 1e-6
      elif kind == "normals":
        assert np.abs(labels - results["normals"]).max() < 0.01
      else:
        semantics = results["semantics"]
        assert np.array_equal(labels[..., 0], semantics)
  assert (tmp_path / "deeplab_semantic" / "classes.txt").read_text().splitlines()[0] == "class 1"


def test_labels_of_objects_and_captions(workdir_of, data_dir, tmp_path):
  assert run(workdir_of("mad"), tmp_path, "--image", *some(data_dir), "--labels", "--score=0.01") == 0
  found = json.loads((tmp_path / "instances.json").read_text())
  assert found["annotations"] and all(a["score"] >= 0.01 and a["area"] > 0 for a in found["annotations"])
  text = 'decode|instances(keypoints=False)|tokenize_captions("scenes")|canvas(64)|pad_instances(8)|' \
         'value_range(-1, 1)|keep("image", "boxes", "box_labels", "captions")'
  batch = batch_of(tmp_path, text, 3)
  assert (batch["box_labels"] > 0).sum() == len(found["annotations"])
  numbers = [image["id"] for image in found["images"]]
  for row, number in enumerate(numbers):
    boxes = [a["bbox"] for a in found["annotations"] if a["image_id"] == number]
    want = np.array([[y, x, y + h, x + w] for x, y, w, h in boxes]).reshape(-1, 4) / 64
    np.testing.assert_allclose(np.sort(batch["boxes"][row, :len(boxes)], 0), np.sort(want, 0), atol=1e-5)


def test_a_turned_picture_goes_with_its_label(odd, workdir_of, tmp_path):
  pictures = [odd / name for name in ("turned.jpg", "alpha.png", "deep.png", "sub/ü b.webp")]
  assert run(workdir_of("deeplab_semantic"), tmp_path, "--image", *pictures, "--labels", "--overlay=false") == 0
  assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["alpha.png", "deep.png", "turned.jpg", "ü b.png"]
  text = 'decode|semantic_labels|canvas(64)|value_range(-1, 1)|keep("image", "labels", "valid_size")'
  batch = batch_of(tmp_path, text, 4)
  assert batch["valid_size"].tolist() == [[30, 44], [30, 44], [44, 30], [30, 44]]


def test_labels_need_an_empty_folder(workdir_of, data_dir, tmp_path, capsys):
  (tmp_path / "images").mkdir()
  (tmp_path / "images" / "other.png").write_bytes(b"")
  assert run(workdir_of("deeplab_semantic"), tmp_path, "--image", *some(data_dir, 1), "--labels") == 2
  assert "holds pictures already" in capsys.readouterr().err


def test_a_stopped_command_says_what_is_missing_and_goes_on(workdir_of, data_dir, tmp_path, capsys, monkeypatch):
  """Its index vouches for no file of an earlier command, and the same command may use the folder of labels again."""
  pictures, write_one = some(data_dir), predict_files.write_one
  words = ["--image", *pictures, "--labels", "--overlay=false"]
  (tmp_path / "predictions.json").write_text('{"pictures": []}')
  (tmp_path / "captions.json").write_text("[]")   # of the earlier command

  def stop_at_the_last(form, source, *args, **kwargs):
    if source.path == pictures[-1]:
      raise KeyboardInterrupt
    return write_one(form, source, *args, **kwargs)

  monkeypatch.setattr(predict_files, "write_one", stop_at_the_last)
  with pytest.raises(KeyboardInterrupt):
    run(workdir_of("deeplab_semantic"), tmp_path, *words)
  assert "predict: stopped before 1 of 3 pictures" in capsys.readouterr().err
  index = json.loads((tmp_path / "predictions.json").read_text())
  assert [p["file"] for p in index["pictures"] if "error" in p] == [str(pictures[-1])]
  assert not (tmp_path / "captions.json").exists() and (tmp_path / "classes.txt").exists()
  monkeypatch.setattr(predict_files, "write_one", write_one)
  assert run(workdir_of("deeplab_semantic"), tmp_path, "--image", pictures[-1], "--labels") == 2   # another command
  assert run(workdir_of("deeplab_semantic"), tmp_path, *words) == 0
  index = json.loads((tmp_path / "predictions.json").read_text())
  assert not any("error" in p for p in index["pictures"]) and len(list((tmp_path / "images").iterdir())) == 3


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, words, message", [
    ("deeplab_semantic", ["--image=nowhere"], "no file or folder 'nowhere'"),
    ("deeplab_semantic", ["--temperature=1"], "--temperature: polymax.per_pixel does not sample"),
    ("deeplab_semantic", ["--decode=ar"], "--decode: polymax.per_pixel has one form"),
    ("deeplab_semantic", ["--samples=3"], "--samples: polymax.per_pixel gives one prediction"),
    ("deeplab_semantic", ["--step=7"], "--workdir: no checkpoints in"),
    ("deeplab_semantic", ["--tempersture=1"], "unknown flag '--tempersture'; did you mean '--temperature'?"),
    ("deeplab_semantic", ["--overlay=maybe"], "'maybe' is neither true nor false"),
    ("deeplab_semantic", ["--batch_size=0"], "--batch_size: '0' is no whole number from 1 on"),
    ("deeplab_semantic", ["--config.seeed=1"], "did you mean 'seed'?"),
    ("uvim_depth", ["--samples=2", "--temperature=0"], "at temperature 0 are all the same"),
    ("uvim_depth", ["--decode=cashed"], "did you mean 'cached'?"),
    ("uvim_depth", ["--samples=2", "--labels"], "a picture has one label"),
    ("uvim_depth", ["--npz=true", "--labels"], "--npz: of a label there must be one file"),
    ("uvim_depth", ["--config.oracle.model_init=/nowhere.npz"], "config.oracle.model_init: no weights file"),
    ("mad", ["--decode=two_stage"], "did you mean 'one_stage'?"),
    ("mad", ["--temperature=1"], "--temperature: mad.decoder does not sample"),
])
def test_mistakes_are_one_line(name, words, message, workdir_of, data_dir, tmp_path, capsys):
  given = words if any(word.startswith("--image") for word in words) else [*words, f"--image={some(data_dir, 1)[0]}"]
  assert run(workdir_of(name), tmp_path / "out", *given) == 2
  error = capsys.readouterr().err.strip()
  assert error.startswith("predict: ") and message in error and "\n" not in error, error
  assert not (tmp_path / "out").exists()


def test_stage_one_cannot_predict(workdir_of, data_dir, tmp_path, capsys):
  folder = tmp_path / "stage1"
  shutil.copytree(workdir_of("uvim_depth"), folder)
  values = json.loads((folder / "config.json").read_text())
  values |= {"model_name": "proj.uvim.vit", "model": values["oracle"]["model"], "oracle": None}
  (folder / "config.json").write_text(json.dumps(values))
  shutil.copy(folder / "oracle.npz", folder / "weights.npz")
  assert run(folder, tmp_path / "out", "--image", *some(data_dir, 1)) == 2
  error = capsys.readouterr().err
  assert "UViM stage I cannot predict from a picture" in error and "stage II" in error
