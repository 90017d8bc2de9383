"""State dicts in torch's archives read without torch: layouts, strays, damage, and pickles that want to run something."""

import collections
import io
import os
import pickle
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from uvim_like import weights_torch
from uvim_like.errors import UserError


class _Storage:
  """What torch.save writes apart: the pickle holds its type, name and length."""

  def __init__(self, array):
    self.array = array


class _Pickler(pickle.Pickler):
  """Writes storages by name, as torch.save does."""

  def __init__(self, file, kinds):
    super().__init__(file, protocol=2)
    self.kinds, self.storages = kinds, {}

  def persistent_id(self, thing):
    if not isinstance(thing, _Storage):
      return None
    key = str(len(self.storages))
    self.storages[key] = thing.array
    return "storage", self.kinds[thing.array.dtype], key, "cpu", thing.array.size


class Torch:
  """Stand-ins for torch's names, and files in its form."""

  def __init__(self, monkeypatch):
    self.kinds = {}
    names = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils"),
             "mmcv": types.ModuleType("mmcv")}
    for name, dtype in weights_torch.STORAGES.items():
      kind = type(name, (), {"__module__": "torch"})
      setattr(names["torch"], name, kind)
      self.kinds[np.dtype(dtype)] = kind
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
      function = types.FunctionType((lambda *args: args).__code__, {}, name)
      function.__module__, function.__qualname__ = "torch._utils", name
      setattr(names["torch._utils"], name, function)
    self.utils = names["torch._utils"]
    self.other = type("Config", (dict,), {"__module__": "mmcv"})
    names["mmcv"].Config = self.other
    for name, module in names.items():
      monkeypatch.setitem(sys.modules, name, module)

  def tensor(self, array, *, shape=None, strides=None, offset=0, parameter=False):
    """Pickles as a tensor; by default the whole of a contiguous array."""
    shape = array.shape if shape is None else shape
    strides = tuple(step // array.itemsize for step in array.strides) if strides is None else strides
    storage = _Storage(array.reshape(-1))
    reduced = (self.utils._rebuild_tensor_v2, (storage, offset, shape, strides, False, collections.OrderedDict()))
    value = _Reduced(reduced)
    return _Reduced((self.utils._rebuild_parameter, (value, True, collections.OrderedDict()))) if parameter else value

  def save(self, path, contents, **extra):
    file = io.BytesIO()
    pickler = _Pickler(file, self.kinds)
    pickler.dump(contents)
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("name/data.pkl", file.getvalue())
      archive.writestr("name/byteorder", extra.get("byteorder", "little"))
      for key, array in pickler.storages.items():
        archive.writestr(f"name/data/{key}", array.tobytes())
      archive.writestr("name/version", "3\n")
    return path


class _Reduced:
  def __init__(self, reduced):
    self.reduced = reduced

  def __reduce__(self):
    return self.reduced


@pytest.fixture
def torch(monkeypatch):
  return Torch(monkeypatch)


def test_every_layout_of_a_tensor(torch, tmp_path):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 4)).astype(np.float32)
  want = {"plain": x, "half": x.astype(np.float16), "brain": x.astype(ml_dtypes.bfloat16), "count": np.arange(5),
          "flag": np.array([True, False])}
  state = collections.OrderedDict((name, torch.tensor(value)) for name, value in want.items())
  state["turned"] = torch.tensor(x, shape=(4, 3), strides=(1, 4))
  state["part"] = torch.tensor(x, shape=(2, 2), strides=(4, 1), offset=5, parameter=True)
  state["number"] = torch.tensor(x, shape=(), strides=(), offset=7)
  state["empty"] = torch.tensor(np.zeros(0, np.float32), shape=(0, 3), strides=(3, 1))
  want |= {"turned": x.T, "part": x[1:, 1:3], "number": x[1, 3], "empty": np.zeros((0, 3), np.float32)}
  got = weights_torch.read_state_dict(torch.save(tmp_path / "a.pth", state))
  assert list(got) == list(want)
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value, err_msg=name)
    assert got[name].dtype == value.dtype and got[name].shape == value.shape


