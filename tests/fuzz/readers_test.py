"""The folder and COCO readers on made-up folders, pictures and tables: examples or a UserError, nothing else."""

import contextlib
import io
import itertools
import json
import math
import pathlib
import random
import shutil
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pp_ops.sources import open_source
from tools.checking import check_data
from uvim_like import pictures as files
from uvim_like.errors import UserError

FEW, MANY = 100, 2000


def picture(mode="RGB", size=(5, 4), form="PNG") -> bytes:
  out = io.BytesIO()
  Image.new(mode, size).save(out, form)
  return out.getvalue()


def bomb(width: int, height: int) -> bytes:
  """A PNG of a few bytes that claims so many pixels."""
  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
          + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))


GOOD = [picture(), picture("L"), picture("P"), picture("1"), picture("I;16"), picture(form="JPEG"), picture(form="GIF"),
        picture(form="BMP"), picture("RGBA"), picture(size=(4, 5)), picture("CMYK", form="TIFF")]
NPY = [b"\x93NUMPY", b""]
with io.BytesIO() as buffer:
  np.save(buffer, np.ones((4, 5), np.float32))
  NPY.append(buffer.getvalue())
with io.BytesIO() as buffer:
  np.save(buffer, np.array([{}], object), allow_pickle=True)
  NPY.append(buffer.getvalue())


def damaged(data: bytes, seed: int) -> bytes:
  """A file with some bytes changed, cut or repeated."""
  numbers, data = random.Random(seed), bytearray(data)
  for _ in range(numbers.randint(0, 4)):
    if data:
      place = numbers.randrange(len(data))
      data[place] = numbers.choice([0, 255, data[place] ^ 1 << numbers.randrange(8)])
  return bytes(data[:numbers.choice([len(data), len(data), numbers.randint(0, len(data))])])


bombs = st.sampled_from([bomb(2 ** 31 - 1, 2 ** 31 - 1), bomb(0, 5), bomb(10 ** 5, 10 ** 5)])
pictures = st.one_of(st.sampled_from(GOOD), st.binary(max_size=40), bombs,
                     st.builds(damaged, st.sampled_from(GOOD + NPY), st.integers(0, 10 ** 6)), st.sampled_from(NPY))
stems = st.sampled_from(["a", "b", "1", "01", "x y", "ü", "é.b", ".hidden"])
suffixes = st.sampled_from([".png", ".png", ".jpg", ".JPG", ".npy", ".txt", ""])
kinds = st.sampled_from(["images", "images", "labels", "depth", "semantic", "normals", "panoptic", "train/images",
                         "train/labels"])
placed = st.lists(st.tuples(kinds, stems, suffixes, pictures), max_size=6)

odd = st.sampled_from([2 ** 70, -1, 0.5, math.nan, math.inf, None, True, "a", "a.png", "../a.png", "/etc/passwd",
                       "a\0.png", [], {}])
scalar = st.one_of(st.integers(-2, 6), odd)
number = st.integers(0, 3) | scalar
box = st.one_of(st.lists(scalar, max_size=5), st.just([0, 0, 2, 2]), scalar)


polygon = st.lists(st.sampled_from([0, 1, 3.5, 5, -2, 1e9, 1e300, math.nan]), min_size=6, max_size=8)


def entry(**fields):
  """Objects with these fields, each of which may be missing."""
  return st.one_of(st.fixed_dictionaries({}, optional=fields), st.fixed_dictionaries(fields))


names = st.one_of(st.sampled_from(["a.png", "b.png", "1.png", "a.jpg"]), scalar)
segment = entry(id=scalar, category_id=scalar, area=scalar, bbox=box, iscrowd=scalar)
image_entry = entry(id=number, file_name=names, height=st.just(4) | scalar, width=st.just(5) | scalar)
run_lengths = st.dictionaries(st.sampled_from(["size", "counts"]), box | scalar)
annotation = entry(id=number, image_id=number, file_name=names, category_id=scalar, bbox=box, iscrowd=scalar,
                   segments_info=st.lists(segment | scalar, max_size=3) | scalar, area=scalar, keypoints=box,
                   segmentation=st.lists(polygon, max_size=2) | st.lists(box, max_size=2) | run_lengths)
three = st.sampled_from(["images", "annotations", "categories"])
tables = st.one_of(
    st.fixed_dictionaries({"images": st.lists(image_entry, max_size=3), "annotations": st.lists(annotation, max_size=3),
                           "categories": st.lists(entry(id=st.integers(0, 5) | scalar), max_size=4)}).map(json.dumps),
    st.dictionaries(three, st.lists(scalar, max_size=2) | scalar).map(json.dumps),
    st.sampled_from(["", "[]", "3", "{", "[" * 100_000, '{"images": 1}', "9" * 5000, b"\xed\xa0\x80"]))


def write(root: pathlib.Path, name: str, data: bytes | str) -> None:
  path = root / name
  if any(parent.is_file() for parent in path.parents) or path.is_dir():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data.encode() if isinstance(data, str) else data)


