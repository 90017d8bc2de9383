"""The readers' name for `uvim_like.pictures`, which needs no TensorFlow and therefore lives there."""

from uvim_like.pictures import (
  FORMATS,
  IMAGE_ERRORS,
  MAX_PIXELS,
  Size,
  check_links,
  checked_size,
  escapes,
  header_size,
  image_size,
  is_local,
  open_image,
  plain_name,
  read_bytes,
  read_rgb,
  upright_size,
)

__all__ = ["FORMATS", "IMAGE_ERRORS", "MAX_PIXELS", "Size", "check_links", "checked_size", "escapes", "header_size",
           "image_size", "is_local", "open_image", "plain_name", "read_bytes", "read_rgb", "upright_size"]
