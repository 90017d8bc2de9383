"""What a config must know of somebody's folder: numbers of classes, depth range, sizes, names; found once, and kept.

The numbers go into a config as arguments of its form `folder`, which can be written out as well:
`--config=configs/polymax/semantic.py:folder,classes=7,size=375x500`.
"""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
from etils import epath

from uvim_like import pictures
from uvim_like.errors import UserError
from uvim_like.joints import NAMES as JOINTS
from uvim_like.own_data import class_list, layout, tables
from uvim_like.own_data.check import Rules, Seen, check_place
from uvim_like.own_data.layout import Place
from uvim_like.own_data.maps import SENTINEL, SUFFIXES, VOID
from uvim_like.own_data.problems import Problem, summary
from uvim_like.tasks import text as texts

CACHE = "~/.cache/uvim_like/folders"
VERSION = 2       # of what is kept there
SHOWN = 1000      # problems in a message
_ROUNDING = 1e-4  # of a step: 4.2 m in single precision is a little less
PIECES = 4000     # at most, of a text model that is trained on the captions
# What a config may need -> the label maps, or the table, that give it.
SOURCES = {"semantic": "semantic/ or labels/", "depth": "depth/", "normals": "normals/",
           "panoptic": "panoptic/ and panoptic.json", "instances": "instances.json",
           "masks": "instances.json with 'segmentation'", "captions": "captions.json"}
_MAPS = {"semantic": ("semantic", "labels"), "depth": ("depth",), "normals": ("normals",), "panoptic": ("panoptic",)}
_TABLES = {"panoptic": ("panoptic",), "instances": ("instances", "person_keypoints"), "captions": ("captions",)}


class Facts(NamedTuple):
  """What was found.

  Attributes:
    arguments: of the config's form `folder`.
    class_names: "semantic" -> [name of each class], "objects" -> [{"id" in its file, "name"}], "panoptic" -> the same
      with "isthing".
    notes: lines that a person should read.
    nearest: the smallest depth in metres, 0 without any.
  """
  arguments: dict[str, Any]
  class_names: dict[str, list]
  notes: list[str]
  nearest: float = 0.0


def read(data_dir: str, needs: Collection[str], *, progress: bool = True) -> Facts:
  """The facts of a folder, all of whose files that matter are looked at; kept under `CACHE` until a file changes.

  Args:
    data_dir: the folder.
    needs: keys of `SOURCES` that must be there, those ending in "?" may be missing.
    progress: show a bar.

  Raises:
    UserError: no such folder or layout, something needed is missing, or anything is wrong with the files: all of it,
      a line each.
  """
  root = epath.Path(data_dir).expanduser()
  where = f"config.data_dir: '{data_dir}'"
  places = layout.find(root)
  train, validation = layout.training_splits(tuple(places), where=where)
  names = (layout.ALL,) if layout.ALL in places else dict.fromkeys((train, validation))
  parts = [places[name] for name in names]
  for part in parts:
    if not part.images.is_dir():
      raise UserError(f"{where}: no folder with the pictures of its split '{part.name}': there is no {part.name}/, no "
                      f"images/{part.name}/ and no images/")
  needs = _present(parts, needs, where)
  key = _fingerprint(root, parts, needs) if pictures.is_local(root) else None   # in a bucket, every start looks
  if key is not None and (kept := _recall(key)) is not None:
    return kept
  listing = class_list.find(root)
  maps = {need: _kind(need, parts) for need in needs if need in _MAPS}
  rules = Rules(classes=(listing.count,) if listing and "semantic" in needs else (), ignore=frozenset({VOID}),
                maps=frozenset(maps.values()), tables={kind for need in needs for kind in _TABLES.get(need, ())})
  seen, problems = [], []
  for part in parts:
    one, wrong = check_place(part, rules, progress=progress)
    seen, problems = seen + one, problems + wrong
  _stop_at(problems, len(seen), where)
  facts = gather(parts, seen, maps, needs, listing, where=where)
  splits = (("train", train, "train"), ("val", validation, "validation"))
  facts.arguments.update({name: value for name, value, usual in splits if value != usual})
  if train == validation:
    facts.notes.append("there is no split for validation, and none was held out: validation is on training pictures")
  if key is not None:
    _keep(key, facts)
  return facts