def read_all(dataset: str, root: pathlib.Path, *, checker: bool = True) -> None:
  """Opens, reads every example, then asks the validation pass: each gives a result or a UserError."""
  for split in ("train", "train[:50%]"):
    with contextlib.suppress(UserError):
      source = open_source(dataset, split, data_dir=str(root), skip_decode=("image",))
      for index in range(len(source)):
        with contextlib.suppress(UserError):
          source.fetch(index, tuple(source.features))
  with contextlib.suppress(UserError):
    if not checker:
      return
    total, problems = check_data.check(dataset, str(root), check_data.Options(classes=(3,)))
    assert total >= 0 and all("\n" not in problem.line() for problem in problems)


@pytest.fixture
def root(tmp_path):
  return tmp_path / "data"


def check_folders(root: pathlib.Path, count: int) -> None:
  @settings(max_examples=count)
  @given(placed, st.none() | tables)
  def check(entries, table):
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for kind, stem, suffix, data in entries:
      write(root, f"{kind}/{stem}{suffix}", data)
    if table is not None:
      write(root, "panoptic.json", table)
    read_all("folder", root)
  check()


def check_tables(root: pathlib.Path, count: int) -> None:
  numbers = itertools.count()

  @settings(max_examples=count)
  @given(tables, st.lists(st.tuples(stems, suffixes, pictures), max_size=3), st.sampled_from(["train2017", "train"]),
         st.sampled_from(["instances", "person_keypoints", "captions"]))
  def check(table, entries, split, sort):
    shutil.rmtree(root, ignore_errors=True)
    place = root / str(next(numbers))  # readers keep what they have read under a name and a time
    place.mkdir(parents=True)
    write(place, f"annotations/panoptic_{split}.json", table)
    write(place, f"annotations/instances_{split}.json", table)
    write(place, f"annotations/{sort}_{split}.json", table)
    for stem, suffix, data in entries:
      write(place, f"{split}/{stem}{suffix}", data)
      write(place, f"panoptic_{split}/{stem}.png", data)
    read_all("coco_json", place)
    read_all("coco_instances", place, checker=False)
  check()


SOUND = {
    "images": [dict(id=n, file_name=f"{n}.png", height=4, width=5) for n in (1, 2)],
    "categories": [dict(id=1, name="x", isthing=1, keypoints=["a", "b"]), dict(id=3, name="y", isthing=0)],
    "annotations": [dict(id=9 * n, image_id=n, file_name=f"{n}.png", category_id=1, bbox=[0, 0, 2, 2], area=4,
                         iscrowd=0, segmentation=[[0, 0, 3, 0, 3, 3]], keypoints=[1, 1, 2, 0, 0, 0], caption="a room",
                         segments_info=[dict(id=7, category_id=3, bbox=[0, 0, 5, 4], area=20, iscrowd=0)])
                    for n in (1, 2)]}


def places(tree, path=()):
  """Paths of all values of a table."""
  items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
  return [path, *(inner for key, value in items for inner in places(value, (*path, key)))] if path else [
      inner for key, value in items for inner in places(value, (key,))]


def replaced(path, value):
  """The sound table with one value replaced."""
  table = node = json.loads(json.dumps(SOUND))
  for key in path[:-1]:
    node = node[key]
  node[path[-1]] = value
  return table


hostile = st.one_of(scalar, box, polygon, st.lists(polygon, max_size=2), st.binary(max_size=9).map(repr),
                    st.fixed_dictionaries({
                        "size": st.sampled_from([[4, 5], [5, 4], [2 ** 20, 2 ** 20], []]),
                        "counts": st.lists(st.integers(-1, 30) | st.just(2 ** 40), max_size=4) | st.sampled_from(
                            ["", "d0", "~~", "o" * 99, "é"])}))


def check_changes(root: pathlib.Path, count: int) -> None:
  """One value of a sound dataset is another one, whatever it is."""
  numbers = itertools.count()

  @settings(max_examples=count)
  @given(st.sampled_from(places(SOUND)), hostile)
  def check(path, value):
    shutil.rmtree(root, ignore_errors=True)
    place = root / str(next(numbers))
    table = json.dumps(replaced(path, value))
    for name in ("panoptic", "instances", "person_keypoints", "captions"):
      write(place, f"annotations/{name}_train2017.json", table)
    for folder in ("train2017", "panoptic_train2017"):
      for number in (1, 2):
        write(place, f"{folder}/{number}.png", picture())
    read_all("coco_json", place)
    read_all("coco_instances", place, checker=False)
  check()


def test_changed_tables(root):
  check_changes(root, FEW)


@pytest.mark.slow
def test_many_changed_tables(root):
  check_changes(root, MANY)


def test_folders(root):
  check_folders(root, FEW)


def test_tables(root):
  check_tables(root, FEW)


@pytest.mark.slow
def test_many_folders(root):
  check_folders(root, MANY)


@pytest.mark.slow
def test_many_tables(root):
  check_tables(root, MANY)


@settings(max_examples=500)
@given(st.one_of(pictures, st.builds(damaged, st.sampled_from(GOOD), st.integers(0, 10 ** 6))))
def test_headers(data):
  """A picture that passes has no more pixels than its header was found to say, whatever Pillow makes of it."""
  size = files.header_size(io.BytesIO(data))
  if size is None or not size.height * size.width:
    return  # refused
  try:
    with Image.open(io.BytesIO(data), formats=files.FORMATS) as image:
      expected = image.size[::-1]
  except files.IMAGE_ERRORS:
    return
  assert size[:2] == expected
