"""Arrays as PNG pictures and charts for the report; nothing here knows of models, runs or pages."""

import colorsys
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator
from PIL import Image, ImageDraw

MIN_SIDE, MAX_SIDE = 128, 320  # pixels of the longer side of a shown picture
INK, INK_DARK = "#24292f", "#d7dde4"  # of charts, whose background is transparent: for light and for dark pages
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by everyone
VOID_COLOR = (0.24, 0.24, 0.26)
_HATCH = ((0.62, 0.62, 0.64), (0.74, 0.74, 0.76))
_GOLDEN = 0.61803398875  # steps of the golden ratio keep hues of neighbouring numbers far apart
_CELL = 36  # pixels of one word in `code_image`

Curve = tuple[Sequence[float], Sequence[float]]


# --- Pictures --------------------------------------------------------------------------------------------------------


def png(pixels: np.ndarray) -> bytes:
  """A picture (H, W, 3), or (H, W, 4) with opacity, uint8 or float in [0, 1], as PNG."""
  return _file(pixels, format="PNG", optimize=True)


def jpeg(pixels: np.ndarray) -> bytes:
  """The same as JPEG, for photographs with drawings over them: a fifth of the size, and small text stays readable."""
  return _file(pixels, format="JPEG", quality=88, subsampling=0, optimize=True)


def _file(pixels: np.ndarray, **options) -> bytes:
  pixels = np.asarray(pixels)
  if pixels.dtype != np.uint8:
    pixels = np.round(np.clip(np.nan_to_num(pixels), 0, 1) * 255).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, **options)
  return buffer.getvalue()