def _kind(need: str, parts: Sequence[Place]) -> str | None:
  """The sort of label map that all splits have for a need."""
  return next((kind for kind in _MAPS[need] if all(kind in part.maps for part in parts)), None)


def _present(parts: Sequence[Place], needs: Collection[str], where: str) -> frozenset[str]:
  """The needs that all splits can meet; UserError for one that they must."""
  there = {need for need in _MAPS if _kind(need, parts)}
  there |= {need for need in ("instances", "captions") if all(need in part.tables for part in parts)}
  there |= {"masks"} if "instances" in there else set()
  for need in needs:
    if not need.endswith("?") and need not in there:
      raise UserError(f"{where}: this config needs {SOURCES[need]}; {_found_instead(need, parts)}")
  wanted = {need.removesuffix("?") for need in needs} & there
  if needs and not wanted:
    choices = ", ".join(SOURCES[need.removesuffix("?")] for need in sorted(needs))
    raise UserError(f"{where}: this config needs one of {choices}; {_beside(parts[0])}")
  return frozenset(wanted)


def _found_instead(need: str, parts: Sequence[Place]) -> str:
  """What stands where something needed should be, in the first split without it."""
  kinds = _MAPS.get(need, ())
  files = set() if kinds else {"instances" if need == "masks" else need}
  poor = next((part for part in parts if not set(kinds) & set(part.maps) and not files & set(part.tables)), None)
  if poor is None:
    return "; ".join(f"split '{part.name}' has {', '.join(sorted(set(kinds) & set(part.maps)))}" for part in parts)
  kind = next((kind for kind in kinds if kind in poor.others), None)
  if kind is None:
    return _beside(poor)
  names = sorted(path.name for path in poor.others[kind].iterdir() if not path.name.startswith("."))
  shown = f"has no {' or '.join(SUFFIXES[kind])} but {names[0]}{', …' if names[1:] else ''}" if names else "is empty"
  return f"{kind}/ {shown}"


def _beside(part: Place) -> str:
  found = sorted({*part.maps, *(f"{kind}.json" for kind in part.tables)})
  return f"beside the images{f' of {part.name}' if part.name != layout.ALL else ''} there is " \
         f"{', '.join(found) or 'nothing'}"


