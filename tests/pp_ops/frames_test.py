"""NYU Depth V2 and Taskonomy from files as they are published, made up here in a few pixels."""

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from pp_ops import pipeline
from pp_ops.sources import open_source
from uvim_like.errors import UserError
from uvim_like.tasks import nyu40

H, W, FRAMES = 12, 16, 6


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)


@pytest.fixture
def labelled(tmp_path):
  """nyu_depth_v2_labeled.mat with its tables and normals; MATLAB's axes are the other way round."""
  rng = np.random.RandomState(0)
  arrays = dict(images=rng.randint(0, 256, (FRAMES, 3, W, H)).astype(np.uint8),
                depths=rng.uniform(0.7, 9, (FRAMES, W, H)).astype(np.float32),
                labels=rng.randint(0, 895, (FRAMES, W, H)).astype(np.uint16))
  arrays["rawDepths"] = np.where(rng.uniform(size=(FRAMES, W, H)) < 0.2, 0, arrays["depths"]).astype(np.float32)
  with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
    for key, value in arrays.items():
      file[key] = value
  mapping = rng.randint(1, 41, 894)
  scipy.io.savemat(tmp_path / "classMapping40.mat", {"mapClass": mapping[None]})
  scipy.io.savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[5], [2], [1]]), "testNdxs": np.array([[3], [6]])})
  for i in range(FRAMES):
    save(tmp_path / "normals" / f"{i + 1:04d}.png", rng.randint(0, 256, (H, W, 3)).astype(np.uint8))
  return tmp_path, arrays, mapping


def test_labelled_frames(labelled):
  root, arrays, mapping = labelled
  train, test = (open_source("nyu", split, data_dir=str(root)) for split in ("train", "validation"))
  assert len(train) == 3 and len(test) == 2 and len(open_source("nyu", "frames", data_dir=str(root))) == FRAMES
  assert [train.example_id(i) for i in range(3)] == ["0001", "0002", "0005"] and test.example_id(1) == "0006"
  one = test[0]
  assert one["image"].shape == (H, W, 3) and one["image/id"] == 3
  np.testing.assert_array_equal(one["image"][4, 7], arrays["images"][2, :, 7, 4])
  np.testing.assert_array_equal(one["depth"], arrays["rawDepths"][2].T)
  np.testing.assert_array_equal(one["depth_filled"], arrays["depths"][2].T)
  raw = arrays["labels"][2].T
  np.testing.assert_array_equal(one["labels_raw"][..., 0], raw)
  np.testing.assert_array_equal(one["semantic"][..., 0], np.where(raw == 0, 255, mapping[raw.astype(int) - 1] - 1))
  np.testing.assert_array_equal(one["normals"], np.asarray(Image.open(root / "normals" / "0003.png")))
  for key, spec in test.features.items():
    assert spec.shape.is_compatible_with(np.shape(one[key])), key


def test_labelled_frames_train(labelled):
  root, _, _ = labelled
  for label in ("semantic_labels", "normal_labels", "depth_labels"):
    batches = pipeline.train_batches(dataset="nyu", split="train", data_dir=str(root), batch_size=3,
                                     pp=f"decode|random_flip|{label}|value_range(-1, 1)|keep('image', 'labels')")
    batch = next(batches)
    batches.close()
    assert batch["labels"].shape[:3] == (3, H, W) and sorted(batch["_index"]) == [0, 1, 2]


def test_tables_that_are_missing_leave_their_features_out(labelled):
  root, _, _ = labelled
  (root / "classMapping40.mat").unlink()
  (root / "splits.mat").unlink()
  source = open_source("nyu", "frames[:2]", data_dir=str(root))
  assert "semantic" not in source.features and len(source) == 2
  with pytest.raises(UserError, match="unknown split 'train'"):
    open_source("nyu", "train", data_dir=str(root))
  scipy.io.savemat(root / "classMapping40.mat", {"other": np.ones(3)})
  with pytest.raises(UserError, match="no 'mapClass' in it"):
    open_source("nyu", "frames", data_dir=str(root))


def test_normals_of_another_size_are_named(labelled):
  root, _, _ = labelled
  save(root / "normals" / "0003.png", np.zeros((H, W + 1, 3), np.uint8))
  with pytest.raises(UserError, match="0003.png: 12x17 pixels, the frames have 12x16"):
    open_source("nyu", "test", data_dir=str(root))[0]


