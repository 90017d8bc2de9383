"""Both stages of UViM as systems: what learns and what does not, and what they predict."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from uvim_like import weights
from uvim_like.errors import UserError
from uvim_like.systems.base import Vars
from uvim_like.systems.uvim import lm, vit
from uvim_like.trees import flatten_names

KEY = jax.random.key(0)
LOSSES = ("loss_semantics", "loss_instances", "loss_commitment")


def randomized(variables, seed=1):
  """Every parameter plus noise, so that no gradient is zero because an output layer starts at zero."""
  leaves, tree = jax.tree.flatten(variables.params)
  rng = np.random.default_rng(seed)
  return variables.replace(params=tree.unflatten(
      [jnp.asarray(leaf + 0.1 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]))


def start(system, batch):
  return randomized(jax.jit(system.init)(KEY, batch))


def loss_and_grad(system, variables, frozen, batch, key=KEY, train=True):
  def objective(params):
    out = system.loss(variables.replace(params=params), frozen, batch, key, train)
    return out.loss, out
  return jax.jit(lambda: jax.value_and_grad(objective, has_aux=True)(variables.params))()


# ---- stage I ----


@pytest.fixture(scope="module")
def one(stage_one_config, make_batch):
  """(system, variables, batch) of stage I."""
  system, batch = vit.make(stage_one_config()), make_batch(3)
  return system, start(system, batch), batch


def test_training_loss(one):
  system, variables, batch = one
  (loss, out), grads = loss_and_grad(system, variables, (), batch)
  parts = {name: np.asarray(part) for name, part in out.parts.items()}
  assert set(parts) == {*LOSSES, "codebook_max_ratio", "codebook_zeros_ratio"}
  assert all(part.shape == (3,) for part in parts.values())
  want = parts["loss_semantics"].mean() + parts["loss_instances"].mean() + 0.25 * parts["loss_commitment"].mean()
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  counts = np.asarray(out.stats.counts)
  assert counts.sum() == 3 * 4 and out.stats.sums.shape == (12, 6)
  np.testing.assert_allclose(parts["codebook_max_ratio"], counts.max() / counts.sum(), rtol=1e-6)
  np.testing.assert_allclose(parts["codebook_zeros_ratio"], (counts == 0).mean(), rtol=1e-6)
  assert not [name for name, leaf in flatten_names(grads) if not np.any(leaf) and not name.endswith("/key/bias")]


def test_state_learns_from_the_statistics(one):
  system, variables, batch = one
  (_, out), _ = loss_and_grad(system, variables, (), batch)
  np.testing.assert_allclose(out.state["counts"], 0.995 * variables.state["counts"] + out.stats.counts, rtol=1e-6)
  np.testing.assert_allclose(out.state["dictionary"], 0.995 * variables.state["dictionary"] + out.stats.sums, rtol=1e-5,
                             atol=1e-6)
  advanced = system.advance(variables.state, out.stats, KEY)
  for name in out.state:
    np.testing.assert_allclose(out.state[name], advanced[name], rtol=1e-6, atol=1e-6)


def test_evaluation(one):
  system, variables, batch = one
  out = jax.jit(lambda: system.loss(variables, (), batch, KEY, False))()
  assert set(out.parts) == {*LOSSES, "code_use"} and out.stats == ()
  np.testing.assert_allclose(out.parts["code_use"].sum(-1), 1, rtol=1e-6)
  for name, leaf in variables.state.items():
    np.testing.assert_array_equal(out.state[name], leaf)
  alone = jax.jit(lambda batch: system.loss(variables, (), batch, KEY, False).parts)
  for i in range(3):
    for name, part in alone({k: v[i:i + 1] for k, v in batch.items()}).items():
      np.testing.assert_allclose(part[0], out.parts[name][i], rtol=1e-4, atol=1e-5, err_msg=name)


def test_frozen_dictionary(one, stage_one_config):
  _, variables, batch = one
  system = vit.make(stage_one_config(freeze_dict=True))
  (_, out), _ = loss_and_grad(system, variables, (), batch)
  assert system.advance is None and out.stats == () and "codebook_max_ratio" in out.parts
  for name, leaf in variables.state.items():
    np.testing.assert_array_equal(out.state[name], leaf)


def test_code_dropout_depends_on_the_key(one, stage_one_config):
  _, variables, batch = one
  system = vit.make(stage_one_config(model__code_dropout="random"))
  losses = [float(loss_and_grad(system, variables, (), batch, key)[0][0]) for key in (KEY, KEY, jax.random.key(1))]
  assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("options", [{"scan_layers": True}, {"remat": "full"}, {"remat": "dots", "scan_layers": True}])
def test_remat_and_scan_change_nothing(one, stage_one_config, options):
  _, variables, batch = one
  system = vit.make(stage_one_config(**options))
  assert jax.tree.map(jnp.shape, jax.eval_shape(system.init, KEY, batch)) == jax.tree.map(jnp.shape, variables)
  (loss, _), grads = loss_and_grad(system, variables, (), batch)
  (want_loss, _), want = loss_and_grad(one[0], variables, (), batch)
  np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
  for (name, got), (_, expected) in zip(flatten_names(grads), flatten_names(want), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_base_model_alone(stage_one_config, make_batch):
  system, batch = vit.make(stage_one_config(model__zero_decoder_seq=True)), make_batch(2)
  variables = start(system, batch)
  assert variables.state == {} and system.advance is None
  assert not {"encoder", "encoder_head", "embedding_semantics", "ctx_enc_embedding", "pos_embedding_encoder",
              "bottleneck_downsample"} & set(variables.params)
  (_, out), _ = loss_and_grad(system, variables, (), batch)
  assert set(out.parts) == {"loss_semantics", "loss_instances"}
  predict = jax.jit(lambda batch: system.predict["predict"](variables, (), batch, KEY))
  for name, value in predict(batch).items():  # no labels are needed
    np.testing.assert_array_equal(value, predict({"image": batch["image"]})[name])


def test_finite_grid(stage_one_config, make_batch):
  system, batch = vit.make(stage_one_config(model__quantizer="fsq", model__fsq_levels=[4, 3])), make_batch(2)
  variables = start(system, batch)
  assert variables.state == {} and system.advance is None
  (_, out), grads = loss_and_grad(system, variables, (), batch)
  assert {"codebook_max_ratio", *LOSSES} <= set(out.parts) and out.state == {}
  assert np.any(grads["encoder_head"]["kernel"])


def test_prediction_and_corruption(one):
  system, variables, batch = one
  run = jax.jit(lambda key, **options: system.predict["predict"](variables, (), batch, key, **options),
                static_argnames=("corrupt", "fraction"))
  clean = run(KEY)
  assert {name: (x.shape, x.dtype) for name, x in clean.items()} == {
      name: ((3, 8, 12), jnp.int32) for name in ("semantics", "instances")}
  for mode in ("zero", "random", "word"):
    none = run(KEY, corrupt=mode, fraction=0.0)
    for name in clean:
      np.testing.assert_array_equal(none[name], clean[name], err_msg=mode)
    assert any(np.any(run(KEY, corrupt=mode, fraction=1.0)[name] != clean[name]) for name in clean), mode
  with pytest.raises(UserError, match="corrupt='wrod'"):
    system.predict["predict"](variables, (), batch, KEY, corrupt="wrod", fraction=0.5)


@pytest.mark.parametrize("mode", ["zero", "random", "word"])
def test_corrupted_share_of_a_code(mode):
  vectors, words = jnp.full((5, 8, 2), 7.0), jnp.arange(6.0).reshape(3, 2)
  for fraction, hits in ((0.25, 2), (1.0, 8), (0.0, 0)):
    got = np.asarray(vit.corrupt_code(KEY, vectors, words, mode=mode, fraction=fraction))
    changed = np.any(got != 7.0, axis=-1)
    assert (changed.sum(-1) == hits).all()
    if hits and mode == "zero":
      assert not got[changed].any()
    elif hits:
      put = [np.unique(row[hit], axis=0) for row, hit in zip(got, changed)]
      assert all(any((word == w).all() for w in np.asarray(words)) for row in put for word in row)
      assert mode == "random" or all(len(row) == 1 for row in put)
  assert not np.array_equal(*(np.asarray(vit.corrupt_code(jax.random.key(i), vectors, words, mode=mode, fraction=0.5))
                              for i in (0, 1)))


def test_context_image_comes_first(one):
  system, variables, batch = one
  other = np.zeros_like(batch["image"])
  run = jax.jit(lambda batch: system.loss(variables, (), batch, KEY, False).parts["loss_semantics"])
  np.testing.assert_array_equal(run(batch | {"image": other, "image_ctx": batch["image"]}), run(batch))
  assert not np.allclose(run(batch | {"image_ctx": other}), run(batch))


def test_config_dicts_are_configs(stage_one_config, stage_two_config):
  for module, config in ((vit, stage_one_config()), (lm, stage_two_config())):
    module.make(ml_collections.ConfigDict(config))
    module.make(ml_collections.FrozenConfigDict(config))


# ---- stage II ----


@pytest.fixture(scope="module")
def two(one, stage_two_config):
  """(system, variables, frozen stage I, batch) of stage II."""
  _, stage_one, batch = one
  system = lm.make(stage_two_config())
  return system, start(system, batch), stage_one, batch


def test_only_the_language_model_learns(two):
  system, variables, frozen, batch = two
  before = jax.tree.map(np.array, frozen)
  (loss, out), grads = loss_and_grad(system, variables, frozen, batch)
  assert system.advance is None and out.stats == () and variables.state == () == out.state
  assert set(out.parts) == {"loss_code", "accuracy"}
  np.testing.assert_allclose(loss, out.parts["loss_code"].mean(), rtol=1e-6)
  assert jax.tree.structure(grads) == jax.tree.structure(variables.params)
  to_oracle = jax.jit(jax.grad(
      lambda params: system.loss(variables, frozen.replace(params=params), batch, KEY, True).loss))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(to_oracle(frozen.params)))
  for (name, got), (_, want) in zip(flatten_names(frozen), flatten_names(before), strict=True):
    np.testing.assert_array_equal(got, want, err_msg=name)


def test_targets_are_words_plus_one(two, stage_two_config):
  system, _, frozen, batch = two
  parts = system.loss.keywords["parts"]
  got = jax.jit(lambda: lm.targets(frozen, batch, parts=parts))()
  assert got.shape == (3, 4) and got.min() >= 1 and got.max() <= 12
  planes = parts.task.to_planes(jnp.asarray(batch["labels"]), patch=(4, 3), spec=parts.oracle.inputs)
  code = vit.apply(parts.oracle, frozen, planes, batch["image"], method="encode").code
  np.testing.assert_array_equal(got, code + 1)


def test_stage_two_prediction(two):
  system, variables, frozen, batch = two
  images = {"image": batch["image"]}
  run = jax.jit(lambda **options: system.predict["predict"](variables, frozen, images, KEY, **options),
                static_argnames=("num_samples", "temperature"))
  once, thrice = run(), run(num_samples=3)
  for name in ("semantics", "instances"):
    assert once[name].shape == (3, 8, 12) and thrice[name].shape == (3, 3, 8, 12)
    for sample in range(3):
      np.testing.assert_array_equal(thrice[name][:, sample], once[name])
  hot = run(num_samples=3, temperature=5.0)
  assert any(np.any(hot[name][:, 0] != hot[name][:, 1]) for name in hot)
  void = system.predict["predict"](variables, frozen, {"image": batch["image"]}, KEY,
                                    task_options={"min_fraction": 1.0})
  assert not any(np.any(x) for x in void.values())


def test_sequences_of_a_system(two):
  system, variables, frozen, batch = two
  got = jax.jit(lambda: system.predict["sequences"](variables, frozen, batch, KEY, num_samples=2, temperature=2.0))()
  assert {name: x.shape for name, x in got.items()} == {"tokens": (3, 2, 4), "logprobs": (3, 2, 4), "scores": (3, 2)}
  assert got["tokens"].min() >= 1


def test_decoding_sees_the_other_image(two):
  """The base model takes `image_ctx`, the language model `image`."""
  system, variables, frozen, batch = two
  run = jax.jit(lambda batch: (system.predict["sequences"](variables, frozen, batch, KEY)["logprobs"],
                               system.predict["predict"](variables, frozen, batch, KEY)))
  images = {"image": batch["image"], "image_ctx": batch["image"]}
  same, other = run(images), run(images | {"image_ctx": -batch["image"]})
  np.testing.assert_array_equal(same[0], other[0])
  assert any(np.any(same[1][name] != other[1][name]) for name in same[1])


def test_frozen_stage_from_a_file(one, stage_two_config, tmp_path):
  _, stage_one, batch = one
  shapes = lm.make(stage_two_config()).frozen
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, stage_one)
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
  weights.save_npz(tmp_path / "oracle.npz", {"params": stage_one.params, "state": stage_one.state})
  frozen = lm.make(stage_two_config(oracle__model_init=str(tmp_path / "oracle.npz"))).frozen
  assert isinstance(frozen, Vars)
  for (name, got), (_, want) in zip(flatten_names(frozen), flatten_names(stage_one), strict=True):
    np.testing.assert_array_equal(got, want, err_msg=name)


def test_frozen_stage_that_does_not_fit(one, stage_two_config, tmp_path):
  _, stage_one, _ = one
  params = {name: leaf for name, leaf in stage_one.params.items() if name != "decoder_stem"}
  weights.save_npz(tmp_path / "oracle.npz", {"params": params, "state": stage_one.state})
  with pytest.raises(UserError, match="config.oracle.model_init(.|\n)*decoder_stem/kernel"):
    lm.make(stage_two_config(oracle__model_init=str(tmp_path / "oracle.npz")))


# ---- both ----


def test_bfloat16(stage_one_config, stage_two_config, one):
  _, variables, batch = one
  system = vit.make(stage_one_config(dtype="bfloat16"))
  fresh = jax.eval_shape(system.init, KEY, batch)
  assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
  (loss, _), grads = loss_and_grad(system, variables, (), batch)
  (want, _), _ = loss_and_grad(one[0], variables, (), batch)
  np.testing.assert_allclose(loss, want, rtol=0.05)
  assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
  parts = lm.make(stage_two_config(dtype="bfloat16")).loss.keywords["parts"]
  assert parts.model.dtype == parts.oracle.dtype == jnp.bfloat16


def test_label_limits(stage_one_config, stage_two_config):
  assert vit.make(stage_one_config()).label_limits == lm.make(stage_two_config()).label_limits == (5, 4)


def test_functions_hold_what_they_need(stage_one_config):
  """A system is pure functions with their settings bound, which can be read."""
  system = vit.make(stage_one_config())
  assert isinstance(system.loss, functools.partial) and system.loss.keywords["w_commitment"] == 0.25
  assert vit.make(stage_one_config(w_commitment=None)).loss.keywords["w_commitment"] == 0.0
