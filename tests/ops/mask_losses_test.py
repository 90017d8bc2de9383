"""Losses over masks: matching, absent masks, void, and which numbers pass a gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from uvim_like.ops import mask_losses as losses
from uvim_like.systems.polymax.heads import panoptic_segmentation as panoptic

RNG = np.random.default_rng(0)


def test_identity_masks_name_the_classes_that_are_there():
  masks = losses.identity_masks(jnp.array([[0, 2, 2, -1, 7]]), 4)
  np.testing.assert_array_equal(masks.index, [[0, 2, 2, -1, -1]])
  np.testing.assert_array_equal(masks.slots, [[0, -1, 2, -1]])


def test_perfect_prediction_costs_nothing():
  labels = jnp.asarray(RNG.integers(0, 3, (2, 40)))
  logits = 50.0 * jax.nn.one_hot(labels, 3)
  masks = losses.identity_masks(labels, 3)
  found = losses.overlaps(logits, masks)
  np.testing.assert_allclose(losses.mask_id_cross_entropy(logits, masks), 0, atol=1e-5)
  np.testing.assert_allclose(losses.mask_dice(found, masks), 0, atol=1e-5)
  np.testing.assert_allclose(jnp.diagonal(found.dice(), axis1=1, axis2=2), 1, atol=1e-5)


def test_dice_by_hand_leaves_void_out():
  logits = jnp.log(jnp.array([[[0.8, 0.2], [0.4, 0.6], [0.9, 0.1]]]))
  masks = losses.identity_masks(jnp.array([[0, 1, -1]]), 2)
  found = losses.overlaps(logits, masks)
  want = [[(2 * 0.8 + 1) / (1.2 + 1 + 1), (2 * 0.2 + 1) / (0.8 + 1 + 1)], [(2 * 0.4 + 1) / 3.2, (2 * 0.6 + 1) / 2.8]]
  np.testing.assert_allclose(found.dice(smooth=1.0)[0], want, rtol=1e-5)
  np.testing.assert_allclose(found.void, [[0.9, 0.1]], rtol=1e-5)
  np.testing.assert_allclose(losses.mask_dice(found, masks), [2 - want[0][0] - want[1][1]], rtol=1e-5)


def test_matching_finds_the_right_queries():
  index = jnp.array([[0, 0, 1, 1, 2, -1]])
  masks = losses.Masks(index, jnp.array([[1, 0, 1, -1]]), jnp.full((1, 4), -1))
  logits = 20.0 * jax.nn.one_hot(jnp.array([[3, 3, 0, 0, 4, 1]]), 5)
  matched = losses.match(logits, jnp.zeros((1, 5, 3)), masks)
  np.testing.assert_array_equal(matched.slots, [[3, 0, 4, -1]])
  scipy = losses.match(logits, jnp.zeros((1, 5, 3)), masks, solver="scipy")
  np.testing.assert_array_equal(scipy.slots, matched.slots)


def test_class_loss_weights():
  masks = losses.Masks(jnp.array([[0, 0, -1, -1]]), jnp.array([[1]]), jnp.array([[2]]))
  logits = 20.0 * jax.nn.one_hot(jnp.array([[2, 2, 0, 0]]), 3)
  weight = losses.slot_weight(losses.overlaps(logits, masks), masks)
  np.testing.assert_allclose(weight, [[0.25, 0.25 * 0.5, 0.75]], rtol=0.6)  # query 1 lies nowhere in particular
  np.testing.assert_allclose(weight[0, [0, 2]], [0.25, 0.75], rtol=1e-4)
  grad = jax.grad(lambda x: jnp.sum(losses.slot_weight(losses.overlaps(x, masks), masks)))(logits)
  assert not np.any(grad)


def test_sampling_prefers_small_masks_and_takes_void_last():
  index = jnp.where(jnp.arange(200) < 4, 0, jnp.where(jnp.arange(200) < 150, 1, -1))[None]
  masks = losses.Masks(index, jnp.array([[0, 0]]), jnp.array([[0, 1]]))
  drawn = losses.sample_pixels(jax.random.key(0), masks, 40)
  assert len(set(np.asarray(drawn[0]).tolist())) == 40 and drawn.max() < 150
  hits = [int(jnp.sum(losses.sample_pixels(jax.random.key(i), masks, 10) < 4)) for i in range(20)]
  assert np.mean(hits) > 2.5  # one in forty pixels, yet most of them are drawn
  assert losses.sample_pixels(jax.random.key(0), masks, 10 ** 6).shape == (1, 200)


def test_instance_discrimination():
  masks = losses.Masks(jnp.array([[0, 0, 1, -1]]), jnp.array([[0, 1]]), jnp.array([[0, 1]]))
  alike = jnp.array([[[1.0, 0], [1, 0], [0, 1], [0, 1]]])
  mixed = jnp.array([[[1.0, 0], [0, 1], [1, 0], [0, 1]]])
  sample = jnp.arange(4)[None]
  assert losses.instance_discrimination(alike, masks, sample)[0] < losses.instance_discrimination(mixed, masks, sample)[0]
  void = losses.Masks(jnp.full((1, 4), -1), masks.classes, masks.slots)
  quiet = jax.grad(lambda x: losses.instance_discrimination(x, void, sample, void_repels=False)[0])(alike)
  assert losses.instance_discrimination(alike, void, sample)[0] == 0 and not np.any(quiet)


def test_segments_become_masks():
  semantics = jnp.array([[1, 1, 2, 4, 4, 0, 3, 1]])   # 1, 2 are things
  instances = jnp.array([[1, 1, 2, 5, 6, 0, 3, 9]])
  labels = jnp.stack([semantics, instances], -1)[:, None]
  masks = panoptic.to_masks(labels, num_classes=4, num_things=2, max_instances=3, queries=10)
  index = np.asarray(masks.index[0])
  assert index[0] == index[1] != index[2] and index[3] == index[4], "pieces of one stuff class are one mask"
  assert index[5] == -1 and index[7] == -1, "void, and an instance beyond the largest id"
  classes = np.asarray(masks.classes[0])
  assert [classes[index[i]] for i in (0, 2, 3, 6)] == [0, 1, 3, 2]
  assert sorted(classes) == [-1, 0, 1, 2, 3]
  few = panoptic.to_masks(labels, num_classes=4, num_things=2, max_instances=3, queries=2)
  assert few.classes.shape == (1, 2) and set(np.asarray(few.index[0])[[0, 1, 3, 4]].tolist()) == {0, 1}
  assert set(np.asarray(few.index[0])[[2, 5, 6, 7]].tolist()) == {-1}


def test_masks_are_merged():
  logits = 20.0 * jax.nn.one_hot(jnp.array([[[0, 0, 1], [0, 2, 1], [3, 3, 1]]]), 4)
  classes = jnp.log(jnp.array([[[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3]]]))
  prediction = panoptic.Prediction(jax.image.resize(logits, (1, 9, 9, 4), "nearest"), None, classes)
  out = panoptic.query_outputs(prediction, (33, 33), num_things=1)
  assert out["semantics"][0, 0, 0] == 1 and out["semantics"][0, 0, -1] == 2
  assert out["instances"][0, 0, 0] == 1 and out["instances"][0, 0, -1] == 2
  assert np.all((np.asarray(out["semantics"]) == 0) == (np.asarray(out["instances"]) == 0))
  assert set(np.unique(out["instances"])) <= {0, 1, 2}, "queries of no object and of little confidence say nothing"
  loose = panoptic.query_outputs(prediction, (33, 33), num_things=1, thing_threshold=0.35, overlap=0.0)
  assert 4 in np.unique(loose["instances"])