def _stop_at(problems: Sequence[Problem], total: int, where: str) -> None:
  """UserError with every problem on a line of its own."""
  if problems:
    lines = [problem.line() for problem in problems[:SHOWN]]
    more = [f"… and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    raise UserError("\n  ".join([f"{where}: {summary(total, problems)}", *lines, *more]))


# --- from what was seen to numbers ----------------------------------------------------------------------------------

def gather(parts: Sequence[Place], seen: Sequence[Seen], maps: Mapping[str, str], needs: Collection[str],
           listing: class_list.Listing | None, *, where: str) -> Facts:
  """Facts of sound files; `maps`: need -> its sort of label map."""
  if not seen:
    raise UserError(f"{where}: there are no pictures in {parts[0].images}")
  facts = Facts(sizes(seen), {}, [])
  if "semantic" in needs:
    _semantic(facts, seen, listing, maps["semantic"], where)
  if "depth" in needs:
    facts = facts._replace(nearest=_depth(facts, seen, where))
  if "panoptic" in needs:
    _panoptic(facts, parts)
  if "instances" in needs:
    _objects(facts, parts, masks="masks" in needs, where=where)
  if "captions" in needs:
    _captions(facts, parts[0], where)
  return facts


def sizes(seen: Sequence[Seen]) -> dict[str, Any]:
  """A picture of the middle proportions and area, "HxW", and the longest of all short and long sides."""
  height, width = np.array([one.size for one in seen], np.int64).T
  ratio, area = np.median(height / width), np.median(height * width)
  middle = [max(1, int(round(side))) for side in ((area * ratio) ** 0.5, (area / ratio) ** 0.5)]
  return {"size": "{}x{}".format(*middle), "short": int(np.minimum(height, width).max()),
          "long": int(np.maximum(height, width).max())}


def _depth(facts: Facts, seen: Sequence[Seen], where: str) -> float:
  """Adds the range of depth; the smallest in metres."""
  highest = max(one.depth for one in seen)
  if highest <= 0:
    raise UserError(f"{where}: no pixel of depth/ is above 0 metres")
  facts.arguments["max_depth"] = depth_limit(highest)
  if count := sum(one.depth == SENTINEL for one in seen):
    facts.notes.append(f"depth/ of {count} pictures has pixels of 65535, which are read as {SENTINEL:.3f} m; where they "
                       "stand for no measurement, write 0 instead")
  return min(one.nearest for one in seen if one.depth > 0)


def depth_limit(highest: float) -> float:
  """The next number of two digits above the largest depth, in metres: 9.87 -> 9.9, 78.2 -> 79.

  Strictly above, since metrics count what is below their limit.
  """
  step = 10.0 ** (math.floor(math.log10(highest)) - 1)
  return round((math.floor(highest / step + _ROUNDING) + 1) * step, 9)


def _semantic(facts: Facts, seen: Sequence[Seen], listing: class_list.Listing | None, folder: str, where: str) -> None:
  values = sorted(frozenset().union(*(one.classes for one in seen)) - {VOID})
  if not values:
    raise UserError(f"{where}: all pixels of {folder}/ are {VOID}, which stands for void")
  count = listing.count if listing else values[-1] + 1
  facts.arguments["classes"] = count
  if folder != "semantic":
    facts.arguments["labels"] = folder
  facts.class_names["semantic"] = list(listing.names) if listing else [f"class {i}" for i in range(count)]
  if any(VOID in one.classes for one in seen) and len(values) == 1 and not listing:
    facts.notes.append(f"{folder}/ has the values {values[0]} and {VOID} only, and {VOID} stands for void; if it is a "
                       "class, give it another number")
  if count > VOID:
    facts.notes.append(f"{count} classes: {VOID} stands for void among them as well, so that nothing is learned of a "
                       f"class {VOID}; leave this number out")
  if not listing and len(values) * 4 < count:
    facts.notes.append(f"{folder}/ has {len(values)} different values up to {values[-1]}: numbers from 0 on without "
                       "gaps make a smaller model")


def _panoptic(facts: Facts, parts: Sequence[Place]) -> None:
  categories, most = [], 0
  for part in parts:
    path = part.tables.get("panoptic", part.images.parent / "panoptic.json")
    table = tables.things_first(tables.read_json(path))
    most = max([most, *(len(objects["id"]) for objects in tables.list_objects(table, path).values())])
    found = [dict(id=int(c["id"]), name=str(c.get("name", c["id"])), isthing=int(bool(c.get("isthing", 1))))
             for c in table["categories"]]
    if categories and found != categories:
      raise UserError(f"{path}: its categories are not those of {parts[0].tables['panoptic']}")
    categories = found
  facts.arguments.update(segments=len(categories), things=sum(c["isthing"] for c in categories), instances=max(most, 1))
  facts.class_names["panoptic"] = categories


def _objects(facts: Facts, parts: Sequence[Place], *, masks: bool, where: str) -> None:
  loaded = [tables.load(part.images, part.tables, root=part.root) for part in parts]
  names, joints = loaded[0].categories, loaded[0].joints
  if any((one.categories, one.joints) != (names, joints) for one in loaded):
    raise UserError(f"{where}: the instances of its splits have different categories or keypoints")
  things = [thing for one in loaded for group in one.things.values() for thing in group]
  if not things:
    raise UserError(f"{where}: instances.json has no objects")
  most = max(sum(not thing.crowd for thing in group) for one in loaded for group in one.things.values())
  drawn = all(bool(thing.shape) for thing in things)
  if masks and not drawn:
    bare = next(thing for thing in things if not thing.shape)
    raise UserError(f"{where}: this config learns masks, but annotation {bare.id} of instances.json has no "
                    "'segmentation'")
  facts.arguments.update(objects=len(names), slots=max(most, 1), outlines=drawn)
  facts.class_names["objects"] = [dict(id=number, name=name) for number, name in zip(loaded[0].ids, names)]
  posed = next((thing.label for thing in things if thing.points is not None and thing.points[:, 2].any()), None)
  if posed is not None and joints == len(JOINTS):
    facts.arguments.update(joints=joints, person=posed + 1)
  elif joints and posed is not None:
    facts.notes.append(f"keypoints are left out: {joints} an object, {len(JOINTS)} as COCO's persons have are learned")


def _captions(facts: Facts, place: Place, where: str) -> None:
  table = tables.load(place.images, place.tables, root=place.root)
  sentences = [sentence for entries in table.captions.values() for _, sentence in entries]
  name = hashlib.sha256("\n".join(sentences).encode("utf-8", "replace")).hexdigest()[:16]
  path = f"{texts.CACHE}/folder-{name}.model"
  if not pathlib.Path(path).expanduser().is_file():
    try:
      texts.train(sentences, pathlib.Path(path).expanduser(), pieces=PIECES)
    except (RuntimeError, OSError) as error:
      reason = " ".join(str(error).split())[-200:]
      raise UserError(f"{where}: no text model can be made from the {len(sentences)} captions: {reason}") from error
  facts.arguments.update(text=path, pieces=sentencepiece.SentencePieceProcessor(
      model_file=str(pathlib.Path(path).expanduser())).GetPieceSize())


# --- kept until a file changes --------------------------------------------------------------------------------------

def _fingerprint(root: epath.Path, parts: Sequence[Place], needs: Collection[str]) -> str:
  """Of the names, sizes and times of all files that were looked at."""
  about = [VERSION, str(root.resolve()), sorted(needs), [part.name for part in parts]]
  digest = hashlib.sha256(json.dumps(about).encode())
  folders = [folder for part in parts for folder in (part.images, *part.maps.values())]
  files = [path for part in parts for path in part.tables.values()] + [root / name for name in class_list.FILES]
  for folder in dict.fromkeys(map(os.fspath, folders)):
    with os.scandir(folder) as entries:
      for entry in sorted(entries, key=lambda entry: entry.name):
        dangling = entry.is_symlink() and not os.path.exists(entry.path)   # told where the files are looked at
        digest.update(_stamp(entry.path, entry.stat(follow_symlinks=not dangling)))
  for path in files:
    if path.exists():
      digest.update(_stamp(os.fspath(path), os.stat(path)))
  return digest.hexdigest()


def _stamp(path: str, about: os.stat_result) -> bytes:
  return f"{path}\0{about.st_size}\0{about.st_mtime_ns}\n".encode("utf-8", "surrogateescape")


def _recall(key: str) -> Facts | None:
  """What was kept; None when there is nothing, or its text model is gone."""
  try:
    facts = Facts(**json.loads((pathlib.Path(CACHE).expanduser() / f"{key}.json").read_text(encoding="utf-8")))
  except (OSError, ValueError, TypeError):
    return None
  model = facts.arguments.get("text")
  return facts if not model or pathlib.Path(model).expanduser().is_file() else None


def _keep(key: str, facts: Facts) -> None:
  """Written whole or not at all; where the folder cannot be written, the next start looks again."""
  folder = pathlib.Path(CACHE).expanduser()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{key}-{os.getpid()}"
    temporary.write_text(json.dumps(facts._asdict()), encoding="utf-8")
    os.replace(temporary, folder / f"{key}.json")
  except OSError:
    return


def as_arguments(values: Mapping[str, Any]) -> str:
  """"classes=7,size=375x500": as after the colon of --config."""
  return ",".join(f"{name}={value}" for name, value in values.items())
