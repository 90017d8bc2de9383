"""Classes of the generated dataset: COCO-like category ids with gaps, names, things and stuff, colours."""

THINGS = ("box", "sphere", "cylinder", "table", "person")
STUFF = ("wall", "floor", "ceiling", "window", "rug")
NAMES = THINGS + STUFF

# Gaps on purpose, as in COCO: code that takes an id for a label must fail here too.
CATEGORY_IDS = (1, 3, 8, 17, 44, 92, 101, 118, 133, 171)

# A label is the 0-based position in the order of ascending ids, as TFDS numbers COCO's categories.
LABELS = {name: label for label, name in enumerate(NAMES)}

VOID = 255  # semantic value of pixels that nobody annotated
CLUTTER = -1  # label of a body that is rendered but not annotated: its pixels are void

PALETTE = {
    "red": (0.85, 0.15, 0.13), "green": (0.15, 0.62, 0.20), "blue": (0.14, 0.25, 0.80), "yellow": (0.92, 0.82, 0.15),
    "purple": (0.55, 0.20, 0.65), "orange": (0.95, 0.50, 0.10), "white": (0.93, 0.93, 0.92),
    "brown": (0.45, 0.28, 0.14), "cyan": (0.15, 0.75, 0.80), "gray": (0.50, 0.50, 0.52),
}
COLORS = tuple(PALETTE)


def is_thing(label: int) -> bool:
  """Whether the label is a countable class; the first five are."""
  return 0 <= label < len(THINGS)


def categories() -> list[dict]:
  """The category list of a COCO panoptic JSON: id, name, supercategory, isthing, color, ids ascending."""
  return [{"id": number, "name": name, "supercategory": "thing" if is_thing(label) else "stuff",
           "isthing": int(is_thing(label)), "color": [40 + 21 * label, 255 - 23 * label, (97 * label) % 256]}
          for label, (number, name) in enumerate(zip(CATEGORY_IDS, NAMES))]
