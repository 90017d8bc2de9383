"""Rays against single primitives, by hand and against a numeric search; normals; the depth of a known box."""

import numpy as np
import pytest

from uvim_like.scenes import geometry, people, render
from uvim_like.scenes import world as worlds
from uvim_like.scenes.classes import LABELS

EYE = np.zeros(3, np.float32)
SHAPES = {
    "box": geometry.box((0.2, 3.0, 0.1), (0.4, 0.3, 0.5), yaw=0.6),
    "sphere": geometry.sphere((-0.1, 2.5, 0.3), 0.6),
    "cylinder": geometry.cylinder((0.1, 2.0, -0.4), 0.4, 0.5),
    "capsule": geometry.capsule((-0.5, 2.5, -0.3), (0.4, 3.2, 0.5), 0.25),
}


def contains(part, points):
  """(N,) whether points lie inside: the definition of each solid, independent of the ray code."""
  x, y, z = ((points - part.center) @ part.rotation.T).T
  a, b, c = part.half
  if part.kind == geometry.BOX:
    return (np.abs(x) <= a) & (np.abs(y) <= b) & (np.abs(z) <= c)
  if part.kind == geometry.CYLINDER:
    return (np.hypot(x, y) <= a) & (np.abs(z) <= c)
  z = z if part.kind == geometry.SPHERE else z - np.clip(z, a - c, c - a)
  return x ** 2 + y ** 2 + z ** 2 <= a ** 2


def rays(n=15):
  u, w = np.meshgrid(np.linspace(-0.5, 0.5, n), np.linspace(-0.5, 0.5, n))
  return np.stack([u.ravel(), np.ones(n * n), w.ravel()], 1).astype(np.float32)


def hit(part, direction):
  return geometry.intersect(geometry.stack([part]), np.zeros(len(direction), np.int64), EYE, direction)


@pytest.mark.parametrize("name", SHAPES)
def test_first_hit_is_where_the_ray_enters_the_solid(name):
  direction = rays()
  t = hit(SHAPES[name], direction)
  steps = np.arange(0.5, 5, 0.002)
  inside = np.stack([contains(SHAPES[name], s * direction) for s in steps])
  entered = inside.any(0)
  searched = np.where(entered, steps[inside.argmax(0)], np.inf)
  both = entered & np.isfinite(t)
  assert both.sum() > 15
  np.testing.assert_allclose(t[both], searched[both], atol=0.0025)
  assert (entered != np.isfinite(t)).sum() <= 2  # rays that graze the solid within one step of the search


@pytest.mark.parametrize("name", SHAPES)
def test_normals_are_unit_face_the_ray_and_stand_on_the_surface(name):
  primitives, direction = geometry.stack([SHAPES[name]]), rays(41)
  t = hit(SHAPES[name], direction)
  on = np.isfinite(t)
  points, index = t[on, None] * direction[on], np.zeros(on.sum(), np.int64)
  n = geometry.normals(primitives, index, geometry.to_local(primitives, index, points))
  np.testing.assert_allclose(np.linalg.norm(n, axis=1), 1, atol=1e-5)
  assert (np.einsum("ni,ni->n", n, direction[on]) < 1e-3).all()
  assert not contains(SHAPES[name], points + 0.004 * n).any()
  assert contains(SHAPES[name], points - 0.004 * n).mean() > 0.99  # a step inwards may leave at an edge


@pytest.mark.parametrize("name", SHAPES)
def test_corners_enclose_the_solid(name):
  primitives, direction = geometry.stack([SHAPES[name]]), rays()
  t = hit(SHAPES[name], direction)
  points = t[np.isfinite(t), None] * direction[np.isfinite(t)]
  corners = geometry.corners(primitives)[0]
  assert (points >= corners.min(0) - 1e-5).all() and (points <= corners.max(0) + 1e-5).all()
  away = np.linalg.norm(points - primitives.center[0], axis=1)
  assert (away <= geometry.bounding_radius(primitives)[0] + 1e-5).all()


def a_room(*things):
  """A plain room 4 × 6 × 3 m seen from (2, 1, 1) straight along y, half a metre of width per metre of depth."""
  x, y, z = np.eye(3, dtype=np.float32)
  parts = [(part, i) for i, (_, group) in enumerate(things) for part in group]
  grey = worlds.Paint(np.full(3, 0.5, np.float32))
  n = len(parts)
  paints = worlds.Paint(np.full((n, 3), 0.5, np.float32), np.zeros(n, np.int64), np.ones(n, np.float32),
                        np.zeros((n, 3), np.float32))
  return worlds.World(
      np.array([4, 6, 3], np.float32), worlds.Camera(np.array([2, 1, 1], np.float32), y, x, z, 0.5),
      worlds.Lamp(np.array([2, 2, 2.8], np.float32), np.ones(3, np.float32), 0.4), [thing for thing, _ in things],
      geometry.stack([part for part, _ in parts]), paints, np.array([i for _, i in parts], np.int64),
      dict.fromkeys(("wall", "floor", "ceiling"), grey), None, None)


