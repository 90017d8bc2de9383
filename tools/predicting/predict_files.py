"""Predictions as files that others read: 16-bit depth, label PNGs, COCO's JSON; or as labels to train on."""

import json
import pathlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage

from tools.predicting.predict_inputs import Source
from uvim_like import joints
from uvim_like.errors import UserError
from uvim_like.evaluators import panoptic_quality as pq
from uvim_like.evaluators.save_predictions import coco_categories, depth_millimetres
from uvim_like.inference.full_size import Names
from uvim_like.own_data import tables
from uvim_like.scenes.people import SKELETON
from uvim_like.tasks.classes import ClassTable
from uvim_like.training import workdir

EDGE = 1.0   # pixels beyond the edge at which a joint is still one of the picture, and brought to the edge
VOID, WIDE_VOID = 255, 65535   # of label PNGs with 8 and 16 bits
DOCUMENTS = ("panoptic", "instances", "keypoints", "captions")
FOLDERS = {"depth": "depth", "semantics": "semantic", "normals": "normals", "color": "color"}


class Entries(NamedTuple):
  """What one picture adds to the JSON files.

  Attributes:
    image: its entry of COCO's "images".
    panoptic: entries of panoptic.json, one a sample; None where the run has no segments.
    objects: detections with all that is known of them; None where the run does not detect.
    captions: entries of captions.json; None where the run writes none.
  """
  image: dict[str, Any]
  panoptic: list[dict] | None
  objects: list[dict] | None
  captions: list[dict] | None


class Form(NamedTuple):
  """How results are written.

  Attributes:
    out: folder.
    names: classes.
    npz: arrays as well as pictures.
    labels: as a folder to train on: pictures too, and annotations instead of lists of results.
    score: of detections that become labels, at least.
  """
  out: pathlib.Path
  names: Names
  npz: bool = True
  labels: bool = False
  score: float = 0.5


def check_form(form: Form, *, own: Collection[str] = ()) -> None:
  """Raises UserError when the folder cannot become what is asked for; `own` pictures may be there (`pictures_of`)."""
  if form.out.exists() and not form.out.is_dir():
    raise UserError(f"--out: '{form.out}' is a file, not a folder")
  images = form.out / "images"
  if form.labels and images.is_dir() and any(path.stem not in own for path in images.iterdir()):
    raise UserError(f"--out: {images} holds pictures already, and labels must go with all of them; give "
                    "an empty folder")
  if form.labels and form.names.semantic is not None and len(form.names.semantic.ids) > VOID:
    raise UserError(f"--labels: {len(form.names.semantic.ids)} classes do not fit semantic/, which has 8 bits")


def pictures_of(path: pathlib.Path, index: Mapping[str, Any]) -> frozenset[str]:
  """Names of the pictures below a folder that the same command wrote before, of whose `index` the file `path` is.

  Nothing where it was another command, or none: whoever repeats one may go on in its folder.
  """
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, ValueError):
    return frozenset()
  same = isinstance(found, dict) and all(found.get(key) == index[key] for key in ("workdir", "step", "labels"))
  listed = found.get("pictures") if same else None
  if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
    return frozenset()
  there, wanted = ([(entry.get("name"), entry.get("file")) for entry in own] for own in (listed, index["pictures"]))
  return frozenset(name for name, _ in wanted) if there == wanted else frozenset()


def clear_documents(form: Form, index: pathlib.Path) -> None:
  """Removes the lists of an earlier command, where its index is there: their ids are those of its pictures."""
  for name in DOCUMENTS if index.exists() else ():
    (form.out / f"{name}.json").unlink(missing_ok=True)


def write_one(form: Form, source: Source, results: Mapping[str, Any], *, copy: bool) -> Entries:
  """Writes the files of one picture and returns what it adds to the JSON files.

  Args:
    form: how.
    source: the picture.
    results: of `uvim_like.inference.model`.
    copy: with labels: the picture's file can be copied as it is; else its pixels are written anew.
  """
  image = results["image"]
  shown = _write_image(form.out / "images", source, image, copy=copy) if form.labels else str(source.path)
  about = {"id": source.number, "file_name": shown, "height": image.shape[0], "width": image.shape[1]}
  for key, folder in FOLDERS.items():
    if key in results and not (key == "semantics" and "instances" in results):
      _write_map(form, key, form.out / folder, source.name, results[key])
  return Entries(
      about, _write_panoptic(form, source, results) if "instances" in results else None,
      [{"image_id": source.number, **_without(d, "name")} for d in results["objects"]]
      if "objects" in results else None,
      [{"image_id": source.number, "caption": results["caption"]}] if "caption" in results else None)


