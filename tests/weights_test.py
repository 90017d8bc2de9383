"""Weight files in big_vision's layout: what is written is read back, old layouts load, merging reports everything."""

import errno
import functools
import io
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from uvim_like import trees, weight_sources, weights
from uvim_like.errors import UserError
from uvim_like.systems.base import Vars
from uvim_like.training import checkpoint, loop


def test_round_trip_with_bfloat16(tmp_path):
  tree = {"params": {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
                     "b": jnp.arange(4, dtype=jnp.bfloat16)}, "state": {"counts": np.arange(3)}}
  weights.save_npz(tmp_path / "new" / "w.npz", tree)
  with np.load(tmp_path / "new" / "w.npz") as data:
    assert sorted(data.files) == ["params/a/kernel", "params/b", "state/counts"]
    assert data["params/b"].dtype == np.dtype("V2")
  loaded = weights.load_npz(tmp_path / "new" / "w.npz")
  assert loaded["params"]["b"].dtype == ml_dtypes.bfloat16
  jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(np.asarray, tree))
  assert [p.name for p in (tmp_path / "new").iterdir()] == ["w.npz"]


@pytest.mark.parametrize("prefix", ["params/", "opt/target/", ""])
def test_layouts(tmp_path, prefix):
  other = {"opt/state/step": np.ones(())} if prefix else {}
  np.savez(tmp_path / "w.npz", **{f"{prefix}enc/kernel": np.ones(2)}, **other)
  assert list(weights.load_npz(tmp_path / "w.npz")["params"]) == ["enc"]
  assert weights.load_npz(tmp_path / "w.npz")["state"] == {}


def test_released_layout(golden_dir):
  for path in sorted(golden_dir.rglob("*_ckpt.npz")):
    loaded = weights.load_npz(path)
    flat = weights.read_npz(path)
    assert {f"params/{n}" for n, _ in trees.flatten_names(loaded["params"])} == {k for k in flat if k[:7] == "params/"}
    if "state/dictionary" in flat:
      np.testing.assert_array_equal(loaded["state"]["dictionary"], flat["state/dictionary"])