def test_synchronised_frames(tmp_path):
  for scene, numbers in (("kitchen_0001", (3, 12)), ("office_0002", (1,))):
    for n in numbers:
      save(tmp_path / scene / f"rgb_{n:05d}.jpg", np.full((H, W, 3), n, np.uint8))
      save(tmp_path / scene / f"sync_depth_{n:05d}.png", np.full((H, W), 1000 * n, np.uint16))
  test = tmp_path / "official_splits" / "test" / "bathroom"
  save(test / "rgb_00045.jpg", np.zeros((H, W, 3), np.uint8))
  save(test / "sync_depth_00045.png", np.full((H, W), 2500, np.uint16))
  train = open_source(f"nyu:{tmp_path}", "train")
  assert [train.example_id(i) for i in range(3)] == [
      "kitchen_0001/rgb_00003.jpg", "kitchen_0001/rgb_00012.jpg", "office_0002/rgb_00001.jpg"]
  np.testing.assert_allclose(train[1]["depth"], 12)
  one = open_source(f"nyu:{tmp_path}", "test")[0]
  np.testing.assert_allclose(one["depth"], 2.5)
  assert set(train.features) == {"image", "image/id", "image/filename", "depth"}
  assert train.features["image"].shape == (H, W, 3) and train.features["depth"].shape == (H, W)
  specs = pipeline.check(dataset=f"nyu:{tmp_path}", split="test", pp="depth_labels|keep('image', 'labels')")
  assert specs["labels"].shape == (H, W, 1)   # frames of one size are batches as they are
  save(tmp_path / "office_0002" / "sync_depth_00001.png", np.zeros((H, W + 2), np.uint16))
  with pytest.raises(UserError, match="sync_depth_00001.png: 12x18 pixels, but .*rgb_00003.jpg has 12x16, and all"):
    open_source(f"nyu:{tmp_path}", "train")[2]
  (tmp_path / "office_0002" / "sync_depth_00001.png").unlink()
  with pytest.raises(UserError, match="rgb_00001.jpg: there is no sync_depth_00001.png beside it"):
    open_source(f"nyu:{tmp_path}", "train")
  with pytest.raises(UserError, match="there is no such folder"):
    open_source(f"nyu:{tmp_path}/nowhere", "train")


def taskonomy(root, building, point):
  name = f"point_{point}_view_2_domain_"
  save(root / "rgb" / building / f"{name}rgb.png", np.full((H, W, 3), point, np.uint8))
  depth = np.full((H, W), 512 * point, np.uint16)
  depth[0, 0] = 65535
  save(root / "depth_zbuffer" / building / f"{name}depth_zbuffer.png", depth)
  save(root / "normal" / building / f"{name}normal.png", np.full((H, W, 3), 127, np.uint8))


def test_taskonomy(tmp_path):
  for building, point in (("allensville", 3), ("allensville", 5), ("beechwood", 7)):
    taskonomy(tmp_path, building, point)
  (tmp_path / "normal" / "allensville" / "point_5_view_2_domain_normal.png").unlink()   # the release has such gaps
  everything = open_source("taskonomy", "train", data_dir=str(tmp_path))
  assert [everything.example_id(i) for i in range(len(everything))] == ["allensville/point_3_view_2",
                                                                       "beechwood/point_7_view_2"]
  one = everything[1]
  assert one["depth"][0, 0] == 0 and one["depth"][3, 3] == 7 and one["normals"].shape == (H, W, 3)
  (tmp_path / "train_val_test_tiny.csv").write_text("id,train,val,test\nallensville,0,1,0\nbeechwood,1,0,0\n")
  assert open_source("taskonomy", "validation", data_dir=str(tmp_path)).example_id(0).startswith("allensville")
  with pytest.raises(UserError, match="no rgb/ with depth_zbuffer/ or normal/"):
    open_source("taskonomy", "train", data_dir=str(tmp_path / "rgb"))


def test_forty_classes_of_the_stored_maps(golden_dir, tmp_path):
  """The stored lookup, through a table in the published form."""
  paths = [p for p in sorted((golden_dir / "metrics").glob("*.npz")) if "nyu40" in p.name]
  assert paths
  for path in paths:
    with np.load(path) as data:
      raw, classes, ids = data["raw"], data["label40"], data["train_id"]
    table = np.ones(894, np.int64)
    table[raw[raw > 0].astype(int) - 1] = classes[raw > 0]
    scipy.io.savemat(tmp_path / "map.mat", {"mapClass": table[None]})
    mapping = nyu40.read_mapping(tmp_path / "map.mat")
    np.testing.assert_array_equal(nyu40.to_classes(raw, mapping), classes)
    np.testing.assert_array_equal(nyu40.to_train_ids(nyu40.to_classes(raw, mapping)), ids)
    with pytest.raises(UserError, match="NYU label 900"):
      nyu40.to_classes(np.array([900]), mapping)
