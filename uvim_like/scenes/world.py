"""Samples a furnished room with camera and lamp: what is there, before anything is rendered. Metres, z up."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from uvim_like.scenes import geometry, people
from uvim_like.scenes.classes import CLUTTER, COLORS, LABELS, PALETTE, THINGS

PLAIN, CHECKER, STRIPES, RINGS, MARBLE, HEAD = range(6)

MAX_THINGS = 7
PERSON_SHARE = 0.6  # images that start with a person; enough for one to be seen in half of all images
PILE_SHARE = 0.12  # spheres that are a pile of small ones, annotated as one crowd
CLUTTER_SHARE = 0.55  # images with something that nobody annotated
_THING_ODDS = {"box": 0.29, "sphere": 0.24, "cylinder": 0.23, "table": 0.12, "person": 0.12}


class Paint(NamedTuple):
  """How a surface looks: a pattern between two colours. For a table of surfaces each field has a leading axis.

  Attributes:
    color: (3,) linear RGB.
    pattern: PLAIN … HEAD.
    frequency: repeats per metre, about.
    second: (3,) linear RGB of the other colour.
  """
  color: np.ndarray
  pattern: int = PLAIN
  frequency: float = 1.0
  second: np.ndarray | tuple = (0.0, 0.0, 0.0)


class Camera(NamedTuple):
  """A pinhole. A ray is forward + u·right + v·up, so that its parameter is the planar depth.

  `tan_half_fov` is half the image's width at depth 1; pixels are square, so the height follows from the image's shape.
  """
  position: np.ndarray
  forward: np.ndarray
  right: np.ndarray
  up: np.ndarray
  tan_half_fov: float


class Lamp(NamedTuple):
  """A point light under the ceiling, and the light that comes from everywhere."""
  position: np.ndarray
  color: np.ndarray
  ambient: float


class Window(NamedTuple):
  """A pane in the far wall (y = room depth): left edge, sill, width, height."""
  x: float
  z: float
  width: float
  height: float


class Rug(NamedTuple):
  """An ellipse on the floor: centre, half axes and colour."""
  x: float
  y: float
  a: float
  b: float
  color: np.ndarray


class Thing(NamedTuple):
  """One body of one or more primitives.

  Attributes:
    label: its class, or CLUTTER when it is not annotated.
    color: name of its colour; of the shirt for a person.
    is_crowd: a pile annotated as one region.
    on: label of what it stands on, or None for the floor.
    joints: (17, 3) of a person, else None.
  """
  label: int
  color: str
  is_crowd: bool = False
  on: int | None = None
  joints: np.ndarray | None = None


class World(NamedTuple):
  """A room and all in it.

  Attributes:
    room: (3,) width, depth, height; one corner is the origin.
    things: the bodies, clutter included.
    primitives, paints, owner: P primitives, their looks, and the index of the thing each belongs to (P,).
    surfaces: paint of "wall", "floor", "ceiling".
  """
  room: np.ndarray
  camera: Camera
  lamp: Lamp
  things: Sequence[Thing]
  primitives: geometry.Primitives
  paints: Paint
  owner: np.ndarray
  surfaces: dict[str, Paint]
  window: Window | None
  rug: Rug | None


def sample(rng: np.random.RandomState) -> World:
  """Draws a room. What can be seen of it is the renderer's to say: a thing may well be hidden or out of view."""
  room = np.array([rng.uniform(3.5, 8), rng.uniform(3.5, 9), rng.uniform(2.4, 3.2)], np.float32)
  camera = _camera(rng, room)
  lamp = Lamp(np.array([rng.uniform(0.3, 0.7) * room[0], rng.uniform(0.2, 0.7) * room[1], room[2] - 0.15], np.float32),
              np.array([1, rng.uniform(0.9, 1), rng.uniform(0.75, 1)], np.float32), rng.uniform(0.34, 0.48))
  surfaces = _surfaces(rng)
  window = Window(rng.uniform(0.2, 0.6) * room[0], rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.6), rng.uniform(0.7, 1.1))
  window = window if rng.uniform() < 0.5 else None
  rug = Rug(rng.uniform(0.3, 0.7) * room[0], rng.uniform(0.3, 0.6) * room[1], rng.uniform(0.5, 1.2),
            rng.uniform(0.5, 1.2), _color(rng, _color_name(rng)))
  rug = rug if rng.uniform() < 0.45 else None
  bodies = _furnish(rng, _Floor(rng, room, camera))
  parts = [(part, paint, index) for index, (_, dressed) in enumerate(bodies) for part, paint in dressed]
  return World(room, camera, lamp, [thing for thing, _ in bodies], geometry.stack([p for p, _, _ in parts]),
               _stack_paints([p for _, p, _ in parts]), np.array([i for _, _, i in parts], np.int64), surfaces, window,
               rug)


