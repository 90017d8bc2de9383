"""MAD's token table and training sequences, on small numbers that a reader checks by eye."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.systems.mad import autoregressive, inference, losses, masking, sequences
from uvim_like.systems.mad.vocabulary import MASK_TOKEN, TASKS, Vocabulary

WORDS = Vocabulary(classes=4, bins=20, text=13, queries=6, mask_side=2, joints=2, caption_length=5)
KEY = jax.random.key(0)
RATIOS = (1.0, 0.7)


def objects(labels=((2, 4, 0), (0, 0, 0))):
  boxes = jnp.asarray([[[0.0, 0.1, 0.5, 1.0], [0.2, 0.2, 0.4, 0.4], [0, 0, 0, 0]]] * 2, jnp.float32)
  labels = jnp.asarray(labels)
  return sequences.Objects(sequences.box_tokens(boxes, labels - 1, WORDS), boxes, labels > 0)


def test_table_is_the_papers():
  words = Vocabulary()
  assert (words.no_object, words.first_bin, words.foreground, words.visible, words.first_text, words.size) == (
      100, 101, 602, 604, 606, 12_027)
  assert [words.width(task) for task in TASKS] == [582, 2, 503, 11_421]
  assert [words.response(task) for task in TASKS] == [500, 256, 51, 20]
  assert Vocabulary(prompt_tokens=6).max_length == 506


@pytest.mark.parametrize("task", TASKS)
def test_local_tokens_and_back(task):
  local = jnp.arange(WORDS.width(task))
  ids = WORDS.to_table(task, local)
  np.testing.assert_array_equal(WORDS.to_local(task, ids), local)
  assert np.concatenate([np.arange(*span) for span in WORDS.rows(task)]).tolist() == np.asarray(ids).tolist()


def test_formats():
  legal = WORDS.legal("boxes")
  assert legal.shape == (30, 26)  # 4 classes, no object, 21 bins
  assert legal[0].tolist() == [False] * 5 + [True] * 21 and legal[4].tolist() == [True] * 4 + [False] * 22
  legal = WORDS.legal("keypoints")
  assert legal[1].tolist() == [True] * 21 + [False] * 2 and legal[2].tolist() == [False] * 21 + [True] * 2


def test_boxes_of_a_padded_canvas_are_those_of_the_picture():
  batch = {"image": jnp.zeros((1, 10, 20, 3)), "boxes": jnp.array([[[0.0, 0.25, 0.4, 0.5]]]),
           "box_labels": jnp.array([[3]]), "valid_size": jnp.array([[8, 10]])}
  found = sequences.objects(batch, WORDS)
  np.testing.assert_allclose(found.boxes, [[[0.5, 0.0, 1.0, 0.5]]])
  assert found.tokens.tolist() == [[[25 + 10, 25, 25 + 20, 25 + 10, 22]]]
  back = inference.box_output(batch, inference.given_boxes(batch, WORDS), WORDS, half_bin=False)
  np.testing.assert_allclose(back["boxes"], batch["boxes"], atol=1e-6)


@pytest.mark.parametrize("half_bin,shifts", [(False, (0, 0)), (True, (0.5, 0.5)), (("keypoints",), (0, 0.5)),
                                             (("boxes",), (0.5, 0))])
def test_middles_of_bins_for_the_tasks_that_are_named(half_bin, shifts):
  batch = {"image": jnp.zeros((1, 20, 20, 3))}

  def decode(task, prompts, key):
    del prompts, key
    first_bin = 5 if task == "boxes" else 0  # after four classes and no object
    third = jax.nn.one_hot(first_bin + 3, WORDS.width(task))
    return jnp.broadcast_to(third, (1, 1 if task == "boxes" else WORDS.queries, WORDS.response(task), third.size))

  out = inference.infer(decode, batch, KEY, vocabulary=WORDS, tasks=("boxes", "keypoints"), half_bin=half_bin)
  for name, shift in zip(("boxes", "keypoints"), shifts):
    np.testing.assert_allclose(out[name][..., :2], (3 + shift) / WORDS.bins, rtol=1e-6)


def test_detection_sequences():
  draws = masking.draw_boxes(KEY, batch=2, vocabulary=WORDS, ratios=RATIOS)
  found = objects()
  training = jax.jit(lambda found: sequences.box_training(found, draws, vocabulary=WORDS, ratios=RATIOS))(found)
  assert training.inputs.shape == (2, 2, 31)  # one prompt token, as in the paper
  assert np.asarray(training.masked.sum(-1)).tolist() == [[30, 21]] * 2
  shown = np.asarray(training.responses[:, 0]).reshape(2, 6, 5)
  slots = np.argsort(draws.order[0])[:2]
  np.testing.assert_array_equal(shown[0, slots], found.tokens[0, :2])
  classes, bins = shown[..., 4], shown[..., :4]
  assert ((20 <= classes) & (classes < 24)).all() and ((25 <= bins) & (bins <= 45)).all()
  assert (bins[..., 2:] >= bins[..., :2])[1].all()
  inputs = np.asarray(training.inputs)
  assert (inputs[:, 0, 1:] == MASK_TOKEN).all() and (inputs[..., 0] == 0).all()
  np.testing.assert_array_equal(inputs[:, 1, 1:] == MASK_TOKEN, training.masked[:, 1])


def test_masks_at_random_where_there_are_enough():
  valid = jnp.array([[True, True, True], [True, False, True], [False] * 3])
  order = jnp.array([[0.9, 0.1, 0.5]] * 3)
  assert sequences.choose_masks(valid, order, 2).tolist()[:2] == [[1, 2], [1, 2]][:1] + [[2, 0]]
  assert sequences.choose_masks(valid, order, 3).tolist()[1] == [0, 2, 1]  # too few: all in order


def test_mask_sequences():
  bits = jnp.asarray(np.arange(2 * 3 * 4).reshape(2, 3, 2, 2) % 3 == 0)
  draws = masking.draw_masks(KEY, batch=2, slots=3, instances=3, vocabulary=WORDS, ratios=RATIOS)
  training = sequences.mask_training(objects(), bits, draws, vocabulary=WORDS, ratios=RATIOS, instances=3)
  assert training.prompts[0, :3, 0].tolist() == [6, 6, 0] and not training.prompts[1].any()
  foreground = np.asarray(training.targets[0, :2] == 0)
  np.testing.assert_array_equal(foreground, np.asarray(bits[0, :2]).reshape(2, 4))
  assert training.weights.sum((1, 2)).tolist() == [2 * 4 + 2 * 2, 0]  # int(4 · 0.7) = 2 masked bits


def test_keypoint_sequences():
  points = jnp.full((2, 3, 2, 2), 0.5)
  visible = jnp.array([[[True, False], [False, False], [True, True]]] * 2)
  draws = masking.KeypointDraws(jnp.zeros((2, 3, 2, 2)), (jnp.zeros((2, 3, 6)),))
  training = sequences.keypoint_training(objects(), points, visible, draws, vocabulary=WORDS, ratios=(1.0,),
                                         instances=3)
  first = training.responses[0, 0].tolist()
  assert first == [35, 35, WORDS.visible, 25, 27, WORDS.visible + 1]  # hidden: the corner of its box, for draws of 0
  assert training.weights[0].tolist() == [[1, 1, 1, 0, 0, 1], [0] * 6, [0] * 6]  # nothing visible, or no object
  chosen = sequences.choose_keypoints(jnp.ones((1, 3), bool), jnp.array([[False, True, True]]), 2)
  assert chosen.tolist() == [[1, 2]]


def test_caption_sequences():
  captions = jnp.array([[[3, 1, 4, 0, 0], [5, 9, 2, 6, 5]], [[7, 7, 7, 7, 7], [0] * 5]])
  draws = masking.draw_captions(KEY, batch=2, references=2, vocabulary=WORDS, ratios=(1.0, 0.6))
  shared = dict(vocabulary=WORDS, ratios=(1.0, 0.6))
  plain = sequences.caption_training(captions, draws, noise=False, **shared)
  assert plain.inputs.shape == (2, 3, 6) and plain.masked.sum(-1).tolist() == [[5, 3, 3]] * 2
  np.testing.assert_array_equal(plain.targets[:, 1:], captions)
  assert plain.weights.sum(-1).tolist() == [[5, 3, 3], [5, 3, 0]]  # ends count, a missing reference does not
  noisy = sequences.caption_training(captions, draws, **shared)
  changed = np.asarray(noisy.inputs != plain.inputs)
  assert changed[:, 0].sum() == 0 and (changed[:, 1:].sum(-1) <= 1).all()
  assert not (changed[..., 1:] & noisy.masked).any()
  whole = sequences.caption_training(captions, draws, vocabulary=WORDS, ratios=(1, 0.6))  # as a config may write it
  np.testing.assert_array_equal(whole.inputs, noisy.inputs)
  code = sequences.caption_training(captions, draws, noise_masked=True, **shared)
  assert (np.asarray(code.inputs)[:, 0, 1:] != MASK_TOKEN).sum(-1).tolist() == [1, 1]
  np.testing.assert_array_equal(code.weights, plain.weights)


def test_captions_fit_the_sequence():
  captions = jnp.arange(12).reshape(1, 3, 4)
  assert sequences.fit_captions(captions, references=2, length=6).tolist() == [[[0, 1, 2, 3, 0, 0], [4, 5, 6, 7, 0, 0]]]
  assert sequences.fit_captions(captions, references=5, length=3).shape == (1, 3, 3)


def test_ratios_from_an_interval():
  draws = masking.draw_masks(KEY, batch=1, slots=3, instances=3, vocabulary=Vocabulary(), ratios=((0.6, 0.8),))
  bits = jnp.zeros((2, 3, 16, 16))
  shared = dict(vocabulary=Vocabulary(), ratios=((0.6, 0.8),), instances=3)
  counts = {int(sequences.mask_training(objects(), bits, draws, key=jax.random.key(i), **shared).masked.sum(-1)[0, 0])
            for i in range(6)}
  assert len(counts) > 2 and min(counts) >= 153 and max(counts) <= 204


def test_a_shown_object_is_pinned_to_its_slot():
  """Costs of the partial copy: 0 where all five tokens are shown, 40 for each wrong shown token."""
  tokens = WORDS.to_local("boxes", objects().tokens)
  shown = jnp.zeros((2, 1, 30), jnp.int32).at[0, 0, 10:15].set(tokens[0, 1])
  masked = jnp.ones((2, 1, 30), bool).at[0, 0, 10:15].set(False).at[0, 0, 0].set(False)
  logits = jnp.zeros((1, 2, 1, 30, WORDS.width("boxes")))
  costs = losses.box_costs(logits, shown, masked, tokens)
  free = np.log(26)
  np.testing.assert_allclose(costs[0, 0, 0, 2, 1], 0, atol=1e-5)
  np.testing.assert_allclose(costs[0, 0, 0, 0], (40 + 4 * free) / 5, rtol=1e-5)
  targets = losses.match_boxes(costs, tokens, objects().valid, masked, vocabulary=WORDS)
  np.testing.assert_array_equal(targets.tokens[0, 0, 0, 10:15], tokens[0, 1])
  assert targets.weights[0, 0, 0, 10:15].tolist() == [0] * 5  # shown tokens are not asked for
  assert targets.weights[0, 1, 0].reshape(6, 5).tolist() == [[0, 0, 0, 0, 1]] * 6


def test_caption_takes_the_nearest_reference():
  captions = jnp.array([[[3, 1, 4, 0, 0], [5, 9, 2, 6, 5], [0] * 5]])
  draws = masking.draw_captions(KEY, batch=1, references=3, vocabulary=WORDS, ratios=RATIOS)
  training = sequences.caption_training(captions, draws, vocabulary=WORDS, ratios=RATIOS)
  logits = jnp.stack([jax.nn.one_hot(jnp.broadcast_to(captions[0, i], (1, 4, 5)), 13) for i in (1, 0, 2)])
  targets = losses.choose_caption(logits, training, captions, 0)
  assert targets.tokens[:, 0, 0].tolist() == [captions[0, i].tolist() for i in (1, 0, 0)]  # the third is no reference
  assert targets.weights[:, 0, 0].tolist() == [[1] * 5] * 3


def test_autoregressive_boxes():
  found = objects()
  training = autoregressive.box_training(found, KEY, vocabulary=WORDS)
  answers = np.asarray(WORDS.to_table("boxes", training.targets)).reshape(2, 6, 5)
  assert {tuple(row) for row in answers[0, :2].tolist()} == {tuple(row) for row in found.tokens[0, :2].tolist()}
  assert (answers[0, 2:, 4] == WORDS.no_object).all() and (answers[1, :, 4] == WORDS.no_object).all()
  weights = np.asarray(training.weights).reshape(2, 6, 5)
  assert weights[0, :2].all() and not weights[0, 2:, :4].any() and weights[..., 4].all()
  shown = np.asarray(training.responses).reshape(2, 6, 5)
  np.testing.assert_array_equal(shown[..., :4], answers[..., :4])
  inputs = autoregressive.causal_inputs(training)
  np.testing.assert_array_equal(inputs[..., 1:], training.responses[..., :-1])


def test_read_classes_are_wrong_or_missing():
  found = objects()
  shown = np.stack([np.asarray(autoregressive.box_training(found, jax.random.key(i), vocabulary=WORDS).responses)
                    .reshape(2, 6, 5)[..., 4] for i in range(50)])
  missing = (shown == WORDS.no_object).mean()
  assert 0.4 < missing < 0.6 and set(np.unique(shown)) == set(range(20, 25))


def test_noise_boxes():
  noise = np.asarray(autoregressive.noise_boxes(KEY, objects(((1, 1, 0), (0, 0, 0))), 400))
  assert ((noise >= 0) & (noise <= 1)).all() and (noise[..., 2:] >= noise[..., :2]).all()
  copies = [np.abs(noise[0] - box).max(-1) < 0.12 for box in np.asarray(objects().boxes[0, :2])]
  assert min(np.mean(near) for near in copies) > 0.02  # both objects are copied
  assert (np.abs(noise[1] - np.asarray(objects().boxes[1, 0])).max(-1) < 0.02).mean() < 0.02  # none where there is none
