"""Tiny datasets of generated pictures: real TFDS builders run on local files, COCO's layout, a folder."""

import functools
import json
import os
import pathlib
import types
import zipfile
from unittest import mock

import numpy as np
import pytest
from PIL import Image

SIZES = [(40, 52), (48, 36), (33, 47), (40, 40)]   # never square by habit


def picture(index: int) -> tuple[np.ndarray, np.ndarray, list[dict]]:
  """(image uint8 (H, W, 3), ids (H, W), segments) with void, a stuff segment in two pieces, things, one crowd."""
  rng = np.random.RandomState(index)
  h, w = SIZES[index % len(SIZES)]
  ids = np.zeros((h, w), np.int64)
  numbers = np.unique(rng.randint(1, 2 ** 24, 4))
  assert len(numbers) == 4
  boxes = [(0, 0, h // 2, w), (h // 2, 2, h - 3, w // 3), (5, 6, 20, 18), (h // 2, w // 2, h - 1, w - 2)]
  categories = [1 + 2 * int(c) for c in rng.choice(133, 4, replace=False)]
  for number, (top, left, bottom, right) in zip(numbers, boxes):
    ids[top:bottom, left:right] = number
  image = np.clip(rng.randint(0, 60, (h, w, 3)) + (ids % 190)[..., None], 0, 255).astype(np.uint8)
  segments = [dict(id=int(n), category_id=c, area=int((ids == n).sum()), bbox=[left, top, right - left, bottom - top],
                   iscrowd=int(i == 3))
              for i, (n, c, (top, left, bottom, right)) in enumerate(zip(numbers, categories, boxes))]
  return image, ids, segments


def rgb_ids(ids: np.ndarray) -> np.ndarray:
  return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], -1).astype(np.uint8)


def panoptic_table(indices) -> dict:
  """A COCO panoptic JSON with 133 categories whose ids have gaps."""
  things = [picture(i) for i in indices]
  return {
      "images": [dict(id=1000 + i, file_name=f"{1000 + i:012d}.jpg", height=im.shape[0], width=im.shape[1])
                 for i, (im, _, _) in zip(indices, things)],
      "annotations": [dict(image_id=1000 + i, file_name=f"{1000 + i:012d}.png", segments_info=segments)
                      for i, (_, _, segments) in zip(indices, things)],
      "categories": [dict(id=1 + 2 * c, name=f"class {c}", isthing=int(c < 80), supercategory="x")
                     for c in range(133)]}


def write_pictures(indices, images: pathlib.Path, maps: pathlib.Path) -> None:
  for folder in (images, maps):
    folder.mkdir(parents=True, exist_ok=True)
  for i in indices:
    image, ids, _ = picture(i)
    Image.fromarray(image).save(images / f"{1000 + i:012d}.jpg", quality=95)
    Image.fromarray(rgb_ids(ids)).save(maps / f"{1000 + i:012d}.png")


COCO_SPLITS = {"train2017": range(9), "val2017": range(9, 12)}


def prepare_coco(raw: pathlib.Path, data_dir: pathlib.Path) -> None:
  """Runs the real builder; only the download manager is told where the files lie."""
  import tensorflow_datasets as tfds
  notes = raw / "panoptic_annotations_trainval2017" / "annotations"
  for split, indices in COCO_SPLITS.items():
    maps = raw / "maps" / f"panoptic_{split}"
    write_pictures(indices, raw / f"{split}_images" / split, maps)
    notes.mkdir(parents=True, exist_ok=True)
    (notes / f"panoptic_{split}.json").write_text(json.dumps(panoptic_table(indices)))
    with zipfile.ZipFile(notes / f"panoptic_{split}.zip", "w") as archive:
      for path in maps.iterdir():
        archive.write(path, f"panoptic_{split}/{path.name}")
  with local_downloads(functools.partial(_coco_folders, raw), _unzip):
    builder = tfds.builder("coco/2017_panoptic", data_dir=data_dir)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))


