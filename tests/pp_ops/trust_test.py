"""Files from strangers: nothing outside their folder, nothing larger than a picture may be, nothing that runs."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from etils import epath
from PIL import Image

from pp_ops import ops_image, pipeline
from pp_ops.sources import open_source
from uvim_like import pictures
from uvim_like.errors import UserError

SIDE = 20_000


def png(width, height):
  """A picture of fifty bytes that claims so many pixels."""
  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
          + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))


def encoded(form, size=(7, 5)):
  out = io.BytesIO()
  Image.new("RGB", size, (9, 99, 199)).save(out, form)
  return out.getvalue()


def jpeg(width, height):
  data = encoded("JPEG")
  place = data.index(b"\xff\xc0")
  return data[:place + 5] + struct.pack(">HH", height, width) + data[place + 9:]


def bmp(width, height):
  return encoded("BMP")[:18] + struct.pack("<ii", width, height) + encoded("BMP")[26:]


def gif(width, height, frames=1):
  """The screen is small; the frames are not."""
  frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"
  return b"GIF89a" + struct.pack("<HHBBB", 7, 5, 0x80, 0, 0) + b"\0" * 6 + frame * frames + b";"


BOMBS = {"png": png(SIDE, SIDE), "png beyond an int": png(2 ** 32 - 1, 2 ** 32 - 1), "jpeg": jpeg(SIDE, SIDE),
         "bmp": bmp(SIDE, SIDE), "bmp upwards": bmp(SIDE, -SIDE), "gif": gif(SIDE, SIDE),
         "gif of frames": gif(3000, 3000, 20)}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(name, tmp_path):
  path = epath.Path(tmp_path / "bomb.png")
  path.write_bytes(BOMBS[name])
  for read in (pictures.open_image, pictures.read_bytes, pictures.image_size):
    with pytest.raises(UserError, match=r"bomb.png: .* pixels by its header .*, more than MAX_PIXELS = 89,478,485"):
      read(path)
  with pytest.raises(tf.errors.InvalidArgumentError, match="more than MAX_PIXELS = 89,478,485"):
    ops_image.decode(tf.constant(BOMBS[name]))
  with pytest.raises(tf.errors.InvalidArgumentError, match="more than MAX_PIXELS = 89,478,485"):
    ops_image.decode_jpeg_and_inception_crop(tf.constant(BOMBS[name]), tf.constant([1, 2], tf.int64), 8)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF"])
def test_sound_pictures_pass(form):
  data = encoded(form)
  assert pictures.header_size(io.BytesIO(data))[:2] == (5, 7)
  assert ops_image.decode(tf.constant(data)).shape == (5, 7, 3)
  graph = tf.function(ops_image.decode, input_signature=[tf.TensorSpec([], tf.string)])
  np.testing.assert_array_equal(graph(data), ops_image.decode(tf.constant(data)))


def test_largest_picture_is_just_allowed():
  height = pictures.MAX_PIXELS // 5
  assert pictures.checked_size(io.BytesIO(png(5, height)), "x") == (height, 5)
  with pytest.raises(UserError):
    pictures.checked_size(io.BytesIO(png(5, height + 1)), "x")


def test_targets_of_resize_are_bounded():
  for size in (0, -1, (10, 0), 10 ** 6, (8, 8.5), (8,)):
    with pytest.raises(ValueError, match="size must be"):
      ops_image.resize(tf.zeros([4, 4, 3]), size)


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path):
  """root/images with two pictures, and one that is nobody's business outside."""
  root = tmp_path / "data"
  (root / "images").mkdir(parents=True)
  for name in "ab":
    Image.new("RGB", (6, 4)).save(root / "images" / f"{name}.png")
  Image.new("RGB", (6, 4)).save(tmp_path / "secret.png")
  return root


def test_links_out_of_the_dataset_are_not_followed(photographs, tmp_path):
  os.symlink(tmp_path / "secret.png", photographs / "images" / "c.png")
  with pytest.raises(UserError, match=r"images/c.png: a link to .*secret.png, outside the dataset; copy the file"):
    open_source("folder", "train", data_dir=str(photographs))


