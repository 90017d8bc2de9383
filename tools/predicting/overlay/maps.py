"""Maps in colours: depth with a bar in metres, segments with the names of their classes, normals with a sphere."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw
from scipy import ndimage

from tools.predicting.overlay import page
from tools.reporting import figures
from uvim_like.tasks.classes import ClassTable

DEPTH_COLORS = "magma_r"   # near is bright, as in the report
ENDS = (0.5, 99.5)   # percentiles of depth at the ends of the bar, so that single pixels do not flatten the rest
OPACITY = 0.62
LUMA = np.array([0.299, 0.587, 0.114])
LABELLED = 0.012   # share of the picture from which on a segment carries its name
SPHERE = 150   # pixels

Pictures = list[np.ndarray]


def depth(found: Sequence[np.ndarray]) -> tuple[Pictures, page.Bar]:
  """Depths (h, w) metres on one scale; what is not finite and positive is hatched."""
  measured = [np.isfinite(x) & (x > 0) for x in found]
  values = np.concatenate([x[ok] for x, ok in zip(found, measured)])
  low, high = np.percentile(values, ENDS) if values.size else (0.0, 1.0)
  if high - low < 0.02:   # a flat map: half a metre around it, not noise blown up
    low, high = max(0.0, low - 0.25), high + 0.25
  colors = colormaps[DEPTH_COLORS]
  drawn = [_bytes(np.where(ok[..., None], colors(np.clip((np.where(ok, x, low) - low) / (high - low), 0, 1))[..., :3],
                           figures.hatch(x.shape))) for x, ok in zip(found, measured)]
  inside = [tick for tick in MaxNLocator(6, steps=(1, 2, 5, 10)).tick_values(low, high) if low <= tick <= high]
  ticks = [((tick - low) / (high - low), f"{tick:g} m") for tick in inside]
  return drawn, page.Bar(_bytes(colors(np.linspace(0, 1, 256))[:, :3]), ticks, "depth")


def _bytes(x: np.ndarray) -> np.ndarray:
  return np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)


# --- segments ---------------------------------------------------------------------------------------------------------


def segments(pairs: Sequence[tuple[np.ndarray, np.ndarray | None]], photo: np.ndarray,
             table: ClassTable) -> tuple[Pictures, page.Keys]:
  """Classes, and instances where there are some, over the photograph.

  Args:
    pairs: (semantics (h, w), instances (h, w) or None); 0 is void.
    photo: uint8 (h, w, 3).
    table: names of the classes.
  """
  drawn = [_segments(semantics, instances, photo, table) for semantics, instances in pairs]
  return drawn, class_keys(pairs, table)


def _segments(semantics: np.ndarray, instances: np.ndarray | None, photo: np.ndarray, table: ClassTable) -> np.ndarray:
  things = np.array([False, *table.isthing])
  countable = things[np.clip(semantics, 0, len(things) - 1)]
  own = np.where(countable, instances, 0) if instances is not None else np.zeros_like(semantics)
  colors = _segment_colors(semantics, own)
  grey = (photo @ LUMA)[..., None]   # so that the colours are those of the legend
  shown = grey * (1 - OPACITY) + 255 * colors * OPACITY
  ids = semantics.astype(np.int64) * (int(own.max(initial=0)) + 1) + own
  shown[figures.edges(ids)] = 255
  image = Image.fromarray(np.round(shown).astype(np.uint8))
  _write_names(image, ids, semantics, table)
  return np.asarray(image)


def _segment_colors(semantics: np.ndarray, instances: np.ndarray) -> np.ndarray:
  """(h, w, 3) in [0, 1]: the class's colour, instances of it lighter and darker."""
  palette = np.array([figures.class_color(k) for k in range(int(semantics.max(initial=0)) + 1)])
  shade = np.where(instances > 0, 1.12 - 0.45 * ((instances * 0.61803398875) % 1), 1.0)
  return np.clip(palette[np.maximum(semantics, 0)] * shade[..., None], 0, 1)


def _write_names(image: Image.Image, ids: np.ndarray, semantics: np.ndarray, table: ClassTable) -> None:
  """The names of large segments in their middles, as far as they fit in."""
  draw = ImageDraw.Draw(image)
  for number in np.unique(ids[semantics > 0]):
    mask = ids == number
    if mask.mean() < LABELLED:
      continue
    name = table.names[int(semantics[mask][0]) - 1]
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(distance)), mask.shape)
    if 2.6 * distance[y, x] < page.font().getlength(name) or distance[y, x] < page.FONT_SIZE * 0.7:
      continue
    draw.text((int(x), int(y)), name, fill=(255, 255, 255), font=page.font(), anchor="mm", stroke_width=2,
              stroke_fill=page.INK)


def class_keys(pairs: Sequence[tuple[np.ndarray, np.ndarray | None]], table: ClassTable) -> page.Keys:
  """The classes that occur, the largest first: colour, name, how many, share of the picture (mean over the samples)."""
  counts = [np.bincount(np.maximum(s, 0).ravel(), minlength=len(table.ids) + 1) / s.size for s, _ in pairs]
  area = np.mean(counts, axis=0)
  entries = []
  for label in sorted((k for k in np.flatnonzero(area)), key=lambda k: -area[k]):
    name = table.names[label - 1] if label else "void"
    count = max(_count(s, i, label) for s, i in pairs) if label and table.isthing[label - 1] else 0
    number = f" ×{count}" if count > 1 else ""
    entries.append((tuple(_bytes(np.array(figures.class_color(int(label)))).tolist()),
                    f"{name}{number}  {100 * area[label]:.0f} %" if area[label] >= 0.005 else f"{name}{number}  < 1 %"))
  return page.Keys(entries)


def _count(semantics: np.ndarray, instances: np.ndarray | None, label: int) -> int:
  return 0 if instances is None else len(np.unique(instances[semantics == label]))


# --- normals ----------------------------------------------------------------------------------------------------------


def normals(found: Sequence[np.ndarray]) -> tuple[Pictures, page.Figure]:
  """Unit vectors (h, w, 3) as colours, (n + 1) / 2; hatched where there is none."""
  return [_normals(x) for x in found], page.Figure(sphere(), ["x: right  (red)", "y: up  (green)", "z: to you  (blue)"])


def _normals(x: np.ndarray) -> np.ndarray:
  there = np.isfinite(x).all(-1) & np.any(x != 0, axis=-1)
  return _bytes(np.where(there[..., None], (x + 1) / 2, figures.hatch(x.shape[:2])))


def sphere() -> np.ndarray:
  """What a ball's normals look like: the legend."""
  y, x = (np.mgrid[:SPHERE, :SPHERE] + 0.5) / SPHERE * 2 - 1
  z = np.sqrt(np.clip(1 - x ** 2 - y ** 2, 0, None))
  ball = _bytes((np.stack([x, -y, z], axis=-1) + 1) / 2)
  # A soft rim: the outermost pixel fades into the paper.
  rim = np.clip((1 - np.hypot(x, y)) * SPHERE / 2, 0, 1)[..., None]
  return np.round(ball * rim + 255 * (1 - rim)).astype(np.uint8)
