"""Ray casting in numpy: what each ray of a picture hits, and the light that comes back."""

from typing import NamedTuple

import numpy as np

from uvim_like.scenes import geometry, people
from uvim_like.scenes import world as worlds
from uvim_like.scenes.classes import LABELS

FLOOR_FACE, CEILING_FACE, FAR_FACE = 4, 5, 3  # faces of the room: 2·axis, + 1 on the far side of that axis
# Four samples on a turned grid: no two share a row or a column, which serves near-upright edges best.
_SUBSAMPLES = np.array([[-0.125, -0.375], [0.375, -0.125], [0.125, 0.375], [-0.375, 0.125]], np.float32)
_GAMMA = 1 / 1.6
_CHECKER_OFFSET = 0.31  # keeps the floor, at z = 0 up to rounding, off the border between two fields


class Hits(NamedTuple):
  """What N rays hit first.

  Attributes:
    direction: (N, 3) the rays; parameter 1 is planar depth 1 m.
    depth: (N,) planar depth in metres.
    primitive: (N,) index, or -1 for the room itself.
    label: (N,) class of the room's surface (wall, floor, …); only meaningful where `primitive` is -1.
    face: (N,) face of the room behind.
    point, normal: (N, 3) world.
  """
  direction: np.ndarray
  depth: np.ndarray
  primitive: np.ndarray
  label: np.ndarray
  face: np.ndarray
  point: np.ndarray
  normal: np.ndarray


class Picture(NamedTuple):
  """A rendered view, before the camera's noise.

  Attributes:
    color: (H, W, 3) float32, gamma applied, about 0..1.
    depth: (H, W) float32 planar depth in metres, exact.
    normal: (H, W, 3) world frame, unit.
    cosine: (H, W) of the angle between ray and surface normal.
    owner: (H, W) index of the thing, -1 for the room.
    label: (H, W) class of the room's surface where owner is -1.
  """
  color: np.ndarray
  depth: np.ndarray
  normal: np.ndarray
  cosine: np.ndarray
  owner: np.ndarray
  label: np.ndarray


def render(world: worlds.World, size: tuple[int, int]) -> Picture:
  """The view of the world's camera at (H, W) pixels; colours of outlines are averaged over four more rays."""
  h, w = size
  u, v = pixel_centres(size, world.camera.tan_half_fov)
  hits = trace(world, np.tile(u, h), np.repeat(v, w), _grid_candidates(world, u, v))
  color = shade(world, hits)
  edge = np.flatnonzero(_outline(_surface_id(hits).reshape(h, w)))
  if len(edge):
    color[edge] = shade(world, _trace_around(world, u, v, edge)).reshape(len(edge), -1, 3).mean(1)
  cosine = -np.einsum("ni,ni->n", hits.normal, hits.direction) / np.linalg.norm(hits.direction, axis=1)
  owner = owners(world, hits.primitive)
  return Picture(color.reshape(h, w, 3), hits.depth.reshape(h, w), hits.normal.reshape(h, w, 3), cosine.reshape(h, w),
                 owner.reshape(h, w), hits.label.reshape(h, w))


def owner_map(world: worlds.World, size: tuple[int, int]) -> np.ndarray:
  """(H, W) index of the thing at each pixel, -1 for the room: the cheap part of `render`."""
  h, w = size
  u, v = pixel_centres(size, world.camera.tan_half_fov)
  direction = _directions(world.camera, np.tile(u, h), np.repeat(v, w))
  _, primitive, _ = _nearest(world, direction, _grid_candidates(world, u, v))
  return owners(world, primitive).reshape(h, w)


def owners(world: worlds.World, primitive: np.ndarray) -> np.ndarray:
  """Index of the thing for each primitive index; -1 stays -1."""
  return np.append(world.owner, -1)[primitive]


def pixel_centres(size: tuple[int, int], tan_half_fov: float) -> tuple[np.ndarray, np.ndarray]:
  """u (W,) to the right and v (H,) upwards of the pixel centres, at depth 1; square pixels."""
  h, w = size
  u = ((np.arange(w, dtype=np.float32) + 0.5) / w * 2 - 1) * np.float32(tan_half_fov)
  v = (1 - (np.arange(h, dtype=np.float32) + 0.5) / h * 2) * np.float32(tan_half_fov * h / w)
  return u, v


