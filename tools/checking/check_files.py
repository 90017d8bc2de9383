"""The validation pass over a folder of images and labels, or COCO's layout; see `check_data`."""

from etils import epath

from tools.checking.check_data import Options, Problem
from uvim_like.errors import UserError, unknown
from uvim_like.own_data import class_list, layout
from uvim_like.own_data.check import Rules, check_place


def check(root: str, *, coco: bool, options: Options) -> tuple[int, list[Problem]]:
  """(number of images, problems) of all splits, or of `options.split`; UserError when there are none.

  Class maps are held against `options.classes`, else, as a training's, against the names beside them.
  """
  home = epath.Path(root).expanduser()
  try:
    places = layout.find(home)
  except UserError:
    places = {}
  if coco:
    places = {name: place for name, place in places.items() if place.listed}
  elif layout.ALL in places:   # one set: its parts by hash are looked at together
    places = {"train": places[layout.ALL]._replace(name="train")}
  if not places:
    wanted = "annotations/panoptic_<split>.json" if coco else "images/ or <split>/images/"
    raise UserError(f"--data_dir: there is no {wanted} in '{root}'")
  if options.split is not None and options.split not in places:
    raise unknown("split", options.split, places, where="--split")
  listing = None if coco or options.classes else class_list.find(home)
  rules = Rules((listing.count,) if listing else options.classes, options.ignore)
  total, problems = 0, []
  for name in [options.split] if options.split else sorted(places):
    seen, found = check_place(places[name], rules)
    total, problems = total + len(seen), problems + found
  return total, problems
