"""Label maps in files: class ids, depth, normals, segment ids; through Pillow, which keeps the indices of palettes."""

import math
import zipfile
import zlib
from collections.abc import Callable
from typing import IO

import numpy as np
from etils import epath

from uvim_like import pictures
from uvim_like.errors import UserError

MILLIMETRE = 0.001   # unit of 16-bit depth PNGs
SENTINEL = float(np.float32(65535 * MILLIMETRE))   # the largest depth of a PNG, which some write for "none"
VOID = 255           # in class maps: a pixel that nobody labelled

# Sort of label map -> suffixes of its files.
SUFFIXES = {"labels": (".png",), "depth": (".png", ".npy", ".npz"), "semantic": (".png",), "normals": (".png",),
            "panoptic": (".png",)}
# Version in the file -> reader of its header.
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What a damaged file raises: its archive (BadZipFile, zlib.error, RuntimeError: encrypted or compressed in an unknown way),
# its header, which is Python's literal of a dict (SyntaxError, KeyError, TypeError, OverflowError), its end (EOFError).
_NPY_ERRORS = (ValueError, OSError, EOFError, KeyError, TypeError, SyntaxError, OverflowError, zipfile.BadZipFile,
               zlib.error, RuntimeError)


def read_classes(path: epath.Path, dtype: np.dtype = np.int32) -> np.ndarray:
  """Class ids of a grey, palette or bilevel PNG, 8 or 16 bits: (H, W, 1)."""
  image = pictures.open_image(path)
  if image.mode not in ("L", "P", "1", "I", "I;16"):
    raise UserError(f"{path}: a label PNG needs one channel of class ids (grey or palette), not {image.mode}")
  ids = np.asarray(image)
  if ids.size and ids.max() > np.iinfo(dtype).max:
    raise UserError(f"{path}: class id {ids.max()} does not fit {np.dtype(dtype).name}; put such maps into labels/")
  return ids.astype(dtype)[..., None]


def read_semantic(path: epath.Path) -> np.ndarray:
  """uint8 (H, W, 1)."""
  return read_classes(path, np.uint8)


def read_depth(path: epath.Path) -> np.ndarray:
  """float32 (H, W) metres: of .npy and .npz ("depth", or the only array) as it is, of 16-bit PNG in millimetres."""
  if path.suffix.lower() in (".npy", ".npz"):
    depth = read_array(path, "depth")
  else:
    image = pictures.open_image(path)
    if image.mode not in ("I", "I;16"):
      raise UserError(f"{path}: depth needs a 16-bit PNG in millimetres, not {image.mode}")
    depth = np.asarray(image) * MILLIMETRE
  if depth.ndim == 3 and depth.shape[-1] == 1:
    depth = depth[..., 0]
  if depth.ndim != 2:
    raise UserError(f"{path}: depth needs shape (H, W), not {depth.shape}")
  return depth.astype(np.float32)


def read_array(path: epath.Path, name: str, *, channels: int = 1) -> np.ndarray:
  """Real numbers of a .npy, or of the array `name` (else the only one) of a .npz.

  Raises:
    UserError: no such file or array, pickled objects, more numbers than a picture of `channels` channels may have.
  """
  try:
    if path.suffix.lower() == ".npy":
      with path.open("rb") as file:
        return _read_npy(file, path, channels * pictures.MAX_PIXELS)
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
      members = {member.removesuffix(".npy"): member for member in archive.namelist()}
      if name not in members and len(members) != 1:
        raise UserError(f"{path}: no array '{name}'; there are {', '.join(sorted(members)[:10]) or 'none'}")
      with archive.open(members.get(name) or next(iter(members.values()))) as member:
        return _read_npy(member, path, channels * pictures.MAX_PIXELS)
  except UserError:
    raise
  except _NPY_ERRORS as error:
    raise UserError(f"{path} is not a {path.suffix.lower()} file that can be read: {error}") from error


def _read_npy(file: IO[bytes], path: epath.Path, limit: int) -> np.ndarray:
  """One array, its header looked at before anything is allocated."""
  shape, _, dtype = _NPY_HEADERS[np.lib.format.read_magic(file)](file)
  if dtype.kind not in "iuf" or math.prod(shape) > limit:
    raise UserError(f"{path}: {dtype} of shape {shape}; real numbers, at most {limit:,} of them, are needed")
  file.seek(0)
  return np.lib.format.read_array(file, allow_pickle=False)


def read_colors(path: epath.Path) -> np.ndarray:
  """uint8 (H, W, 3)."""
  return np.asarray(pictures.open_image(path).convert("RGB"))


READERS: dict[str, Callable[[epath.Path], np.ndarray]] = {
    "labels": read_classes, "semantic": read_semantic, "depth": read_depth, "normals": read_colors,
    "panoptic": read_colors}
