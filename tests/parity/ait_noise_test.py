"""AiT's noise boxes against many stored draws of the authors' code: the same invariants, the same distributions."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.systems.ait import noise_boxes, sequences
from uvim_like.systems.ait.ait_vocab import BOX, Vocabulary

pytestmark = pytest.mark.parity
DRAWS = 400  # of ours


class Case:
  """Stored draws, and as many of ours for the same objects, both (runs, Q, 5) with IGNORED for no target."""

  def __init__(self, path):
    self.name = path.stem
    config = json.loads(path.with_suffix(".json").read_text())["config"]
    with np.load(path) as data:
      boxes, labels, size = (data[f"in/{key}"] for key in ("boxes", "labels", "img_hw"))
      inputs, targets = (data[f"out/{key}"].astype(int) for key in ("input_seqs", "target_seqs"))
    self.vocabulary = Vocabulary(config["num_bins"], config["num_classes"])
    assert self.vocabulary.noise == config["noise_label"]
    self.slots, self.count, self.norm = config["num_query"], len(boxes), config["norm_val"]
    self.boxes, self.size = boxes, size
    inputs = np.pad(inputs, ((0, 0), (0, targets.shape[1] - inputs.shape[1])), constant_values=-1)
    shape = (-1, self.slots, BOX + 1)
    self.theirs = inputs.reshape(shape), np.where(targets == -100, sequences.IGNORED, targets).reshape(shape)
    self.ours = self.draw(jnp.asarray(boxes), jnp.asarray(labels, jnp.int32) + 1, jnp.asarray(size, jnp.float32))

  def draw(self, boxes, labels, size):
    def one(key):
      slots_key, class_key = jax.random.split(key)
      slots = noise_boxes.fill(slots_key, boxes, labels, size, slots=self.slots)
      slots = jax.tree.map(lambda x: x[None], slots)
      out = sequences.of_objects(slots, class_key[None], None, vocabulary=self.vocabulary, norm=self.norm)
      return out.inputs[0], out.targets[0]

    inputs, targets = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), DRAWS))
    return tuple(np.asarray(x).reshape(DRAWS, self.slots, BOX + 1) for x in (inputs, targets))

  def both(self):
    return {"theirs": self.theirs, "ours": self.ours}


@pytest.fixture(scope="module")
def cases(stored):
  return [Case(path) for path in stored("ait_det_noise*.npz")]


def test_invariants(cases):
  for case in cases:
    for who, (inputs, targets) in case.both().items():
      real = targets[:, :, 0] >= 0
      assert np.all(real.sum(1) == case.count) and np.all(real[:, :case.count]), who  # real objects first
      np.testing.assert_array_equal(targets[real][:, :BOX], inputs[real][:, :BOX])
      assert np.all(targets[~real][:, BOX] == case.vocabulary.noise)
      limit = np.round(np.tile(case.size[::-1], 2) / case.norm * case.vocabulary.num_bins)
      assert np.all(inputs[..., :BOX] >= 0) and np.all(inputs[..., :BOX] <= limit), who


def objects(case, targets):
  """Sorted (x0, y0, x1, y1, class) of the real objects of each draw."""
  return np.array([sorted(map(tuple, rows[:case.count])) for rows in targets])


def test_real_objects_are_the_same_in_any_order(cases):
  for case in cases:
    ours, theirs = objects(case, case.ours[1]), objects(case, case.theirs[1])
    assert np.all(ours == theirs[0])
    first = case.ours[1][:, 0, :BOX]
    assert len(np.unique(first, axis=0)) == len(np.unique(case.boxes, axis=0))  # each may come first


def shares(case, inputs):
  """Share of noise among the classes that are read, and the spread of the others."""
  classes = inputs[:, :-1, BOX]
  noise = classes == case.vocabulary.noise
  return noise[:, :case.count].mean(), noise[:, case.count:].mean(), np.std(classes[~noise])


def test_classes_that_are_read(cases):
  for case in cases:
    ours, theirs = shares(case, case.ours[0]), shares(case, case.theirs[0])
    np.testing.assert_allclose(ours[:2], 0.5, atol=0.03)
    np.testing.assert_allclose(ours[:2], theirs[:2], atol=0.06)
    np.testing.assert_allclose(ours[2], theirs[2], rtol=0.05)


def near_share(case, inputs, targets):
  """(runs,) share of the noise boxes that lie within the jitter of some real one."""
  boxes = inputs[:, :, :BOX].astype(float)
  out = []
  for row in boxes:
    real, noise = row[:case.count], row[case.count:]
    sides = np.tile(real[:, 2:] - real[:, :2], 2)
    out.append(np.mean(np.any(np.all(np.abs(noise[:, None] - real) <= 0.1 * sides + 1.5, -1), -1)))
  return np.array(out)


def statistics(x):
  return np.array([np.mean(x), np.std(x), *np.quantile(x, [0.1, 0.25, 0.5, 0.75, 0.9])])


def test_copies_are_a_uniform_number(cases):
  for case in cases:
    ours, theirs = (near_share(case, *pair) for pair in (case.ours, case.theirs))
    np.testing.assert_allclose(statistics(ours), statistics(theirs), atol=0.12)
    np.testing.assert_allclose(np.mean(ours), np.mean(theirs), atol=4 * np.std(ours) / np.sqrt(len(theirs)))


def noise_sides(case, inputs):
  """Widths, heights and centres of all noise boxes, in bins: (4, …)."""
  x0, y0, x1, y1 = np.moveaxis(inputs[:, case.count:, :BOX].astype(float), -1, 0)
  return np.stack([x1 - x0, y1 - y0, (x0 + x1) / 2, (y0 + y1) / 2])


def test_noise_boxes_have_the_same_sizes_and_places(cases):
  for case in cases:
    ours, theirs = noise_sides(case, case.ours[0]), noise_sides(case, case.theirs[0])
    for name, a, b in zip(("width", "height", "centre x", "centre y"), ours, theirs):
      spread = np.std(b)
      np.testing.assert_allclose(statistics(a), statistics(b), atol=0.12 * spread, err_msg=f"{case.name}: {name}")


@pytest.mark.parametrize("count", [0, 1, 150])
def test_any_number_of_objects(cases, count):
  case = cases[0]
  rng = np.random.default_rng(0)
  corner = rng.uniform(0, 200, (max(count, 3), 2))
  boxes = jnp.asarray(np.concatenate([corner, corner + rng.uniform(20, 90, corner.shape)], -1), jnp.float32)
  labels = jnp.where(jnp.arange(len(boxes)) < count, 7, 0)
  fill = functools.partial(noise_boxes.fill, slots=case.slots)
  slots = jax.jit(jax.vmap(fill, in_axes=(0, None, None, None)))(
      jax.random.split(jax.random.key(1), 50), boxes, labels, jnp.asarray([300.0, 280.0]))
  assert np.all(slots.real.sum(1) == min(count, case.slots))
  placed = np.asarray(slots.boxes)
  assert np.all(np.isfinite(placed)) and np.all(placed >= 0) and np.all(placed <= [280, 300, 280, 300])
  assert np.all(np.asarray(slots.classes)[np.asarray(slots.real)] == 7)
  assert np.all(np.asarray(slots.source) < max(count, 1)) and (count or np.all(slots.source == noise_boxes.ABSENT))
