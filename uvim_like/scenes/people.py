"""A person: a skeleton with the 17 COCO joints in a random pose, and the capsules that stand for its limbs."""

from typing import NamedTuple

import numpy as np

from uvim_like.scenes import geometry

JOINTS = ("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
          "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
          "right_ankle")
FACE_JOINTS = 5  # the first five lie on the skin, the others inside a limb

# COCO's own list (1-based pairs), for files that a COCO viewer draws.
SKELETON = ((16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9), (8, 10),
            (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7))

# Directions from the middle of the head, in its frame (x forward, y left, z up); the painted eyes use them too.
EYE = geometry.unit(np.array([0.85, 0.38, 0.30]))
MIRROR = np.array([1.0, -1.0, 1.0])
_NOSE, _EAR = np.array([0.98, 0.0, -0.1]), np.array([0.0, 1.0, 0.05])
_SIDES = (("left", 1), ("right", -1))


class Body(NamedTuple):
  """A posed person in world coordinates.

  Attributes:
    parts: [(Part, "shirt" | "trousers" | "skin" | "head")].
    joints: (17, 3) float32 metres, in the order of JOINTS.
  """
  parts: list[tuple[geometry.Part, str]]
  joints: np.ndarray


def pose(rng: np.random.RandomState, *, x: float, y: float, heading: float, height: float) -> Body:
  """A standing or walking person at (x, y) on the floor, looking along `heading` (radians), `height` metres tall."""
  scale = height / 1.75  # all lengths below are of a person 1.75 m tall
  head, joints = _skeleton(rng, scale)
  lift = 0.06 * scale - min(joints["left_ankle"][2], joints["right_ankle"][2])  # the lower foot touches the floor
  turn, shift = geometry.rotation_z(heading), np.array([x, y, 0.0])
  joints = {name: turn @ (p + [0, 0, lift]) + shift for name, p in joints.items()}
  head = turn @ (head + [0, 0, lift]) + shift
  parts = _flesh(joints, head, scale, turn.T)
  return Body(parts, np.stack([joints[name] for name in JOINTS]).astype(np.float32))


def _skeleton(rng, scale) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Middle of the head and the joints, x forward, y left, z up, hips at their height over straight legs."""
  tilt = np.array([np.sin(rng.uniform(-0.10, 0.15)) * 0.5 * scale, 0.0, 0.0])
  joints = {}
  for side, sign in _SIDES:
    hip = np.array([0.0, sign * 0.11 * scale, 0.92 * scale])
    shoulder = np.array([0.0, sign * 0.19 * scale, 1.42 * scale]) + tilt
    swing, bend, out = rng.uniform(-0.35, 0.50), -rng.uniform(0.0, 0.6), rng.uniform(0.0, 0.15)
    knee, ankle = _limb(hip, (0.42 * scale, 0.42 * scale), swing, bend, sign * out)
    swing = rng.uniform(1.6, 2.8) if rng.uniform() < 0.3 else rng.uniform(-0.7, 1.0)
    bend, out = rng.uniform(0.0, 1.1), rng.uniform(0.1, 0.7)
    elbow, wrist = _limb(shoulder, (0.28 * scale, 0.26 * scale), swing, bend, sign * out)
    joints |= {f"{side}_hip": hip, f"{side}_shoulder": shoulder, f"{side}_knee": knee, f"{side}_ankle": ankle,
               f"{side}_elbow": elbow, f"{side}_wrist": wrist}
  head = np.array([0.03 * scale, 0.0, 1.69 * scale]) + 1.3 * tilt
  radius = _head_radius(scale)
  joints |= {"nose": head + radius * _NOSE, "left_eye": head + radius * EYE, "right_eye": head + radius * EYE * MIRROR,
             "left_ear": head + radius * _EAR, "right_ear": head + radius * _EAR * MIRROR}
  return head, joints


def _limb(start, lengths, swing, bend, out) -> tuple[np.ndarray, np.ndarray]:
  """Middle and end joint of a limb that swings forward by `swing` and bends by `bend` more; radians."""
  upper = geometry.unit(np.array([np.sin(swing), np.sin(out), -np.cos(swing)]))
  lower = geometry.unit(np.array([np.sin(swing + bend), 0.6 * np.sin(out), -np.cos(swing + bend)]))
  middle = start + lengths[0] * upper
  return middle, middle + lengths[1] * lower


def _head_radius(scale):
  return 0.125 * scale


def _flesh(joints, head, scale, to_local) -> list[tuple[geometry.Part, str]]:
  """The primitives around the joints and what each is dressed in."""
  neck = (joints["left_shoulder"] + joints["right_shoulder"]) / 2
  pelvis = (joints["left_hip"] + joints["right_hip"]) / 2
  parts = [(geometry.capsule(pelvis, neck - [0, 0, 0.06 * scale], 0.155 * scale), "shirt"),
           (geometry.capsule(joints["left_shoulder"], joints["right_shoulder"], 0.075 * scale), "shirt"),
           (geometry.capsule(neck, head, 0.05 * scale), "skin"),
           (geometry.sphere(head, _head_radius(scale), to_local), "head")]
  for side, _ in _SIDES:
    for start, end, radius, cover in (("shoulder", "elbow", 0.055, "shirt"), ("elbow", "wrist", 0.045, "skin"),
                                      ("hip", "knee", 0.080, "trousers"), ("knee", "ankle", 0.060, "trousers")):
      parts.append((geometry.capsule(joints[f"{side}_{start}"], joints[f"{side}_{end}"], radius * scale), cover))
  return parts
