"""AiT's solver as a system: every task learns, the tokenizers do not, each switch of decoding does what it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uvim_like.errors import UserError
from uvim_like.models.ait_transformer import sine_positions
from uvim_like.systems.ait import sequences, solver
from uvim_like.systems.ait.parts import make_parts, normalize
from uvim_like.training.step import start_from, train_step
from uvim_like.trees import flatten_names

KEY = jax.random.key(0)
SIZE = (16, 24)
BACKBONE = dict(name="swinv2_t", width=8, depths=(1,), num_heads=(2,), window_size=2, pretrain_window=2,
                use_shift=(False,), position_hidden=4, out_norms=(0,), patch=8)
TOKENIZER = dict(ratio=8, first_width=4, num_res_blocks=1, dict_size=6, codeword_dim=5)
VOCABULARY = dict(num_bins=20, num_classes=3, mask_codes=6, depth_codes=6, other_codes=6)
TOKENIZERS = {
    "depth": ("depth", dict(input_size=SIZE)),
    "semantics": ("semantic_segmentation", dict(input_size=SIZE, classes=3)),
    "instances": ("instance_segmentation", dict(input_size=(16, 16), signed=True))}


def config(*tasks, model=None, **options):
  blocks = {task: dict(model=TOKENIZER | TOKENIZERS[task][1]) for task in tasks if task in TOKENIZERS}
  return {
      "model": dict(input_size=SIZE, backbone=BACKBONE, vocabulary=VOCABULARY, width=16,
                    num_encoder_layers=1, num_decoder_layers=1, num_heads=2, mlp_dim=16, max_len=30, dropout=0.0,
                    drop_path=0.0) | (model or {}),
      "tokenizers": blocks, "solver": dict(tasks=tasks, num_objects=3, box_norm=24, **options)}


@functools.cache
def make(*tasks, **options):
  """(system, variables, frozen) with tokenizers of random weights."""
  system = solver.make(config(*tasks, **options))
  shapes = jax.eval_shape(system.init, KEY, batch())
  return system, filled(shapes, 0.3), filled(system.frozen, 0.5)


def filled(shapes, scale):
  """Random values for shapes, from numpy: compiling the initialisers takes longer than the tests."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), shapes)


def batch(size=3):
  rng = np.random.default_rng(1)
  low = rng.uniform(0, 0.5, (size, 2, 2))
  masks = np.zeros((size, 2, *SIZE), np.uint8)
  masks[:, :, 2:9, 3:15] = 1
  depth = rng.uniform(0.5, 5, (size, *SIZE, 1)) * (rng.uniform(size=(size, *SIZE, 1)) > 0.3)
  labels = np.array([[1, 3], [2, 0], [0, 0]], np.int32)[:size]
  return {"image": rng.uniform(-1, 1, (size, *SIZE, 3)).astype(np.float32),
          "labels": depth.astype(np.float32),
          "boxes": np.concatenate([low, low + 0.4], -1).astype(np.float32), "box_labels": labels, "masks": masks,
          "task_id": np.arange(size, dtype=np.int32) % 2}


def data(*tasks):
  out = batch()
  return out | {"labels": (out["labels"] % 4).astype(np.int32)} if tasks == ("semantics",) else out


EACH = [pytest.param(("semantics",), marks=pytest.mark.slow), ("instances", "depth")]  # depth alone and detection: shapes in tests/configs_ait_test.py


@pytest.mark.parametrize("tasks", EACH)
def test_a_training_step_leaves_the_tokenizers_alone(tasks):
  system, variables, frozen = make(*tasks)
  before = jax.tree.map(np.array, frozen)
  step = jax.jit(functools.partial(train_step, system=system, tx=optax.sgd(1e-2)))
  state, metrics = step(start_from(variables, tx=optax.sgd(1e-2)), frozen, data(*tasks), KEY)
  assert np.isfinite(metrics["loss"]) and metrics["grad_norm/backbone"] > 0 and metrics["grad_norm/transformer"] > 0
  for (name, old), (_, new) in zip(flatten_names(before), flatten_names(frozen), strict=True):
    np.testing.assert_array_equal(old, new, err_msg=name)
  changed = [name for (name, a), (_, b) in zip(flatten_names(variables.params), flatten_names(state.vars.params))
             if np.any(a != b)]
  assert any("voc_embed" in name for name in changed) and any("patch_embed" in name for name in changed)
  names = {"loss_code", "accuracy"}
  names |= {aux for task, aux in (("depth", "loss_silog"), ("instances", "loss_mask"), ("semantics", "loss_pixels")) if task in tasks}
  assert names <= {name.rpartition("/")[2] for name in metrics}