def test_unreadable_files(tmp_path):
  (tmp_path / "oracle.npz").write_bytes(b"PK\x03\x04 no archive")
  with pytest.raises(UserError, match="not a readable"):
    weights.load_npz(tmp_path / "oracle.npz")
  with pytest.raises(UserError, match="did you mean 'oracle.npz'"):
    weights.load_npz(tmp_path / "oracl.npz")
  np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
  with pytest.raises(UserError, match="plain arrays"):
    weights.load_npz(tmp_path / "objects.npz")
  np.save(tmp_path / "one.npy", np.ones(3))
  with pytest.raises(UserError, match="single array"):
    weights.load_npz(tmp_path / "one.npy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_are_one_line(tmp_path, save):
  """Cut or altered anywhere, a file is read as it was, or refused as unreadable: never another exception."""
  buffer = io.BytesIO()
  save(buffer, **{"params/a": np.arange(60, dtype=np.float32).reshape(6, 10), "params/b": np.ones(7)})
  whole, rng, refused = buffer.getvalue(), np.random.default_rng(0), 0
  for trial in range(150):
    damaged = bytearray(whole)
    if trial % 2:
      damaged = damaged[:rng.integers(len(whole))]
    else:
      damaged[rng.integers(len(whole))] = rng.integers(256)
    (tmp_path / "w.npz").write_bytes(damaged)
    try:
      weights.load_npz(tmp_path / "w.npz")
    except UserError as error:
      assert str(error).startswith(f"{tmp_path / 'w.npz'}: not a readable")
      refused += 1
  assert refused > 75


def test_other_archives(tmp_path):
  with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
    archive.writestr("archive/data.pkl", b"abc")
  with pytest.raises(UserError, match="'archive/data.pkl' is no array; the file is some other kind of archive"):
    weights.load(tmp_path / "model.pt")
  np.savez(tmp_path / "clash.npz", **{"params/a": np.ones(1), "params/a/b": np.ones(1)})
  with pytest.raises(UserError, match="'params/a' is both an array and a group"):
    weights.load(tmp_path / "clash.npz")
  (tmp_path / "empty.npz").touch()
  with pytest.raises(UserError, match="config.oracle.model_init: .*empty.npz: not a readable"):
    weights.load(tmp_path / "empty.npz", where="config.oracle.model_init")
  with pytest.raises(UserError, match="is a folder; a file name such as"):
    weights.save_npz(tmp_path, {})


def test_save_vars(tmp_path):
  variables = Vars({"a": {"kernel": jnp.arange(3.0)}, "b": jnp.ones(2, jnp.bfloat16), "n": np.arange(2)},
                   {"counts": np.ones(3, np.float32)})
  weights.save_vars(tmp_path / "w.npz", variables)
  loaded = weights.load(tmp_path / "w.npz")
  assert jax.tree.map(lambda x: str(x.dtype), loaded) == {
      "params": {"a": {"kernel": "float32"}, "b": "bfloat16", "n": "int64"}, "state": {"counts": "float32"}}
  jax.tree.map(np.testing.assert_array_equal, loaded, {"params": variables.params, "state": variables.state})
  weights.save_vars(tmp_path / "w16.npz", Vars(variables.params), dtype="bfloat16")
  loaded = weights.load(tmp_path / "w16.npz")
  assert loaded["params"]["a"]["kernel"].dtype == ml_dtypes.bfloat16 and loaded["state"] == {}
  weights.save_vars(tmp_path / "w32.npz", variables, dtype=np.float32)
  assert weights.load(tmp_path / "w32.npz")["params"]["b"].dtype == np.float32


def test_sources(tmp_path, monkeypatch):
  """Files, workdirs and published names; what is not there is named together with the remedy."""
  cache = tmp_path / "cache"
  monkeypatch.setenv("UVIM_LIKE_WEIGHTS", str(cache))
  name = "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0.npz"
  assert not weights.exists("howto-i21k-L/16")
  with pytest.raises(UserError, match="no weights for 'howto-i21k-L/16': expected ") as error:
    weights.load("howto-i21k-L/16")
  assert str(cache / name) in str(error.value)
  assert f"https://storage.googleapis.com/vit_models/augreg/{name}" in str(error.value)
  panoptic = "panoptic_stageI_params.npz"
  with pytest.raises(UserError, match=f"https://storage.googleapis.com/big_vision/uvim/{panoptic} to there"):
    weights.locate(f"uvim/{panoptic}")
  weights.save_npz(cache / name, {"a": np.ones(1)})
  weights.save_npz(cache / panoptic, {"params": {"a": np.ones(1)}})
  for source in ("howto-i21k-L/16", f"gs://vit_models/augreg/{name}", name):
    assert weights.locate(source) == cache / name and weights.exists(source)
  for source in (f"uvim/{panoptic}", panoptic, f"https://storage.googleapis.com/big_vision/uvim/{panoptic}"):
    assert weights.locate(source) == cache / panoptic

  run = tmp_path / "run"
  assert not weights.exists(run)
  with pytest.raises(UserError, match=r"no weights file or workdir .*run; "):
    weights.locate(run)
  run.mkdir()
  assert not weights.exists(run)
  with pytest.raises(UserError, match="a folder without weights.npz and without checkpoints"):
    weights.locate(run)
  (run / checkpoint.FOLDER).mkdir()
  assert weights.exists(run)
  with pytest.raises(UserError, match=r"tools.export --workdir=.*run --format=npz --out=.*run/weights.npz"):
    weights.locate(run)
  weights.save_npz(run / loop.WEIGHTS_FILE, {"a": np.ones(1)})
  assert weights.locate(run) == run / "weights.npz" == weights.locate(run / "weights.npz")
  with pytest.raises(UserError, match="did you mean 'howto-i21k-L/16'"):
    weights.locate("howto-i21k-L16")
  assert (weight_sources.WEIGHTS_FILE, weight_sources.CHECKPOINTS) == (loop.WEIGHTS_FILE, checkpoint.FOLDER)


def test_towers_of_the_first_release(tmp_path):
  np.savez(tmp_path / "w.npz", **{"params/Encoder/encoder_norm/scale": np.ones(2), "params/Decoder/x": np.ones(3),
                                  "params/encoder_head/bias": np.ones(1), "state/counts": np.ones(4)})
  loaded = weights.load(tmp_path / "w.npz")
  assert sorted(loaded["params"]) == ["decoder", "encoder", "encoder_head"] and list(loaded["state"]) == ["counts"]


def test_failed_save_leaves_the_old_file(tmp_path):
  path = tmp_path / "w.npz"
  weights.save_npz(path, {"a": np.ones(2)})

  class Broken:
    def __array__(self, *args, **kwargs):
      raise RuntimeError("no memory")

  with pytest.raises(RuntimeError):
    weights.save_npz(path, {"a": Broken()})
  np.testing.assert_array_equal(weights.read_npz(path)["a"], np.ones(2))
  assert len(list(tmp_path.iterdir())) == 1


def test_weights_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(weights.os, "fsync", full)
  with pytest.raises(OSError):
    weights.save_npz(tmp_path / "w.npz", {"a": np.ones(2)})
  assert not list(tmp_path.iterdir())


def test_renumber():
  old = {"encoderblock_10": {"LayerNorm_0": {}, "MlpBlock_3": {"Dense_1": {"kernel_2": 1}, "Dense_0": {"kernel_2": 0}},
                             "LayerNorm_2": {}}, "encoderblock_9": {}, "encoder_norm": {"x": 1}}
  new = weights.renumber(old)
  assert sorted(new) == ["encoder_norm", "encoderblock_0", "encoderblock_1"]
  assert sorted(new["encoderblock_1"]) == ["LayerNorm_0", "LayerNorm_1", "MlpBlock_0"]
  assert new["encoderblock_1"]["MlpBlock_0"] == {"Dense_0": {"kernel_2": 0}, "Dense_1": {"kernel_2": 1}}


INIT = {"enc": {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)},
        "head": {"kernel": np.zeros((3, 4), np.float32)}}


