"""Panoptic labels, loss and merging, on pictures small enough to check by eye and by a naive loop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops.patches import to_patches
from uvim_like.ops.planes import Planes
from uvim_like.tasks import panoptic_segmentation as task

SPEC = {"semantics": (5, 6), "instances": (4, 6)}
# Which instance each pixel of a 6 x 6 picture belongs to.
PICTURE = np.array([[0, 0, 0, 1, 1, 1],
                    [0, 0, 0, 1, 1, 1],
                    [0, 0, 2, 2, 1, 1],
                    [0, 2, 2, 2, 1, 1],
                    [3, 2, 2, 2, 1, 1],
                    [0, 0, 0, 0, 1, 1]])


def logits_of(index, classes):
  return 5.0 * np.eye(classes, dtype=np.float32)[index]


def naive(semantics, instances, min_fraction=0.0):
  """The definition, one instance after the other."""
  chosen, out_semantics = instances.argmax(-1), np.zeros(instances.shape[:-1], int)
  out_instances = np.zeros_like(out_semantics)
  for b in range(len(chosen)):
    for n in np.unique(chosen[b]):
      mask = chosen[b] == n
      if mask.sum() > min_fraction * mask.size:
        out_semantics[b][mask], out_instances[b][mask] = semantics[b][mask].sum(0).argmax(), n
  return {"semantics": out_semantics, "instances": out_instances}


def check(got, want):
  assert set(got) == set(task.OUTPUTS)
  for name in want:
    assert got[name].dtype == jnp.int32
    np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_each_instance_gets_one_class():
  semantics = np.zeros((1, 6, 6, 5), np.float32)
  semantics[0][PICTURE == 1] = [0, 0, 1, 0, 0]
  semantics[0, 0, 3] = [0, 0, 0, 9, 0]          # one loud pixel of instance 1 is outvoted …
  semantics[0][PICTURE == 2] = [0, 1, 0, 0, 0]
  semantics[0, 3, 2] = [0, 0, 0, 0, 20]         # … in instance 2 it wins, for raw logits are summed, not votes
  semantics[0, 4, 0] = [0, 0, 0, 1, 0]
  got = task.merge(jnp.asarray(semantics), jnp.asarray(logits_of(PICTURE[None], 4)))
  np.testing.assert_array_equal(got["instances"][0], PICTURE)
  np.testing.assert_array_equal(got["semantics"][0], np.array([0, 2, 4, 3])[PICTURE])


def test_instance_zero_is_an_instance_like_any_other():
  semantics = np.where((PICTURE == 0)[..., None], logits_of(3, 5), logits_of(1, 5))[None]
  got = task.merge(jnp.asarray(semantics), jnp.asarray(logits_of(PICTURE[None], 4)))
  np.testing.assert_array_equal(got["semantics"][0], np.where(PICTURE == 0, 3, 1))


def test_small_instances_are_void():
  semantics = jnp.asarray(np.broadcast_to(logits_of(2, 5), (1, 6, 6, 5)))
  instances = jnp.asarray(logits_of(PICTURE[None], 4))
  areas = np.bincount(PICTURE.ravel())
  for fraction in (0.0, 0.5 / 36, 1 / 36, areas[2] / 36, 0.9):
    got = task.merge(semantics, instances, min_fraction=fraction)
    kept = areas > fraction * 36  # an instance of exactly that share is dropped
    np.testing.assert_array_equal(got["semantics"][0], np.where(kept, 2, 0)[PICTURE])
    np.testing.assert_array_equal(got["instances"][0], np.where(kept, np.arange(4), 0)[PICTURE])


@pytest.mark.parametrize("shape, classes, slots", [((3, 7, 5), 6, 4), ((1, 1, 1), 2, 2), ((2, 4, 9), 1, 1),
                                                   ((2, 8, 8), 3, 70)])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.3])
def test_merging_is_the_definition(shape, classes, slots, fraction):
  rng = np.random.default_rng(slots)
  semantics = rng.normal(size=(*shape, classes)).astype(np.float32)
  instances = rng.normal(size=(*shape, slots)).astype(np.float32)
  check(task.merge(jnp.asarray(semantics), jnp.asarray(instances), min_fraction=fraction),
        naive(semantics, instances, fraction))


def test_planes():
  labels = np.stack([PICTURE, PICTURE + 10], axis=-1)[None]
  planes = task.to_planes(jnp.asarray(labels), patch=(2, 3), spec=SPEC)
  assert planes["semantics"].shape == (1, 6, 6) and planes["instances"].dtype == jnp.int32
  np.testing.assert_array_equal(planes["semantics"][0, 2], [0, 0, 2, 0, 2, 2])
  np.testing.assert_array_equal(planes["instances"], planes["semantics"] + 10)
  assert task.to_planes(jnp.asarray(labels, jnp.uint8), patch=(2, 3), spec=SPEC)["semantics"].dtype == jnp.int32


def heads(seed=0):
  rng = np.random.default_rng(seed)
  features = jnp.asarray(rng.normal(size=(2, 6, 8)), jnp.float32)
  return {k: Planes(features, jnp.asarray(rng.normal(size=(8, c, p)), jnp.float32), jnp.zeros((c, p)))
          for k, (c, p) in SPEC.items()}


def test_losses():
  rng = np.random.default_rng(1)
  labels = rng.integers(-1, 7, (2, 6, 6, 2)).astype(np.int32)  # -1 and ids beyond the classes among them
  planes, outputs = task.to_planes(jnp.asarray(labels), patch=(2, 3), spec=SPEC), heads()
  losses = task.losses(outputs, planes)
  assert set(losses) == {"loss_semantics", "loss_instances"}
  for name, loss in losses.items():
    key = name.removeprefix("loss_")
    logprobs = np.asarray(jax.nn.log_softmax(outputs[key].values(), axis=-2))
    total = np.zeros(2)
    for (b, n, p), label in np.ndenumerate(np.asarray(planes[key])):
      if 0 <= label < SPEC[key][0]:
        total[b] -= logprobs[b, n, label, p]
    np.testing.assert_allclose(loss.per_example, total / 36, rtol=1e-5)
    np.testing.assert_allclose(loss.mean, total.mean() / 36, rtol=1e-5)


def test_planes_become_pictures():
  outputs = heads()
  got = task.from_planes(outputs, grid=(3, 2), patch=(2, 3), min_fraction=0.1)
  picture = {k: np.zeros((2, 6, 6, SPEC[k][0]), np.float32) for k in SPEC}
  for k in SPEC:
    values = np.asarray(outputs[k].values())
    for (row, column) in np.ndindex(6, 6):
      patch, pixel = row // 2 * 2 + column // 3, row % 2 * 3 + column % 3
      picture[k][:, row, column] = values[:, patch, :, pixel]
  check(got, naive(picture["semantics"], picture["instances"], 0.1))
  assert math.prod(got["semantics"].shape) == 2 * 36


def test_perfect_logits_give_back_the_labels():
  semantic_of = np.array([0, 2, 4, 3])
  labels = jnp.asarray(np.stack([semantic_of[PICTURE], PICTURE], axis=-1))[None]
  planes = task.to_planes(labels, patch=(3, 2), spec=SPEC)
  outputs = {}
  for k, (classes, _) in SPEC.items():  # features that are the patch's number, so that the kernel can hold the logits
    kernel = np.moveaxis(logits_of(np.asarray(planes[k][0]), classes), -1, 1)
    outputs[k] = Planes(jnp.eye(6)[None], jnp.asarray(kernel), jnp.zeros((classes, 6)))
  got = task.from_planes(outputs, grid=(2, 3), patch=(3, 2))
  np.testing.assert_array_equal(np.stack([got[k] for k in task.PLANES], -1), labels)
  assert to_patches(labels, (3, 2)).shape == (1, 6, 2, 6)
