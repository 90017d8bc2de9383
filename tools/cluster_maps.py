"""The probability maps behind PolyMaX's predictions, as its paper's figures 8, 12 and 13.

`python -m tools.cluster_maps --workdir=D --out=F.png [--image F …]` writes a sheet: an image, what is predicted, and the K
maps in the order of what their clusters stand for: depths with their metres, directions tinted, classes by name. Without
`--image` it takes validation images.
"""

import argparse
import functools
import io
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image
from rich.progress import track

from tools import shell
from tools.reporting import examples, figures, figures_clusters, figures_maps, html, validation
from tools.reporting.examples import POLYMAX, Examples, Loaded
from tools.reporting.figures_clusters import COLUMNS, GREY, Color, Sheet
from tools.reporting.html import Html, Picture, Section
from tools.reporting.report_families import FAMILIES, cell
from tools.reporting.report_seen import Seen, Special, given
from uvim_like import flags
from uvim_like.errors import UserError
from uvim_like.inference import model as inference

SHOWN, MOST_IMAGES = 3, 64  # on the page; on a sheet
MOST_MAPS = 24  # of an image; of more clusters those with the largest share of the pixels
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


# --- The command -----------------------------------------------------------------------------------------------------


def sheet_of(base: Examples, clusters: Clusters, *, truth: bool) -> Sheet:
  """The sheet's part of one image; `base` holds it alone."""
  family = FAMILIES[base.family]
  pictures = [("image", (base.image[0] + 1) / 2), ("prediction", _pixels(family.draw(base, base.predicted, 0)))]
  if truth:
    pictures.append(("truth", _pixels(family.draw(base, base.truth, 0))))
  titles = described(base, clusters)
  return Sheet(pictures, clusters.maps, [title for title, _ in titles], [tint for _, tint in titles])


def _pixels(png: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def validation_sheets(run: Loaded, rows: int) -> list[Sheet]:
  """The first validation images, with their truth."""
  base, make = examples.predictions(run, rows)[0], maps_of(run)
  every = track(range(len(base.image)), "predicting", transient=True, disable=len(base.image) < 2)
  return [sheet_of(alone(base, i), make({"image": base.image[i]})[0], truth=True) for i in every]


def alone(base: Examples, i: int) -> Examples:
  """Example i as the only one."""
  one = {name: {key: x[i:i + 1] for key, x in getattr(base, name).items()} for name in ("batch", "truth", "predicted")}
  return base._replace(**one)


def image_sheets(run: Loaded, paths: Sequence[str | os.PathLike]) -> list[Sheet]:
  """Pictures of any size, prepared as the run's evaluation prepares its own; those that cannot be read are named."""
  prepare, make, sheets = inference.of(run.trained).lenses[0].prepare, maps_of(run), []
  for path in track(paths, "predicting", transient=True, disable=len(paths) < 2):
    try:
      entries = prepare(inference.read(path, dataset=run.config.dataset))
    except UserError as error:
      print(f"cluster_maps: {error}", file=sys.stderr)
      continue
    clusters, outputs = make({"image": entries["image"]})
    # Without a truth the prediction sets the scale of its own colours.
    family = examples.families_of(outputs)[0]
    base = Examples(run.kind, family, (), {"image": entries["image"][None]}, {}, outputs, outputs, float("nan"),
                    names=validation.class_names(run.config, objects=False))
    sheets.append(sheet_of(base, clusters, truth=False))
  if not sheets:
    raise UserError("--image: none of the pictures could be read")
  return sheets


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Flags, checked; UserError for a mistake."""
  parser = flags.Parser(prog="python -m tools.cluster_maps", description=__doc__,
                        formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, help="folder of a training of PolyMaX")
  parser.add_argument("--out", required=True, help="the sheet to write, F.png")
  parser.add_argument("--image", nargs="+", action="extend", default=[], help="pictures; validation images by default")
  parser.add_argument("--rows", type=int, default=SHOWN, help=f"validation images ({SHOWN})")
  found = parser.parse_args(argv)
  if not found.out.lower().endswith(".png"):
    raise UserError(f"--out: '{found.out}' is no .png file name; did you mean '{found.out.rstrip('/')}.png'?")
  if not 1 <= found.rows <= MOST_IMAGES or len(found.image) > MOST_IMAGES:
    raise UserError(f"--rows and --image: 1 to {MOST_IMAGES} images fit on a sheet")
  return found


def write(workdir: str | os.PathLike, out: str | os.PathLike, *, images: Sequence[str | os.PathLike] = (),
          rows: int = SHOWN) -> int:
  """Writes the sheet and returns the number of images on it.

  Raises:
    UserError: no run of PolyMaX, no images, none that can be read.
  """
  run = examples.load(workdir)
  if "maps" not in run.system.predict:
    raise UserError(f"--workdir: {workdir} is a run of '{run.kind}'; probability maps of clusters are '{POLYMAX}'s")
  sheets = image_sheets(run, images) if images else validation_sheets(run, rows)
  name = run.trained.workdir.resolve().name
  data = figures_clusters.sheet_image(sheets, title=f"{name}: {run.config.task}, step {run.trained.step}")
  path = pathlib.Path(out).expanduser()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return len(sheets)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; a person's mistake is one line and exit status 2."""
  return shell.exit_status("cluster_maps", run, argv)


def run(argv: Sequence[str]) -> None:
  """Writes the sheet and says how many images it shows."""
  options = parse(argv)
  count = write(options.workdir, options.out, images=options.image, rows=options.rows)
  print(f"{options.out}: {count} image{'s' if count > 1 else ''}")


if __name__ == "__main__":
  sys.exit(main())