def _camera(rng, room) -> Camera:
  position = np.array([rng.uniform(0.4, room[0] - 0.4), rng.uniform(0.25, 0.8), rng.uniform(1.0, 1.9)])
  yaw, pitch, roll = np.pi / 2 + rng.uniform(-0.45, 0.45), rng.uniform(-0.32, 0.05), rng.normal(0, 0.03)
  forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
  right = geometry.unit(np.cross(forward, [0.0, 0.0, 1.0]))
  up = np.cross(right, forward)
  right, up = right * np.cos(roll) + up * np.sin(roll), up * np.cos(roll) - right * np.sin(roll)
  tan_half_fov = np.tan(np.radians(rng.uniform(52, 68)) / 2)
  return Camera(*(a.astype(np.float32) for a in (position, forward, right, up)), float(tan_half_fov))


def _color_name(rng) -> str:
  return COLORS[rng.randint(len(COLORS))]


def _color(rng, name) -> np.ndarray:
  return np.array(PALETTE[name], np.float32) * np.float32(rng.uniform(0.8, 1.1))


def _pale(rng) -> np.ndarray:
  return (np.array([0.75, 0.73, 0.70]) + rng.uniform(-0.18, 0.20, 3)).astype(np.float32)


def _paint(rng, name) -> Paint:
  """A third of all things is plain, the rest patterned with a second colour."""
  pattern = PLAIN if rng.uniform() < 0.35 else int(rng.randint(CHECKER, HEAD))
  return Paint(_color(rng, name), pattern, rng.uniform(1.5, 5), _color(rng, _color_name(rng)))


def _surfaces(rng) -> dict[str, Paint]:
  wall = _pale(rng)
  wall_paint = Paint(wall, int(rng.choice([PLAIN, PLAIN, STRIPES, MARBLE])), rng.uniform(0.6, 2), wall * 0.88)
  floor = _color(rng, ("brown", "gray", "white", "orange")[rng.randint(4)])
  floor_paint = Paint(floor, int(rng.choice([CHECKER, RINGS, MARBLE])), rng.uniform(1, 2.5), _pale(rng) * 0.8)
  return {"wall": wall_paint, "floor": floor_paint, "ceiling": Paint(_pale(rng) * 1.1)}


def _stack_paints(paints) -> Paint:
  return Paint(np.array([p.color for p in paints], np.float32).reshape(-1, 3),
               np.array([p.pattern for p in paints], np.int64), np.array([p.frequency for p in paints], np.float32),
               np.array([p.second for p in paints], np.float32).reshape(-1, 3))


class _Floor:
  """Finds free places in front of the camera and remembers those given away."""

  def __init__(self, rng, room, camera):
    self._rng, self._room, self._camera = rng, room, camera
    self._taken = []

  def place(self, radius: float) -> np.ndarray | None:
    """(2,) the middle of a free disc that is in the camera's horizontal field of view, or None after twelve tries."""
    eye, forward, right = self._camera.position, self._camera.forward, self._camera.right
    ahead = forward[:2] / np.hypot(forward[0], forward[1])
    for _ in range(12):
      distance = self._rng.uniform(1.3, max(1.4, self._room[1] - 1))
      aside = self._rng.uniform(-0.9, 0.9) * self._camera.tan_half_fov
      spot = eye[:2] + distance * (ahead + aside * right[:2])
      inside = np.all(spot > radius) and np.all(spot < self._room[:2] - radius)
      free = all(np.hypot(*(spot - other)) > radius + size for other, size in self._taken)
      if inside and free and np.hypot(*(spot - eye[:2])) > radius + 0.5:
        self._taken.append((spot, radius))
        return spot
    return None


def _furnish(rng, floor) -> list[tuple[Thing, list[tuple[geometry.Part, Paint]]]]:
  """The bodies of a room: things, then now and then clutter."""
  makers = {"box": _box, "sphere": _sphere, "cylinder": _cylinder, "table": _table, "person": _person}
  names = ["person"] if rng.uniform() < PERSON_SHARE else []
  names += list(rng.choice(THINGS, rng.randint(2, MAX_THINGS + 1), p=[_THING_ODDS[name] for name in THINGS]))
  bodies = [body for name in names[:MAX_THINGS] for body in makers[name](rng, floor)]
  if rng.uniform() < CLUTTER_SHARE:
    bodies += _plant(rng, floor)
  return bodies


