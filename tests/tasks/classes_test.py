"""Class tables: numbers that files and models must agree on."""

import pytest

from uvim_like.errors import UserError
from uvim_like.tasks import classes


def test_coco_panoptic():
  table = classes.table("coco/2017_panoptic")
  assert len(table.ids) == len(table.names) == len(table.isthing) == 133 and len(set(table.names)) == 133
  assert list(table.ids) == sorted(table.ids) and (table.ids[0], table.ids[79], table.ids[80], table.ids[-1]) == (
      1, 90, 92, 200)
  assert all(table.isthing[:80]) and not any(table.isthing[80:])
  missing = set(range(1, 91)) - set(table.ids)
  assert missing == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
  names = dict(zip(table.ids, table.names))
  assert (names[1], names[13], names[90], names[187]) == ("person", "stop sign", "toothbrush", "sky-other-merged")
  assert classes.table("coco/2017_panoptic:1.1.0") == table


@pytest.mark.parametrize("dataset", ["scenes", "scenes/mini", "scenes/tiny:1.0.0"])
def test_scenes(dataset):
  table = classes.table(dataset)
  assert table.ids == (1, 3, 8, 17, 44, 92, 101, 118, 133, 171)
  assert table.names == ("box", "sphere", "cylinder", "table", "person", "wall", "floor", "ceiling", "window", "rug")
  assert table.isthing == (True,) * 5 + (False,) * 5


@pytest.mark.parametrize("dataset", ["coco_json", "coco_json:/data/coco", "coco/2017_panoptic:1.1.0", "scenes/mini"])
def test_what_has_a_table_gives_it(dataset):
  assert classes.has_table(dataset)
  assert len(classes.table(dataset).ids) == (10 if "scenes" in dataset else 133)


def test_mistakes_are_named():
  assert not classes.has_table("folder")
  with pytest.raises(UserError, match="did you mean 'scenes'"):
    classes.table("scnes")
  for ids in ((1, 1), (0, 1)):
    with pytest.raises(UserError, match="positive and different"):
      classes.from_categories([dict(id=i, isthing=1) for i in ids])