def fit(array: np.ndarray, *, low: int = MIN_SIDE, high: int = MAX_SIDE) -> np.ndarray:
  """(H, W, …) repeated or thinned out by a whole number until the longer side is between `low` and `high`.

  No pixel is mixed with another, so labels stay labels. An empty array stays as it is.
  """
  side = max(array.shape[:2])
  if not side:
    return array
  if side > high:
    step = -(-side // high)
    return array[::step, ::step]
  times = max(1, -(-low // side))
  return array.repeat(times, axis=0).repeat(times, axis=1)


def color_image(image: np.ndarray) -> bytes:
  """An image (H, W, 3) float in [-1, 1]."""
  return png((fit(np.asarray(image, np.float32)) + 1) / 2)


def depth_range(*depths: np.ndarray) -> tuple[float, float]:
  """Smallest and largest measured value in metres, for one colour scale over several maps; (0, 1) without any."""
  values = np.concatenate([np.ravel(depth)[_measured(np.ravel(depth))] for depth in depths])
  if not values.size:
    return 0.0, 1.0
  low, high = float(values.min()), float(values.max())
  return (low, high) if high > low else (low, low + 1.0)


def _measured(depth: np.ndarray) -> np.ndarray:
  """Where a depth is one: finite and positive."""
  return np.isfinite(depth) & (depth > 0)


def depth_image(depth: np.ndarray, *, vmin: float, vmax: float) -> bytes:
  """A depth map (H, W) in metres: near is bright, far is dark, missing (0, nan) is hatched grey."""
  depth = fit(np.asarray(depth, np.float32))
  return png(_scaled(depth, vmin, vmax, "magma_r", _measured(depth)))


def error_image(error: np.ndarray, *, vmax: float) -> bytes:
  """An error map (H, W) ≥ 0 from black through orange to white at `vmax`; nan is hatched grey."""
  error = fit(np.asarray(error, np.float32))
  return png(_scaled(error, 0.0, vmax, "inferno", np.isfinite(error)))


def _scaled(values: np.ndarray, low: float, high: float, colors: str, shown: np.ndarray) -> np.ndarray:
  scaled = np.clip((np.where(shown, values, low) - low) / max(high - low, 1e-9), 0, 1)
  return np.where(shown[..., None], colormaps[colors](scaled)[..., :3], hatch(values.shape))


def hatch(shape: tuple[int, int]) -> np.ndarray:
  """(H, W, 3) grey diagonal stripes: no value here."""
  rows, columns = np.indices(shape)
  return np.array(_HATCH)[((rows + columns) // 4) % 2]


def scale_bar(colors: str = "magma_r") -> bytes:
  """The colours of `depth_image` from near to far, as a bar."""
  return png(np.tile(colormaps[colors](np.linspace(0, 1, 256))[None, :, :3], (12, 1, 1)))


def class_color(number: int) -> tuple[float, float, float]:
  """Colour (r, g, b) in [0, 1] of a semantic value; 0 is void, dark grey."""
  if number <= 0:
    return VOID_COLOR
  saturation, value = ((0.58, 0.92), (0.78, 0.78), (0.42, 0.86))[number % 3]
  return colorsys.hsv_to_rgb((0.03 + number * _GOLDEN) % 1, saturation, value)


def rgb(paint: str) -> tuple[float, float, float]:
  """A colour "#rrggbb" as (r, g, b) in [0, 1]."""
  return tuple(int(paint[place:place + 2], 16) / 255 for place in (1, 3, 5))


def panoptic_image(semantics: np.ndarray, instances: np.ndarray) -> bytes:
  """A panoptic map: the colour tells the class, its brightness the instance, white lines where segments meet.

  Args:
    semantics: (H, W) int, 0 = void.
    instances: (H, W) int, 0 = none.
  """
  semantics, instances = fit(np.asarray(semantics, np.int64)), fit(np.asarray(instances, np.int64))
  segments, inverse = np.unique(semantics * (instances.max(initial=0) + 1) + instances, return_inverse=True)
  inverse = inverse.reshape(semantics.shape)
  colors = np.zeros((len(segments), 3))
  colors[inverse] = _segment_colors(semantics, instances)
  picture = colors[inverse]
  picture[edges(inverse)] = 1.0
  return png(picture)


def _segment_colors(semantics: np.ndarray, instances: np.ndarray) -> np.ndarray:
  """(H, W, 3): class colours, darker or brighter from instance to instance; stuff's instance 0 keeps its colour."""
  kinds = np.array([class_color(k) for k in range(max(0, int(semantics.max(initial=0))) + 1)])
  shade = np.where(instances > 0, 1.1 - 0.5 * ((instances * _GOLDEN) % 1), 1.0)
  return np.clip(kinds[np.maximum(semantics, 0)] * np.where(semantics > 0, shade, 1.0)[..., None], 0, 1)


def edges(labels: np.ndarray) -> np.ndarray:
  """(H, W) bool: pixels whose right or lower neighbour has another label."""
  found = np.zeros(labels.shape, bool)
  found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
  found[:-1] |= labels[:-1] != labels[1:]
  return found


def code_image(words: np.ndarray, *, reference: np.ndarray | None = None,
               grid: tuple[int, int] | None = None) -> bytes:
  """The words of a code as coloured tiles with their numbers, in reading order.

  Args:
    words: (L,) int.
    reference: (L,) int; tiles that differ from it are faded.
    grid: (rows, columns); by default as square as L allows.
  """
  words = np.asarray(words)
  rows, columns = grid or square_grid(words.size)
  cell = max(8, min(_CELL, MAX_SIDE // max(rows, columns)))
  canvas = Image.new("RGB", (columns * cell, rows * cell), "#8a8f96")
  draw = ImageDraw.Draw(canvas)
  for place, word in enumerate(words):
    same = reference is None or word == reference[place]
    x, y = place % columns * cell, place // columns * cell
    draw.rectangle((x + 1, y + 1, x + cell - 2, y + cell - 2), fill=_word_color(int(word), same))
    if cell >= 24:
      draw.text((x + cell / 2, y + cell / 2), str(word), fill="#101010" if same else "#6d737a", anchor="mm",
                font_size=12)
  return png(np.asarray(canvas))


def square_grid(length: int) -> tuple[int, int]:
  """(rows, columns) of the most nearly square grid with exactly `length` places."""
  rows = next(r for r in range(max(1, int(length ** 0.5)), 0, -1) if length % r == 0)
  return rows, length // rows


def _word_color(word: int, same: bool) -> tuple[int, ...]:
  saturation, value = (0.55, 0.95) if same else (0.08, 0.80)
  return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(word * _GOLDEN % 1, saturation, value))


# --- Charts ----------------------------------------------------------------------------------------------------------


def curves(series: Mapping[str, Curve], *, xlabel: str = "step", ylabel: str = "", title: str = "", log: bool = False,
           smooth: bool = False, markers: bool = False, ink: str = INK,
           size: tuple[float, float] = (5.2, 3.0)) -> bytes:
  """Lines over a common axis.

  Args:
    series: {name: (x, y)} of equal length; values that are not finite, or not positive on a logarithmic axis, are gaps.
    xlabel, ylabel, title: plain text.
    log: logarithmic y axis.
    smooth: draw a running median boldly and the values themselves lightly.
    markers: a dot on every value, for few of them.
    ink: colour of axes and text.
    size: inches.
  """
  figure, axes = _axes(size, ink)
  drawn = 0
  for color, (name, (x, y)) in zip(_endless(LINES), series.items()):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    y = np.where(np.isfinite(y) & ((y > 0) | (not log)), y, np.nan)
    drawn += bool(np.isfinite(y).any())
    if smooth and y.size > 8:
      axes.plot(x, y, color=color, alpha=0.3, linewidth=0.8)
      y = running_median(y)
    axes.plot(x, y, color=color, linewidth=1.8, marker="o" if markers or y.size == 1 else None, markersize=4.5,
              label=_plain(name))
  if drawn and axes.dataLim.x0 >= 0:
    axes.set_xlim(left=-0.02 * axes.dataLim.x1)
  if log and drawn:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())  # 4, not 4 × 10⁰
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.7)))
  if not drawn:
    axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center", color=ink)
  axes.set(xlabel=_plain(xlabel), ylabel=_plain(ylabel))
  axes.set_title(_plain(title), fontsize=10, loc="left", color=ink)
  if len(series) > 1:
    axes.legend(frameon=False, fontsize=8, labelcolor=ink)
  return _chart(figure)


def running_median(values: np.ndarray, *, share: float = 0.05) -> np.ndarray:
  """The median over a window of `share` of the length around each value, nan left out; nan where all are."""
  half = max(1, round(values.size * share / 2))
  windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, half, constant_values=np.nan), 2 * half + 1)
  filled = np.isfinite(windows).any(axis=1)
  medians = np.full(values.shape, np.nan)
  medians[filled] = np.nanmedian(windows[filled], axis=1)
  return medians


