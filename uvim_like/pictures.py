"""Reading files that strangers made: names stay in their folder, pictures are measured before they are decoded."""

import io
import os
import struct
import zlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from uvim_like.errors import UserError

# Of a picture, width times height: a quarter of a GiB as RGB, which is Pillow's own limit too. A file of some kilobytes
# can claim 2³¹ x 2³¹ pixels ("decompression bomb").
MAX_PIXELS = 89_478_485
FORMATS = ("PNG", "JPEG", "GIF", "BMP")
# What Pillow raises on truncated, garbled and made-up files (tried on tens of thousands of them).
IMAGE_ERRORS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError,
                TypeError, LookupError, OverflowError, struct.error, zlib.error)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}   # JPEG markers that begin a frame, where the size stands
_LONELY = {0x01, *range(0xD0, 0xD8)}   # JPEG markers without a length
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)   # the EXIF tag, and its values that exchange height and width


def plain_name(name: Any, *, where: str) -> str:
  """A file name out of somebody's list, which must not lead to another folder.

  Raises:
    UserError: no text, or a name with folders, "..", a drive or a null byte.
  """
  drive = isinstance(name, str) and name[1:2] == ":"
  if not isinstance(name, str) or name in ("", ".", "..") or drive or any(c in name for c in "/\\\0"):
    raise UserError(f"{where}: file_name {name!r:.100} is no plain file name; names with folders are not followed")
  return name


def is_local(path: epath.Path) -> bool:
  """Whether a path is on this machine's file system, not in a bucket."""
  return "://" not in os.fspath(path)


def escapes(path: epath.Path, root: epath.Path) -> bool:
  """Whether a file on this machine is really outside the folder `root`, links followed."""
  real, home = os.path.realpath(path), os.path.realpath(root)
  return os.path.commonpath([real, home]) != home


def check_links(folder: epath.Path, root: epath.Path) -> None:
  """Raises UserError when a link in `folder` leads out of `root`; folders that are links themselves are fine."""
  if not is_local(folder):
    return
  inner = [epath.Path(os.path.realpath(root)), folder]
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.is_symlink() and all(escapes(epath.Path(entry.path), home) for home in inner):
        raise UserError(f"{entry.path}: a link to {os.path.realpath(entry.path)}, outside the dataset; copy the file, "
                        "or let the whole folder be the link")


# --- pictures -----------------------------------------------------------------------------------------------------

class Size(NamedTuple):
  """Of a picture; `pixels` are those that a decoder allocates, all frames of a GIF together."""
  height: int
  width: int
  pixels: int


def header_size(file: BinaryIO) -> Size | None:
  """What the headers of a PNG, JPEG, GIF or BMP file say; None for anything else. Nothing is decoded."""
  head = file.read(26)
  if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
    width, height = struct.unpack(">II", head[16:24])
  elif head[:6] in (b"GIF87a", b"GIF89a") and len(head) >= 13:
    return _gif_size(file, head)
  elif head.startswith(b"BM") and len(head) == 26:
    width, height = struct.unpack("<ii", head[18:26])
  elif head.startswith(b"\xff\xd8\xff"):
    file.seek(2)
    return _jpeg_size(file)
  else:
    return None
  height, width = abs(height), abs(width)   # rows of a BMP may run upwards, which a negative height says
  return Size(height, width, height * width)


def _gif_size(file: BinaryIO, head: bytes) -> Size:
  """The screen, widened to its first frame; the pixels of screen and all frames, any of which may be larger."""
  width, height, flags = struct.unpack("<HHB", head[6:11])
  file.seek(13 + _gif_table(flags))
  pixels, first = width * height, True
  while kind := file.read(1):
    if kind == b"!":   # an extension and its label
      file.seek(1, io.SEEK_CUR)
    elif kind == b"," and len(frame := file.read(9)) == 9:
      left, top, w, h, flags = struct.unpack("<HHHHB", frame)
      pixels += w * h
      if first:
        width, height, first = max(width, left + w), max(height, top + h), False
      file.seek(_gif_table(flags) + 1, io.SEEK_CUR)   # and the first byte of the data
    else:
      break
    while (length := file.read(1)) not in (b"", b"\0"):   # blocks, each with its length, up to an empty one
      file.seek(length[0], io.SEEK_CUR)
  return Size(height, width, max(pixels, height * width))


