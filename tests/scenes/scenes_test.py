"""The dataset as its users see it: determinism, ranges, conventions and shares."""

import hashlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from uvim_like import scenes
from uvim_like.errors import UserError
from uvim_like.scenes import captions, stream
from uvim_like.scenes.classes import CATEGORY_IDS, LABELS, NAMES, VOID, categories

HERE = pathlib.Path(__file__).resolve().parent
PERSON = LABELS["person"]


@pytest.fixture(scope="module")
def many():
  """Eighty small examples."""
  return [scenes.example("validation", i, size=64) for i in range(80)]


@pytest.fixture(scope="module")
def few():
  """Ten examples at the default size and five that are not square."""
  return [scenes.example("train", i) for i in range(10)] + [scenes.example("test", i, size=(60, 96)) for i in range(5)]


def flatten(example, prefix=""):
  for key, value in example.items():
    if isinstance(value, dict):
      yield from flatten(value, f"{prefix}{key}/")
    else:
      yield prefix + key, value


def digest(example):
  total = hashlib.sha256()
  for key, value in flatten(example):
    data = repr(value.tolist()).encode() if np.asarray(value).dtype == object else np.asarray(value).tobytes()
    total.update(key.encode() + data)
  return total.hexdigest()


def ids_of(example):
  return example["panoptic_image"].astype(np.int64) @ [1, 256, 65536]


def test_features_have_their_names_types_and_shapes(few):
  for e in few:
    h, w = e["image"].shape[:2]
    n, m = len(e["panoptic_objects"]["id"]), len(e["objects"]["id"])
    expected = {
        "image": ("uint8", (h, w, 3)), "image/id": ("int64", ()), "depth": ("float16", (h, w)),
        "normals": ("uint8", (h, w, 3)), "semantic": ("uint8", (h, w, 1)), "panoptic_image": ("uint8", (h, w, 3)),
        "panoptic_objects/id": ("int64", (n,)), "panoptic_objects/area": ("int64", (n,)),
        "panoptic_objects/bbox": ("float32", (n, 4)), "panoptic_objects/label": ("int64", (n,)),
        "panoptic_objects/is_crowd": ("bool", (n,)), "objects/id": ("int64", (m,)), "objects/area": ("int64", (m,)),
        "objects/bbox": ("float32", (m, 4)), "objects/label": ("int64", (m,)), "objects/is_crowd": ("bool", (m,)),
        "objects/keypoints": ("float32", (m, 17, 3)), "objects/num_keypoints": ("int64", (m,)),
        "captions/id": ("int64", (5,)), "captions/text": ("object", (5,)), "camera/tan_half_fov": ("float32", ())}
    flat = dict(flatten(e))
    assert isinstance(flat.pop("image/filename"), str) and isinstance(flat.pop("panoptic_image/filename"), str)
    assert {key: (str(value.dtype), value.shape) for key, value in flat.items()} == expected


def test_an_example_is_the_same_in_every_order_and_process(many):
  mine = [digest(scenes.example("validation", i, size=64)) for i in (5, 0, 3)]
  assert mine == [digest(many[i]) for i in (5, 0, 3)]
  code = (f"import sys; sys.path.insert(0, {str(HERE)!r}); from scenes_test import digest;"
          "from uvim_like import scenes;"
          "print(*[digest(scenes.example('validation', i, size=64)) for i in (5, 0, 3)])")
  printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           cwd=HERE.parent.parent).stdout
  assert printed.split() == mine
  assert len({digest(e) for e in many}) == len(many)


def test_workers_change_nothing(many):
  rendered = list(stream.examples("validation", 66, size=64, workers=2))
  assert [digest(e) for e in rendered] == [digest(e) for e in many[:66]]


def test_splits_differ_and_ids_are_unique():
  examples = [scenes.example(split, i, size=16) for split in scenes.SPLITS for i in (0, 1)]
  assert len({int(e["image/id"]) for e in examples}) == len({e["image/filename"] for e in examples}) == 6
  assert len({int(c) for e in examples for c in e["captions"]["id"]}) == 30
  assert len({e["camera"]["tan_half_fov"].item() for e in examples}) == 6


@pytest.mark.parametrize("index", range(4))
def test_the_scene_does_not_depend_on_the_size(index):
  small, large = (scenes.example("train", index, size=size) for size in (64, 192))
  wide = scenes.example("train", index, size=(144, 192))
  assert small["camera"] == large["camera"] == wide["camera"]
  # 192 = 3 × 64: the middle one of three pixels has the very centre of the small image's pixel.
  same = ids_of(small) == ids_of(large)[1::3, 1::3]
  assert same.mean() > 0.88  # the void band is one pixel wide at every size, and tiny segments go by area
  large_ids = ids_of(large)[24:168]  # a wide image is the middle of the square one
  assert (large_ids == ids_of(wide)).mean() > 0.97
  assert np.abs(small["depth"].astype(float) - large["depth"][1::3, 1::3])[
      (small["depth"] > 0) & (large["depth"][1::3, 1::3] > 0)].mean() < 0.1


