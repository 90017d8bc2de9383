"""MAD as a system: losses of all tasks, prediction in one call, single tasks, the autoregressive form, mistakes."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.systems import batch_stats
from uvim_like.systems.mad import decoder
from uvim_like.systems.mad.vocabulary import TASKS
from uvim_like.trees import flatten_names

QUICK = {"xla_backend_optimization_level": 0}  # these programs run a few times only
KEY = jax.random.key(0)
CONFIG = {
    "model": {"backbone": {"name": "stem", "widths": [8, 12], "mix": 0}, "width": 16, "num_heads": 2, "mlp_dim": 24,
              "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0},
    "sequences": {"classes": 4, "bins": 20, "text": 13, "queries": 6, "mask_side": 4, "joints": 3, "caption_length": 5},
    "objectives": {"instances": 3, "references": 2}}


def changed(**changes):
  """The config with changes; a name like "model__width" is a key of a block, None removes it."""
  config = copy.deepcopy(CONFIG)
  for path, value in changes.items():
    block, key = path.split("__")
    config[block][key] = value
    if value is None:
      del config[block][key]
  return config


def make_batch(images=2, slots=4, seed=0):
  """Three objects, then none, then all slots full; a picture in the upper left of a 16x24 canvas."""
  rng = np.random.default_rng(seed)
  labels = np.zeros((images, slots), np.int32)
  for i in range(images):
    count = (3, 0, slots)[i % 3]
    labels[i, :count] = rng.integers(1, 5, count)
  start = rng.uniform(0, 0.4, (images, slots, 2))
  boxes = np.concatenate([start, start + rng.uniform(0.1, 0.3, start.shape)], -1)
  seen = rng.integers(0, 3, (images, slots, 3, 1))
  keypoints = np.concatenate([rng.uniform(0, 0.6, (images, slots, 3, 2)), seen], -1)
  captions = rng.integers(0, 13, (images, 2, 5))
  captions[1:, 1] = 0
  return {"image": rng.uniform(-1, 1, (images, 16, 24, 3)).astype(np.float32), "boxes": boxes.astype(np.float32),
          "box_labels": labels, "box_masks": rng.integers(0, 2, (images, slots, 4, 4)).astype(np.uint8),
          "keypoints": keypoints.astype(np.float32), "captions": captions.astype(np.int32),
          "valid_size": np.array([[16, 20], [12, 24], [16, 24]], np.int32)[np.arange(images) % 3]}


def compiled(function, *args):
  return jax.jit(function).lower(*args).compile(compiler_options=QUICK)


@pytest.fixture(scope="module")
def batch():
  return make_batch()


@pytest.fixture(scope="module")
def system():
  return decoder.make(CONFIG)


@pytest.fixture(scope="module")
def variables(system, batch):
  return compiled(system.init, KEY, batch)(KEY, batch)


def value_and_grad(system, variables, batch):
  """Compiled (params, key) -> ((loss, LossOut), gradients) in training."""
  def objective(params, key):
    out = system.loss(variables.replace(params=params), (), batch, key, True)
    return out.loss, out
  return compiled(jax.value_and_grad(objective, has_aux=True), variables.params, KEY)


@pytest.fixture(scope="module")
def training(system, variables, batch):
  return value_and_grad(system, variables, batch)


def test_loss_teaches_everything(training, variables):
  (loss, out), grads = training(variables.params, KEY)
  assert set(out.parts) == {f"loss_{task}" for task in TASKS}
  assert all(part.shape == (2,) and np.isfinite(part).all() for part in out.parts.values())
  assert float(loss) > 0
  still = [name for name, leaf in flatten_names(grads) if not np.abs(leaf).max() > 0 and not name.endswith("key/bias")]
  assert not still
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_batch_statistics_move_under_accumulation(system):
  before, one, two = ({"mean": jnp.array([value])} for value in (0.0, 1.0, 4.0))
  stats = jax.tree.map(jnp.add, batch_stats.sums(one), batch_stats.sums(two))
  assert system.advance(before, stats, KEY)["mean"].tolist() == [2.5]


def test_image_without_objects(training, variables):
  """Its boxes are all "no object"; masks and keypoints weigh nothing."""
  parts = training(variables.params, KEY)[0][1].parts
  assert float(parts["loss_boxes"][1]) > 0
  assert [float(parts[f"loss_{task}"][1]) for task in ("masks", "keypoints")] == [0, 0]


def test_draws_follow_the_key(training, variables):
  one, again, other = (float(training(variables.params, jax.random.key(i))[0][0]) for i in (0, 0, 1))
  assert one == again != other


@pytest.mark.parametrize("form", ["masked", "autoregressive"])
def test_learns(form, batch):
  """Forty steps on two images: the loss of boxes falls by more than half."""
  system = decoder.make(changed(objectives__form=form, objectives__tasks=("boxes",),
                                objectives__mask_ratios=(1.0, 0.5)))
  variables = compiled(system.init, KEY, batch)(KEY, batch)
  step, params = value_and_grad(system, variables, batch), variables.params
  moments, losses = jax.tree.map(jnp.zeros_like, params), []
  for i in range(40):
    (loss, _), grads = step(params, jax.random.key(i))
    moments = jax.tree.map(lambda m, g: 0.95 * m + 0.05 * g ** 2, moments, grads)
    params = jax.tree.map(lambda p, g, m: p - 0.01 * g / (jnp.sqrt(m) + 1e-6), params, grads, moments)
    losses.append(float(loss))
  assert np.mean(losses[-5:]) < 0.5 * losses[0]


@pytest.fixture(scope="module")
def predicted(system, variables, batch):
  return compiled(functools.partial(system.predict["predict"], chunk=4), variables, (), batch, KEY)(
      variables, (), batch, KEY)


def test_prediction_has_the_promised_form(predicted):
  shapes = {"boxes": (2, 6, 4), "scores": (2, 6), "classes": (2, 6), "masks": (2, 6, 4, 4), "keypoints": (2, 6, 3, 3),
            "captions": (2, 5)}
  assert {name: x.shape for name, x in predicted.items()} == shapes
  boxes, scores = np.asarray(predicted["boxes"]), np.asarray(predicted["scores"])
  room = np.array([[16 / 16, 20 / 24], [12 / 16, 24 / 24]])  # of the picture on the canvas
  assert (boxes >= 0).all() and (boxes <= np.tile(room, 2)[:, None] + 1e-6).all()
  assert ((0 <= scores) & (scores <= 1)).all()
  degenerate = (boxes[..., 2:] <= boxes[..., :2]).any(-1)
  assert (scores[degenerate] == 0).all() and (scores[~degenerate] > 0).all()
  assert set(np.unique(predicted["classes"])) <= {1, 2, 3, 4}
  for caption in np.asarray(predicted["captions"]):
    ended = np.flatnonzero(caption == 0)
    assert not ended.size or not caption[ended[0]:].any()


def test_chunks_change_nothing_and_the_best_boxes_come_first(system, variables, batch, predicted):
  whole = compiled(functools.partial(system.predict["predict"], instances=2, tasks=("boxes", "masks"),
                                     stages={"masks": (1.0,)}), variables, (), batch, KEY)(variables, (), batch, KEY)
  assert set(whole) == {"boxes", "scores", "classes", "masks"}
  raw = np.asarray(predicted["masks"])
  for i in range(2):
    wanted = [j for j in range(6) for box in np.asarray(whole["boxes"])[i, :2]
              if np.array_equal(np.asarray(predicted["boxes"])[i, j], box)]
    assert len(wanted) >= 2
    for row, box in enumerate(np.asarray(whole["boxes"])[i, :2]):
      same = [j for j in wanted if np.array_equal(np.asarray(predicted["boxes"])[i, j], box)
              and np.asarray(predicted["classes"])[i, j] == np.asarray(whole["classes"])[i, row]]
      assert any(np.allclose(raw[i, j], whole["masks"][i, row], atol=1e-5) for j in same)
  assert not np.asarray(whole["masks"])[:, 2:].any()


def test_autoregressive_prediction_is_consistent_with_its_loss(batch):
  """Greedy masks: every bit is the likelier one of the teacher-forced pass over what was written."""
  system = decoder.make(changed(objectives__form="autoregressive", objectives__tasks=("masks", "captions")))
  variables = compiled(system.init, KEY, batch)(KEY, batch)
  out = compiled(system.predict["predict"], variables, (), batch, KEY)(variables, (), batch, KEY)
  assert set(out) == {"boxes", "scores", "classes", "masks", "captions"}
  np.testing.assert_array_equal(out["scores"], batch["box_labels"] > 0)  # it does not detect: the true boxes
  parts = system.predict["predict"].keywords["parts"]
  words = parts.vocabulary
  bits = (np.asarray(out["masks"]) > 0.5).reshape(2, 4, -1)
  found = decoder.sequences.objects(batch, words)
  prompts = decoder.inference.instance_prompt("masks", found.tokens, jnp.ones((2, 4), bool))
  tokens = jnp.concatenate([prompts, words.to_table("masks", jnp.where(bits, 0, 1))[..., :-1]], -1)

  def forced(variables):
    picture, _ = decoder.encode(parts.model, variables, batch, KEY, train=False)
    tree = {"params": variables.params}
    outputs = parts.model.apply(tree, tokens, picture, causal=True, method="decode")[-1][:, :, 5:]
    return jax.nn.softmax(parts.model.apply(tree, outputs, words.rows("masks"), method="logits"))[..., 0]

  want = np.asarray(out["masks"]).reshape(2, 4, -1)
  np.testing.assert_allclose(compiled(forced, variables)(variables), want, atol=1e-5)


@pytest.mark.parametrize(("changes", "message"), [
    (dict(objectives__task=("boxes",)), "did you mean 'tasks'"),
    (dict(objectives__tasks=("box",)), "did you mean 'boxes'"),
    (dict(objectives__form="parallel"), "masked, autoregressive"),
    (dict(objectives__mask_ratios=(1.5,)), "mask_ratios: 1.5"),
    (dict(objectives__weights={"box": 1.0}), "did you mean 'boxes'"),
    (dict(objectives__matcher="hungarian"), "device, scipy"),
    (dict(sequences__bin=3), "did you mean 'bins'"),
    (dict(sequences__bins=0), "at least 1"),
    (dict(sequences__prompt_tokens=7), "nearest: 6"),
    (dict(sequences__bins="many"), "its default is 500"),
    (dict(model__vocab_size=12), "follows from config.sequences"),
    (dict(model__head="cosin"), "did you mean 'cosine'"),
    (dict(model__width=18), "multiple of 4"),
    (dict(model__backbone={"name": "resnet51"}), "did you mean 'resnet")])
def test_mistakes_are_named_before_anything_compiles(changes, message, batch):
  with pytest.raises(UserError, match=message):
    jax.eval_shape(decoder.make(changed(**changes)).init, KEY, batch)


@pytest.mark.parametrize(("drop", "changes", "message"), [
    ("captions", {}, "needs 'captions'"), ("box_masks", {}, "needs 'box_masks'"),
    (None, dict(sequences__queries=3), "nearest: 4"), (None, dict(sequences__mask_side=5), "nearest: 4"),
    (None, dict(sequences__joints=5), "the batch has 3")])
def test_batches_that_do_not_fit_are_named(drop, changes, message):
  system = decoder.make(changed(**changes))
  batch = {key: value for key, value in make_batch().items() if key != drop}
  shapes = jax.eval_shape(system.init, KEY, batch)
  with pytest.raises(UserError, match=message):
    jax.eval_shape(lambda *args: system.loss(*args, True), shapes, (), batch, KEY)


def test_unknown_tasks_and_stages_of_prediction(system, batch):
  shapes = jax.eval_shape(system.init, KEY, batch)
  for options, message in ((dict(tasks=("mask",)), "did you mean 'masks'"),
                           (dict(stages={"caption": (1.0,)}), "captions"), (dict(order={"boxes": "sure"}), "confidence, random")):
    with pytest.raises(UserError, match=message):
      jax.eval_shape(functools.partial(system.predict["predict"], **options), shapes, (), batch, KEY)
