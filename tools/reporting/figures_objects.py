"""Objects drawn over their image: masks, boxes with names and scores, skeletons; and which of them were found.

Pictures come as JPEG files: enlarged photographs as PNG would fill the page.
"""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from tools.reporting.figures import jpeg
from uvim_like import joints

SIDE = 256  # pixels at least of the longer side: names must be readable
MAX_SIDE = 512
FOUND, MISSED, INVENTED = "#19c37d", "#ff4d4d", "#ffb000"
_OPACITY = 0.45
_SMOOTH = 2  # lines are drawn so many times larger, then reduced
_TEXT = 11  # pixels
_GOLDEN = 0.61803398875
_SIDES = ("left", "right")
# Limbs of a person between COCO's joints, by name; the face apart.
_LIMBS = [(f"{side}_{a}", f"{side}_{b}") for side in _SIDES
          for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"),
                       ("shoulder", "hip"), ("eye", "ear"))]
_LIMBS += [("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"), ("nose", "left_eye"), ("nose", "right_eye")]
LIMBS = tuple((joints.NAMES.index(a), joints.NAMES.index(b)) for a, b in _LIMBS)


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
  """(H, W) in which an image of this size is drawn: small ones enlarged by a whole number, large ones reduced."""
  longer = max(*size, 1)
  times = min(max(1.0, np.ceil(SIDE / longer)), MAX_SIDE / longer)
  return max(1, round(size[0] * times)), max(1, round(size[1] * times))


def objects_image(image: np.ndarray, boxes: np.ndarray, *, labels: Sequence[str],
                  masks: np.ndarray | None = None, points: Sequence[np.ndarray | None] = (), remark: str = "") -> bytes:
  """An image with its objects, each in a colour of its own.

  Args:
    image: (H, W, 3) float in [-1, 1].
    boxes: (n, 4) [y0, x0, y1, x1] in fractions of the image.
    labels: n texts.
    masks: (n, h, w) bool with (h, w) = `shown_size` of the image; None for none.
    points: n arrays (J, 3) of (y, x, is seen) in fractions, or None where an object has none; () for none at all.
    remark: a line at the lower edge.
  """
  colors = [color(i) for i in range(len(boxes))]
  pixels = np.asarray(_enlarged((np.asarray(image, np.float32) + 1) / 2), np.float32) / 255
  for paint, mask in zip(colors, masks if masks is not None else ()):
    pixels = np.where(mask[..., None], (1 - _OPACITY) * pixels + _OPACITY * np.array(paint), pixels)
  canvas = _for_lines(Image.fromarray(np.round(pixels * 255).astype(np.uint8)))
  draw = ImageDraw.Draw(canvas)
  for paint, box in zip(colors, boxes):
    draw.rectangle(_corners(box, canvas.size), outline=_rgb(paint), width=2 * _SMOOTH)
  for pose in points:
    if pose is not None:
      _skeleton(draw, pose, canvas.size)
  canvas = _reduced(canvas)
  _names(canvas, boxes, labels, colors)
  if remark:
    _names(canvas, np.array([[1.0, 0.0, 1.0, 0.0]]), [remark], [(0.85, 0.85, 0.85)])
  return jpeg(np.asarray(canvas))


def found_image(image: np.ndarray, frames: Mapping[str, np.ndarray]) -> bytes:
  """The darkened image with boxes {colour: (n, 4) fractions}, e.g. FOUND, MISSED, INVENTED."""
  canvas = _for_lines(_enlarged(0.55 * (np.asarray(image, np.float32) + 1) / 2))
  draw = ImageDraw.Draw(canvas)
  for paint, boxes in frames.items():
    for box in boxes:
      draw.rectangle(_corners(box, canvas.size), outline=paint, width=3 * _SMOOTH)
  return jpeg(np.asarray(_reduced(canvas)))


def color(number: int) -> tuple[float, float, float]:
  """Colour (r, g, b) in [0, 1] of the n-th object; neighbours are far apart."""
  return colorsys.hsv_to_rgb((0.08 + number * _GOLDEN) % 1, 0.75, 1.0)


def _rgb(paint: Sequence[float]) -> tuple[int, ...]:
  return tuple(round(255 * c) for c in paint)


def _enlarged(pixels: np.ndarray) -> Image.Image:
  """Float pixels (H, W, 3) in [0, 1] in the size in which they are shown."""
  height, width = shown_size(pixels.shape[:2])
  levels = np.round(np.clip(np.nan_to_num(pixels), 0, 1) * 255).astype(np.uint8)
  how = Image.Resampling.NEAREST if height > pixels.shape[0] else Image.Resampling.LANCZOS
  return Image.fromarray(levels).resize((width, height), how)


def _for_lines(picture: Image.Image) -> Image.Image:
  return picture.resize((picture.width * _SMOOTH, picture.height * _SMOOTH), Image.Resampling.NEAREST)


def _reduced(picture: Image.Image) -> Image.Image:
  return picture.resize((picture.width // _SMOOTH, picture.height // _SMOOTH), Image.Resampling.BOX)


def _corners(box: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
  """(x0, y0, x1, y1) in pixels of a (width, height) canvas, in order and inside it."""
  y0, x0, y1, x1 = np.clip(np.nan_to_num(np.asarray(box, np.float64)), 0, 1)
  width, height = size[0] - 1, size[1] - 1
  return min(x0, x1) * width, min(y0, y1) * height, max(x0, x1) * width, max(y0, y1) * height


def _names(canvas: Image.Image, boxes: np.ndarray, labels: Sequence[str], colors: Sequence) -> None:
  """Writes each label on a plate of the object's colour at the upper left corner of its box, inside the picture."""
  draw = ImageDraw.Draw(canvas)
  for box, label, paint in zip(boxes, labels, colors):
    x, y, *_ = _corners(box, canvas.size)
    left, top, right, bottom = draw.textbbox((0, 0), label, font_size=_TEXT)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(x, canvas.size[0] - width))
    y = max(0, min(y - height if y >= height else y, canvas.size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=_rgb(paint))
    draw.text((x + 2 - left, y + 2 - top), label, fill="#101010", font_size=_TEXT)


def _skeleton(draw: ImageDraw.ImageDraw, pose: np.ndarray, size: tuple[int, int]) -> None:
  """Limbs between seen joints, left in blue, right in orange, the rest in white; joints as dots."""
  places = [(x * (size[0] - 1), y * (size[1] - 1)) for y, x, _ in np.nan_to_num(pose)]
  seen = [bool(joint[2] > 0.5) for joint in pose]
  dot = max(2, max(size) // 90)
  for a, b in LIMBS if len(pose) == len(joints.NAMES) else ():
    if seen[a] and seen[b]:
      draw.line((*places[a], *places[b]), fill=_side_color(a, b), width=dot)
  for (x, y), shown in zip(places, seen):
    if shown:
      draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill="#ffffff", outline="#202020")


def _side_color(a: int, b: int) -> str:
  names = joints.NAMES[a], joints.NAMES[b]
  for side, paint in (("left", "#4cc9ff"), ("right", "#ff9f40")):
    if all(name.startswith(side) for name in names):
      return paint
  return "#ffffff"