def test_links_within_and_folders_that_are_links_are_fine(photographs, tmp_path):
  (photographs / "more").mkdir()
  Image.new("RGB", (6, 4)).save(photographs / "more" / "c.png")
  os.symlink(photographs / "more" / "c.png", photographs / "images" / "c.png")
  assert len(open_source("folder", "train", data_dir=str(photographs))) == 3
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "images").symlink_to(photographs / "images")
  (photographs / "images" / "c.png").unlink()
  assert len(open_source("folder", "train", data_dir=str(tmp_path / "other"))) == 2


@pytest.mark.parametrize("name", ["../secret.png", "../../etc/passwd", "/etc/passwd", "x/a.png", "..", ".", "",
                                  "a\\b.png", "C:a.png", "a\0.png", None, 3, ["a.png"]])
def test_names_in_tables_stay_in_their_folder(name, tmp_path):
  (tmp_path / "annotations").mkdir()
  for folder in ("train2017", "panoptic_train2017"):
    (tmp_path / folder).mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / folder / "a.png")
  for file in ("secret.png", "passwd"):  # so that the names of the files outside are there as well
    Image.new("RGB", (6, 4)).save(tmp_path / "train2017" / file, "PNG")
  for place in ("images", "annotations"):
    table = {"images": [dict(id=1, file_name="a.png", height=4, width=6)], "categories": [],
             "annotations": [dict(image_id=1, file_name="a.png", segments_info=[])]}
    table[place][0]["file_name"] = name
    (tmp_path / "annotations" / "panoptic_train2017.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match="is no plain file name"):
      open_source("coco_json", "train", data_dir=str(tmp_path))


# --- arrays -----------------------------------------------------------------------------------------------------------


class Evil:
  """Leaves a file behind when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


def test_pickled_depth_is_not_run(photographs, tmp_path):
  (photographs / "depth").mkdir()
  for name in "ab":
    np.save(photographs / "depth" / f"{name}.npy", np.array([Evil(tmp_path / "was here")], object), allow_pickle=True)
  batches = pipeline.eval_batches(dataset="folder", data_dir=str(photographs), split="train", batch_size=1,
                                  pp='resize(4)|keep("image")', target_keys=("depth",))
  with pytest.raises(UserError, match=r"example 'a': .*depth/a.npy: object of shape \(1,\); real numbers"):
    list(batches)
  assert not (tmp_path / "was here").exists()


def test_depth_that_claims_too_much(photographs):
  (photographs / "depth").mkdir()
  header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
  for name in "ab":
    (photographs / "depth" / f"{name}.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
  with pytest.raises(UserError, match="real numbers, at most 89,478,485 of them, are needed"):
    open_source("folder", "train", data_dir=str(photographs)).fetch(0, ("depth",))


@pytest.mark.parametrize("shape, message", [
    ([[1e9, 0, 0, 1e9, 5, 5]], "a polygon of 'segmentation' has points beyond 65536 pixels"),
    ([[float("nan"), 0, 0, 1, 5, 5]], "a polygon of 'segmentation' has points beyond 65536 pixels"),
    ({"size": [4, 6], "counts": []}, "run lengths of a mask do not fill its 4 x 6 pixels"),
    ({"size": [4, 6], "counts": [5, 10 ** 6]}, "run lengths of a mask cannot be read"),
    ({"size": [4, 6], "counts": "~~~"}, "run lengths of a mask cannot be read"),
    ({"size": [2 ** 20, 2 ** 20], "counts": [2 ** 40]}, "run lengths of a mask are for")])
def test_masks_that_a_rasteriser_would_write_past_its_memory_for(shape, message, tmp_path):
  (tmp_path / "annotations").mkdir()
  (tmp_path / "train2017").mkdir()
  Image.new("RGB", (6, 4)).save(tmp_path / "train2017" / "a.png")
  table = {"images": [dict(id=1, file_name="a.png", height=4, width=6)], "categories": [dict(id=1)],
           "annotations": [dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 1, 1], area=1, segmentation=shape)]}
  (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(table))
  with pytest.raises(UserError, match=message):
    open_source("coco_instances", "train", data_dir=str(tmp_path)).fetch(0, ("objects/masks",))