@pytest.mark.parametrize("task, name", [("depth", "loss_silog"), ("semantics", "loss_pixels")])
def test_the_auxiliary_loss_is_added_to_the_mean_cross_entropy(task, name):
  with_aux, variables, frozen = make(task)
  without = solver.make(config(task, **{f"{task}_aux": 0.0}))
  a, b = jax.jit(lambda b: [s.loss(variables, frozen, b, KEY, False) for s in (with_aux, without)])(data(task))
  np.testing.assert_allclose(b.loss, np.mean(b.parts["loss_code"]), rtol=1e-5)
  assert a.loss > b.loss and set(a.parts) - set(b.parts) == {name}
  assert all(part.shape == (3,) for part in a.parts.values())


def test_an_aligned_start_has_wider_weights_one_kernel_for_queries_and_keys_and_the_memory_s_positions():
  parts = make_parts(config("depth", aligned=True))
  width, grid = parts.head.width, parts.map_grid("depth")
  shapes = jax.eval_shape(parts.head.init, KEY, jnp.zeros((1, *grid, 8)), jnp.zeros((1, 1), jnp.int32),
                          jnp.zeros((1,), jnp.int32))["params"]
  old = filled(shapes, 0.02)
  new = solver.aligned(old, grid, parts=parts)
  cross = new["decoder"]["block0"]["cross"]
  np.testing.assert_array_equal(cross["key"]["kernel"], cross["query"]["kernel"])
  np.testing.assert_array_equal(new["dec_embed"][2, :6], sine_positions(grid, width))
  factors = {}
  for (name, a), (same, b) in zip(flatten_names(old), flatten_names(new), strict=True):
    assert name == same
    if name not in ("dec_embed", "decoder/block0/cross/key/kernel"):
      factors[name.rpartition("/")[2]] = float(np.max(b / a))
  assert factors["scale"] == factors["bias"] == 1 and factors["kernel"] == pytest.approx(width ** -0.5 / 0.02)
  halved = solver.aligned(old, (1, 6), parts=parts)["dec_embed"][2, :6]   # two rows of three tokens over one row of six
  np.testing.assert_array_equal(halved, np.asarray(sine_positions((1, 6), width))[[1, 3, 5, 1, 3, 5]])


def test_standardized_depth_images_are_those_of_other_tasks():
  images = {"image": jnp.asarray(batch()["image"])}
  plain = normalize(images, jnp.full((3,), 2), standardize=False)
  assert 0 <= plain.min() and plain.max() <= 1
  np.testing.assert_array_equal(normalize(images, jnp.full((3,), 2), standardize=True),
                                normalize(images, jnp.full((3,), 3), standardize=False))


def test_a_joint_batch_is_its_tasks_apart():
  """Depth's share of the loss does not depend on the other task's examples, and each counts over its own tokens."""
  system, variables, frozen = make("instances", "depth", depth_weight=0.2)
  both = batch()
  run = jax.jit(lambda b: system.loss(variables, frozen, b, KEY, False))
  total = run(both).parts  # of three examples the second is depth's
  assert np.all(np.asarray(total["depth/loss_code"])[[0, 2]] == 0) and total["depth/loss_code"][1] > 0
  assert np.all(np.asarray(total["instances/loss_code"])[[0, 2]] > 0) and total["instances/loss_code"][1] == 0
  moved = both | {"labels": np.where(both["task_id"][:, None, None, None] == 1, both["labels"], 7.0).astype(np.float32)}
  np.testing.assert_allclose(run(moved).loss, run(both).loss, rtol=1e-5)
  with pytest.raises(UserError, match="has no 'task_id'"):
    system.loss(variables, frozen, {key: value for key, value in both.items() if key != "task_id"}, KEY, False)


