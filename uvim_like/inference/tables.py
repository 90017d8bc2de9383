"""Names and ids of the classes that a run predicts, from its config and the tables of its dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

from uvim_like.errors import UserError
from uvim_like.inference.views import MAD, View, system_of
from uvim_like.systems.mad.vocabulary import Vocabulary
from uvim_like.tasks import classes, nyu40
from uvim_like.tasks.classes import ClassTable

COCO = "coco/2017_panoptic"
PERSON = "person"
PANOPTIC = "coco_panoptic"   # the evaluator


def semantic_table(config: Any, view: View) -> ClassTable | None:
  """The classes 1..C of a semantic or panoptic map; without known names "class 1" and so on; None without such maps."""
  count, own = semantic_classes(config), config.get("class_names") or {}
  if count is None:
    return None
  if view.metric.get("categories"):
    return classes.from_categories(view.metric["categories"])
  if own.get("panoptic") and "panoptic" in (config.task or ""):
    return classes.from_categories(own["panoptic"])
  if own.get("semantic"):
    return named(own["semantic"], isthing=False)
  for table in _known(config, view):
    if len(table.ids) == count or view.evaluator == PANOPTIC:   # a panoptic head may have more than its evaluator reads
      return table
  if count == nyu40.CLASSES and "nyu" in str(view.metric["dataset"]):
    return ClassTable("NYU's forty classes", tuple(range(1, count + 1)), nyu40.NAMES, (False,) * count)
  things = (config.get("head") or {}).get("num_things", 0)
  return unnamed(count, things=things)


def object_table(config: Any, view: View) -> ClassTable | None:
  """The classes 1..C of detected objects; None for a run without objects."""
  count, own = object_classes(config), config.get("class_names") or {}
  if count is None:
    return None
  if own.get("objects"):
    return named(own["objects"], isthing=True)
  for table in _known(config, view):
    things = things_of(table)
    if len(things.ids) == count:
      return things
  return unnamed(count, things=count)


def things_of(table: ClassTable) -> ClassTable:
  """The countable classes of a table."""
  rows = [row for row in zip(table.ids, table.names, table.isthing) if row[2]]
  ids, names, isthing = zip(*rows) if rows else ((), (), ())
  return ClassTable(table.name, ids, names, isthing)


def unnamed(count: int, *, things: int) -> ClassTable:
  """A table of `count` classes of which nothing is known but that the first are things."""
  numbers = tuple(range(1, count + 1))
  return ClassTable("classes without names", numbers, tuple(f"class {k}" for k in numbers),
                    tuple(k <= things for k in numbers))


def named(entries: Sequence[str | Mapping[str, Any]], *, isthing: bool) -> ClassTable:
  """The table of own data: class k of the labels is the k-th, from 1; names, or {"id", "name"} as files have them."""
  rows = [entry if hasattr(entry, "keys") else {"id": k, "name": entry} for k, entry in enumerate(entries, 1)]
  return ClassTable("own data", tuple(int(row["id"]) for row in rows), tuple(str(row["name"]) for row in rows),
                    (isthing,) * len(rows))


def _known(config: Any, view: View) -> list[ClassTable]:
  """Tables of the datasets that the evaluation and the training name."""
  found = []
  for name in dict.fromkeys((str(view.metric["dataset"]), str(config.dataset))):
    try:
      found.append(classes.table(COCO if name.startswith("coco_instances") else name))
    except UserError:   # no table of that name: own data
      continue
  return found


def semantic_classes(config: Mapping[str, Any]) -> int | None:
  """C of semantic and panoptic maps, void aside; None where a run has none."""
  model, oracle = config["model"], (config.get("oracle") or {}).get("model") or {}
  planes = (oracle or model).get("outputs")
  if hasattr(planes, "get") and planes.get("semantics"):
    return planes["semantics"][0] - 1
  tokenizer = (config.get("tokenizers") or {}).get("semantics")
  if tokenizer:
    return tokenizer["model"]["classes"]
  task = config.get("task") or ""
  if "panoptic" in task:
    return model.get("num_classes")
  if "semantic" in task:
    return model.get("num_queries") or model.get("outputs")
  return None


def object_classes(config: Mapping[str, Any]) -> int | None:
  """C of detected objects; None where a run detects none."""
  if system_of(config) == MAD:
    return (config.get("sequences") or {}).get("classes", Vocabulary._field_defaults["classes"])
  vocabulary = config["model"].get("vocabulary")
  return vocabulary.get("num_classes") if hasattr(vocabulary, "get") else None


def person_label(table: ClassTable | None, view: View) -> int | None:
  """The label (1..C) whose keypoints count: as the evaluator takes it."""
  if table is None or view.metric.get("person"):
    return view.metric.get("person")
  return table.names.index(PERSON) + 1 if PERSON in table.names else None