def _without(entry: Mapping[str, Any], *keys: str) -> dict[str, Any]:
  return {key: value for key, value in entry.items() if key not in keys}


def _write_image(folder: pathlib.Path, source: Source, image: np.ndarray, *, copy: bool) -> str:
  """The picture under its result's name; returns the file's name."""
  folder.mkdir(parents=True, exist_ok=True)
  if copy:
    name = source.name + source.path.suffix.lower()
    shutil.copyfile(source.path, folder / name)
    return name
  save_png(folder / f"{source.name}.png", image)
  return f"{source.name}.png"


# --- maps -------------------------------------------------------------------------------------------------------------


def _write_map(form: Form, key: str, folder: pathlib.Path, name: str, x: np.ndarray) -> None:
  """One kind of map: a PNG (of several samples one each, in a folder), and its npz where it is wanted."""
  picture = {"depth": depth_millimetres, "semantics": class_ids(form.names.semantic), "normals": normal_bytes,
             "color": lambda color: color}[key]
  axes = 3 if key in ("normals", "color") else 2
  clear(folder, name)
  for path, one in named_samples(folder / name, x, axes):
    save_png(path, picture(one))
  if form.npz and key in ("depth", "normals"):
    np.savez_compressed(folder / f"{name}.npz", **{key: x})


def clear(folder: pathlib.Path, name: str) -> None:
  """Removes what an earlier command wrote of this picture: an array or samples would be taken for the new map's own."""
  for suffix in (".png", ".npz"):
    (folder / f"{name}{suffix}").unlink(missing_ok=True)
  if (samples := folder / name).is_dir():
    for old in samples.glob("sample*.png"):
      old.unlink()
    if not any(samples.iterdir()):
      samples.rmdir()


def named_samples(place: pathlib.Path, x: np.ndarray, axes: int) -> list[tuple[pathlib.Path, np.ndarray]]:
  """(file, map): "<name>.png", or "<name>/sample1.png" and so on where x (S, …) has one axis more than a map."""
  if x.ndim == axes:
    return [(place.with_name(place.name + ".png"), x)]
  return [(place / f"sample{i}.png", one) for i, one in enumerate(x, 1)]


def class_ids(table: ClassTable | None):
  """(semantics 0 = void, 1..C) -> label PNG of classes from 0, void 255; 16 bits and 65535 where C needs them."""
  wide = table is not None and len(table.ids) > VOID
  dtype, void = (np.uint16, WIDE_VOID) if wide else (np.uint8, VOID)
  return lambda semantics: np.where(semantics > 0, semantics - 1, void).astype(dtype)


def normal_bytes(normals: np.ndarray) -> np.ndarray:
  """Unit vectors (H, W, 3) -> uint8, (n + 1) / 2 · 255; (0, 0, 0) where there is none."""
  there = np.isfinite(normals).all(-1, keepdims=True) & np.any(normals != 0, axis=-1, keepdims=True)
  return np.where(there, np.round((np.nan_to_num(normals) + 1) * 127.5), 0).clip(0, 255).astype(np.uint8)