@pytest.mark.parametrize("container", weights_torch.CONTAINERS)
def test_the_state_dict_inside_a_training_state(torch, tmp_path, container):
  x = np.arange(6, dtype=np.float32)
  path = torch.save(tmp_path / "a.pth", {
      "meta": {"config": torch.other(lr=0.1), "epoch": 3}, container: {"a.weight": torch.tensor(x), "a.steps": 7},
      "optimizer": {"state": {0: {"exp_avg": torch.tensor(x)}}}})
  got = weights_torch.read_state_dict(path)
  assert list(got) == ["a.weight"]
  np.testing.assert_array_equal(got["a.weight"], x)


def test_nothing_of_a_file_is_run(torch, tmp_path):
  folder = tmp_path / "made"
  path = torch.save(tmp_path / "a.pth", {"a": torch.tensor(np.ones(2, np.float32)),
                                         "b": _Reduced((os.mkdir, (str(folder),)))})
  assert list(weights_torch.read_state_dict(path)) == ["a"] and not folder.exists()


@pytest.mark.parametrize("shape, strides, offset", [((3, 3), (3, 1), 0), ((4,), (1,), 5), ((1 << 40,), (0,), 0),
                                                    ((2,), (-1,), 1)])
def test_tensors_beyond_their_storage(torch, tmp_path, shape, strides, offset):
  bad = torch.tensor(np.ones(8, np.float32), shape=shape, strides=strides, offset=offset)
  with pytest.raises(UserError, match="not a readable archive of torch.save"):
    weights_torch.read_state_dict(torch.save(tmp_path / "a.pth", {"a": bad}))


def test_damaged_archives_are_named_or_read(torch, tmp_path):
  path = torch.save(tmp_path / "a.pth", {"a": torch.tensor(np.arange(64, dtype=np.float32)), "b": torch.other(c=1)})
  whole, rng, named = path.read_bytes(), np.random.default_rng(0), 0
  for i in range(300):
    data = bytearray(whole[:rng.integers(1, len(whole))] if i % 3 == 0 else whole)
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    try:
      weights_torch.read_state_dict(path)
    except UserError as error:
      named += str(path) in str(error) and "\n" not in str(error)
  assert named > 200


def test_a_damaged_pickle_is_named_or_read(torch, tmp_path):
  """The checksum of the archive is right, the pickle in it is not."""
  path = torch.save(tmp_path / "a.pth", {"a": torch.tensor(np.arange(8, dtype=np.float32)), "b": torch.other(c=1)})
  with zipfile.ZipFile(path) as archive:
    files = {name: archive.read(name) for name in archive.namelist()}
  rng = np.random.default_rng(1)
  for _ in range(300):
    data = bytearray(files["name/data.pkl"])
    for place in rng.integers(len(data), size=2):
      data[place] = rng.integers(256)
    with zipfile.ZipFile(path, "w") as archive:
      for name, content in (files | {"name/data.pkl": bytes(data)}).items():
        archive.writestr(name, content)
    try:
      weights_torch.read_state_dict(path)
    except UserError as error:
      assert str(path) in str(error)


def test_safetensors_and_npz(tmp_path):
  x = np.arange(6, dtype=np.float32).reshape(2, 3)
  safetensors.numpy.save_file({"a.weight": x}, tmp_path / "a.safetensors")
  np.savez(tmp_path / "a.npz", **{"a.weight": x})
  for name in ("a.safetensors", "a.npz"):
    got = weights_torch.read_state_dict(tmp_path / name)
    assert list(got) == ["a.weight"]
    np.testing.assert_array_equal(got["a.weight"], x)


def test_other_files_are_named(torch, tmp_path):
  text = tmp_path / "a.pth"
  text.write_text("no weights")
  with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
    archive.writestr("a", "b")
  (tmp_path / "c.safetensors").write_bytes(b"\x00" * 20)
  torch.save(tmp_path / "d.pth", {"a": torch.tensor(np.ones(2, np.float32))}, byteorder="big")
  torch.save(tmp_path / "e.pth", [1, 2])
  for name, message in (("a.pth", "safetensors.torch.save_file"), ("b.pth", "without data.pkl"),
                        ("c.safetensors", "not a readable .safetensors"), ("d.pth", "big-endian"),
                        ("e.pth", "holds no named arrays"), ("f.pth", "no file")):
    with pytest.raises(UserError, match=message):
      weights_torch.read_state_dict(tmp_path / name)
