"""The image part of a string, and pictures of any kind as pixels."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pp_ops import builder, image_part, pictures
from uvim_like.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 44, 3)).astype(np.uint8)


def names(part):
  return [step.call.name for step in part.program.steps]


@pytest.mark.parametrize("pp, kept, keys, left_out", [
    ('nyu_depth|nyu_eval_crop|copy("labels", "ground_truth")|resize(16)|value_range(-1, 1)|'
     'keep("image", "ground_truth")',
     ["resize", "value_range"], ("image",), ("nyu_eval_crop",)),
    ('semantic_labels|copy("labels", "ground_truth")|resize((16, 24))|resize(16, key="labels", method="nearest")|'
     'value_range(-1, 1)|keep("image", "labels")', ["resize", "value_range"], ("image",), ()),
    ('resize(8, inkey="image", outkey="image_ctx")|resize(16)|value_range(-1, 1, key="image_ctx")|value_range(-1, 1)|'
     'keep("image", "image_ctx", "image/id")',
     ["resize", "resize", "value_range", "value_range"], ("image", "image_ctx"), ()),
    ('decode|panoptic_masks|instances|box_masks(8)|tokenize_captions("scenes")|canvas(64)|pad_instances(12)|'
     'value_range(-1, 1)|keep("image", "valid_size", "boxes")',
     ["decode", "shrink_to", "canvas", "value_range"], ("image", "valid_size"), ()),
    ('square_area_resize(16)|copy("image", "labels")|rgb_to_grayscale_to_rgb|value_range(-1, 1, key="image")|'
     'value_range(-1, 1, key="labels")|keep("image", "labels")',
     ["square_area_resize", "copy", "rgb_to_grayscale_to_rgb", "value_range", "value_range"], ("image",), ()),
])
def test_what_needs_the_image_alone_stays(pp, kept, keys, left_out):
  part = image_part.make(pp)
  assert names(part) == kept and part.keys == keys and part.left_out == left_out
  out = part(PIXELS)
  assert tuple(out) == keys
  for key in keys:
    assert out[key].shape == part.shapes[key]


def test_equal_to_the_string_itself():
  pp = "resize(16)|value_range(-1, 1)"
  whole = builder.run(builder.compile_string(pp), {"image": tf.constant(PIXELS), "_seed": tf.zeros(2, tf.int64)})
  assert np.array_equal(image_part.make(pp)(PIXELS)["image"], whole["image"])


def test_a_free_size_is_known_as_one():
  part = image_part.make('value_range(-1, 1)|keep("image")')
  assert part.shapes == {"image": (None, None, 3)} and part(PIXELS)["image"].shape == (30, 44, 3)
  assert image_part.make("square_area_resize(8)").square and not part.square


def test_large_pictures_are_reduced_for_a_canvas_and_small_ones_stay():
  part = image_part.make('canvas(32)|value_range(-1, 1)|keep("image", "valid_size")')
  out = part(PIXELS)
  assert out["image"].shape == (32, 32, 3) and out["valid_size"].tolist() == [21, 32]
  small = PIXELS[:10, :20]
  out = part(small)
  assert out["valid_size"].tolist() == [10, 20]
  np.testing.assert_allclose(out["image"][:10, :20], small / 127.5 - 1, atol=1e-6)
  assert part(PIXELS[:1])["valid_size"].tolist() == [1, 32]


def encoded(image, form, **options):
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


@pytest.mark.parametrize("dataset", ["folder", "coco_json"])
def test_formats(dataset):
  read = lambda image, form, **options: pictures.decode(  # noqa: E731
      encoded(image, form, **options), name="x", dataset=dataset)
  image = Image.fromarray(PIXELS)
  for form in ("PNG", "BMP", "TIFF"):
    assert np.array_equal(read(image, form), PIXELS), form
  assert np.array_equal(read(image, "WEBP", lossless=True), PIXELS)
  data = encoded(image, "JPEG")
  own = np.asarray(Image.open(io.BytesIO(data))) if dataset == "folder" else tf.io.decode_jpeg(data).numpy()
  assert np.array_equal(read(image, "JPEG"), own)
  few = image.quantize(8)
  for form in ("PNG", "GIF"):
    assert np.array_equal(read(few, form), np.asarray(few.convert("RGB"))), form
  alpha = np.dstack([PIXELS, PIXELS[..., 0]])
  assert np.array_equal(read(Image.fromarray(alpha), "PNG"), PIXELS)
  grey = Image.fromarray(PIXELS[..., 1])
  assert np.array_equal(read(grey, "PNG"), np.repeat(PIXELS[..., 1:2], 3, -1))
  assert np.array_equal(read(grey.convert("1"), "PNG")[..., 0], np.asarray(grey.convert("1")) * 255)
  deep = RNG.integers(0, 2 ** 16, (5, 6)).astype(np.uint16)
  for form in ("PNG", "TIFF"):
    assert np.array_equal(read(Image.fromarray(deep), form), np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, -1))


@pytest.mark.parametrize("orientation, turned", [
    (1, PIXELS), (2, PIXELS[:, ::-1]), (3, PIXELS[::-1, ::-1]), (4, PIXELS[::-1]), (5, PIXELS.swapaxes(0, 1)),
    (6, np.rot90(PIXELS, -1)), (7, PIXELS[::-1, ::-1].swapaxes(0, 1)), (8, np.rot90(PIXELS))])
def test_pictures_are_turned_as_pillow_turns_them(orientation, turned):
  from PIL import ImageOps
  image = Image.fromarray(PIXELS)
  exif = image.getexif()
  exif[0x0112] = orientation
  data = encoded(image, "PNG", exif=exif)
  want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
  for dataset in ("folder", ""):
    assert np.array_equal(pictures.decode(data, name="x", dataset=dataset), want)
  assert np.array_equal(want, turned)


def test_what_is_no_picture_is_one_line(tmp_path):
  whole = encoded(Image.fromarray(PIXELS), "JPEG")
  for number, data in enumerate((b"", b"text", whole[:len(whole) // 2], whole[:30], b"\x89PNG\r\n\x1a\n" + bytes(40))):
    path = tmp_path / f"{number}.png"
    path.write_bytes(data)
    for dataset in ("folder", "coco_json"):
      with pytest.raises(UserError) as error:
        pictures.read(path, dataset=dataset)
      text = str(error.value)
      assert text.startswith(str(path)) and "\n" not in text and "BytesIO" not in text
  with pytest.raises(UserError, match="No such file"):
    pictures.read(tmp_path / "none.png")
  with pytest.raises(UserError, match="more than MAX_PIXELS"):
    pictures.decode(encoded(Image.new("1", (20_000, 5_000)), "PNG"), name="bomb")


def test_arrays():
  assert np.array_equal(pictures.of_array(PIXELS), PIXELS)
  assert np.array_equal(pictures.of_array(PIXELS[..., 0]), np.repeat(PIXELS[..., :1], 3, -1))
  assert np.array_equal(pictures.of_array(np.dstack([PIXELS, PIXELS[..., 0]])), PIXELS)
  for wrong in (PIXELS.astype(np.float32), PIXELS[None], PIXELS[:0], PIXELS[..., :2]):
    with pytest.raises(UserError, match="an array"):
      pictures.of_array(wrong)


def test_suffixes():
  assert {".jpg", ".jpeg", ".png", ".gif", ".webp", ".tif", ".bmp"} <= pictures.suffixes()
  assert not {".txt", ".pdf", ".npz", ".mpg", ".h5", ".eps"} & pictures.suffixes()