def _box(rng, floor):
  half = rng.uniform(0.12, 0.5, 3)
  name, spot, yaw = _color_name(rng), floor.place(np.hypot(half[0], half[1])), rng.uniform(0, np.pi)
  if spot is None:
    return []
  bodies = [(Thing(LABELS["box"], name), [(geometry.box((*spot, half[2]), half, yaw), _paint(rng, name))])]
  if rng.uniform() < 0.3:
    radius, name = min(half[:2]) * rng.uniform(0.5, 0.9), _color_name(rng)
    ball = geometry.sphere((*spot, 2 * half[2] + radius), radius)
    bodies.append((Thing(LABELS["sphere"], name, on=LABELS["box"]), [(ball, _paint(rng, name))]))
  return bodies


def _sphere(rng, floor):
  name, radius, pile = _color_name(rng), rng.uniform(0.12, 0.5), rng.uniform() < PILE_SHARE
  spot = floor.place(0.5 if pile else radius)
  if spot is None:
    return []
  if not pile:
    return [(Thing(LABELS["sphere"], name), [(geometry.sphere((*spot, radius), radius), _paint(rng, name))])]
  plain = Paint(_color(rng, name))
  balls = [(geometry.sphere((*(spot + rng.uniform(-0.4, 0.4, 2)), 0.09), 0.09), plain) for _ in range(14)]
  return [(Thing(LABELS["sphere"], name, is_crowd=True), balls)]


def _cylinder(rng, floor):
  radius, half_height, name = rng.uniform(0.1, 0.35), rng.uniform(0.15, 0.75), _color_name(rng)
  spot = floor.place(radius)
  if spot is None:
    return []
  return [(Thing(LABELS["cylinder"], name),
           [(geometry.cylinder((*spot, half_height), radius, half_height), _paint(rng, name))])]


def _table(rng, floor):
  a, b, height, yaw = rng.uniform(0.35, 0.7), rng.uniform(0.3, 0.5), rng.uniform(0.5, 0.8), rng.uniform(0, np.pi)
  name, spot = _color_name(rng), floor.place(np.hypot(a, b))
  if spot is None:
    return []
  paint, turn = _paint(rng, name), geometry.rotation_z(yaw)[:2, :2]
  parts = [(geometry.box((*spot, height), (a, b, 0.03), yaw), paint)]
  for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
    foot = spot + turn @ [x * (a - 0.05), y * (b - 0.05)]
    parts.append((geometry.cylinder((*foot, height / 2), 0.035, height / 2), Paint(paint.color * 0.8)))
  bodies = [(Thing(LABELS["table"], name), parts)]
  if rng.uniform() < 0.5:
    name, half_height = _color_name(rng), rng.uniform(0.08, 0.2)
    cup = geometry.cylinder((*spot, height + 0.03 + half_height), rng.uniform(0.06, 0.14), half_height)
    bodies.append((Thing(LABELS["cylinder"], name, on=LABELS["table"]), [(cup, _paint(rng, name))]))
  return bodies


def _person(rng, floor):
  name, spot = _color_name(rng), floor.place(0.4)
  if spot is None:
    return []
  body = people.pose(rng, x=spot[0], y=spot[1], heading=rng.uniform(0, 2 * np.pi), height=rng.uniform(1.2, 1.9))
  skin = np.array([0.9, 0.7, 0.56], np.float32) * np.float32(rng.uniform(0.45, 1.0))
  hair = np.array([0.15, 0.10, 0.07], np.float32)
  cover = {"shirt": Paint(_color(rng, name)), "trousers": Paint(_color(rng, _color_name(rng))), "skin": Paint(skin),
           "head": Paint(skin, HEAD, 1.0, hair)}
  return [(Thing(LABELS["person"], name, joints=body.joints), [(part, cover[kind]) for part, kind in body.parts])]


def _plant(rng, floor):
  """Leaves in a pot: seen, but of no class, so that the rules for void pixels are exercised."""
  spot = floor.place(0.3)
  if spot is None:
    return []
  height, pot = rng.uniform(0.3, 0.5), Paint(np.array([0.30, 0.22, 0.18], np.float32))
  leaf = Paint(np.array([0.20, 0.42, 0.12], np.float32) * np.float32(rng.uniform(0.8, 1.2)))
  parts = [(geometry.cylinder((*spot, height / 2), 0.17, height / 2), pot)]
  for angle in rng.uniform(0, 2 * np.pi) + np.arange(6) * np.pi / 3:
    reach, rise = rng.uniform(0.15, 0.4), rng.uniform(0.35, 0.8)
    tip = (spot[0] + reach * np.cos(angle), spot[1] + reach * np.sin(angle), height + rise)
    parts.append((geometry.capsule((*spot, height), tip, 0.05), leaf))
  return [(Thing(CLUTTER, "green"), parts)]
