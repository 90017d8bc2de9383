"""The mini-language: what parses, what is refused, and how the refusal reads."""

import pytest
import tensorflow as tf

from pp_ops import builder
from uvim_like.errors import UserError

FEATURES = {
    "image": tf.TensorSpec([], tf.string), "image/id": tf.TensorSpec([], tf.int64),
    "image/filename": tf.TensorSpec([], tf.string), "panoptic_image": tf.TensorSpec([None, None, 3], tf.uint8),
    "panoptic_objects/id": tf.TensorSpec([None], tf.int64), "panoptic_objects/label": tf.TensorSpec([None], tf.int64),
    "panoptic_objects/area": tf.TensorSpec([None], tf.int64)}


def specs(pp, features=FEATURES, modules=None):
  return builder.output_specs(builder.compile_string(pp, modules), features)


def test_literals_and_blanks():
  calls = builder.parse(' decode |\n op( -1, 2.5e-3 , [1,(2, "a ")], {"k": None}, x = True )|\tkeep( "image " , "labels" ) ')
  assert [c.name for c in calls] == ["decode", "op", "keep"]
  assert calls[1].args == (-1, 2.5e-3, [1, (2, "a")], {"k": None}) and calls[1].kwargs == {"x": True}
  assert calls[2].args == ("image", "labels")
  assert builder.parse('copy("a|b", "c")')[0].args == ("a|b", "c")
  assert builder.parse("") == () and builder.parse("  ") == ()


ERRORS = {
    "unknown op": ('decode|resise(8)|keep("image")', """\
preprocessing: unknown op 'resise'; did you mean 'resize'?
  decode|resise(8)|keep("image")
         ^"""),
    "unknown argument": ('decode|resize(8, methd="area")', """\
preprocessing: resize has no argument 'methd'; did you mean 'method'?
  decode|resize(8, methd="area")
         ^"""),
    "missing argument": ('decode|resize', """\
preprocessing: resize(size, method='bilinear', antialias=False, *, key='image', inkey=None, outkey=None): \
missing a required argument: 'size'
  decode|resize
         ^"""),
    "missing key": ('decode|keep("imge")', """\
preprocessing: keep reads 'imge', which is not there; did you mean 'image'?
  decode|keep("imge")
         ^"""),
    "key dropped before": ('decode|drop("panoptic_image")|coco_panoptic', """\
preprocessing: coco_panoptic reads 'panoptic_image', which is not there; did you mean 'panoptic_objects/id'?
  decode|drop("panoptic_image")|coco_panoptic
                                ^"""),
    "not a literal": ('decode|resize(RES)', """\
preprocessing: RES is not a literal (number, string, list, tuple, dict, True, None); did you mean 'RES' in quotes?
  decode|resize(RES)
                ^"""),
    "a call": ('decode|resize(__import__("os").getpid())', """\
preprocessing: __import__("os").getpid() is not a literal (number, string, list, tuple, dict, True, None)
  decode|resize(__import__("os").getpid())
                ^"""),
    "not a string of ops": ('décode + 1', """\
preprocessing: expected the name of an op
  décode + 1
  ^"""),
    "wrong shape": ('decode|resize(8)|nyu_depth', """\
preprocessing: nyu_depth reads 'depth', which is not there; valid: image, image/filename, image/id, panoptic_image, \
panoptic_objects/area, panoptic_objects/id, panoptic_objects/label
  decode|resize(8)|nyu_depth
                   ^"""),
    "wrong size": ('decode|resize(8)|copy("image","labels")|nyu_eval_crop', """\
preprocessing: nyu_eval_crop: nyu_eval_crop needs 480x640 pixels, not 8x8
  decode|resize(8)|copy("image","labels")|nyu_eval_crop
                                          ^"""),
    "wrong value": ('decode|make_canonical(key="image", main_axis="z")', """\
preprocessing: make_canonical: main_axis must be 'y' or 'x', not 'z'
  decode|make_canonical(key="image", main_axis="z")
         ^"""),
}


@pytest.mark.parametrize("case", sorted(ERRORS))
def test_errors_show_the_string_with_a_caret(case):
  pp, message = ERRORS[case]
  with pytest.raises(UserError) as error:
    specs(pp)
  assert str(error.value) == message


@pytest.mark.parametrize("pp", ["decode||keep('image')", "decode|", "keep('image'", "decode|keep('image)", "a.b|decode",
                                "decode|keep(**{})", "decode|keep(*['image'])", "decode decode", "1|2"])
def test_other_malformed_strings(pp):
  with pytest.raises(UserError, match="preprocessing: "):
    specs(pp)


def test_long_strings_are_cut_around_the_caret():
  with pytest.raises(UserError) as error:
    specs("decode|" + "value_range(-1, 1)|" * 20 + "nonsense|" + "value_range(-1, 1)|" * 20 + "keep('image')")
  _, text, caret = str(error.value).splitlines()
  assert len(text) < 120 and text[caret.index("^"):].startswith("nonsense|")


def test_modules():
  assert "nyu_depth" not in builder.load_ops(["ops_general", "ops_image"])
  assert "nyu_depth" in builder.load_ops(["ops_general", "ops_image", "proj.uvim.pp_ops"])
  with pytest.raises(UserError, match="pp_modules: unknown module of ops 'ops_imag'; did you mean 'ops_image'?"):
    specs("decode", modules=["ops_imag"])
  with pytest.raises(UserError, match="'builder' has no table OPS"):
    specs("decode", modules=["builder"])


def test_the_listings_modules_hold_all_their_ops():
  specs(LISTING_1, modules=["ops_general", "ops_image", "proj.uvim.pp_ops"])


LISTING_1 = (
    'decode|coco_panoptic|concat(["semantics","instances"], "labels")|randu("fliplr")|det_fliplr(key="image")'
    '|det_fliplr(key="labels")|inception_box|crop_box(key="image")|crop_box(key="labels")|resize(512)'
    '|resize(512, key="labels", method="nearest")|value_range(-1, 1)|make_canonical|keep("image","labels")')


def test_specs_of_listing_1_without_data():
  out = specs(LISTING_1)
  assert {k: (tuple(v.shape), v.dtype.name) for k, v in out.items()} == {
      "image": ((512, 512, 3), "float32"), "labels": ((512, 512, 2), "int32")}


def test_needed_and_decoded_keys():
  program = builder.compile_string(LISTING_1)
  assert builder.decoded_keys(program) == {"image"}
  assert builder.needed_keys(program, FEATURES) == {"image", "panoptic_image", "panoptic_objects/id",
                                                    "panoptic_objects/label"}
  program = builder.compile_string('copy("image/id","image")|keep("image")')
  assert builder.decoded_keys(program) == set() and builder.needed_keys(program, FEATURES) == {"image/id"}
  program = builder.compile_string('drop("panoptic_image")')
  assert builder.needed_keys(program, FEATURES) == set(FEATURES) - {"panoptic_image"}
