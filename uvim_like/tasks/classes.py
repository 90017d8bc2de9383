"""Class tables: which number in a dataset stands for which class, and which classes are things.

Three numberings meet here. The *category id* is what annotation files write (COCO: 1..200 with gaps). The *label* is
the 0-based position in the table, as TFDS stores it. The *semantic value* that models see is label + 1, 0 being void.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from uvim_like.errors import UserError, unknown


class ClassTable(NamedTuple):
  """The classes of a dataset in the order of their labels.

  Attributes:
    name: what the table is called in protocols and messages.
    ids: category id of each label.
    names: name of each label.
    isthing: True for countable classes, False for stuff.
  """
  name: str
  ids: tuple[int, ...]
  names: tuple[str, ...]
  isthing: tuple[bool, ...]


# The 133 classes of COCO panoptic, category ids ascending; the first 80 are things.
_COCO_PANOPTIC = """
    1 person; 2 bicycle; 3 car; 4 motorcycle; 5 airplane; 6 bus; 7 train; 8 truck; 9 boat; 10 traffic light;
    11 fire hydrant; 13 stop sign; 14 parking meter; 15 bench; 16 bird; 17 cat; 18 dog; 19 horse; 20 sheep; 21 cow;
    22 elephant; 23 bear; 24 zebra; 25 giraffe; 27 backpack; 28 umbrella; 31 handbag; 32 tie; 33 suitcase;
    34 frisbee; 35 skis; 36 snowboard; 37 sports ball; 38 kite; 39 baseball bat; 40 baseball glove; 41 skateboard;
    42 surfboard; 43 tennis racket; 44 bottle; 46 wine glass; 47 cup; 48 fork; 49 knife; 50 spoon; 51 bowl;
    52 banana; 53 apple; 54 sandwich; 55 orange; 56 broccoli; 57 carrot; 58 hot dog; 59 pizza; 60 donut; 61 cake;
    62 chair; 63 couch; 64 potted plant; 65 bed; 67 dining table; 70 toilet; 72 tv; 73 laptop; 74 mouse; 75 remote;
    76 keyboard; 77 cell phone; 78 microwave; 79 oven; 80 toaster; 81 sink; 82 refrigerator; 84 book; 85 clock;
    86 vase; 87 scissors; 88 teddy bear; 89 hair drier; 90 toothbrush; 92 banner; 93 blanket; 95 bridge;
    100 cardboard; 107 counter; 109 curtain; 112 door-stuff; 118 floor-wood; 119 flower; 122 fruit; 125 gravel;
    128 house; 130 light; 133 mirror-stuff; 138 net; 141 pillow; 144 platform; 145 playingfield; 147 railroad;
    148 river; 149 road; 151 roof; 154 sand; 155 sea; 156 shelf; 159 snow; 161 stairs; 166 tent; 168 towel;
    171 wall-brick; 175 wall-stone; 176 wall-tile; 177 wall-wood; 178 water-other; 180 window-blind;
    181 window-other; 184 tree-merged; 185 fence-merged; 186 ceiling-merged; 187 sky-other-merged;
    188 cabinet-merged; 189 table-merged; 190 floor-other-merged; 191 pavement-merged; 192 mountain-merged;
    193 grass-merged; 194 dirt-merged; 195 paper-merged; 196 food-other-merged; 197 building-other-merged;
    198 rock-merged; 199 wall-other-merged; 200 rug-merged
"""
_COCO_THINGS = 80


def from_categories(categories: Sequence[Mapping[str, Any]], *, name: str = "categories") -> ClassTable:
  """The table of a COCO-style list [{"id", "name", "isthing"}]; labels follow the order of the list.

  Raises UserError for an id that is not positive (0 means void) or that occurs twice.
  """
  ids = tuple(int(c["id"]) for c in categories)
  if len(set(ids)) != len(ids) or min(ids, default=1) < 1:
    raise UserError(f"{name}: category ids must be positive and different, got {sorted(ids)[:20]}")
  return ClassTable(name, ids, tuple(str(c.get("name", c["id"])) for c in categories),
                    tuple(bool(c["isthing"]) for c in categories))


def _coco_panoptic() -> ClassTable:
  """COCO panoptic as listed above."""
  entries = [entry.strip().split(" ", 1) for entry in _COCO_PANOPTIC.split(";")]
  return from_categories([dict(id=int(number), name=name, isthing=label < _COCO_THINGS)
                          for label, (number, name) in enumerate(entries)], name="coco/2017_panoptic")


def _scenes() -> ClassTable:
  """The synthetic dataset's table, which its generator defines."""
  from uvim_like.scenes import classes as scenes  # Only here: tables are read where no scene is ever drawn.
  return from_categories(scenes.categories(), name="scenes")


_TABLES = {"coco/2017_panoptic": _coco_panoptic, "scenes": _scenes}
_SAME = {"coco_json": "coco/2017_panoptic"}  # the same annotations as their authors pack them


def _name(dataset: str) -> str:
  """What the table of a dataset is called: without its version or place ("name:1.0.0", "name:/path") and size."""
  name = dataset.split(":")[0]
  return "scenes" if name.startswith("scenes/") else _SAME.get(name, name)


def has_table(dataset: str) -> bool:
  """Whether the classes of a dataset are known by its name: those of somebody's folder are not."""
  return _name(dataset) in _TABLES


def table(dataset: str, *, where: str = "class table") -> ClassTable:
  """The class table of a dataset by its name in a config; a version or place behind it and the size of scenes are ignored.

  Args:
    dataset: e.g. "coco/2017_panoptic", "coco_json:/data/coco", "scenes/tiny".
    where: the name stands, for the message.

  Raises UserError with the nearest known dataset.
  """
  if not has_table(dataset):
    raise unknown("dataset", dataset, (*_TABLES, *_SAME), where=where)
  return _TABLES[_name(dataset)]()
