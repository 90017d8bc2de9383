"""Writes `scenes` as plain files: a folder of images and label maps, or COCO's layout of JSON and PNG."""

import json
import pathlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from uvim_like.scenes import VERSION, people
from uvim_like.scenes.classes import CATEGORY_IDS, LABELS, NAMES, categories

_INFO = {"description": "scenes: rendered rooms", "version": VERSION, "year": 2025}


def write_folder(examples: Iterable[dict], folder: pathlib.Path, split: str) -> list[str]:
  """Writes `<split>/{images,depth,semantic,normals,panoptic}/<stem>.png`, three JSON files beside them, and classes.txt.

  depth is 16-bit millimetres with 0 = missing; semantic is labels 0 .. 9, 255 = void; panoptic.json, instances.json
  and captions.json are as in COCO's layout, their file names without folders.

  Returns:
    What was written, relative to the folder.
  """
  root, notes = folder / split, _Annotations()
  kinds = ("images", "depth", "semantic", "normals", "panoptic")
  for kind in kinds:
    (root / kind).mkdir(parents=True, exist_ok=True)
  for example in examples:
    name = example["image/filename"]
    maps = (example["image"], millimetres(example["depth"]), example["semantic"][..., 0], example["normals"],
            example["panoptic_image"])
    for kind, array in zip(kinds, maps):
      Image.fromarray(array).save(root / kind / name)
    notes.add(example)
  documents = {"panoptic": notes.panoptic(), "instances": notes.instances(keypoints=True), "captions": notes.captions()}
  for name, document in documents.items():
    _write_json(root / f"{name}.json", document)
  (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
  return [f"{split}/{kind}" for kind in kinds] + [f"{split}/{name}.json" for name in documents] + ["classes.txt"]


def write_coco(examples: Iterable[dict], folder: pathlib.Path, split: str) -> list[str]:
  """Writes COCO's layout: `<split>/*.png`, `panoptic_<split>/*.png` and four JSON files in `annotations/`.

  Returns:
    What was written, relative to the folder; images as a pattern, since `<split>` may hold other formats too.
  """
  notes = _Annotations()
  for name in (split, f"panoptic_{split}", "annotations"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  for example in examples:
    Image.fromarray(example["image"]).save(folder / split / example["image/filename"])
    Image.fromarray(example["panoptic_image"]).save(folder / f"panoptic_{split}" / example["panoptic_image/filename"])
    notes.add(example)
  documents = {"panoptic": notes.panoptic(), "instances": notes.instances(keypoints=False),
               "person_keypoints": notes.people(), "captions": notes.captions()}
  for name, document in documents.items():
    _write_json(folder / "annotations" / f"{name}_{split}.json", document)
  return [f"{split}/*.png", f"panoptic_{split}"] + [f"annotations/{name}_{split}.json" for name in documents]


def millimetres(depth: np.ndarray) -> np.ndarray:
  """(H, W) metres → uint16 millimetres, rounded; a reading of less than half a millimetre would be lost as 0."""
  return np.round(depth.astype(np.float64) * 1000).astype(np.uint16)


def encode_mask(mask: np.ndarray) -> dict:
  """COCO's compressed run lengths of a mask (H, W), with text that fits into JSON."""
  import pycocotools.mask  # only here: the folder of images needs no compiled package beyond Pillow

  rle = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def pixel_box(bbox: np.ndarray, size: tuple[int, int]) -> list[int]:
  """[ymin, xmin, ymax, xmax] in 0..1 → COCO's [x, y, width, height] in pixels."""
  h, w = size
  y0, x0, y1, x1 = (np.asarray(bbox, np.float64) * [h, w, h, w]).round().astype(int).tolist()
  return [x0, y0, x1 - x0, y1 - y0]


def _write_json(path, document) -> None:
  path.write_text(json.dumps(document, separators=(",", ":")))


class _Annotations:
  """Collects what COCO's JSON files say of a split."""

  def __init__(self):
    self._images, self._panoptic, self._instances, self._captions = [], [], [], []

  def add(self, example: dict) -> None:
    h, w = example["image"].shape[:2]
    number = int(example["image/id"])
    self._images.append({"id": number, "file_name": example["image/filename"], "height": h, "width": w})
    self._panoptic.append(_panoptic_entry(example, number, (h, w)))
    ids = example["panoptic_image"].astype(np.int64) @ [1, 256, 65536]
    objects = example["objects"]
    for i in range(len(objects["id"])):
      # Ids of COCO annotations are unique over the file, panoptic ones only within their image.
      entry = {"id": len(self._instances) + 1, "image_id": number, **_entry(objects, i, (h, w)),
               "segmentation": encode_mask(ids == objects["id"][i]), "panoptic_id": int(objects["id"][i]),
               "keypoints": objects["keypoints"][i].astype(float).round(2).ravel().tolist(),
               "num_keypoints": int(objects["num_keypoints"][i])}
      self._instances.append(entry)
    for caption, text in zip(example["captions"]["id"], example["captions"]["text"]):
      self._captions.append({"id": int(caption), "image_id": number, "caption": text})

  def panoptic(self) -> dict:
    return self._document(self._panoptic, categories())

  def instances(self, *, keypoints: bool) -> dict:
    """All things; with `keypoints`, persons carry theirs."""
    annotations = [entry if keypoints and _is_person(entry) else _without_keypoints(entry) for entry in self._instances]
    return self._document(annotations, [_thing_category(c) for c in categories() if c["isthing"]])

  def people(self) -> dict:
    """Persons with keypoints, and the one category that COCO's person_keypoints files have."""
    person = [_thing_category(c) for c in categories() if c["name"] == "person"]
    return self._document([entry for entry in self._instances if _is_person(entry)], person)

  def captions(self) -> dict:
    return {"info": _INFO, "licenses": [], "images": self._images, "annotations": self._captions}

  def _document(self, annotations, kinds) -> dict:
    return {"info": _INFO, "licenses": [], "images": self._images, "annotations": annotations, "categories": kinds}


def _panoptic_entry(example, number, size) -> dict:
  objects = example["panoptic_objects"]
  segments = [{"id": int(objects["id"][i]), **_entry(objects, i, size)} for i in range(len(objects["id"]))]
  return {"image_id": number, "file_name": example["panoptic_image/filename"], "segments_info": segments}


def _entry(objects, i, size) -> dict:
  """What all of COCO's annotations share, in plain numbers."""
  return {"category_id": CATEGORY_IDS[int(objects["label"][i])], "area": int(objects["area"][i]),
          "bbox": pixel_box(objects["bbox"][i], size), "iscrowd": int(objects["is_crowd"][i])}


def _is_person(entry) -> bool:
  return entry["category_id"] == CATEGORY_IDS[LABELS["person"]]


def _without_keypoints(entry) -> dict:
  return {key: value for key, value in entry.items() if key not in ("keypoints", "num_keypoints")}


def _thing_category(category) -> dict:
  """An entry of instances files: no "isthing"; the person with the names and bones of the keypoints."""
  entry = {key: category[key] for key in ("id", "name", "supercategory")}
  if category["name"] == "person":
    entry |= {"keypoints": list(people.JOINTS), "skeleton": [list(bone) for bone in people.SKELETON]}
  return entry
