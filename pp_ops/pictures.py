"""A person's pictures of any kind as the pixels that a network is given: uint8 (H, W, 3), upright.

Equal files must give the numbers of the evaluation, so each picture goes through the decoder of the run's dataset:
JPEG and PNG through TensorFlow where the dataset's do, through Pillow for the dataset `folder`. (Two JPEG decoders
differ by some levels.) Formats that no dataset has are read by Pillow.
"""

import io
import os
import pathlib
import re

import numpy as np
import tensorflow as tf
from PIL import Image

from uvim_like.errors import UserError
from uvim_like.pictures import IMAGE_ERRORS, MAX_PIXELS, checked_size

ORIENTATION = 0x0112   # EXIF's tag; 1 is upright
TENSORFLOW = ("JPEG", "MPO", "PNG")   # MPO: a JPEG with further views behind it, as some telephones write
# Pillow knows more, films and data files among them, which nobody means by a picture.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "PPM", "TGA", "AVIF")
BY_PILLOW = "folder"   # the dataset whose pictures Pillow reads
# What it takes to make the picture upright, by the tag's value (EXIF 2.3, table of tag 274).
UPRIGHT = {2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
           5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1),
           7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: lambda x: np.rot90(x, 1)}


def suffixes() -> frozenset[str]:
  """Lower-case file suffixes of the formats that can be read, with the dot."""
  known = formats()
  return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def formats() -> tuple[str, ...]:
  """Those of `FORMATS` that the installed Pillow reads."""
  Image.init()
  return tuple(name for name in FORMATS if name in Image.OPEN)


def read(path: str | os.PathLike, *, dataset: str = "") -> np.ndarray:
  """uint8 (H, W, 3) of a picture file.

  Grey becomes three equal channels, 16 bits lose the lower eight, alpha is dropped (the colours are those below it, as
  in training), an animation gives its first frame, and the picture is turned as its EXIF tag says.

  Args:
    path: of the file.
    dataset: of the run, whose decoder is taken.

  Raises:
    UserError: one line that begins with the file's name: not there, no picture, damaged, too large.
  """
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}") from error
  return decode(data, name=os.fspath(path), dataset=dataset)


def decode(data: bytes, *, name: str, dataset: str = "") -> np.ndarray:
  """The picture that encoded bytes hold, see `read`; `name` begins its errors."""
  if not data:
    raise UserError(f"{name}: an empty file")
  try:
    with Image.open(io.BytesIO(data), formats=formats()) as picture:
      width, height = picture.size
      if width * height > MAX_PIXELS:
        raise UserError(f"{name}: {height}x{width} pixels by its header, more than MAX_PIXELS = {MAX_PIXELS:,}; "
                        "make it smaller")
      turn = UPRIGHT.get(picture.getexif().get(ORIENTATION))
      tensorflow = picture.format in TENSORFLOW and BY_PILLOW not in dataset
      pixels = _by_tensorflow(data, name) if tensorflow else _by_pillow(picture, name)
  except UserError:
    raise
  except (*IMAGE_ERRORS, tf.errors.OpError, Image.DecompressionBombWarning) as error:
    raise UserError(f"{name}: not an image that can be read ({_reason(error)})") from error
  return np.ascontiguousarray(turn(pixels) if turn else pixels)


def _reason(error: BaseException) -> str:
  """A library's words, without what it calls the bytes or its own function."""
  text = " ".join(str(getattr(error, "message", None) or error).split())
  text = re.sub(r"\{\{.*?\}\}", "", text)
  return text.split("<_io.BytesIO")[0].split("[Op:")[0].strip()[:160] or type(error).__name__


def _by_tensorflow(data: bytes, name: str) -> np.ndarray:
  """(H, W, 3) uint8, not yet turned."""
  checked_size(io.BytesIO(data), name)
  return tf.io.decode_image(data, channels=3, expand_animations=False).numpy()


def _by_pillow(picture: Image.Image, name: str) -> np.ndarray:
  """(H, W, 3) uint8, not yet turned."""
  if picture.mode == "F":
    raise UserError(f"{name}: floating-point pixels have no agreed range; save it with 8 or 16 bits a channel")
  if picture.mode.startswith("I"):
    grey = (np.clip(np.asarray(picture), 0, 2 ** 16 - 1) >> 8).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
  return np.asarray(picture.convert("RGB"))


def of_array(image: np.ndarray, *, name: str = "image") -> np.ndarray:
  """A decoded picture as `read` gives it: uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); UserError for others."""
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
    raise UserError(f"{name}: an array must be uint8 (H, W) or (H, W, channels) with pixels, not {image.dtype} "
                    f"{image.shape}")
  image = image[..., None] if image.ndim == 2 else image
  if image.shape[-1] not in (1, 3, 4):
    raise UserError(f"{name}: an array of {image.shape[-1]} channels; 1, 3 or 4 are read")
  return np.ascontiguousarray(np.broadcast_to(image[..., :3], (*image.shape[:2], 3)))