def test_depth_of_a_known_box_and_room():
  box = worlds.Thing(LABELS["box"], "red")
  world = a_room((box, [geometry.box((2, 4, 1), (0.5, 1, 0.5))]))
  picture = render.render(world, (32, 32))
  # The front face is 2 m away and 1 m wide, where the view is 2 m wide: the middle 16 × 16 pixels.
  assert (picture.owner == 0).sum() == 256 and (picture.owner[8:24, 8:24] == 0).all()
  np.testing.assert_allclose(picture.depth[8:24, 8:24], 2, rtol=1e-5)
  np.testing.assert_allclose(picture.normal[8:24, 8:24], np.broadcast_to([0, -1, 0], (16, 16, 3)), atol=1e-6)
  # The far wall is 5 m away; the floor is 1 m below: the lowest row (v = -31/64) meets it at 64/31 m.
  np.testing.assert_allclose(picture.depth[15, 7], 5, rtol=1e-5)
  np.testing.assert_allclose(picture.depth[31, 0], 64 / 31, rtol=1e-5)
  assert picture.label[31, 0] == LABELS["floor"] and picture.label[15, 7] == LABELS["wall"]


def test_normals_agree_with_differences_of_depth_on_flat_faces():
  world = a_room((worlds.Thing(LABELS["box"], "red"), [geometry.box((2.1, 3.6, 0.8), (0.6, 0.4, 0.5), yaw=0.5)]))
  picture = render.render(world, (48, 64))
  u, v = render.pixel_centres((48, 64), 0.5)
  rays_of = world.camera.forward + u[None, :, None] * world.camera.right + v[:, None, None] * world.camera.up
  points = picture.depth[..., None] * rays_of
  across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
  differences = geometry.unit(np.cross(down, across))
  normal = picture.normal
  flat = np.ones(differences.shape[:2], bool)
  for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
    flat &= (normal[dy:dy + 46, dx:dx + 62] == normal[1:-1, 1:-1]).all(-1)
    flat &= picture.owner[dy:dy + 46, dx:dx + 62] == picture.owner[1:-1, 1:-1]
  assert flat.mean() > 0.8 and len({tuple(n) for n in normal[1:-1, 1:-1][flat].round(3)}) >= 5
  np.testing.assert_allclose(differences[flat], normal[1:-1, 1:-1][flat], atol=2e-3)


def test_shadow_falls_under_a_ball_and_light_does_not_pass():
  ball = geometry.sphere((2, 3, 1.2), 0.3)
  lit = render.render(a_room(), (32, 32))
  shaded = render.render(a_room((worlds.Thing(LABELS["sphere"], "red"), [ball])), (32, 32))
  room = shaded.owner < 0
  darker = shaded.color.sum(-1) < 0.95 * lit.color.sum(-1)
  assert 5 < (darker & room).sum() < 200
  assert not (shaded.color > lit.color + 1e-5)[room].any(-1).all(-1).any()


def test_a_world_without_things_renders():
  picture = render.render(a_room(), (8, 12))
  assert (picture.owner == -1).all() and np.isfinite(picture.color).all()


def test_project_is_the_inverse_of_the_rays():
  world, size = a_room(), (24, 40)
  u, v = render.pixel_centres(size, world.camera.tan_half_fov)
  points = world.camera.position + 3 * (world.camera.forward + u[7] * world.camera.right + v[5] * world.camera.up)
  xy, depth = render.project(world.camera, points[None], size)
  np.testing.assert_allclose(xy, [[7.5, 5.5]], atol=1e-4)
  np.testing.assert_allclose(depth, [3], rtol=1e-6)


def test_a_person_has_its_joints_inside_its_body_and_stands_on_the_floor():
  body = people.pose(np.random.RandomState(0), x=1.0, y=2.0, heading=0.7, height=1.75)
  assert body.joints.shape == (17, 3) and body.joints.dtype == np.float32
  inside = np.any([contains(part, body.joints[people.FACE_JOINTS:]) for part, _ in body.parts], axis=0)
  assert inside.all()
  lowest = min(part.center[2] - np.abs(part.rotation[:, 2]) @ part.half for part, _ in body.parts)
  assert -0.06 < lowest < 0.06
  left, right = body.joints[people.JOINTS.index("left_shoulder")], body.joints[people.JOINTS.index("right_shoulder")]
  forward = np.array([np.cos(0.7), np.sin(0.7), 0])
  assert np.cross(forward, left - right)[2] > 0  # left is left of where the person looks
