"""The annotations of a rendered view: panoptic ids, boxes and keypoints, with COCO's conventions."""

from typing import NamedTuple

import numpy as np

from uvim_like.scenes import people, render
from uvim_like.scenes.classes import CLUTTER, NAMES, THINGS, VOID, is_thing
from uvim_like.scenes.world import World

REFERENCE_AREA = 128 * 128  # pixel areas below are meant at this image size and scale with it
MIN_AREA = 12  # smaller segments become void
MIN_THING_AREA = 60  # a view must show one thing at least this large
MAX_SHARE = 0.6  # of the view that one thing may fill
_VIEW_PIXELS = 32  # views are judged at this size, whatever size is rendered
_FACE_SLACK, _LIMB_SLACK = 0.06, 0.22  # metres by which a visible joint may lie under the surface seen there


class Segment(NamedTuple):
  """One annotated region.

  Attributes:
    id: unique in the image, 1 .. 2²⁴-1.
    label: 0 .. 9.
    area: pixels.
    bbox: (4,) float32 ymin, xmin, ymax, xmax in 0..1, tight.
    is_crowd: whether it stands for a pile.
    thing: index of the world's thing, or -1 for stuff.
  """
  id: int
  label: int
  area: int
  bbox: np.ndarray
  is_crowd: bool
  thing: int


def is_good_view(world: World) -> bool:
  """Whether one thing is well visible and none, clutter included, fills the view. Independent of the image's size.

  Judged on a coarse grid, whose counts are off by a few pixels of its own; the margins here cover that.
  """
  count = np.bincount(render.owner_map(world, (_VIEW_PIXELS,) * 2).ravel() + 1, minlength=len(world.things) + 1)[1:]
  annotated = np.array([thing.label != CLUTTER for thing in world.things], bool)
  largest = count[annotated].max(initial=0)
  enough = 1.6 * MIN_THING_AREA / REFERENCE_AREA * _VIEW_PIXELS ** 2
  return bool(largest >= enough and count.max(initial=0) <= 0.95 * MAX_SHARE * _VIEW_PIXELS ** 2)


def draw_ids(world: World, rng: np.random.RandomState) -> np.ndarray:
  """Random unique panoptic ids, one for each thing and each stuff class: (things + stuff,) int64 in 1 .. 2²⁴-1."""
  count = len(world.things) + len(NAMES) - len(THINGS)
  ids: list[int] = []
  while len(ids) < count:
    number = int(rng.randint(1, 2 ** 24))
    if number not in ids:
      ids.append(number)
  return np.array(ids, np.int64)


def segment(world: World, picture: render.Picture, ids: np.ndarray, *, band: bool) -> tuple[np.ndarray, list[Segment]]:
  """Panoptic map and its list of segments; both name the same ids.

  Args:
    ids: from `draw_ids`.
    band: leave a line of one pixel between segments unlabelled, as hand-drawn annotations do.

  Returns:
    (H, W) int64 ids, 0 = void, and the segments: things in the world's order, then stuff.
  """
  h, w = picture.owner.shape
  slots = np.where(picture.owner >= 0, picture.owner, len(world.things) + picture.label - len(THINGS))
  free = _band(slots) if band else np.zeros((h, w), bool)
  panoptic, segments = np.zeros((h, w), np.int64), []
  smallest = max(3, round(MIN_AREA * h * w / REFERENCE_AREA))
  for slot in np.unique(slots):
    thing = world.things[slot] if slot < len(world.things) else None
    label = thing.label if thing is not None else int(slot) - len(world.things) + len(THINGS)
    mask = (slots == slot) & ~free
    area = int(mask.sum())
    if label == CLUTTER or area < smallest:
      continue
    panoptic[mask] = ids[slot]
    segments.append(Segment(int(ids[slot]), label, area, tight_box(mask), bool(thing is not None and thing.is_crowd),
                            int(slot) if thing is not None else -1))
  return panoptic, segments


def _band(ids) -> np.ndarray:
  """Pixels whose right or lower neighbour belongs to another segment."""
  band = np.zeros(ids.shape, bool)
  band[:-1] |= ids[1:] != ids[:-1]
  band[:, :-1] |= ids[:, 1:] != ids[:, :-1]
  return band


def tight_box(mask: np.ndarray) -> np.ndarray:
  """(4,) float32 ymin, xmin, ymax, xmax in 0..1 of a non-empty mask (H, W); the far edges are exclusive."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  h, w = mask.shape
  return np.array([rows[0] / h, columns[0] / w, (rows[-1] + 1) / h, (columns[-1] + 1) / w], np.float32)


def keypoints(world: World, thing: int, picture: render.Picture) -> np.ndarray:
  """(17, 3) float32 x, y in pixels (pixel i covers [i, i+1)) and COCO's flag: 0 outside, 1 hidden, 2 visible.

  A joint is visible when the person itself is seen there and the surface is not farther in front of the joint than
  a limb is thick. Things without joints, and joints outside of the image, give zeros.
  """
  joints = world.things[thing].joints
  if joints is None:
    return np.zeros((len(people.JOINTS), 3), np.float32)
  h, w = picture.owner.shape
  xy, depth = render.project(world.camera, joints, (h, w))
  inside = (depth > 0.05) & (xy >= 0).all(1) & (xy < [w, h]).all(1)
  column, row = np.where(inside[:, None], xy, 0).astype(np.int64).T
  slack = np.where(np.arange(len(joints)) < people.FACE_JOINTS, _FACE_SLACK, _LIMB_SLACK)
  seen = inside & (picture.owner[row, column] == thing) & (picture.depth[row, column] > depth - slack)
  return np.where(inside[:, None], np.column_stack([xy, 1 + seen]), 0).astype(np.float32)


def encode_ids(panoptic: np.ndarray) -> np.ndarray:
  """(H, W) ids → (H, W, 3) uint8 with id = R + 256 G + 65536 B."""
  return np.stack([panoptic & 255, panoptic >> 8 & 255, panoptic >> 16 & 255], -1).astype(np.uint8)


def semantic_map(panoptic: np.ndarray, segments: list[Segment]) -> np.ndarray:
  """(H, W, 1) uint8 labels, 255 where void."""
  semantic = np.full((*panoptic.shape, 1), VOID, np.uint8)
  for s in segments:
    semantic[panoptic == s.id] = s.label
  return semantic


def panoptic_objects(segments: list[Segment]) -> dict[str, np.ndarray]:
  """The fields of TFDS `panoptic_objects`, each with leading axis n."""
  return {"id": np.array([s.id for s in segments], np.int64),
          "area": np.array([s.area for s in segments], np.int64),
          "bbox": np.array([s.bbox for s in segments], np.float32).reshape(-1, 4),
          "label": np.array([s.label for s in segments], np.int64),
          "is_crowd": np.array([s.is_crowd for s in segments], bool)}


def thing_objects(world: World, segments: list[Segment], picture: render.Picture) -> dict[str, np.ndarray]:
  """The fields of `objects`: those of the things only, with keypoints (n, 17, 3) and their number (n,)."""
  things = [s for s in segments if is_thing(s.label)]
  points = np.array([keypoints(world, s.thing, picture) for s in things], np.float32).reshape(-1, len(people.JOINTS), 3)
  return {**panoptic_objects(things), "keypoints": points,
          "num_keypoints": (points[..., 2] > 0).sum(1).astype(np.int64)}