def test_the_parallel_token_learns_where_it_stands():
  system, variables, frozen = make("instances", parallel=True)
  plain = jax.eval_shape(solver.make(config("instances")).init, KEY, batch())
  names = [name for name, _ in flatten_names(plain.params)]
  assert "transformer/mask_embed" not in names
  grads = jax.jit(jax.grad(lambda p, b: system.loss(variables.replace(params=p), frozen, b, KEY, True).loss))(
      variables.params, data("instances"))
  assert np.any(grads["transformer"]["mask_embed"] != 0)


def predict(tasks, options=None, **switches):
  system, variables, frozen = make(*tasks, **(options or {}))
  run = jax.jit(lambda b: system.predict["predict"](variables, frozen, b, KEY, **switches))
  return run({"image": batch()["image"]})


def test_depth_predictions():
  hard = predict(("depth",), soft_feedback=False, soft_detokenizer=False)["depth"]
  drawn = predict(("depth",), soft_feedback=False, tau=1e5)["depth"]
  both = predict(("depth",))["depth"]
  assert hard.shape == (3, *SIZE) and np.all(hard >= 1e-3)
  np.testing.assert_allclose(drawn, hard, atol=1e-4)  # a large factor makes the soft detokenizer hard
  assert np.max(np.abs(both - hard)) > 1e-3


def test_parallel_predictions():
  out = predict(("depth",), {"parallel": True}, windows=2, flip=True)["depth"]
  assert out.shape == (3, *SIZE) and np.all(np.isfinite(out))
  with pytest.raises(UserError, match="use decode='parallel'"):
    predict(("depth",), {"parallel": True}, decode="ar")
  with pytest.raises(UserError, match="config.solver.parallel=True"):
    predict(("depth",), decode="parallel", soft_feedback=False)


def quickly(function, *args):
  """The result of a function that runs once: compiled without optimisation."""
  return jax.jit(function).lower(*args).compile(compiler_options={"xla_backend_optimization_level": 0})(*args)


def test_masked_training():
  """Every parameter learns, the token that hides among them."""
  system, variables, frozen = make("depth", masked=True)
  (value, out), grads = quickly(jax.value_and_grad(
      lambda p, b: ((o := system.loss(variables.replace(params=p), frozen, b, KEY, True)).loss, o), has_aux=True),
                                variables.params, data("depth"))
  assert np.isfinite(value) and out.parts["loss_code"].shape == out.parts["accuracy"].shape == (3,)
  head = grads["transformer"]
  for name in ("mask_embed", "det_embed", "dec_embed", "voc_embed"):
    assert np.abs(head[name]).max() > 0, name
  assert all(np.abs(leaf).max() > 0 for name, leaf in flatten_names(head["decoder"]) if "key/bias" not in name)


def test_masked_copies():
  """All of the first copy is asked for, seven tenths of the second; logits of hidden tokens do not depend on them."""
  system, variables, _ = make("depth", masked=True)
  parts = system.predict["predict"].keywords["parts"]
  codes = jnp.arange(18).reshape(3, 6) % 6
  task = jnp.full((3,), 2)

  def copies(codes):
    return solver.masked_forward(variables, batch()["image"], sequences.of_map(codes, 0), task, KEY, False,
                                 parts=parts)[:2]

  (logits, asked), (other, _) = quickly(lambda codes: [copies(codes), copies((codes + 1) % 6)], codes)
  shown = np.asarray(asked.targets) >= 0
  assert logits.shape[:2] == shown.shape == (3, 12)
  assert shown[:, :6].all() and np.all(shown[:, 6:].sum(1) == 4)  # int(6 * 0.7)
  np.testing.assert_array_equal(np.asarray(asked.targets)[:, :6], codes)
  np.testing.assert_allclose(other[:, :6], logits[:, :6], atol=1e-6)
  assert np.max(np.abs(other[:, 6:] - logits[:, 6:])) > 1e-3