def _coco_folders(raw, urls):
  return {k: str(raw / (f"{name}_images" if k.endswith("_images") else name))
          for k, name in ((k, os.path.basename(u).removesuffix(".zip")) for k, u in urls.items())}


def _unzip(path):
  target = f"{str(path).removesuffix('.zip')}_unzipped"
  with zipfile.ZipFile(path) as archive:
    archive.extractall(target)
  return target


def local_downloads(download, extract):
  import tensorflow_datasets as tfds
  return mock.patch.multiple(
      tfds.download.DownloadManager, download_and_extract=lambda self, urls: download(urls),
      extract=lambda self, path: extract(path))


def nyu_frame(index: int) -> tuple[np.ndarray, np.ndarray]:
  """(rgb uint8 (480, 640, 3), depth float32 (480, 640) metres with holes)."""
  y, x = np.mgrid[:480, :640]
  depth = (1.5 + 6 * y / 480 + 0.5 * np.sin(x / 50 + index)).astype(np.float32)
  depth[:8], depth[200:220, 300:360] = 0, 0
  return np.repeat((depth * 30).astype(np.uint8)[..., None], 3, -1), depth


def prepare_nyu(raw: pathlib.Path, data_dir: pathlib.Path) -> None:
  import h5py
  import tensorflow_datasets as tfds
  for split, scene in (("train", "kitchen_0001"), ("val", "official")):
    folder = raw / "nyudepthv2" / split / scene
    folder.mkdir(parents=True)
    for i in range(3):
      image, depth = nyu_frame(i)
      with h5py.File(folder / f"{i:05d}.h5", "w") as file:
        file["rgb"], file["depth"] = image.transpose(2, 0, 1), depth
  with local_downloads(lambda _: str(raw), lambda path: path):
    tfds.builder("nyu_depth_v2", data_dir=data_dir).download_and_prepare()


@pytest.fixture(scope="session")
def pictures() -> types.SimpleNamespace:
  """The functions above that say what the files hold."""
  return types.SimpleNamespace(picture=picture, class_map=class_map, millimetres=millimetres,
                               write_pictures=write_pictures, panoptic_table=panoptic_table)


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory) -> str:
  """A data_dir with coco/2017_panoptic (9 + 3) and nyu_depth_v2 (3 + 3), as TFRECORD."""
  root = tmp_path_factory.mktemp("tfds")
  prepare_coco(root / "raw_coco", root / "data")
  prepare_nyu(root / "raw_nyu", root / "data")
  return str(root / "data")


@pytest.fixture(scope="session")
def coco_dir(tmp_path_factory) -> str:
  """The unpacked official layout: annotations/, panoptic_<split>/, <split>/."""
  root = tmp_path_factory.mktemp("coco")
  (root / "annotations").mkdir()
  for split, indices in COCO_SPLITS.items():
    write_pictures(indices, root / split, root / f"panoptic_{split}")
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(panoptic_table(indices)))
  return str(root)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  """images/ (one PNG, four JPEG) with labels/ (palette PNG) and depth/ (16-bit PNG, one .npy)."""
  for name in ("images", "labels", "depth"):
    (tmp_path / name).mkdir()
  for i in range(5):
    image, ids, _ = picture(i)
    stem = f"street_{i}"
    Image.fromarray(image).save(tmp_path / "images" / (f"{stem}.PNG" if i == 0 else f"{stem}.jpg"))
    classes = Image.fromarray(class_map(ids), mode="P")
    classes.putpalette(list(np.random.RandomState(0).randint(0, 255, 768)))
    classes.save(tmp_path / "labels" / f"{stem}.png")
    if i == 4:
      np.save(tmp_path / "depth" / f"{stem}.npy", millimetres(ids) / 1000)
    else:
      Image.fromarray(millimetres(ids)).save(tmp_path / "depth" / f"{stem}.png")
  return tmp_path


def class_map(ids: np.ndarray) -> np.ndarray:
  """Eleven classes and 255 for void."""
  return np.where(ids == 0, 255, ids % 11).astype(np.uint8)


def millimetres(ids: np.ndarray) -> np.ndarray:
  return (ids % 9000).astype(np.uint16)
