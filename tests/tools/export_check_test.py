"""Parts of the export: what is compared and how, which evaluations go into a program, full-size maps."""

import functools
import io
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tools.exporting import export_check, export_function, export_savedmodel
from uvim_like import config as configs
from uvim_like import scenes
from uvim_like.errors import UserError
from uvim_like.inference import full_size
from uvim_like.training import trained

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_comparison_says_what_differs():
  want = [{"depth": np.linspace(1, 5, 100).reshape(1, 10, 10), "classes": np.arange(100)}]
  same = export_check.compare(want, want, relative=1e-3, needed=1.0)
  assert all(result.passed and result.largest == 0 and "equal" in result.line() for result in same)
  near = [{"depth": want[0]["depth"] + 4e-3, "classes": want[0]["classes"]}]
  assert all(result.passed for result in export_check.compare(near, want, relative=1e-3, needed=1.0))
  far = [{"depth": want[0]["depth"].copy(), "classes": want[0]["classes"].copy()}]
  far[0]["depth"][0, 0, 0] += 0.1
  far[0]["classes"][:2] += 1
  depth, classes = export_check.compare(far, want, relative=1e-3, needed=1.0)
  assert not depth.passed and depth.largest == pytest.approx(0.1) and depth.share == 0.99 and "FAILED" in depth.line()
  assert not classes.passed and classes.share == 0.98   # two of a hundred
  depth, classes = export_check.compare(far, want, relative=1e-3, needed=0.99)
  assert depth.passed and not classes.passed


@pytest.mark.parametrize("got", [{}, {"depth": np.zeros((1, 3))}, {"depth": np.full((2, 2), np.nan)},
                                 {"depth": np.zeros((2, 2)), "more": np.zeros(1)}])
def test_other_names_shapes_and_nan_fail(got):
  results = export_check.compare([got], [{"depth": np.zeros((2, 2))}], relative=1e-3, needed=1.0)
  assert not all(result.passed for result in results)


def test_calls_use_what_is_open():
  pictures = [np.zeros((6, 8, 3), np.uint8), np.ones((6, 8, 3), np.uint8)]
  assert [call.shape for call in export_check.calls_of(pictures, ("b", "h", "w", 3))] == [(2, 6, 8, 3), (2, 4, 6, 3)]
  assert [call.shape for call in export_check.calls_of(pictures, ("b", 6, 8, 3))] == [(2, 6, 8, 3)]
  assert [call.shape for call in export_check.calls_of(pictures[:1], (1, 6, 8, 3))] == [(1, 6, 8, 3)]
  other = [pictures[0], np.zeros((5, 5, 3), np.uint8)]
  assert [call.shape for call in export_check.calls_of(other, ("b", "h", "w", 3))] == [(2, 6, 8, 3), (2, 4, 4, 3)]
  assert [x.shape for x in export_check.suited(pictures, (3, 5), None)] == [(3, 5, 3)] * 2
  assert [x.shape for x in export_check.suited(pictures, None, (4, 4))] == [(3, 4, 3)] * 2


@pytest.mark.parametrize("entries, size", [({}, (7, 9)), ({}, (31, 5)), ({"valid_size": (40, 24)}, (60, 36))])
def test_full_size_is_that_of_the_evaluators(entries, size):
  rng = np.random.default_rng(1)
  maps, canvas = rng.normal(size=(2, 3, 16, 12)), np.zeros((64, 48, 3), np.float32)
  row = {"image": canvas} | {key: np.array(value) for key, value in entries.items()}
  want = [[full_size.map_to(x, row, size, fill=0, square=False) for x in sample] for sample in maps]
  batch = {key: jnp.stack([jnp.asarray(value)] * 2) for key, value in row.items()}
  got = export_function.to_picture(jnp.asarray(maps), batch, jnp.zeros((2, *size, 3), jnp.uint8))
  np.testing.assert_array_equal(got, np.asarray(want, np.float32))
  normals = rng.normal(size=(1, 16, 12, 3)).astype(np.float32)
  got = export_function.to_picture(jnp.asarray(normals), {}, jnp.zeros((1, 20, 20, 3), jnp.uint8))
  np.testing.assert_array_equal(got[0], full_size.map_to(normals[0], {}, (20, 20), fill=0, square=False))


def config_of(spec):
  return configs.with_defaults(configs.load_file(str(ROOT / "configs" / spec)))


@pytest.mark.parametrize("spec, view, names, others", [
    ("mad/r50.py:scenes,runlocal", None, ["objects_val", "captions_val"], []),
    ("mad/r50.py:scenes,runlocal", "captions_val", ["captions_val"], ["objects_val"]),
    ("ait/joint.py:scenes,runlocal", None, ["object_val"], ["depth_val"]),
    ("ait/joint.py:scenes,runlocal", "depth_val", ["depth_val"], ["object_val"]),
    ("uvim/panoptic_stage2.py", None, ["panoptic_train"], []),
])
def test_views_that_see_a_picture_alike_are_put_together(spec, view, names, others):
  config = config_of(spec)
  program, chosen = export_function.select(config, view)
  assert [v.name for v in chosen] == names and export_function.beside(config, chosen) == others
  assert program.steps[-1].name in ("keep", "value_range")