def test_masked_predictions():
  system, variables, frozen = make("depth", masked=True)
  image = {"image": batch()["image"]}
  run = lambda image: [system.predict["tokens"](variables, frozen, image, KEY, **options)  # noqa: E731
                       for options in (dict(stages=(1.0,)), {}, dict(order="confidence"))]
  one, staged, sure = quickly(run, image)
  np.testing.assert_array_equal(one["tokens"], np.argmax(one["logits"], -1))
  assert staged["logits"].shape == (3, 6, 6) and np.max(np.abs(staged["logits"] - one["logits"])) > 1e-3
  assert np.max(np.abs(sure["logits"] - staged["logits"])) > 1e-3
  both = functools.partial(system.predict["predict"], windows=2, flip=True)
  shapes = jax.eval_shape(both, variables, frozen, image, KEY)
  assert shapes["depth"].shape == (3, *SIZE)
  other, variables, frozen = make("semantics", masked=True)
  shapes = jax.eval_shape(other.predict["predict"], variables, frozen, image, KEY)
  assert shapes["semantics"].shape == (3, *SIZE)


def test_a_model_decodes_as_it_was_trained():
  for options, switches, message in (
      ({"masked": True}, dict(decode="ar"), "decode='ar', but the model is masked"),
      ({}, dict(decode="masked"), "decode='masked', but the model is ar"),
      ({"masked": True}, dict(soft_feedback=True), "leave soft_feedback unset"),
      ({"masked": True}, dict(temperature=1.0), "leave temperature and top_p at 0"),
      ({"masked": True}, dict(stages=(0.5,)), "must begin with 1.0")):
    with pytest.raises(UserError, match=message):
      predict(("depth",), options, **switches)
  with pytest.raises(UserError, match="set one of the two"):
    solver.make(config("depth", masked=True, parallel=True))
  with pytest.raises(UserError, match="objects would need a matching"):
    solver.make(config("instances", masked=True))


def test_instance_predictions():
  out = predict(("instances",), {"parallel": True}, temperature=1.0, top_p=0.3)
  assert out["boxes"].shape == (3, 3, 4) and out["masks"].shape == (3, 3, 16, 16)
  assert np.all((out["classes"] >= 1) & (out["classes"] <= 3)) and np.all((out["scores"] > 0) & (out["scores"] <= 1))
  assert np.all((out["boxes"] >= 0) & (out["boxes"] <= 1))


def test_other_predictions():
  assert np.all(np.isin(predict(("semantics",))["semantics"], [1, 2, 3]))
  with pytest.raises(UserError, match="unknown task 'None'"):
    predict(("instances", "depth"))


def test_images_are_padded_to_the_canvas():
  system, variables, frozen = make("depth")
  image = batch()["image"][:, :8, :16]
  run = jax.jit(lambda b: system.predict["tokens"](variables, frozen, b, KEY))
  assert run({"image": image})["tokens"].shape == (3, 6)
  with pytest.raises(UserError, match="are larger than"):
    run({"image": jnp.zeros((1, 24, 24, 3))})


@pytest.mark.parametrize(("tasks", "change", "message"), [
    (("depth",), dict(solver=dict(tasks=("deth",))), "unknown task 'deth'; did you mean 'depth'"),
    (("instances", "detection"), {}, "no two of instances, detection"),
    (("depth",), dict(tokenizers={}), "config.tokenizers: 'depth' is missing"),
    (("depth",), dict(solver=dict(paralel=True)), "unknown field 'paralel'"),
    (("instances",), dict(solver=dict(tasks=("instances",), num_objects=9)), "30 positions, but a sequence has 81")])
def test_messages(tasks, change, message):
  with pytest.raises(UserError, match=message):
    solver.make(config(*tasks) | change)


def test_layers_run_as_a_loop_where_the_config_says_so():
  looped = solver.make(config("depth") | dict(scan_layers=True)).loss.keywords["parts"].head
  assert looped.scan_layers and not solver.make(config("depth")).loss.keywords["parts"].head.scan_layers


def test_words_must_fit_the_vocabulary():
  wrong = config("depth", model=dict(vocabulary=dict(depth_codes=7)))
  with pytest.raises(UserError, match="vocabulary.depth_codes: 7, but the tokenizer of depth has 6 words"):
    solver.make(wrong)
