"""PolyMaX's clusters beside its predictions: their probability maps in the order of their centres, as a section of the page.

`tools.cluster_maps` draws the same on a sheet.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from tools.reporting import figures, figures_clusters, figures_maps, html
from tools.reporting.examples import POLYMAX, Examples, Loaded
from tools.reporting.figures_clusters import COLUMNS, GREY, Color
from tools.reporting.html import Html, Picture, Section
from tools.reporting.report_families import FAMILIES, cell
from tools.reporting.report_seen import Seen, Special, given

SHOWN = 3        # images on the page
MOST_MAPS = 24   # of an image; of more clusters those with the largest share of the pixels
Entries = Mapping[str, np.ndarray]


class Clusters(NamedTuple):
  """The clusters of one image.

  Attributes:
    maps: (h, w, K) probabilities in the order of the centres, no larger than they are shown.
    centers: (K, D) metres, vectors, or numbers of classes and queries.
    shares: (K,) mean probabilities, which sum to 1 over all clusters, also those that are left out.
    count: clusters in all.
  """
  maps: np.ndarray
  centers: np.ndarray
  shares: np.ndarray
  count: int


def maps_of(run: Loaded) -> Callable[[Entries], tuple[Clusters, dict[str, np.ndarray]]]:
  """A function of the entries of one image, without a batch's first axis, that is compiled once a size.

  It gives the clusters and the prediction {key: (1, …)} that they make. One image at a time: K maps of a batch would take
  gigabytes.
  """
  return functools.partial(_clusters, run, jax.jit(run.system.predict["maps"]))


def _clusters(run: Loaded, function: Callable, entries: Entries) -> tuple[Clusters, dict[str, np.ndarray]]:
  batch = {name: np.asarray(x)[None] for name, x in entries.items()}
  outputs = {key: np.asarray(x) for key, x in function(run.variables, run.frozen, batch, run.key).items()}
  maps, centers = outputs.pop("maps")[0], outputs.pop("centers")[0]
  shown = figures_clusters.most_used(maps, MOST_MAPS)
  thinned = figures.fit(maps[..., shown], low=1)
  return Clusters(thinned, centers[shown], maps.mean(axis=(0, 1))[shown], maps.shape[-1]), outputs


# --- What centres are ------------------------------------------------------------------------------------------------


def depth_center(center: np.ndarray, names: Mapping[int, str]) -> tuple[str, Color]:
  """Metres; the map is grey."""
  del names
  return f"{center[0]:.2f} m", GREY


def normal_center(center: np.ndarray, names: Mapping[int, str]) -> tuple[str, Color]:
  """The vector; the map has its colour."""
  del names
  text = "\N{NO-BREAK SPACE}".join(f"{x:+.1f}" for x in center)
  return f"({text})", tuple(map(float, figures_maps.vector_color(center)))


def class_center(center: np.ndarray, names: Mapping[int, str]) -> tuple[str, Color]:
  """The class; the map has its colour."""
  number = int(center[0])
  return names.get(number, f"class {number}"), figures.class_color(number)


def query_center(center: np.ndarray, names: Mapping[int, str]) -> tuple[str, Color]:
  """The number of the query, which stands for no fixed class."""
  del names
  return f"query {int(center[0])}", GREY


CENTERS: dict[str, Callable[[np.ndarray, Mapping[int, str]], tuple[str, Color]]] = {
    "depth": depth_center, "normals": normal_center, "semantic": class_center, "panoptic": query_center}


# How the clusters make a prediction.
MADE_BY = {**dict.fromkeys(("depth", "normals"), "the prediction is what the clusters stand for, mixed by them"),
           "semantic": "its class is that of the likeliest one",
           "panoptic": "a segment is the pixels whose likeliest one is the same; its class comes from the class head"}


def described(base: Examples, clusters: Clusters) -> list[tuple[str, Color]]:
  """(title, tint) of each map: its centre and its share of the image."""
  found = [CENTERS[base.family](center, base.names) for center in clusters.centers]
  return [(f"{title} · {share:.0%}", tint) for (title, tint), share in zip(found, clusters.shares)]


# --- The report's section --------------------------------------------------------------------------------------------


def gather(run: Loaded, found: Sequence[Examples]) -> list[Clusters]:
  """The clusters of the first images."""
  make = maps_of(run)
  return [make({"image": image})[0] for image in found[0].image[:SHOWN]]


def sections(found: Sequence[Seen], count: int) -> list[Section]:
  """A section for each run."""
  return [_section(seen, seen.examples[0], seen.extras["cluster maps"][:count]) for seen in found]


def _section(seen: Seen, base: Examples, made: Sequence[Clusters]) -> Section:
  left_out = made[0].count - len(made[0].centers)
  rows = [row for i, clusters in enumerate(made) for row in map_rows(base, clusters, i)]
  fewer = f" Of {made[0].count} clusters those with the largest shares are shown." if left_out else ""
  heads = ["image", "prediction", *[""] * min(COLUMNS, len(made[0].centers))]
  return Section(f"Cluster maps ({seen.run.name})", [
      f"Every pixel joins the clusters by these probabilities, and {MADE_BY[base.family]}. Maps come in the order of their "
      f"centres; under each stand its centre and its share of the image.{fewer}",
      html.note("Brightness grows with the root of the probability, so that faint maps can be seen; the maps of an image share "
                "one scale, which stands in front."),
      *legend(base), html.picture_rows(heads, rows)])


def legend(base: Examples) -> list[Html]:
  """What the tints of directions mean; other centres are written below their maps."""
  return FAMILIES[base.family].legend(base, SHOWN) if base.family == "normals" else []


def map_rows(base: Examples, clusters: Clusters, i: int) -> list[tuple[str, list[Picture | None]]]:
  """The rows of example i: image, prediction and the first maps, then the other maps below."""
  vmax = figures_clusters.top(clusters.maps)
  tiles = [Picture(figures_clusters.map_image(clusters.maps[..., k], vmax=vmax, tint=tint),
                   f"probability of the cluster {title}", title, size="small")
           for k, (title, tint) in enumerate(described(base, clusters))]
  first = [given(base, i)[0], cell(base, base.predicted, i, alt=f"{base.family} of image {i + 1}")]
  first = [picture._replace(size="small") for picture in first]
  chunks = [tiles[place:place + COLUMNS] for place in range(0, len(tiles), COLUMNS)]
  return [(f"0–{vmax:.2f}" if not place else "", [*(first if not place else [None, None]), *chunk])
          for place, chunk in enumerate(chunks)]


SPECIALS: dict[str, tuple[Special, ...]] = {POLYMAX: (Special("cluster maps", gather, sections),)}