def project(camera: worlds.Camera, points: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Pixel coordinates (N, 2) x, y and depths (N,) of world points; pixel i covers [i, i+1). Depth ≤ 0: behind."""
  h, w = size
  offset = points - camera.position
  depth = offset @ camera.forward
  safe = np.where(np.abs(depth) < 1e-6, 1e-6, depth) * camera.tan_half_fov
  x = (offset @ camera.right / safe + 1) / 2 * w
  y = (h - offset @ camera.up / safe * w) / 2
  return np.stack([x, y], 1), depth


def _directions(camera, u, v):
  return camera.forward + u[:, None] * camera.right + v[:, None] * camera.up


def _rectangles(world) -> np.ndarray:
  """(4, P) u and v ranges of the primitives' images; unbounded for one that reaches behind the camera."""
  offset = geometry.corners(world.primitives) - world.camera.position  # (P, 8, 3)
  depth = offset @ world.camera.forward
  behind = depth.min(1) < 0.05
  depth = np.maximum(depth, 0.05)
  u, v = offset @ world.camera.right / depth, offset @ world.camera.up / depth
  low_high = np.stack([u.min(1), u.max(1), v.min(1), v.max(1)])
  return np.where(behind, np.array([-np.inf, np.inf, -np.inf, np.inf], np.float32)[:, None], low_high)


def _grid_candidates(world, u, v) -> tuple[np.ndarray, np.ndarray]:
  """(primitive, ray) pairs that may meet, for the grid of all u (W,) and v (H,), rays in row-major order."""
  u0, u1, v0, v1 = _rectangles(world)
  in_u = (u >= u0[:, None]) & (u <= u1[:, None])  # (P, W)
  in_v = (v >= v0[:, None]) & (v <= v1[:, None])  # (P, H)
  return _pairs(in_v[:, :, None] & in_u[:, None, :])


def _list_candidates(world, u, v) -> tuple[np.ndarray, np.ndarray]:
  """(primitive, ray) pairs that may meet, for rays (u[i], v[i])."""
  u0, u1, v0, v1 = _rectangles(world)
  return _pairs((u >= u0[:, None]) & (u <= u1[:, None]) & (v >= v0[:, None]) & (v <= v1[:, None]))


def _pairs(matrix) -> tuple[np.ndarray, np.ndarray]:
  """Row and column of what is set in a (rows, …) mask; much faster than np.nonzero on a sparse one."""
  columns = matrix[0].size if len(matrix) else 1
  flat = np.flatnonzero(matrix)
  row = flat // columns
  return row, flat - row * columns


def _nearest(world, direction, candidates):
  """Depth, primitive (or -1) and face of the room for every ray."""
  with np.errstate(divide="ignore", invalid="ignore"):
    wall = np.where(direction > 0, world.room - world.camera.position, -world.camera.position) / direction
  wall[direction == 0] = np.inf  # parallel to both walls of that axis
  axis = wall.argmin(1)
  rows = np.arange(len(direction))
  depth = wall[rows, axis].astype(np.float32)
  face = 2 * axis + (direction[rows, axis] > 0)
  primitive, ray = candidates
  t = geometry.intersect(world.primitives, primitive, world.camera.position, direction[ray])
  np.minimum.at(depth, ray, t)
  first = t == depth[ray]
  nearest = np.full(len(direction), -1)
  nearest[ray[first]] = primitive[first]
  return depth, nearest, face


def trace(world: worlds.World, u: np.ndarray, v: np.ndarray, candidates: tuple[np.ndarray, np.ndarray]) -> Hits:
  """First hits of the rays (u[i], v[i]).

  Args:
    candidates: (primitive, ray) index pairs; every pair that can meet must be among them.
  """
  direction = _directions(world.camera, u, v)
  depth, primitive, face = _nearest(world, direction, candidates)
  point = world.camera.position + depth[:, None] * direction
  normal = np.zeros_like(point)
  rows = np.arange(len(point))
  normal[rows, face // 2] = 1 - 2 * (face % 2)  # into the room
  on = np.flatnonzero(primitive >= 0)
  local = geometry.to_local(world.primitives, primitive[on], point[on])
  normal[on] = geometry.normals(world.primitives, primitive[on], local)
  return Hits(direction, depth, primitive, _room_labels(world, face, point), face, point, normal)


def _room_labels(world, face, point) -> np.ndarray:
  label = np.full(len(face), LABELS["wall"])
  label[face == FLOOR_FACE], label[face == CEILING_FACE] = LABELS["floor"], LABELS["ceiling"]
  if world.window is not None:
    x, z, width, height = world.window
    inside = (point[:, 0] > x) & (point[:, 0] < x + width) & (point[:, 2] > z) & (point[:, 2] < z + height)
    label[inside & (face == FAR_FACE)] = LABELS["window"]
  if world.rug is not None:
    label[(face == FLOOR_FACE) & (_rug_radius(world.rug, point) < 1)] = LABELS["rug"]
  return label


def _rug_radius(rug, point):
  return ((point[:, 0] - rug.x) / rug.a) ** 2 + ((point[:, 1] - rug.y) / rug.b) ** 2


def _surface_id(hits) -> np.ndarray:
  """A number per smooth surface: neighbours with other numbers have an outline between them."""
  return np.where(hits.primitive >= 0, hits.primitive + 100, hits.label * 6 + hits.face)


def _outline(ids) -> np.ndarray:
  """(H, W) whether a pixel differs from one of its four neighbours."""
  edge = np.zeros(ids.shape, bool)
  down, across = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
  edge[1:] |= down
  edge[:-1] |= down
  edge[:, 1:] |= across
  edge[:, :-1] |= across
  return edge


def _trace_around(world, u, v, pixels) -> Hits:
  """Hits of the four sub-pixel rays of each listed pixel, in the order of the pixels."""
  step = u[1] - u[0] if len(u) > 1 else 2 * u[0]
  dx, dy = _SUBSAMPLES.T * step
  su = (u[pixels % len(u)][:, None] + dx).ravel()
  sv = (v[pixels // len(u)][:, None] + dy).ravel()
  return trace(world, su, sv, _list_candidates(world, su, sv))


def shade(world: worlds.World, hits: Hits) -> np.ndarray:
  """(N, 3) float32 colours: Lambert under one lamp with hard shadows, fall-off 1/(1+(d/4)²), ambient light, gamma."""
  albedo = _albedo(world, hits)
  to_lamp = world.lamp.position - hits.point
  distance = np.linalg.norm(to_lamp, axis=1)
  facing = np.einsum("ni,ni->n", hits.normal, to_lamp) / distance
  lit = np.flatnonzero(facing > 0)
  direct = np.zeros(len(facing), np.float32)
  direct[lit] = facing[lit] / (1 + (distance[lit] / 4) ** 2) * ~_in_shadow(world, hits, lit)
  ambient = world.lamp.ambient * (0.8 + 0.2 * hits.normal[:, 2])
  light = ambient[:, None] + 1.15 * direct[:, None] * world.lamp.color
  return np.maximum(albedo * light, 0) ** np.float32(_GAMMA)


def _in_shadow(world, hits, lit) -> np.ndarray:
  """(len(lit),) whether a primitive stands between the lamp and the points `lit`.

  Pairs are found by the cones in which the lamp sees the primitives' bounding balls; a convex primitive
  does not shade a point of its own that faces the lamp, so such pairs are left out.
  """
  shadow = np.zeros(len(lit), bool)
  if not len(world.primitives.kind):
    return shadow
  offset = world.primitives.center - world.lamp.position
  away = np.linalg.norm(offset, axis=1)
  radius = geometry.bounding_radius(world.primitives)
  cosine = np.sqrt(np.maximum(1 - (radius / np.maximum(away, 1e-6)) ** 2, 0))
  cosine = np.where(radius >= away, -2, cosine - 1e-4).astype(np.float32)
  ray = hits.point[lit] - world.lamp.position
  ray_length = np.linalg.norm(ray, axis=1)
  near = (offset / away[:, None]) @ (ray / ray_length[:, None]).T >= cosine[:, None]  # (P, N)
  primitive, column = _pairs(near)
  keep = (hits.primitive[lit][column] != primitive) & (ray_length[column] > (away - radius)[primitive])
  primitive, column = primitive[keep], column[keep]
  t = geometry.intersect(world.primitives, primitive, world.lamp.position, ray[column])
  shadow[column[t < 0.999]] = True  # 1 is the point itself
  return shadow


def _albedo(world, hits) -> np.ndarray:
  color = np.empty_like(hits.point)
  room = hits.primitive < 0
  for name, faces in (("wall", hits.face < FLOOR_FACE), ("floor", hits.face == FLOOR_FACE),
                      ("ceiling", hits.face == CEILING_FACE)):
    rows = np.flatnonzero(room & faces)
    x, y, z = hits.point[rows].T
    q = np.stack([x + y, x - y, z], 1) if name == "wall" else hits.point[rows]
    paint = world.surfaces[name]
    color[rows] = _blend(paint.color, paint.second, _pattern(paint.pattern, q * np.float32(1), paint.frequency))
  if world.window is not None:
    rows = np.flatnonzero(room & (hits.label == LABELS["window"]))
    color[rows] = _pane(world.window, hits.point[rows])
  if world.rug is not None:
    rows = np.flatnonzero(room & (hits.label == LABELS["rug"]))
    ring = np.floor(4 * _rug_radius(world.rug, hits.point[rows])) % 2
    color[rows] = world.rug.color * np.where(ring > 0, 1.0, 0.6)[:, None]
  rows = np.flatnonzero(~room)
  color[rows] = _painted(world, hits.primitive[rows], hits.point[rows])
  return color


def _pane(window, point) -> np.ndarray:
  """Glass the colour of the sky, with a white bar down and across."""
  bar = (np.abs(point[:, 0] - window.x - window.width / 2) < 0.03)
  bar |= np.abs(point[:, 2] - window.z - window.height / 2) < 0.03
  return np.where(bar[:, None], np.float32(0.95), np.array([0.55, 0.75, 0.95], np.float32))


def _painted(world, primitive, point) -> np.ndarray:
  q = geometry.to_local(world.primitives, primitive, point)
  paints = world.paints
  color, pattern = paints.color[primitive], paints.pattern[primitive]
  for kind in range(worlds.CHECKER, worlds.HEAD + 1):
    rows = np.flatnonzero(pattern == kind)
    if len(rows):
      which = primitive[rows]
      if kind == worlds.HEAD:
        color[rows] = _face(q[rows] / world.primitives.half[which], color[rows], paints.second[which])
      else:
        mix = _pattern(kind, q[rows], paints.frequency[which])
        color[rows] = _blend(color[rows], paints.second[which], mix)
  return color


def _pattern(kind, q, frequency) -> np.ndarray:
  """(N,) share of the second colour at local coordinates q (N, 3), 0..1."""
  x, y, z = q.T
  if kind == worlds.PLAIN:
    return np.zeros(len(q), np.float32)
  if kind == worlds.CHECKER:
    return sum(np.floor(axis * frequency + _CHECKER_OFFSET) for axis in (x, y, z)) % 2
  if kind == worlds.STRIPES:
    return (np.sin(z * frequency * 6.28 + x) > 0).astype(np.float32)
  if kind == worlds.RINGS:
    return 0.5 + 0.5 * np.sin(9 * frequency * np.hypot(x, y) + 2 * np.sin(5 * z))
  return 0.5 + 0.25 * (np.sin(11 * frequency * x + 3 * np.sin(7 * y)) + np.sin(13 * frequency * y + 2 * np.sin(9 * z)))


def _blend(first, second, share) -> np.ndarray:
  share = share.astype(np.float32)[:, None]
  return first * (1 - share) + second * share


def _face(q, skin, hair) -> np.ndarray:
  """A head seen from outside: q (N, 3) on the unit ball, x to where the person looks. It tells front from back."""
  in_front = (q[:, 0] > 0.15) & (q[:, 2] < 0.62)
  color = np.where(in_front[:, None], skin, hair)
  for eye in (people.EYE, people.EYE * people.MIRROR):
    color[np.linalg.norm(q - eye, axis=1) < 0.25] = 0.05
  return color