def save_png(path: pathlib.Path, array: np.ndarray) -> None:
  """A picture (H, W) uint8 or uint16, or (H, W, 3) uint8; its folder is made."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.ascontiguousarray(array)).save(path)


# --- COCO -------------------------------------------------------------------------------------------------------------


def _write_panoptic(form: Form, source: Source, results: Mapping[str, Any]) -> list[dict]:
  """The PNG of segments, and its entry of panoptic.json."""
  pairs = np.stack([results["semantics"], results["instances"]], axis=-1)
  entries = []
  clear(form.out / "panoptic", source.name)
  for path, pair in named_samples(form.out / "panoptic" / source.name, pairs, 3):
    ids, segments = pq.two_channel_to_segments(pair[..., 0], pair[..., 1], form.names.semantic)
    save_png(path, pq.id_to_rgb(ids))
    boxes = segment_boxes(ids)
    entries.append({"image_id": source.number, "file_name": str(path.relative_to(form.out / "panoptic")),
                    "segments_info": [{**segment, "bbox": boxes[segment["id"]]} for segment in segments]})
  return entries


def segment_boxes(ids: np.ndarray) -> dict[int, list[int]]:
  """{id: [x, y, w, h]} around the pixels of every id of (H, W)."""
  numbers, places = np.unique(ids, return_inverse=True)
  slices = ndimage.find_objects(places.reshape(ids.shape) + 1)
  return {int(number): [int(x.start), int(y.start), int(x.stop - x.start), int(y.stop - y.start)]
          for number, (y, x) in zip(numbers, slices)}


def write_documents(form: Form, entries: Sequence[Entries]) -> list[str]:
  """The JSON files of all pictures, as far as the run predicts them; returns their names."""
  images, documents = [entry.image for entry in entries], {}
  panoptic, objects, captions = (joined(entries, kind) for kind in ("panoptic", "objects", "captions"))
  if panoptic is not None:
    documents["panoptic"] = {"images": images, "annotations": panoptic,
                             "categories": coco_categories(form.names.semantic)}
  if objects is not None and form.labels:
    documents["instances"] = annotations(images, objects, form)
  elif objects is not None:
    documents["instances"] = [_without(d, "keypoints") for d in objects]
    if any("keypoints" in d for d in objects):
      documents["keypoints"] = [_without(d, "segmentation", "bbox") for d in objects if "keypoints" in d]
  if captions is not None:
    documents["captions"] = ({"images": images, "annotations": [{"id": i, **a} for i, a in enumerate(captions, 1)]}
                             if form.labels else captions)
  for name, document in documents.items():
    workdir.write_json(form.out / f"{name}.json", document)
  files = [f"{name}.json" for name in documents]
  if form.labels and (form.out / "semantic").is_dir():   # what the classes of the label maps are called
    workdir.write_text(form.out / "classes.txt", "".join(f"{name}\n" for name in form.names.semantic.names))
    files.append("classes.txt")
  return files


def joined(entries: Sequence[Entries], kind: str) -> list[dict] | None:
  """One list of all pictures; None where the run does not predict it, or no picture was done."""
  lists = [getattr(entry, kind) for entry in entries if getattr(entry, kind) is not None]
  return [entry for own in lists for entry in own] if lists else None


def annotations(images: Sequence[dict], objects: Sequence[dict], form: Form) -> dict[str, Any]:
  """COCO's file of instances with the detections from `form.score` on as annotations; scores are kept.

  A detection whose mask is empty is none.
  """
  found, sizes = [], {image["id"]: (image["width"], image["height"]) for image in images}
  for detection in (d for d in objects if d["score"] >= form.score):
    x, y, w, h = detection["bbox"]
    area = float(rle.area(detection["segmentation"])) if "segmentation" in detection else w * h
    if not area:
      continue
    points = visible(detection["keypoints"], sizes[detection["image_id"]]) if "keypoints" in detection else {}
    found.append({"id": len(found) + 1, **detection, **points, "area": area, "iscrowd": 0})
  table, label = form.names.objects, form.names.person
  person = {"keypoints": list(joints.NAMES), "skeleton": [list(bone) for bone in SKELETON]}
  categories = [{"id": number, "name": name} | (person if position == label else {})
                for position, (number, name) in enumerate(zip(table.ids, table.names), 1)]
  return {"images": list(images), "annotations": found, "categories": categories}


def visible(points: Sequence[float], size: tuple[int, int]) -> dict[str, Any]:
  """Predicted joints as an annotation: 2 visible, 1 hidden, by the probability of being visible.

  A joint beyond the picture (W, H) is none, all zeros: networks place them on a canvas that is larger.
  """
  rows = np.reshape(points, (-1, 3))
  inside = np.clip(rows[:, :2], -tables.HALF, np.asarray(size) - tables.HALF)
  there = (np.abs(rows[:, :2] - inside) <= EDGE).all(axis=1, keepdims=True)
  flags = np.where(rows[:, 2:] >= 0.5, 2.0, 1.0)
  marked = np.where(there, np.concatenate([inside, flags], axis=1), 0.0)
  return {"keypoints": marked.ravel().tolist(), "num_keypoints": int(there.sum())}
