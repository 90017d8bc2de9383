"""AiT's tokenizer as a system: what learns and from what, accumulation, masking, every kind of map, messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uvim_like.errors import UserError
from uvim_like.ops import ema_codebook
from uvim_like.ops.quantize import CodebookStats
from uvim_like.systems.ait import vqvae
from uvim_like.training.step import start_from, train_step

KEY = jax.random.key(0)
MODEL = dict(input_size=(16, 24), ratio=8, first_width=4, num_res_blocks=1, dict_size=6, codeword_dim=5)
KINDS = {"depth": {}, "instance_segmentation": dict(signed=True, input_size=(16, 16)),
         "semantic_segmentation": dict(classes=3)}


def system(task="depth", **fields):
  return vqvae.make({"task": task, "model": MODEL | KINDS[task] | fields, "w_commitment": 0.25})


def batch(task="depth", size=4, seed=0):
  rng = np.random.default_rng(seed)
  if task == "instance_segmentation":
    labels = rng.integers(1, 4, (size, 3)).astype(np.int32)
    labels[0, 1:], labels[1] = 0, 0  # a lone object, and none
    masks = rng.integers(0, 2, (size, 3, 16, 16)).astype(np.uint8) * (labels > 0)[..., None, None].astype(np.uint8)
    return {"boxes": rng.uniform(size=(size, 3, 4)).astype(np.float32), "box_labels": labels, "box_masks": masks}
  if task == "semantic_segmentation":
    return {"labels": rng.integers(0, 4, (size, 16, 24, 1)).astype(np.int32)}
  depth = rng.uniform(0.5, 5, (size, 16, 24, 1)) * (rng.uniform(size=(size, 16, 24, 1)) > 0.3)
  return {"labels": depth.astype(np.float32)}


@functools.cache
def variables(task="depth"):
  return jax.jit(system(task).init)(KEY, batch(task))


def run(made, task, data=None, train=True):
  return jax.jit(lambda v, b: made.loss(v, (), b, KEY, train))(variables(task), data or batch(task))


@pytest.mark.parametrize("task", [pytest.param(task, marks=pytest.mark.slow) if task == "semantic_segmentation" else task
                                  for task in KINDS])
def test_a_training_step(task):
  made, data = system(task), batch(task)
  state = start_from(variables(task), tx=optax.sgd(1e-2))
  new, metrics = jax.jit(functools.partial(train_step, system=made, tx=optax.sgd(1e-2)))(state, (), data, KEY)
  assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
  assert metrics["grad_norm/encoder"] > 0 and metrics["grad_norm/decoder"] > 0
  assert np.any(new.vars.state["dictionary"] != state.vars.state["dictionary"])


@pytest.mark.parametrize("task", KINDS)
def test_predictions(task):
  data = batch(task)
  out = jax.jit(functools.partial(system(task).predict["predict"], variables(task), ()))(data, KEY)
  if task == "depth":
    assert out["depth"].shape == (4, 16, 24)
  elif task == "semantic_segmentation":
    assert out["semantics"].dtype == jnp.int32 and np.all((out["semantics"] >= 1) & (out["semantics"] <= 3))
  else:
    assert out["masks"].shape == data["box_masks"].shape
    np.testing.assert_array_equal(out["scores"], data["box_labels"] > 0)


def test_missing_depth_has_no_loss_and_no_gradient():
  data = batch()
  worse = {"labels": np.where(data["labels"] > 0, data["labels"], -1.0).astype(np.float32)}
  model = vqvae.make_model(MODEL, {}, where="")
  output = jnp.ones(data["labels"].shape)
  for sums in zip(vqvae.reconstruction(output, jnp.asarray(data["labels"]), "depth"),
                  vqvae.reconstruction(output, jnp.asarray(worse["labels"]), "depth")):
    np.testing.assert_array_equal(*sums)
  empty = run(system(), "depth", {"labels": np.zeros((2, 16, 24, 1), np.float32)})
  assert np.isfinite(empty.loss) and np.all(empty.parts["loss_reconstruction"] == 0)
  assert model.code_len == 6


def test_loss_pools_pixels_over_the_batch():
  out, data = run(system(), "depth", train=False), batch()
  counts = np.sum(data["labels"] > 0, axis=(1, 2, 3))
  recon = np.sum(out.parts["loss_reconstruction"] * counts) / counts.sum()
  np.testing.assert_allclose(out.loss, recon + 0.25 * np.mean(out.parts["loss_commitment"]), rtol=1e-5)
  np.testing.assert_allclose(np.sum(out.parts["code_use"], -1), 1, rtol=1e-5)


def test_empty_slots_count_for_nothing():
  data = batch("instance_segmentation")
  padded = {key: np.pad(value, ((0, 0), (0, 2)) + ((0, 0),) * (value.ndim - 2)) for key, value in data.items()}
  made = system("instance_segmentation")
  a, b = run(made, "instance_segmentation", data), run(made, "instance_segmentation", padded)
  np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)
  np.testing.assert_allclose(a.stats.counts, b.stats.counts)
  np.testing.assert_allclose(a.stats.sums, b.stats.sums, rtol=1e-5, atol=1e-6)
  assert a.parts["loss_reconstruction"][1] == 0  # no object there


def test_accumulation_moves_the_codebook_like_one_batch():
  made, data = system(), batch()
  state = start_from(variables(), tx=optax.sgd(0.0))
  step = functools.partial(train_step, system=made, tx=optax.sgd(0.0))
  once, _ = jax.jit(step)(state, (), data, KEY)
  twice, _ = jax.jit(functools.partial(step, accumulate=2))(state, (), data, KEY)
  for name, leaf in once.vars.state.items():
    np.testing.assert_allclose(leaf, twice.vars.state[name], rtol=1e-4, err_msg=name)


def test_masking_is_of_the_input_alone_and_of_training_alone():
  plain, masked = run(system(), "depth"), run(system(mask_ratio=0.5, mask_patch=8), "depth")
  assert plain.loss != masked.loss
  still = run(system(mask_ratio=0.5, mask_patch=8), "depth", train=False)
  np.testing.assert_allclose(still.loss, run(system(), "depth", train=False).loss, rtol=1e-6)


def test_codebook_by_hand():
  sums, counts = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), jnp.asarray([2.0, 0.0])
  stats = CodebookStats(jnp.asarray([0.0, 10.0]), jnp.asarray([[0.0, 0.0], [10.0, 20.0]]))
  new_sums, new_counts = ema_codebook.update(sums, counts, stats, decay=0.9, epsilon=0.1)
  np.testing.assert_allclose(new_sums, [[0.9, 1.8], [3.7, 5.6]], rtol=1e-6)
  total = 1.8 + 1.0
  np.testing.assert_allclose(new_counts, np.array([1.9, 1.1]) / (total + 0.2) * total, rtol=1e-6)


def test_dead_words_sweep_back_and_can_be_shared_out():
  """The multiplier on an unused word's start: 577 after 100 steps, 0.04 after 1000 (simulated from the release)."""
  model = vqvae.make_model(MODEL | dict(dict_size=128), {}, where="")
  state = {"dictionary": jnp.ones((128, 5)), "sums": jnp.ones((128, 5)), "counts": jnp.zeros((128,))}
  stats = CodebookStats(jnp.zeros((128,)).at[:64].set(1800 / 64), jnp.zeros((128, 5)).at[:64].set(1800 / 64))

  def advance(state, _):
    state = vqvae.advance(state, stats, KEY, model=model)
    return state, state["dictionary"][-1, 0]

  state, seen = jax.jit(lambda state: jax.lax.scan(advance, state, None, length=1000))(state)
  assert seen[0] > 1e4 and 100 < seen[99] < 3000 and seen[499] > 1 and seen[999] < 0.5
  sharing = vqvae.make_model(MODEL | dict(dict_size=128, dict_reset=1.0), {}, where="")
  shared = vqvae.advance(state, stats, KEY, model=sharing)
  assert np.all(shared["counts"] >= 1.0) and np.all(np.isfinite(shared["dictionary"]))


def test_nothing_to_learn_from_leaves_the_codebook():
  made, data = system("instance_segmentation"), batch("instance_segmentation")
  out = run(made, "instance_segmentation", data | {"box_labels": np.zeros_like(data["box_labels"])})
  np.testing.assert_array_equal(out.state["dictionary"], variables("instance_segmentation").state["dictionary"])
  assert out.loss == 0


@pytest.mark.parametrize(("task", "fields", "message"), [
    ("depth", dict(ratio=12), "ratio: 12 is no power of two"),
    ("depth", dict(input_size=(16, 20)), "multiples of ratio 8"),
    ("depth", dict(classes=3), "a tokenizer of depth reads numbers: set 0"),
    ("instance_segmentation", dict(signed=False), "a tokenizer of masks needs True"),
    ("depth", dict(widht=1), "unknown field 'widht'"), ("depth", dict(mask_ratio=1.5), "mask_ratio")])
def test_messages(task, fields, message):
  with pytest.raises(UserError, match=message):
    system(task, **fields)


def test_other_tasks_have_no_tokenizer():
  with pytest.raises(UserError, match="unknown task of a tokenizer 'colorization'"):
    vqvae.make({"task": "colorization", "model": MODEL})
