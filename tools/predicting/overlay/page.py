"""How panels and legends stand beside one another: sizes, type, colour bars, keys; nothing of predictions."""

import functools
import pathlib
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uvim_like.evaluators.resize import resize_nearest

LARGEST, SMALLEST = 960, 384   # pixels of a panel's longer side; a row of panels shares `ROW`
ROW = 2400
MAX_ENLARGED = 64
GAP, MARGIN, SWATCH, LINE = 18, 24, 18, 26
PAPER, INK, PALE = (255, 255, 255), (32, 36, 42), (110, 118, 128)
FONT_SIZE = 16
KEYS = 20   # entries of a legend; the rest is counted


class Bar(NamedTuple):
  """A colour bar: colours (n, 3) uint8 from its lower to its upper end, and (place 0..1, text) of each tick."""
  colors: np.ndarray
  ticks: Sequence[tuple[float, str]]
  title: str


class Keys(NamedTuple):
  """A legend of colours: (colour, text) in order; how many more there are; what to say when there is none."""
  entries: Sequence[tuple[tuple[int, int, int], str]]
  nothing: str = ""


class Figure(NamedTuple):
  """A legend that is a picture (h, w, 3) uint8, with lines of text below."""
  pixels: np.ndarray
  lines: Sequence[str]


class Panel(NamedTuple):
  """A picture (h, w, 3) uint8, what stands above it, and the legend at its right."""
  pixels: np.ndarray
  title: str
  legend: Bar | Keys | Figure | None


@functools.lru_cache(maxsize=16)
def font(size: int = FONT_SIZE, *, bold: bool = False) -> ImageFont.FreeTypeFont:
  """The type that matplotlib ships."""
  name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
  return ImageFont.truetype(pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


# --- sizes ------------------------------------------------------------------------------------------------------------


def scale_of(size: tuple[int, int], *, panels: int) -> float:
  """By how much a picture (H, W) is scaled for its panel; small ones by a whole number, so that pixels stay squares."""
  longest = max(size)
  wanted = max(SMALLEST, min(LARGEST, ROW // max(panels, 1)))
  if longest > wanted:
    return wanted / longest
  return float(min(MAX_ENLARGED, max(1, wanted // longest)))


def panel_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
  """(H, W) of a panel."""
  return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resized(image: np.ndarray, scale: float, *, smooth: bool) -> np.ndarray:
  """A picture uint8 (H, W, 3) at the size of its panel; enlarged pixels stay sharp."""
  size = panel_size(image.shape[:2], scale)
  if not smooth or scale >= 1:
    return picked(image, size)
  return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def picked(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """(H, W, …) -> (*size, …), values only picked."""
  return resize_nearest(x, size)


# --- the page ---------------------------------------------------------------------------------------------------------


def compose(panels: Sequence[Panel], *, caption: str | None = None) -> Image.Image:
  """The panels in a row, each with its title above and its legend at the right, and a sentence below."""
  height = max(panel.pixels.shape[0] for panel in panels)
  legends = [legend_of(panel.legend, height) if panel.legend is not None else None for panel in panels]
  widths = [max(panel.pixels.shape[1], _width(panel.title, bold=True)) + (GAP + legend.width if legend else 0)
            for panel, legend in zip(panels, legends)]
  total = sum(widths) + GAP * (len(panels) - 1) + 2 * MARGIN
  words = _wrapped(caption, total - 2 * MARGIN) if caption is not None else []
  body = max([height, *(legend.height for legend in legends if legend)])
  page = Image.new("RGB", (total, 2 * MARGIN + LINE + body + (GAP + LINE * len(words) if words else 0)), PAPER)
  draw, x, top = ImageDraw.Draw(page), MARGIN, MARGIN + LINE
  for panel, legend, width in zip(panels, legends, widths):
    draw.text((x, MARGIN), panel.title, fill=INK, font=font(bold=True))
    page.paste(Image.fromarray(np.ascontiguousarray(panel.pixels)), (x, top))
    if legend:
      page.paste(legend, (x + width - legend.width, top))
    x += width + GAP
  for i, line in enumerate(words):
    draw.text((MARGIN, top + body + GAP + LINE * i), line, fill=INK, font=font())
  return page


def _wrapped(text: str, width: int) -> list[str]:
  shown = f"“{text}”" if text else "(an empty caption)"
  return textwrap.wrap(shown, max(20, width // (FONT_SIZE * 5 // 9))) or [shown]


def _width(text: str, *, bold: bool = False) -> int:
  return int(np.ceil(font(bold=bold).getlength(text)))


def legend_of(legend: Bar | Keys | Figure, height: int) -> Image.Image:
  """A legend as a picture, for panels of a height."""
  draw = {Bar: bar_image, Keys: keys_image, Figure: figure_image}[type(legend)]
  return draw(legend, height)


def bar_image(bar: Bar, height: int) -> Image.Image:
  """The bar with its ticks at the right; at least tall enough for them."""
  height = max(height - LINE, 160)
  texts = [text for _, text in bar.ticks]
  width = max(SWATCH + 10 + max(map(_width, texts), default=0), _width(bar.title)) + 4
  image = Image.new("RGB", (width, height + LINE), PAPER)
  draw = ImageDraw.Draw(image)
  draw.text((0, 0), bar.title, fill=PALE, font=font())
  top, inner = LINE + FONT_SIZE // 2, height - FONT_SIZE
  rows = np.clip(((1 - (np.arange(inner) + 0.5) / inner) * len(bar.colors)).astype(int), 0, len(bar.colors) - 1)
  image.paste(Image.fromarray(np.repeat(bar.colors[rows][:, None], SWATCH, axis=1)), (0, top))
  for place, text in bar.ticks:
    y = top + (1 - place) * (inner - 1)
    draw.line((SWATCH, y, SWATCH + 4, y), fill=INK)
    draw.text((SWATCH + 8, y), text, fill=INK, font=font(), anchor="lm")
  return image


def keys_image(keys: Keys, height: int) -> Image.Image:
  """Swatches with their texts, one below the other."""
  del height
  shown = list(keys.entries[:KEYS])
  texts = [text for _, text in shown] or [keys.nothing]
  if len(keys.entries) > KEYS:
    texts.append(f"and {len(keys.entries) - KEYS} more")
  image = Image.new("RGB", (SWATCH + 10 + max(map(_width, texts)), LINE * len(texts) + 4), PAPER)
  draw = ImageDraw.Draw(image)
  for i, text in enumerate(texts):
    y = LINE * i
    if i < len(shown):
      draw.rounded_rectangle((0, y + 3, SWATCH, y + 3 + SWATCH), radius=4, fill=shown[i][0])
    draw.text((SWATCH + 8 if shown else 0, y + 3 + SWATCH / 2), text, fill=INK if i < len(shown) else PALE, font=font(),
              anchor="lm")
  return image


def figure_image(figure: Figure, height: int) -> Image.Image:
  """The picture and its lines."""
  del height
  h, w = figure.pixels.shape[:2]
  image = Image.new("RGB", (max([w, *map(_width, figure.lines)]), h + LINE * len(figure.lines) + 8), PAPER)
  image.paste(Image.fromarray(figure.pixels), (0, 0))
  for i, line in enumerate(figure.lines):
    ImageDraw.Draw(image).text((0, h + 8 + LINE * i), line, fill=INK, font=font())
  return image
