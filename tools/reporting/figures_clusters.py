"""Probability maps of clusters as pictures: single ones for the report's page, and a sheet of them to save or to print."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from tools.reporting.figures import fit, png

Color = tuple[float, float, float]
COLUMNS = 8  # maps in a row
GREY = (1.0, 1.0, 1.0)
GAMMA = 0.5  # most of K maps are faint beside the one or two that take a pixel: roots make them visible
_BLANK = (0.07, 0.07, 0.09)  # probability 0: nearly black, so that a map's edge is seen on a dark page
# Inches of a sheet: a cell's width, a picture's, what a title takes, and what lies between two images.
_CELL, _PICTURE, _TITLE, _SPACE = 1.25, 1.17, 0.24, 0.16


class Sheet(NamedTuple):
  """One image with its maps.

  Attributes:
    pictures: (title, uint8 or float (H, W, 3)) of the image, the prediction, and the truth where there is one.
    maps: (h, w, K) probabilities in the order in which they are shown.
    titles: K texts.
    tints: K colours.
  """
  pictures: Sequence[tuple[str, np.ndarray]]
  maps: np.ndarray
  titles: Sequence[str]
  tints: Sequence[Color]


def top(maps: np.ndarray) -> float:
  """The probability at which a map's colour ends: almost the largest of all K, so that faint maps can be seen beside it."""
  return max(float(np.percentile(maps, 99.8)), 1e-6) if maps.size else 1.0


def tinted(probability: np.ndarray, *, vmax: float, tint: Color = GREY) -> np.ndarray:
  """(h, w, 3) in [0, 1]: from nearly black at 0 to the tint at `vmax` and above, by the power GAMMA."""
  share = np.clip(np.nan_to_num(probability) / vmax, 0, 1)[..., None] ** GAMMA
  return (1 - share) * np.array(_BLANK) + share * np.array(tint)


def map_image(probability: np.ndarray, *, vmax: float, tint: Color = GREY) -> bytes:
  """One map (h, w) as PNG."""
  return png(fit(tinted(probability, vmax=vmax, tint=tint)))


def scale_bar(tint: Color = GREY) -> bytes:
  """The colours of `map_image` from 0 to `vmax`."""
  return png(np.tile(tinted(np.linspace(0, 1, 256)[None], vmax=1.0, tint=tint), (12, 1, 1)))


def most_used(maps: np.ndarray, count: int) -> np.ndarray:
  """Positions, ascending, of the `count` maps with the largest mean probability."""
  order = np.argsort(-maps.mean(axis=(0, 1)), kind="stable")[:count]
  return np.sort(order)


def sheet_image(sheets: Sequence[Sheet], *, title: str = "", dpi: int = 110) -> bytes:
  """Images from top to bottom, each with its pictures at the left and its maps in rows of COLUMNS, as PNG on white.

  Args:
    sheets: one for each image.
    title: above all.
    dpi: of the picture.
  """
  wide = max((len(sheet.pictures) for sheet in sheets), default=1)
  rows = [max(1, -(-len(sheet.titles) // COLUMNS)) for sheet in sheets]
  heights = [count * (_PICTURE * _aspect(sheet) + _TITLE) + _SPACE for sheet, count in zip(sheets, rows)]
  figure = Figure(figsize=(_CELL * (wide + COLUMNS + 0.7), sum(heights) + (0.4 if title else 0.1)), facecolor="white")
  if title:
    figure.suptitle(_plain(title), fontsize=11, y=1 - 0.12 / figure.get_figheight())
  bottom = figure.get_figheight() - (0.4 if title else 0.1)
  for sheet, count, height in zip(sheets, rows, heights):
    bottom -= height
    _draw_sheet(figure, sheet, wide=wide, rows=count, bottom=bottom, height=height)
  buffer = io.BytesIO()
  figure.set_dpi(dpi)
  FigureCanvasAgg(figure).print_png(buffer)
  return buffer.getvalue()


def _aspect(sheet: Sheet) -> float:
  """Height over width of the maps, within what a cell can take."""
  return float(np.clip(sheet.maps.shape[0] / max(sheet.maps.shape[1], 1), 0.3, 2.0))


def _draw_sheet(figure: Figure, sheet: Sheet, *, wide: int, rows: int, bottom: float, height: float) -> None:
  """One image's pictures and maps between `bottom` and `bottom + height` inches."""
  vmax, cell = top(sheet.maps), (height - _SPACE) / rows
  for place, (title, pixels) in enumerate(sheet.pictures):
    _show(figure, pixels, title, left=place * _CELL, bottom=bottom + height - cell, height=cell, weight="bold")
  for place, (title, tint) in enumerate(zip(sheet.titles, sheet.tints)):
    row, column = divmod(place, COLUMNS)
    _show(figure, tinted(sheet.maps[..., place], vmax=vmax, tint=tint), title, left=(wide + column + 0.1) * _CELL,
          bottom=bottom + height - (row + 1) * cell, height=cell)
  axes = figure.add_axes(_fractions(figure, (wide + COLUMNS + 0.2) * _CELL, bottom + _SPACE + 0.05, 0.1, height - _SPACE - 0.35))
  tint = sheet.tints[0] if len(set(sheet.tints)) == 1 else GREY
  colors = LinearSegmentedColormap.from_list("probability", [_BLANK, tint])
  figure.colorbar(ScalarMappable(PowerNorm(GAMMA, 0, vmax), colors), cax=axes)
  axes.tick_params(labelsize=6)
  axes.set_title("probability", fontsize=6)


def _show(figure: Figure, pixels: np.ndarray, title: str, *, left: float, bottom: float, height: float,
          weight: str = "normal") -> None:
  """A picture with its title above, in inches."""
  axes = figure.add_axes(_fractions(figure, left + 0.04, bottom + 0.03, _PICTURE, height - _TITLE))
  axes.imshow(pixels, interpolation="nearest")
  axes.set_axis_off()
  axes.set_title(_plain(title), fontsize=6.8, pad=2, fontweight=weight)


def _fractions(figure: Figure, left: float, bottom: float, width: float, height: float) -> tuple[float, ...]:
  """A rectangle in inches as shares of the figure."""
  full = figure.get_size_inches()
  return left / full[0], bottom / full[1], width / full[0], max(height, 0.05) / full[1]


def _plain(text: str) -> str:
  return text.replace("\\", "\\\\").replace("$", r"\$")