def test_pictures_are_the_runs_own_or_else_drawn(monkeypatch):
  config = config_of("uvim/depth_stage2.py:scenes,runlocal,res=16")
  run = trained.Trained(config, None, None, None, 0, pathlib.Path("w"))
  view = export_function.select(config, None)[1][0]
  found, source = export_check.pictures_of(run, view)
  assert [x.shape for x in found] == [(64, 64, 3)] * 2 and found[0].dtype == np.uint8
  assert source.startswith("scenes/mini")
  assert np.array_equal(found[0], scenes.example("validation", 0, size=64)["image"])
  config.depth_val.dataset = "npz"
  found, source = export_check.pictures_of(run, view)
  assert [x.shape for x in found] == [(16, 16, 3)] * 2 and "generated rooms" in source and "npz" in source
  config.depth_val.dataset = "scenes/mini"
  monkeypatch.setattr(export_check, "_from_data", _no_data)
  found, source = export_check.pictures_of(run, view)
  assert [x.shape for x in found] == [(16, 16, 3)] * 2 and "generated rooms (no data here)" in source


def test_drawn_rooms_say_nothing_about_the_size_of_the_runs_pictures():
  """A network without a size of its own would be fixed at theirs; one with a canvas has it."""
  pictures = [np.zeros((6, 8, 3), np.uint8)]
  assert export_check.size_of(pictures, "folder, the split of 'val'") == (6, 8)
  assert export_check.size_of(pictures, "generated rooms (no data here)") is None
  sizes = {}
  for spec in ("polymax/semantic.py:scenes,runlocal,res=32", "ait/depth.py:scenes,runlocal"):
    config = config_of(spec)
    config[config.evals[0][0]].pp = 'decode|value_range(-1, 1)|keep("image")'   # pictures keep their size
    program, chosen = export_function.select(config, config.evals[0][0])
    sizes[spec[:3]] = functools.partial(export_function.fixed_size, config, program, chosen, picture=None)
  with pytest.raises(UserError, match="--input_size=HxW is needed: .* are not at hand"):
    sizes["pol"](size=None)
  assert sizes["pol"](size=(20, 30)) == (20, 30) and sizes["ait"](size=None) is not None


def _no_data(*_):
  raise UserError("no data here")


def test_finished_examples_have_a_program_too():
  """The dataset npz stores pictures that are preprocessed; without a string only their levels are scaled."""
  config = config_of("uvim/panoptic_stage2.py:scenes,runlocal,res=16")
  config.panoptic_val.dataset = "npz"
  program, _ = export_function.select(config, None)
  assert "resize" in [step.name for step in program.steps]   # pictures of any size
  config.panoptic_val.pp = ""
  program, chosen = export_function.select(config, None)
  assert [step.name for step in program.steps] == ["value_range"]
  assert export_function.fixed_size(config, program, chosen, size=None, picture=(20, 20)) == (16, 16)


def test_what_is_chosen_decides_how_much_must_agree():
  assert export_check.tolerances(config_of("polymax/depth.py:scenes,runlocal")) == (1e-3, 1.0)
  assert export_check.tolerances(config_of("mad/r50.py:scenes,runlocal")) == (1e-3, 0.99)
  assert export_check.tolerances(config_of("uvim/depth_regression.py:scenes,runlocal"), 1e-5) == (1e-5, 1.0)
  config = config_of("uvim/depth_stage2.py:scenes,runlocal")
  config.dtype = "bfloat16"
  assert export_check.tolerances(config) == (5e-2, 0.99)


def test_a_script_gets_batches_and_files(tmp_path):
  (tmp_path / "run.py").write_text(
      "import sys, pathlib, numpy as np\nfrom PIL import Image\n"
      "out = pathlib.Path(sys.argv[2]); out.mkdir()\n"
      "for f in map(pathlib.Path, sys.argv[3:]):\n"
      "  np.savez(out / f.stem, x=np.load(f) if f.suffix == '.npy' else np.asarray(Image.open(f))[None] + 1)\n")
  call = np.arange(36, dtype=np.uint8).reshape(1, 3, 4, 3)
  first, second = export_check.run_alone(tmp_path, [call], [call])
  assert np.array_equal(first["x"], call) and np.array_equal(second["x"], call + 1)


@pytest.mark.parametrize("size, largest, want", [(None, None, (48, 64)), ((20, 30), (64, 64), (20, 30)),
                                                 (None, (64, 64), (48, 64)), (None, (32, 16), (12, 16))])
def test_encoded_pictures_enter_a_savedmodel_as_a_programs_script_brings_them(size, largest, want):
  tf = pytest.importorskip("tensorflow")
  rows, columns = np.mgrid[:48, :64]
  picture = np.stack([rows * 5, columns * 3, rows + 2 * columns], -1).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "PNG")
  found = export_savedmodel.decoded(tf.constant(file.getvalue()), size, largest).numpy()
  expected, = export_check.suited([picture], size, largest)
  assert found.shape == (1, *want, 3) and found.dtype == np.uint8
  assert np.abs(found[0].astype(int) - expected).max() <= (1 if want != (48, 64) else 0)
