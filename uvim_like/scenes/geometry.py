"""Primitives of a scene as one table, and rays against them: closed forms in each primitive's own frame."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BOX, SPHERE, CYLINDER, CAPSULE = range(4)
NEAR = 1e-4  # a hit closer than this ray parameter is the ray's own start


class Part(NamedTuple):
  """One primitive. All kinds share one description: a local frame and the half sides of the bounding box in it.

  Attributes:
    kind: BOX, SPHERE, CYLINDER or CAPSULE; the last two stand along the local z axis.
    center: (3,) metres, world.
    half: (3,) metres: box half sides; (r, r, r); (r, r, half height); (r, r, half length with its caps).
    rotation: (3, 3) world → local.
  """
  kind: int
  center: np.ndarray
  half: np.ndarray
  rotation: np.ndarray


class Primitives(NamedTuple):
  """P primitives as arrays, the fields of `Part` with a leading axis: kind (P,), center, half (P, 3), rotation."""
  kind: np.ndarray
  center: np.ndarray
  half: np.ndarray
  rotation: np.ndarray


def rotation_z(angle: float) -> np.ndarray:
  """(3, 3) turning by `angle` radians about the vertical, counter-clockwise from above."""
  c, s = np.cos(angle), np.sin(angle)
  return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def unit(vector: np.ndarray) -> np.ndarray:
  """The vector (…, 3) at length one."""
  return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


def box(center, half, yaw: float = 0.0) -> Part:
  """A box turned by `yaw` radians about the vertical."""
  return Part(BOX, np.asarray(center), np.asarray(half), rotation_z(-yaw))


def sphere(center, radius: float, rotation: np.ndarray | None = None) -> Part:
  """A ball; its rotation only matters to a pattern painted on it."""
  return Part(SPHERE, np.asarray(center), np.full(3, radius), np.eye(3) if rotation is None else rotation)


def cylinder(center, radius: float, half_height: float) -> Part:
  """An upright cylinder with flat caps."""
  return Part(CYLINDER, np.asarray(center), np.array([radius, radius, half_height]), np.eye(3))


def capsule(start, end, radius: float) -> Part:
  """All points within `radius` of the segment start–end."""
  start, end = np.asarray(start, float), np.asarray(end, float)
  length = math.dist(start, end)
  return Part(CAPSULE, (start + end) / 2, np.array([radius, radius, length / 2 + radius]),
              _frame(*((end - start) / length)))


def _frame(a: float, b: float, c: float) -> np.ndarray:
  """(3, 3) a rotation with third row (a, b, c), of length one. Written out: np.cross was a tenth of all time."""
  x, y, z = (0.0, c, -b) if abs(a) < 0.7 else (-c, 0.0, a)
  norm = math.sqrt(x * x + y * y + z * z)
  x, y, z = x / norm, y / norm, z / norm
  return np.array([[x, y, z], [b * z - c * y, c * x - a * z, a * y - b * x], [a, b, c]])


def stack(parts: Sequence[Part]) -> Primitives:
  """The table of the parts, float32; no parts give arrays of length 0."""
  return Primitives(np.array([p.kind for p in parts], np.int64),
                    np.array([p.center for p in parts], np.float32).reshape(-1, 3),
                    np.array([p.half for p in parts], np.float32).reshape(-1, 3),
                    np.array([p.rotation for p in parts], np.float32).reshape(-1, 3, 3))


def bounding_radius(primitives: Primitives) -> np.ndarray:
  """(P,) radius of a ball about each centre that holds the primitive."""
  radius = np.linalg.norm(primitives.half, axis=1)
  radius = np.where(primitives.kind == SPHERE, primitives.half[:, 0], radius)
  return np.where(primitives.kind == CAPSULE, primitives.half[:, 2], radius)


def corners(primitives: Primitives) -> np.ndarray:
  """(P, 8, 3) world corners of the bounding boxes."""
  signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
  local = signs * primitives.half[:, None]  # (P, 8, 3)
  return primitives.center[:, None] + local @ primitives.rotation


def to_local(primitives: Primitives, index: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Points (M, 3) in the frames of the primitives `index` (M,)."""
  return np.einsum("mij,mj->mi", primitives.rotation[index], points - primitives.center[index])