def _gif_table(flags: int) -> int:
  """Bytes of a colour table."""
  return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _jpeg_size(file: BinaryIO) -> Size | None:
  """From the first frame header; `file` stands after the start marker."""
  while (byte := file.read(1)) == b"\xff":
    while byte == b"\xff":   # any number of fill bytes
      byte = file.read(1)
    marker = byte[0] if byte else 0
    if marker in _LONELY:
      continue
    head = file.read(7)
    if marker in _FRAMES and len(head) == 7:
      height, width = struct.unpack(">xxxHH", head)
      return Size(height, width, height * width)
    length = int.from_bytes(head[:2], "big")
    if len(head) < 2 or length < 2 or not 0xC0 <= marker < 0xFF or marker in (0xD8, 0xD9, 0xDA):
      return None
    file.seek(length - len(head), io.SEEK_CUR)
  return None


def checked_size(file: BinaryIO, name: Any) -> tuple[int, int]:
  """(H, W) of a picture whose header is sound and whose size is bounded.

  Raises:
    UserError: none of `FORMATS`, no pixels, or more than `MAX_PIXELS`; it begins with `name`.
  """
  size = header_size(file)
  if size is None or not size.height * size.width:
    raise UserError(f"{name} is not an image that can be read: no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} header "
                    "with a size")
  if size.pixels > MAX_PIXELS:
    raise UserError(f"{name}: {size.height}x{size.width} pixels by its header ({size.pixels:,} in all), more than "
                    f"MAX_PIXELS = {MAX_PIXELS:,}; make it smaller")
  return size.height, size.width


def read_bytes(path: epath.Path) -> bytes:
  """The bytes of a picture, its header checked; UserError when there is no file, or see `checked_size`."""
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(f"{path} is not an image that can be read: {error.strerror}") from error
  checked_size(io.BytesIO(data), path)
  return data


def image_size(path: epath.Path) -> tuple[int, int]:
  """(H, W) from the file's header; UserError when there is no file, or see `checked_size`."""
  try:
    with path.open("rb") as file:
      return checked_size(file, path)
  except OSError as error:
    raise UserError(f"{path} is not an image that can be read: {error.strerror}") from error


def open_image(path: epath.Path) -> Image.Image:
  """A decoded picture; UserError that names the file when it cannot be read or is too large."""
  try:
    with path.open("rb") as file:
      checked_size(file, path)
      file.seek(0)
      image = Image.open(file, formats=FORMATS)
      image.load()
      return image
  except UserError:
    raise
  except IMAGE_ERRORS as error:
    raise UserError(f"{path} is not an image that can be read: {error}") from error


def read_rgb(path: epath.Path) -> np.ndarray:
  """uint8 (H, W, 3) of a picture as viewers show it: turned as its EXIF says, alpha dropped, 16 bits cut to 8.

  Raises:
    UserError: see `open_image`.
  """
  image = open_image(path)
  try:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
      return np.repeat((np.clip(np.asarray(image), 0, 2 ** 16 - 1) >> 8).astype(np.uint8)[..., None], 3, -1)
    return np.asarray(image.convert("RGB"))
  except IMAGE_ERRORS as error:
    raise UserError(f"{path} is not an image that can be read: {error}") from error


def upright_size(path: epath.Path) -> tuple[int, int]:
  """(H, W) of what `read_rgb` gives, from the header alone; UserError as there."""
  height, width = image_size(path)
  try:
    with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
      turned = image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
  except IMAGE_ERRORS as error:
    raise UserError(f"{path} is not an image that can be read: {error}") from error
  return (width, height) if turned else (height, width)
