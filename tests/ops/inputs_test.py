"""The picture's part of preprocessing strings in jnp: equal to TensorFlow's ops, for known and for open sizes."""

import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from pp_ops import builder, image_part
from uvim_like import config as configs
from uvim_like.errors import UserError
from uvim_like.inference import views
from uvim_like.ops import input_ops, inputs

ROOT = pathlib.Path(__file__).resolve().parents[2]
RANGE = "value_range(-1, 1)"
# String -> sizes of pictures (H, W): smaller and larger than the result, odd, wide, high.
STRINGS = {
    f"decode|resize(24)|{RANGE}|keep('image', 'labels')": [(37, 53), (24, 24), (11, 90), (24, 31)],
    f"resize((19, 33))|{RANGE}": [(40, 66), (7, 5)],
    f"resize(20, antialias=True)|{RANGE}": [(61, 37), (9, 14)],
    f"resize((12, 17), method='nearest')|{RANGE}": [(40, 66), (7, 5)],
    f"resize(16, method='area')|{RANGE}": [(50, 33), (32, 64)],
    f"resize(16, 'bicubic', True)|{RANGE}": [(50, 33), (9, 11)],
    f"resize(16, method='lanczos3', antialias=True)|{RANGE}": [(50, 33)],
    f"resize(28, inkey='image', outkey='image_ctx')|resize(14)|value_range(-1, 1, key='image_ctx')|{RANGE}": [(31, 45)],
    f"fit(40)|canvas(40)|{RANGE}|keep('image', 'valid_size')": [(37, 53), (90, 41), (10, 7), (40, 40)],
    f"fit((30, 50), antialias=True)|{RANGE}|canvas((32, 52), value=0.25)": [(37, 53), (90, 41), (10, 7)],
    f"resize_short(20, 33)|canvas(40, value=(1, 2, 3))|{RANGE}": [(37, 53), (90, 41), (10, 7)],
    f"canvas(64)|{RANGE}": [(37, 53), (64, 64)],
    f"resize_all((18, 27))|{RANGE}": [(37, 53), (11, 90)],
    "resize(9)|value_range(0, 1, 10, 200, True)": [(13, 8)],
}


def pictures(size, seed=0):
  """Noise, slopes and flat areas, where cutting off to whole levels shows a last bit."""
  rng = np.random.default_rng(seed)
  height, width = size
  slope = np.add.outer(np.arange(height) * 2, np.arange(width)) % 256
  flat = np.repeat(rng.integers(0, 256, (height, 1, 3)), width, axis=1)
  return [rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
          np.stack([slope, slope[::-1], 255 - slope], -1).astype(np.uint8), flat.astype(np.uint8)]


def assert_same(got, want, *, share=1.0):
  """Within 1e-4 of the value range, for at least a share of the values."""
  assert set(got) == set(want)
  for key, value in want.items():
    found, value = np.asarray(got[key], np.float64), np.asarray(value, np.float64)
    assert found.shape == value.shape, key
    apart = np.abs(found - value) > 1e-4 * (2 if key != "valid_size" else 0)
    assert np.mean(~apart) >= share, (key, apart.sum(), np.abs(found - value).max())


@pytest.mark.parametrize("text", STRINGS)
def test_equal_to_the_input_pipeline(text):
  part, program = image_part.make(text), inputs.compile_string(text)
  for size in STRINGS[text]:
    batch = pictures(size)
    got = jax.jit(lambda pixels: inputs.run(program, pixels))(np.stack(batch))
    rows = [part(picture) for picture in batch]
    assert_same(got, {key: np.stack([row[key] for row in rows]) for key in rows[0]})


@pytest.mark.parametrize("text", [text for text in STRINGS if "area" not in text and "lanczos" not in text])
def test_equal_where_sizes_are_open(text):
  program = inputs.compile_string(text)
  sides = jax_export.symbolic_shape("b, h, w, 3", constraints=["h <= 256", "w <= 256"])
  run = jax.jit(lambda pixels: inputs.run(program, pixels))
  exported = jax_export.export(run)(jax.ShapeDtypeStruct(sides, jnp.uint8))
  part = image_part.make(text)
  for size in STRINGS[text][:2]:
    batch = pictures(size)[:2]
    rows = [part(picture) for picture in batch]
    assert_same(exported.call(np.stack(batch)), {key: np.stack([row[key] for row in rows]) for key in rows[0]})


def test_grey_and_the_central_square():
  """The luma is a sum of decimal fractions whose last bit TensorFlow's product decides: one value in 10,000 is near a
  whole level."""
  text = f"square_area_resize(16)|rgb_to_grayscale_to_rgb|{RANGE}"
  part, program = image_part.make(text), inputs.compile_string(text)
  for size in ((50, 33), (32, 64), (7, 30)):
    batch = pictures(size)
    want = np.stack([part(picture)["image"] for picture in batch])
    assert_same(jax.jit(lambda x: inputs.run(program, x))(np.stack(batch)), {"image": want}, share=0.999)
  text = f"rgb_to_grayscale_to_rgb|{RANGE}"
  batch = pictures((40, 50))
  want = np.stack([image_part.make(text)(picture)["image"] for picture in batch])
  assert_same(inputs.run(inputs.compile_string(text), np.stack(batch)), {"image": want}, share=0.999)


