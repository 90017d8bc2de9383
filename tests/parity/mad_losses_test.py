"""MAD's training sequences, matching and losses against stored runs of the authors' program with recorded draws."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.systems.mad import losses, masking, sequences
from uvim_like.systems.mad.vocabulary import Vocabulary

pytestmark = pytest.mark.parity
RTOL = 1e-5
RATIOS = (1.0, 0.7)


class Case:
  """One stored run: its annotations padded to as many object slots and references as any image has."""

  def __init__(self, path):
    with np.load(path.with_suffix(".npz")) as data:
      self.arrays = {key: data[key] for key in data.files}
    config = json.loads(path.read_text())["config"]
    assert tuple(config["train_mask_ratio"]) == RATIOS
    self.vocabulary = Vocabulary(
        classes=config["nc"], bins=config["nb"], text=config["words"], queries=config["nq"], mask_side=config["ms"],
        joints=config["nk"], caption_length=config["cap"], prompt_tokens=6)
    self.instances, self.images = config["ntrain"], config["B"]
    self.counts = [len(self[f"in/gt{i}/classes"]) for i in range(self.images)]
    self.slots = max(*self.counts, self.instances)
    self.objects = sequences.Objects(*self._objects())

  def __getitem__(self, key):
    return self.arrays[key]

  def padded(self, name):
    """(B, N, …) of "in/gt<i>/name", zeros behind each image's objects."""
    rows = [self[f"in/gt{i}/{name}"] for i in range(self.images)]
    return np.stack([np.pad(row, [(0, self.slots - len(row))] + [(0, 0)] * (row.ndim - 1)) for row in rows])

  def _objects(self):
    boxes = jnp.asarray(self.padded("norm_boxes"))
    valid = jnp.asarray(np.arange(self.slots) < np.array(self.counts)[:, None])
    return sequences.box_tokens(boxes, jnp.asarray(self.padded("classes")), self.vocabulary), boxes, valid

  def draws(self, task, start, count):
    return tuple(jnp.asarray(self[f"in/{task}/draw{start + i}"]) for i in range(count))

  def logits(self, task, name):
    """(K, B, S, L, V) of the response, local tokens alone."""
    rows = self.vocabulary.to_table(task, np.arange(self.vocabulary.width(task)))
    return jnp.asarray(self[f"in/{name}/logits"][..., -self.vocabulary.response(task):, :][..., np.asarray(rows)])

  def box_training(self):
    corner, size, order = (jnp.stack([jnp.asarray(self[f"in/det/draw{3 * i + k}"]) for i in range(self.images)])
                           for k in range(3))
    shown = self["in/det/target_seq"][:, 0].reshape(self.images, -1, 5)
    label = jnp.asarray(shown[..., 4] - (self.vocabulary.no_object - self.vocabulary.classes))
    draws = masking.BoxDraws(corner, size, label, order, self.draws("det", 3 * self.images, 2))
    return sequences.box_training(self.objects, draws, vocabulary=self.vocabulary, ratios=RATIOS)

  def mask_training(self):
    order, used = np.zeros((self.images, self.slots), np.float32), 0
    for i, count in enumerate(self.counts):  # drawn only where there are enough objects
      if count >= self.instances:
        order[i, :count] = self[f"in/seg/draw{used}"].reshape(-1)
        used += 1
    draws = masking.MaskDraws(jnp.asarray(order), self.draws("seg", used, 2))
    return sequences.mask_training(self.objects, jnp.asarray(self.padded("mask_bits")), draws,
                                   vocabulary=self.vocabulary, ratios=RATIOS, instances=self.instances)

  def keypoint_training(self):
    size = np.array([self[f"in/gt{i}/image_hw"][::-1] for i in range(self.images)])
    keypoints = self.padded("keypoints")
    points = (keypoints[..., :2] / size[:, None, None]).astype(np.float32)
    boxes, uniform, used = np.asarray(self.objects.boxes, np.float64), np.zeros_like(points), 0
    for i, count in enumerate(self.counts):  # recorded inside the box; without objects nothing is drawn
      if count:
        start, end = boxes[i, :count, None, :2], boxes[i, :count, None, 2:]
        uniform[i, :count] = (self[f"in/keypoint/draw{used}"] - start) / (end - start)
        used += 1
    draws = masking.KeypointDraws(jnp.asarray(uniform), self.draws("keypoint", used, 2))
    return sequences.keypoint_training(self.objects, jnp.asarray(points), jnp.asarray(keypoints[..., 2] > 0), draws,
                                       vocabulary=self.vocabulary, ratios=RATIOS, instances=self.instances)

  @property
  def captions(self):
    """(B, 5, L): the first five references."""
    rows = [self[f"in/gt{i}/captions"][:5] for i in range(self.images)]
    return jnp.asarray(np.stack([np.pad(row, [(0, 5 - len(row)), (0, 0)]) for row in rows]))

  def caption_training(self):
    full_mask, full_place, mask, place = self.draws("caption", 0, 4)
    full_mask, full_place = full_mask[:, :1], full_place[:, :1]  # drawn for every reference, the first one is used
    shown = self["in/caption/input_seq"][..., -self.vocabulary.response("captions"):]
    words = (self._word(shown[:, :1], full_place, None),
             self._word(shown[:, 1:], place, self["in/caption/seq_mask"][:, 1:]))
    draws = masking.CaptionDraws((full_mask, mask), (full_place, place), words)
    return sequences.caption_training(self.captions, draws, vocabulary=self.vocabulary, ratios=RATIOS,
                                      noise_masked=True)

  def _word(self, shown, places, masked):
    """(B, S) text piece at the lowest drawn place among those that show something (all of them for None)."""
    values = np.asarray(places) + (0 if masked is None else masked)
    word = np.take_along_axis(shown, values.argmin(-1)[..., None], -1)[..., 0]
    return jnp.asarray(word - self.vocabulary.first_text)