def code_use(frequency: np.ndarray, *, ink: str = INK, size: tuple[float, float] = (5.2, 2.6)) -> bytes:
  """How often each word of a dictionary is written, most frequent first; perplexity and unused words in the title.

  Args:
    frequency: (K,) shares that sum to 1.
    ink: colour of axes and text.
    size: inches.
  """
  frequency = np.sort(np.asarray(frequency, np.float64))[::-1]
  figure, axes = _axes(size, ink)
  axes.bar(np.arange(frequency.size), 100 * frequency, width=1.0, color=LINES[0], linewidth=0)
  axes.axhline(100 / frequency.size, color=ink, linestyle="--", linewidth=1)
  axes.text(frequency.size, 100 / frequency.size, "all alike ", ha="right", va="bottom", fontsize=8, color=ink)
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  axes.set(xlabel="words, most frequent first", ylabel="% of all words written", xlim=(-0.5, frequency.size - 0.5))
  dead = int((frequency <= 0).sum())
  axes.set_title(f"{frequency.size} words: {dead} never used, perplexity {perplexity(frequency):.1f}", fontsize=10,
                 loc="left", color=ink)
  return _chart(figure)


def perplexity(frequency: np.ndarray) -> float:
  """Of shares (K,): K when all words are used alike, 1 when one word is used alone; nan when none is."""
  used = frequency[frequency > 0]
  return float(np.exp(-np.sum(used * np.log(used)))) if used.size else float("nan")


def _axes(size: tuple[float, float], ink: str):
  """A figure of its own (no pyplot: nothing stays open) on a transparent ground, with axes in the colour `ink`."""
  figure = Figure(figsize=size, layout="constrained", facecolor="none")
  axes = figure.add_subplot(facecolor="none")
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["bottom", "left"]].set_color(ink)
  axes.tick_params(which="both", colors=ink, labelsize=8)
  axes.xaxis.label.set_color(ink)
  axes.yaxis.label.set_color(ink)
  axes.xaxis.label.set_size(9)
  axes.yaxis.label.set_size(9)
  axes.xaxis.set_major_locator(MaxNLocator(6))
  axes.grid(axis="y", color=ink, alpha=0.15, linewidth=0.7)
  return figure, axes


def _chart(figure: Figure) -> bytes:
  buffer = io.BytesIO()
  figure.set_dpi(150)
  FigureCanvasAgg(figure).print_png(buffer)
  return buffer.getvalue()


def _plain(text: str) -> str:
  """Text without matplotlib's mathematics: a dollar sign in a run's name is a dollar sign."""
  return text.replace("\\", "\\\\").replace("$", r"\$")


def _endless(items: Sequence[str]):
  while True:
    yield from items
