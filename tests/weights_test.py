"""Weight files in big_vision's layout: what is written is read back, old layouts load, merging reports everything."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from uvim_like import trees, weights
from uvim_like.errors import UserError


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
