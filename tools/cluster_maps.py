"""The probability maps behind PolyMaX's predictions, as its paper's figures 8, 12 and 13.

`python -m tools.cluster_maps --workdir=D --out=F.png [--image F …]` writes a sheet: an image, what is predicted, and the K
maps in the order of what their clusters stand for: depths with their metres, directions tinted, classes by name. Without
`--image` it takes validation images.
"""

import argparse
import io
import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image
from rich.progress import track

from tools import shell
from tools.reporting import examples, figures_clusters, validation
from tools.reporting.examples import POLYMAX, Examples, Loaded
from tools.reporting.figures_clusters import Sheet
from tools.reporting.report_clusters import SHOWN, Clusters, described, maps_of
from tools.reporting.report_families import FAMILIES
from uvim_like import flags
from uvim_like.errors import UserError
from uvim_like.inference import model as inference

MOST_IMAGES = 64  # on a sheet


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
  parser = flags.Parser(prog="python -m tools.cluster_maps", description=__doc__)
  parser.add_argument("--workdir", required=True, help="folder of a training of PolyMaX")
  parser.add_argument("--out", required=True, help="the sheet to write, F.png")
  parser.add_argument("--image", nargs="+", action="extend", default=[], help="pictures; validation images by default")
  parser.add_whole("--rows", default=SHOWN, help=f"validation images ({SHOWN})")
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