@pytest.fixture(scope="module")
def cases(stored):
  """Every stored set."""
  return [Case(path) for path in stored("mad_losses*.json")]


def check_sequences(case, name, training, *, weighted=True):
  """Inputs, masks and targets wherever something counts."""
  task = {"det": "boxes", "seg": "masks", "keypoint": "keypoints", "caption": "captions"}[name]
  table = np.asarray(case.vocabulary.to_table(task, training.targets))
  counts = case[f"in/{name}/seq_mask"] > 0
  np.testing.assert_array_equal(np.asarray(training.weights) > 0, counts)
  rows = counts.any(-1) if weighted else np.ones(counts.shape[:2], bool)
  np.testing.assert_array_equal(np.asarray(training.inputs)[rows], case[f"in/{name}/input_seq"][rows])
  np.testing.assert_array_equal(table[rows], case[f"in/{name}/target_seq"][rows])


def check_targets(case, name, task, targets):
  """Targets that count and all weights, of every layer."""
  weights = case[f"out/{name}/target_weight"]
  np.testing.assert_array_equal(targets.weights, weights)
  table = np.asarray(case.vocabulary.to_table(task, targets.tokens))
  np.testing.assert_array_equal(table[weights > 0], case[f"out/{name}/target_seq"][weights > 0])


def check_loss(case, name, logits, targets):
  """The value and, for every position, the norm of its gradient."""
  loss, grads = jax.value_and_grad(lambda x: losses.cross_entropy(x, targets).mean)(logits)
  np.testing.assert_allclose(loss, case[f"out/{name}/loss"], rtol=RTOL)
  want = case[f"out/{name}/grad_norm_per_pos"]
  assert not want[..., :-logits.shape[-2]].any()
  np.testing.assert_allclose(jnp.linalg.norm(grads, axis=-1), want[..., -logits.shape[-2]:], rtol=RTOL,
                             atol=RTOL * want.max())


@pytest.mark.parametrize("solver", ["device", "scipy"])
def test_boxes(cases, solver):
  for case in cases:
    training = case.box_training()
    check_sequences(case, "det", training, weighted=False)
    vocabulary, found = case.vocabulary, case.objects
    logits = case.logits("boxes", "det")
    tokens = vocabulary.to_local("boxes", found.tokens)
    costs = losses.box_costs(logits, vocabulary.to_local("boxes", training.responses), training.masked, tokens)
    for image, count in enumerate(case.counts):
      for copy in range(2):
        if count:
          np.testing.assert_allclose(costs[0, image, copy, :, :count],
                                     case[f"out/det/cost_layer0_seq{copy}_img{image}"], rtol=RTOL, atol=1e-6)
    targets = losses.match_boxes(costs, tokens, found.valid, training.masked, vocabulary=vocabulary, solver=solver)
    check_targets(case, "det", "boxes", targets)
    check_loss(case, "det", logits, targets)


@pytest.mark.parametrize(("name", "task"), [("seg", "masks"), ("keypoint", "keypoints")])
def test_instances(cases, name, task):
  for case in cases:
    training = case.mask_training() if task == "masks" else case.keypoint_training()
    check_sequences(case, name, training)
    logits = case.logits(task, name)
    targets = losses.every_layer(len(logits), training)
    check_targets(case, name, task, targets)
    check_loss(case, name, logits, targets)


def test_captions(cases):
  for case in cases:
    training = case.caption_training()
    check_sequences(case, "caption", training)
    logits = case.logits("captions", "caption")
    targets = losses.choose_caption(logits, training, case.captions, 0)
    check_targets(case, "caption", "captions", targets)
    check_loss(case, "caption", logits, targets)
