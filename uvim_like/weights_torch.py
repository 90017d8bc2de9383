"""State dicts of other people's programs as numpy arrays: .pth archives (without torch), .safetensors, .npz.

A .pth file is a zip of raw storages and a pickle that says what they are. The pickle is read with nothing but the few
names that tensors need: any other name becomes an inert placeholder, so nothing of a file is ever imported or run.
"""

import collections
import os
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from uvim_like import weights
from uvim_like.errors import UserError

CONTAINERS = ("state_dict", "weights", "model")  # where training programs put the state dict beside their own state
STORAGES = {"FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
            "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
            "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_}
SAFETENSORS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
               "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
# What unpickling garbled bytes raises.
PICKLE_ERRORS = (pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError, OverflowError,
                 MemoryError, RecursionError)


class _Storage(NamedTuple):
  key: str
  dtype: np.dtype


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # in elements


class _Placeholder:
  """Stands for whatever else a checkpoint holds: takes every call that unpickling makes, and does nothing."""

  def __init__(self, *args, **kwargs):
    del args, kwargs

  def __setstate__(self, state):
    del state

  def __setitem__(self, key, value):
    del key, value

  def append(self, value):
    """Nothing."""
    del value

  def extend(self, values):
    """Nothing."""
    del values


def _tensor(storage, offset, shape, strides, *rest) -> _Tensor:
  del rest
  if not isinstance(storage, _Storage):
    raise pickle.UnpicklingError("a tensor without storage")
  numbers = (offset, *shape, *strides)
  if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
    raise pickle.UnpicklingError("a tensor whose shape is no list of whole numbers")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data, *rest):
  del rest
  return data


class _Unpickler(pickle.Unpickler):
  """Knows ordered dicts and tensors; everything else is a placeholder."""

  def find_class(self, module: str, name: str):
    if module == "torch" and name in STORAGES:
      return np.dtype(STORAGES[name])
    known = {("collections", "OrderedDict"): collections.OrderedDict,
             ("torch._utils", "_rebuild_tensor_v2"): _tensor, ("torch._utils", "_rebuild_tensor"): _tensor,
             ("torch._utils", "_rebuild_parameter"): _parameter}
    return known.get((module, name), _Placeholder)

  def persistent_load(self, pid):
    kind, dtype, key, *_ = pid
    if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
      return _Placeholder()
    return _Storage(key, dtype)


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """{name: array} of a file, out of the container that it is in; bfloat16 stays bfloat16.

  Args:
    path: .safetensors, .npz, or anything else that is a zip archive written by torch.save (.pth, .pt).

  Raises:
    UserError: no such file; damaged; another format, with the line that converts it.
  """
  path = pathlib.Path(path).expanduser()
  if path.suffix == ".npz" or not path.is_file():
    return weights.read_npz(path)
  flat = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
  if not flat:
    raise UserError(f"{path}: holds no named arrays")
  return flat


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    entries = safetensors.deserialize(path.read_bytes())
  except safetensors.SafetensorError as error:
    raise UserError(f"{path}: not a readable .safetensors file ({error})") from error
  flat = {}
  for name, entry in entries:
    if entry["dtype"] not in SAFETENSORS:
      raise UserError(f"{path}: '{name}' holds {entry['dtype']}; known: {', '.join(SAFETENSORS)}")
    flat[name] = np.frombuffer(entry["data"], SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
  return flat


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
  if not zipfile.is_zipfile(path):
    raise UserError(f"{path}: no archive of torch.save and no .safetensors or .npz file; with torch: "
                    "safetensors.torch.save_file({k: v for k, v in state_dict.items()}, 'weights.safetensors')")
  try:
    with zipfile.ZipFile(path) as archive:
      root = _root(archive, path)
      with archive.open(f"{root}data.pkl") as file:
        contents = _Unpickler(file).load()
      tensors = _named_tensors(contents)
      return {name: _read_tensor(archive, root, tensor) for name, tensor in tensors.items()}
  except UserError:
    raise
  except (*PICKLE_ERRORS, *weights.READ_ERRORS) as error:
    raise UserError(f"{path}: not a readable archive of torch.save ({error})") from error


def _root(archive: zipfile.ZipFile, path: pathlib.Path) -> str:
  """The folder of the archive, with its slash."""
  names = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
  if len(names) != 1:
    raise UserError(f"{path}: an archive without data.pkl: not written by torch.save")
  root = names[0].removesuffix("data.pkl")
  if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder").strip() != b"little":
    raise UserError(f"{path}: written on a big-endian machine; only little-endian files are read")
  return root


def _named_tensors(contents: Any) -> dict[str, _Tensor]:
  """The tensors of a state dict; its other values (counters, versions) are left out."""
  for container in CONTAINERS:
    if isinstance(contents, Mapping) and isinstance(contents.get(container), Mapping):
      contents = contents[container]
  if not isinstance(contents, Mapping):
    return {}
  return {name: value for name, value in contents.items() if isinstance(name, str) and isinstance(value, _Tensor)}


def _read_tensor(archive: zipfile.ZipFile, root: str, tensor: _Tensor) -> np.ndarray:
  """A copy of a tensor's elements; its place is checked against the bytes that are there."""
  storage = np.frombuffer(archive.read(f"{root}data/{tensor.storage.key}"), tensor.storage.dtype)
  count = int(np.prod(tensor.shape, dtype=np.int64)) if tensor.shape else 1
  last = tensor.offset + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.strides))
  if count and (last >= storage.size or count > storage.size):
    raise ValueError(f"a tensor of {tensor.shape} in a storage of {storage.size} numbers")
  if not count:
    return np.zeros(tensor.shape, storage.dtype)
  steps = [step * storage.dtype.itemsize for step in tensor.strides]
  return np.array(np.lib.stride_tricks.as_strided(storage[tensor.offset:], tensor.shape, steps, writeable=False))