def test_window_of_nyu():
  text = f"decode|nyu_depth|nyu_eval_crop|resize(32)|resize(32, key='labels', method='nearest')|{RANGE}|keep('image')"
  picture = pictures((480, 640))[0]
  program = inputs.compile_string(text)
  assert inputs.required_size(program) == (480, 640)
  cut = image_part.make(f"resize(32)|{RANGE}")(picture[54:480, 41:601])
  assert_same(inputs.run(program, picture[None]), {"image": cut["image"][None]})
  with pytest.raises(UserError, match="nyu_eval_crop needs 480x640 pixels, not 48x64"):
    inputs.run(program, np.zeros((1, 48, 64, 3), np.uint8))


def test_every_op_is_translated_or_refused_and_has_the_same_arguments():
  known = {**input_ops.KEY_OPS, **input_ops.STATE_OPS}
  tables = [set(known), set(inputs.LABEL_OPS), set(inputs.RANDOM_OPS)]
  ops = builder.load_ops()
  assert set(ops) == set.union(*tables) and sum(map(len, tables)) == len(ops)
  for name, function in known.items():
    own = list(inspect.signature(function).parameters.values())[1:]
    places = ("key", "inkey", "outkey") if name in input_ops.KEY_OPS else ()
    theirs = [p for p in ops[name].signature.parameters.values() if p.name not in places]
    if name != "resize_short":   # its default draws one of several sizes
      assert [(p.name, p.kind, p.default) for p in own] == [(p.name, p.kind, p.default) for p in theirs], name
  for name in inputs.RANDOM_OPS:
    assert ops[name].random or name in ("det_fliplr", "crop_box"), name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*/*.py")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_strings_of_all_configs(path):
  """Every evaluation of every recipe can be exported, as in the paper and on scenes."""
  for arguments in ("", ":scenes,runlocal"):
    config = configs.with_defaults(configs.load_file(f"{path}{arguments}"))
    for view in views.views(config):
      program = inputs.compile_string(view.pp.split(";")[0], where=view.name)
      fixed = inputs.required_size(program) or inputs.largest_size(program)
      height, width = fixed or (8, 12)
      if "resize_short(800" in view.pp or (height > 256 and inputs.required_size(program) is None):
        continue   # shapes alone would be large; the ops are tried above
      out = jax.eval_shape(lambda x, program=program: inputs.run(program, x),
                           jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8))
      assert out["image"].shape[-1] == 3 and out["image"].dtype == jnp.float32


def test_what_a_canvas_allows():
  program = inputs.compile_string(f"instances|canvas(64)|{RANGE}")
  assert inputs.largest_size(program) == (64, 64) and inputs.fixed_output(program)
  with pytest.raises(UserError, match=r"pictures of 65x20 pixels do not fit into canvas\(64, 64\)"):
    inputs.run(program, np.zeros((1, 65, 20, 3), np.uint8))
  assert inputs.largest_size(inputs.compile_string(f"fit(64)|canvas(64)|{RANGE}")) is None
  assert not inputs.fixed_output(inputs.compile_string(f"resize(9, outkey='image_ctx')|{RANGE}"))


def test_keys_that_are_no_picture():
  text = f"copy('image', 'labels')|rgb_to_grayscale_to_rgb|check_range(0, 255)|{RANGE}|value_range(-1, 1, key='labels')"
  picture = pictures((5, 6))[0][None]
  assert set(inputs.run(inputs.compile_string(text), picture)) == {"image", "labels"}
  text = f"resize(4, key='labels')|copy('depth', 'ground_truth')|{RANGE}|drop('semantics')|keep('image', 'labels')"
  out = inputs.run(inputs.compile_string(text), picture)
  assert set(out) == {"image"} and out["image"].shape == (1, 5, 6, 3)


@pytest.mark.parametrize("text, message", [
    ("decode|resise(64)", "the op 'resise' is not known to export; did you mean 'resize'"),
    ("decode|random_flip|resize(64)", "'random_flip' draws at random"),
    ("resize(64, method='bicubic')", "is known with antialias=True only"),
    ("resize(64, method='cubical')", "resize(method='cubical') is not known to export"),
    ("resize(64, how=1)", "resize: got an unexpected keyword argument 'how'"),
    ("resize(size)", "arguments of 'resize' are not literals"),
    ("resize(64)|", "is not op|op"),
    ("resize(64)|keep('labels')", "does not put out 'image'"),
    ("concat(['image', 'labels'])", "'concat' of the picture itself"),
    ("resize_short((480, 800))", "draws a size at random"),
    ("decode(channels=1)", "pictures of three channels"),
])
def test_what_cannot_be_exported(text, message):
  with pytest.raises(UserError) as caught:
    inputs.run(inputs.compile_string(text, where="config.val.pp"), np.zeros((1, 8, 9, 3), np.uint8))
  assert message in str(caught.value)


def test_a_size_that_stays_open_is_refused():
  program = inputs.compile_string(f"fit(16)|{RANGE}")
  sides = jax_export.symbolic_shape("b, h, w, 3")
  with pytest.raises(UserError, match="'image' has no fixed size"):
    jax.eval_shape(lambda x: inputs.run(program, x), jax.ShapeDtypeStruct(sides, jnp.uint8))
  assert inputs.run(program, np.zeros((1, 8, 32, 3), np.uint8))["image"].shape == (1, 4, 16, 3)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.float32),
                                    np.zeros((1, 4, 4, 4), np.uint8)])
def test_pixels_of_another_kind(pixels):
  with pytest.raises(UserError, match="pixels are uint8"):
    inputs.run(inputs.compile_string(RANGE), pixels)