def test_panoptic_ids_areas_boxes_and_semantics_agree(many, few):
  for e in many + few:
    ids, objects = ids_of(e), e["panoptic_objects"]
    h, w = ids.shape
    assert set(np.unique(ids)) - {0} == set(objects["id"].tolist()) and len(set(objects["id"])) == len(objects["id"])
    for number, area, box, label in zip(*(objects[k] for k in ("id", "area", "bbox", "label"))):
      mask = ids == number
      ys, xs = np.nonzero(mask)
      assert mask.sum() == area
      np.testing.assert_allclose(box * [h, w, h, w], [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1], atol=1e-4)
      assert (e["semantic"][mask] == label).all()
    np.testing.assert_array_equal(e["semantic"][..., 0] == VOID, ids == 0)
    stuff = objects["label"][objects["label"] >= 5]
    assert len(set(stuff)) == len(stuff) and not objects["is_crowd"][objects["label"] >= 5].any()


def test_objects_are_the_things_of_the_panoptic_list(many):
  for e in many:
    things = e["panoptic_objects"]["label"] < 5
    for key in ("id", "area", "bbox", "label", "is_crowd"):
      np.testing.assert_array_equal(e["objects"][key], e["panoptic_objects"][key][things])


def test_keypoints_lie_in_the_image_and_visible_ones_on_the_person(many, few):
  flags = []
  for e in many + few:
    ids, objects = ids_of(e), e["objects"]
    h, w = ids.shape
    for number, label, points, count in zip(*(objects[k] for k in ("id", "label", "keypoints", "num_keypoints"))):
      if label != PERSON:
        assert not points.any() and count == 0
        continue
      x, y, flag = points.T
      assert count == (flag > 0).sum() and set(flag) <= {0, 1, 2} and not points[flag == 0].any()
      assert (x >= 0).all() and (x < w).all() and (y >= 0).all() and (y < h).all()
      at = ids[y[flag == 2].astype(int), x[flag == 2].astype(int)]
      assert np.isin(at, [number, 0]).all()  # 0: the unlabelled line along an outline
      flags += flag.tolist()
  assert 0.4 < np.mean(np.array(flags) == 2) < 0.8 and 0.15 < np.mean(np.array(flags) == 1) < 0.5


def test_depth_is_in_range_with_holes(many):
  depth = np.stack([e["depth"] for e in many]).astype(np.float32)
  seen = depth[depth > 0]
  assert np.isfinite(depth).all() and seen.min() > 0.2 and seen.max() < 10.5
  assert 0.03 < (depth == 0).mean() < 0.13


def test_normals_are_unit_face_the_camera_and_are_missing_with_depth(few):
  for e in few:
    h, w = e["depth"].shape
    valid = e["normals"].any(-1)
    np.testing.assert_array_equal(valid, e["depth"] > 0)
    n = e["normals"].astype(float) / 127.5 - 1
    np.testing.assert_allclose(np.linalg.norm(n[valid], axis=-1), 1, atol=0.01)
    k = e["camera"]["tan_half_fov"]
    x = ((np.arange(w) + 0.5) / w * 2 - 1) * k
    y = (1 - (np.arange(h) + 0.5) / h * 2) * k * h / w
    to_camera = -np.stack(np.broadcast_arrays(x[None], y[:, None], -1.0), -1)  # z points towards the camera
    assert ((n * to_camera).sum(-1)[valid] > -0.01).all()
    floor = valid & (e["semantic"][..., 0] == LABELS["floor"])
    assert (n[floor][:, 1] > 0.8).all()  # the floor looks up


def test_shares_of_void_people_crowds_and_things(many):
  void = np.array([(e["semantic"] == VOID).mean() for e in many])
  assert 0.01 < void.mean() < 0.05 and (void == 0).any()
  assert np.mean([(e["objects"]["label"] == PERSON).any() for e in many]) >= 0.5
  assert any(e["objects"]["is_crowd"].any() for e in many)
  seen = {label for e in many for label in e["panoptic_objects"]["label"].tolist()}
  assert seen == set(range(len(NAMES)))
  largest = np.array([e["objects"]["area"].max() for e in many]) / 64 ** 2
  assert largest.max() <= 0.6 and largest.min() >= 60 / 128 ** 2


def test_captions_are_five_short_lower_case_texts_of_known_words(many):
  texts = [text for e in many for text in e["captions"]["text"]]
  words = {word for text in texts for word in text.split(" ")}
  assert words <= set(captions.VOCABULARY) and 35 <= len(captions.VOCABULARY) <= 60
  assert all(text == text.lower() and text.replace(" ", "").isalpha() for text in texts)
  assert 6 < np.mean([len(text.split()) for text in texts]) < 12
  assert len(set(texts)) > 0.6 * len(texts)


def test_classes_number_labels_by_ascending_id():
  assert list(CATEGORY_IDS) == sorted(CATEGORY_IDS) and len(CATEGORY_IDS) == len(NAMES) == 10
  assert [c["isthing"] for c in categories()] == [1] * 5 + [0] * 5
  assert max(np.diff(CATEGORY_IDS)) > 1


def test_names_of_configs():
  assert scenes.parse_name("scenes") == scenes.parse_name("scenes/full") == scenes.CONFIGS["full"]
  assert scenes.parse_name("scenes/mini").size == 64 and scenes.parse_name("scenes/tiny").splits["test"] == 16
  with pytest.raises(UserError, match="did you mean 'scenes/mini'"):
    scenes.parse_name("scenes/mimi")
  for wrong in ("scene", "scenes/", "coco/2017_panoptic", "scenes/mini/x"):
    with pytest.raises(UserError, match="unknown dataset"):
      scenes.parse_name(wrong)
  with pytest.raises(UserError, match="did you mean 'validation'"):
    scenes.example("validatoin", 0)