def intersect(primitives: Primitives, index: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
  """First hits of M rays from one point, each with one primitive.

  Args:
    index: (M,) the primitive of each pair.
    origin: (3,) where all rays start, outside of the primitives.
    direction: (M, 3), any length.

  Returns:
    (M,) ray parameter of the first hit, inf for a miss.
  """
  start = np.einsum("pij,pj->pi", primitives.rotation, origin - primitives.center)  # (P, 3)
  t = np.full(len(index), np.inf, np.float32)
  kinds = primitives.kind[index]
  with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
    for kind, solve in enumerate((_box_hit, _sphere_hit, _cylinder_hit, _capsule_hit)):
      pairs = np.flatnonzero(kinds == kind)
      if len(pairs):
        which = index[pairs]
        d = np.einsum("mij,mj->im", primitives.rotation[which], direction[pairs])  # (3, M): whole rows per axis
        t[pairs] = solve(start.T[:, which], d, primitives.half.T[:, which])
  return np.where(t > NEAR, t, np.inf)


def _box_hit(o, d, half):
  one, two = (-half - o) / d, (half - o) / d
  enter, leave = np.minimum(one, two).max(0), np.maximum(one, two).min(0)
  return np.where(enter <= leave, enter, np.inf)


def _sphere_hit(o, d, half):
  a, b, c = (d * d).sum(0), (o * d).sum(0), (o * o).sum(0) - half[0] ** 2
  root = b * b - a * c
  return np.where(root > 0, (-b - np.sqrt(root)) / a, np.inf)


def _cylinder_hit(o, d, half):
  (ox, oy, oz), (dx, dy, dz), (radius, _, height) = o, d, half
  a, b, c = dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - radius ** 2
  root = b * b - a * c
  side = (-b - np.sqrt(root)) / a
  side = np.where((root > 0) & (np.abs(oz + side * dz) <= height) & (side > NEAR), side, np.inf)
  cap = (np.where(dz < 0, height, -height) - oz) / dz
  on_cap = (ox + cap * dx) ** 2 + (oy + cap * dy) ** 2 <= radius ** 2
  return np.minimum(side, np.where(on_cap & (cap > NEAR), cap, np.inf))


def _capsule_hit(o, d, half):
  (ox, oy, oz), (dx, dy, dz), radius = o, d, half[0]
  a, b, c = dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - radius ** 2
  root = b * b - a * c  # negative: the ray misses even the endless cylinder
  body = (-b - np.sqrt(root)) / a
  z, length = oz + body * dz, half[2] - radius
  dome = oz - np.where(z > 0, length, -length)
  a2, b2, c2 = a + dz * dz, b + dome * dz, c + dome * dome
  root2 = b2 * b2 - a2 * c2
  cap = np.where(root2 > 0, (-b2 - np.sqrt(root2)) / a2, np.inf)
  return np.where(root >= 0, np.where(np.abs(z) <= length, body, cap), np.inf)


def normals(primitives: Primitives, index: np.ndarray, local: np.ndarray) -> np.ndarray:
  """Outward unit normals in the world frame.

  Args:
    index: (M,) the primitive of each point.
    local: (M, 3) surface points in that primitive's frame.

  Returns:
    (M, 3) float32.
  """
  kind, half = primitives.kind[index], primitives.half[index]
  n = local.copy()
  for which, pairs in ((k, np.flatnonzero(kind == k)) for k in (BOX, CYLINDER, CAPSULE)):
    if not len(pairs):
      continue
    q, h = local[pairs], half[pairs]
    if which == BOX:
      axis = np.abs(q / h).argmax(1)
      flat = np.zeros_like(q)
      rows = np.arange(len(q))
      flat[rows, axis] = np.sign(q[rows, axis])
      n[pairs] = flat
    elif which == CYLINDER:
      # The nearer surface: a fixed margin would give the rim of a side that is seen from below the cap's normal.
      cap = h[:, 2] - np.abs(q[:, 2]) < h[:, 0] - np.hypot(q[:, 0], q[:, 1])
      n[pairs] = np.stack([np.where(cap, 0, q[:, 0]), np.where(cap, 0, q[:, 1]), np.where(cap, np.sign(q[:, 2]), 0)], 1)
    else:
      length = h[:, 2] - h[:, 0]
      n[pairs, 2] = q[:, 2] - np.clip(q[:, 2], -length, length)
  return unit(np.einsum("mij,mi->mj", primitives.rotation[index], n)).astype(np.float32)
