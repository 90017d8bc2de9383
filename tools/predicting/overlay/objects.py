"""Detections over a photograph: masks, boxes with names and scores, skeletons."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle

from tools.predicting.overlay import page
from uvim_like.scenes.people import SKELETON
from uvim_like.tasks.classes import ClassTable

MASK_OPACITY = 0.5
SEEN = 0.5   # joints below this probability of being visible are drawn hollow
LEFT, RIGHT, MIDDLE = (0, 158, 255), (255, 140, 0), (80, 220, 120)   # of limbs; told apart by everyone
# COCO's joints come in pairs from the second on: odd positions are left.
SIDES = (MIDDLE, *(LEFT, RIGHT) * 8)

Detection = Mapping[str, Any]


def draw(found: Sequence[Detection], photo: np.ndarray, table: ClassTable, *, scale: float,
         score: float) -> tuple[list[np.ndarray], page.Keys]:
  """The photograph with the detections from `score` on, the best on top, and the legend of their classes.

  Args:
    found: dicts in COCO's form of results, in pixels of the whole picture.
    photo: uint8 (h, w, 3), the panel.
    table: classes.
    scale: pixels of the panel in one of the picture.
    score: detections below are left out.
  """
  shown = [d for d in found if d["score"] >= score]
  colors = [object_color(i) for i in range(len(shown))]
  image = Image.fromarray(_with_masks(shown, colors, photo))
  pen = ImageDraw.Draw(image)
  for detection, color in reversed(list(zip(shown, colors))):
    _draw_box(pen, detection, color, scale)
  for detection in shown:
    if "keypoints" in detection:
      _draw_skeleton(pen, np.reshape(detection["keypoints"], (-1, 3)), scale)
  best = f"; the best {max(d['score'] for d in found):.2f}" if found else ""
  keys = page.Keys([(color, f"{d['name']}  {d['score']:.2f}") for d, color in zip(shown, colors)],
                   nothing=f"no object above {score:g}{best}")
  return [np.asarray(image)], keys


def object_color(number: int) -> tuple[int, int, int]:
  """A bright colour for the n-th object, far from its neighbours'."""
  hue = (0.58 + number * 0.61803398875) % 1
  return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, (0.75, 0.55, 0.9)[number % 3], 0.98))


def _with_masks(found: Sequence[Detection], colors: Sequence[tuple[int, int, int]], photo: np.ndarray) -> np.ndarray:
  out = photo.astype(np.float32)
  for detection, color in reversed(list(zip(found, colors))):
    if "segmentation" not in detection:
      continue
    mask = page.picked(rle.decode(detection["segmentation"]), photo.shape[:2]).astype(bool)
    out[mask] = out[mask] * (1 - MASK_OPACITY) + np.float32(color) * MASK_OPACITY
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    out[mask & ~inner] = color
  return np.round(out).astype(np.uint8)


def _draw_box(pen: ImageDraw.ImageDraw, detection: Detection, color: tuple[int, int, int], scale: float) -> None:
  x, y, w, h = (side * scale for side in detection["bbox"])
  pen.rectangle((x, y, max(x + w, x + 1), max(y + h, y + 1)), outline=color, width=2)
  text = f"{detection['name']} {detection['score']:.2f}"
  left, top, right, bottom = pen.textbbox((x, y), text, font=page.font(13), anchor="lb")
  shift = max(0, -top + 2)   # a tag above the picture goes inside
  pen.rectangle((left - 1, top - 2 + shift, right + 3, bottom + 2 + shift), fill=color)
  pen.text((x + 1, y + shift), text, fill=(0, 0, 0), font=page.font(13), anchor="lb")


def _draw_skeleton(pen: ImageDraw.ImageDraw, points: np.ndarray, scale: float) -> None:
  """Limbs and joints (J, 3) x, y in pixels of the picture, and the probability of being visible."""
  places = points[:, :2] * scale
  for a, b in SKELETON:   # counted from 1
    if max(a, b) <= len(points):
      color = SIDES[a - 1] if SIDES[a - 1] == SIDES[b - 1] else MIDDLE
      pen.line((*places[a - 1], *places[b - 1]), fill=color, width=3)
  for i, (x, y) in enumerate(places):
    seen, color = points[i, 2] >= SEEN, SIDES[i % len(SIDES)]
    pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color if seen else None, outline=(255, 255, 255), width=1)