def test_merge_takes_and_keeps():
  loaded = {"enc": {"kernel": np.ones((2, 3), np.float64), "bias": np.ones(3)}, "head": {"kernel": np.ones((3, 5))},
            "cls": np.ones(1)}
  merged, report = weights.merge(INIT, loaded, dont_load=["head/.*", "cls"])
  assert report.taken == ("enc/bias", "enc/kernel") and report.kept == ("head/kernel",)
  assert merged["enc"]["kernel"].dtype == np.float32 and merged["enc"]["kernel"].sum() == 6
  assert merged["head"]["kernel"].shape == (3, 4)
  assert report.text().startswith("2 taken, 1 kept, 0 missing, 0 extra, 0 mis-shaped\n")


def test_merge_is_strict():
  loaded = {"enc": {"kernel": np.ones((3, 2)), "scale": np.ones(3)}, "head": {"kernel": np.ones((3, 4))}}
  with pytest.raises(UserError, match=r"1 taken, 0 kept, 1 missing, 1 extra, 1 mis-shaped") as error:
    weights.merge(INIT, loaded, where="oracle.npz")
  text = str(error.value)
  assert text.startswith("oracle.npz") and "enc/kernel: file (3, 2), model (2, 3)" in text
  merged, report = weights.merge(INIT, loaded, strict=False)
  assert report.missing == ("enc/bias",) and report.extra == ("enc/scale",)
  assert merged["enc"]["kernel"].sum() == 0 and merged["head"]["kernel"].sum() == 12
  with pytest.raises(UserError, match="matches no parameter"):
    weights.merge(INIT, INIT, dont_load=["haed/.*"])


def test_merge_into_shapes_leaves_nothing_without_value():
  """A frozen stage exists as shapes only: nothing may silently stay one."""
  shapes = jax.eval_shape(lambda: INIT)
  full = jax.tree.map(np.ones_like, INIT)
  merged, report = weights.merge(shapes, full)
  assert report.fits and all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(merged))
  with pytest.raises(UserError, match="oracle.npz: 'head/kernel' has no value"):
    weights.merge(shapes, full, dont_load=["head/.*"], where="oracle.npz")
  with pytest.raises(UserError, match="'head/kernel' has no value"):
    weights.merge(shapes, {"enc": full["enc"]}, strict=False)
  with pytest.raises(UserError, match="0 extra, 0 mis-shaped; missing head/kernel$"):
    weights.merge(shapes, {"enc": full["enc"]})


def test_merge_renumbers_where_the_model_says_so():
  block = {"LayerNorm_0": {"s": 0.}, "MultiHead_0": {"s": 1.}, "LayerNorm_1": {"s": 2.}, "Mlp_0": {"s": 3.}}
  as_arrays = functools.partial(jax.tree.map, np.float32)
  init = as_arrays({"tower": {"block_0": block, "block_1": block}, "head_class_7": {"s": 8.},
                    "head_class_9": {"s": 9.}})
  old = {"LayerNorm_0": {"s": 0.}, "MultiHead_1": {"s": 1.}, "LayerNorm_2": {"s": 2.}, "Mlp_3": {"s": 3.}}
  loaded = as_arrays({"tower": {"block_9": old, "block_10": jax.tree.map(lambda x: x + 10, old)},
                      "head_class_7": {"s": 80.}, "head_class_9": {"s": 90.}})
  merged, report = weights.merge(init, loaded)
  assert merged == as_arrays({"tower": {"block_0": block, "block_1": jax.tree.map(lambda x: x + 10, block)},
                              "head_class_7": {"s": 80.}, "head_class_9": {"s": 90.}})
  assert ("tower/block_10", "tower/block_1") in report.renumbered and len(report.renumbered) == 2 + 2 * 3
  assert "    tower/block_1/LayerNorm_2 -> tower/block_1/LayerNorm_1" in report.text()
  with pytest.raises(UserError, match="2 missing, 2 extra"):  # names of a user's own are never renumbered
    weights.merge({"head_class_7": {"s": np.ones(1)}, "head_class_9": {"s": np.ones(1)}},
                  {"head_class_1": {"s": np.ones(1)}, "head_class_2": {"s": np.ones(1)}})


def test_merge_refuses_what_is_no_number():
  with pytest.raises(UserError, match="w.npz: 'config' holds <U2, no real numbers"):
    weights.merge({"config": np.ones(())}, {"config": np.array("{}")}, where="w.npz")
  with pytest.raises(UserError, match="is no regular expression"):
    weights.merge(INIT, INIT, dont_load=["head(/.*"])
