"""The validation pass over the .npz files of finished examples; see `check_data`."""

import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from tools.checking.check_data import Options, Problem, watched
from uvim_like.errors import UserError, unknown
from uvim_like.own_data.check import label_problems

READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, TypeError, AttributeError)
IDS = ("image/id", "image/filename")


def check(data_dir: str | None, options: Options) -> tuple[int, list[Problem]]:
  """(number of examples, problems) of all `<split>.npz` in a folder; UserError when there are none."""
  if not data_dir:
    raise UserError("--data_dir is missing: the folder of the <split>.npz files")
  files = {path.stem: path for path in sorted(pathlib.Path(data_dir).expanduser().glob("*.npz"))}
  if not files:
    raise UserError(f"--data_dir: no .npz files in {data_dir}")
  if options.split is not None and options.split not in files:
    raise unknown("split", options.split, files, where="--split")
  total, problems = 0, []
  for name in [options.split] if options.split else files:
    count, found = check_split(name, files[name], options)
    total, problems = total + count, problems + found
  return total, problems


def check_split(name: str, path: pathlib.Path, options: Options) -> tuple[int, list[Problem]]:
  """(number of examples, problems) of one file."""
  try:
    with np.load(path, allow_pickle=False) as data:
      arrays = {key: data[key] for key in data.files}
  except READ_ERRORS as error:
    return 0, [Problem(name, "file cannot be read", f"{path}: {error}")]
  if "image" not in arrays:
    return 0, [Problem(name, "no array 'image'", f"{path} has {sorted(arrays)}")]
  problems = [Problem(name, "array of another length", f"'{key}' has {len(array) if array.ndim else 0} examples, "
                      f"'image' {len(arrays['image'])}") for key, array in arrays.items()
              if not array.ndim or len(array) != len(arrays["image"])]
  if problems:
    return 0, problems
  problems = list(_duplicates(name, arrays))
  for index in watched(range(len(arrays["image"])), total=len(arrays["image"]), name=name):
    problems += [Problem(f"{name}[{index}]", *found) for found in _example(arrays, index, options)]
  return len(arrays["image"]), problems


def _duplicates(name: str, arrays: Mapping[str, np.ndarray]) -> Iterator[Problem]:
  for key in IDS:
    if key in arrays and arrays[key].ndim == 1:
      values, counts = np.unique(arrays[key], return_counts=True)
      for value in values[counts > 1]:
        places = np.flatnonzero(arrays[key] == value)
        yield Problem(f"{name}[{places[0]}]", "duplicate id", f"'{key}' {value} also at {places[1:].tolist()}")


def _example(arrays: Mapping[str, np.ndarray], index: int, options: Options) -> Iterator[tuple[str, str]]:
  """(kind, detail) of all that is wrong with one example."""
  for key, array in arrays.items():
    value = array[index]
    if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
      yield "not finite", f"{(~np.isfinite(value)).sum()} values of '{key}'"
  if "depth" in arrays and np.nanmin(arrays["depth"][index], initial=0) < 0:
    yield "negative depth", f"{np.nanmin(arrays['depth'][index]):g} m"
  if "labels" in arrays:
    labels = arrays["labels"][index]
    if labels.shape[:2] != arrays["image"].shape[1:3]:
      yield "size mismatch", f"'labels' {labels.shape[:2]}, 'image' {arrays['image'].shape[1:3]}"
    if np.issubdtype(labels.dtype, np.integer):
      yield from label_problems(labels, options)
