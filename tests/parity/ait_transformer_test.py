"""AiT's encoder-decoder against stored runs of the authors' code: memory, teacher forcing, every form of decoding."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.ait_transformer import Transformer
from uvim_like.models.ait_vqvae import Model as Tokenizer
from uvim_like.ops import sampling
from uvim_like.systems.ait import predict, pretrained
from uvim_like.systems.ait.ait_vocab import BOX, TASK_IDS, Vocabulary
from uvim_like.systems.ait.parts import Options, Parts
from uvim_like.systems.base import Vars

pytestmark = pytest.mark.parity
ATOL = 2e-5


def tokenizer(grid, words):
  return Tokenizer(input_size=(8 * grid[0], 8 * grid[1]), ratio=8, dict_size=words)


class Case:
  """One stored transformer: arrays, and ours with the same weights."""

  def __init__(self, path):
    self.name = path.stem
    with np.load(path) as data:
      self.io = {key: data[key] for key in data.files}
    self.config = config = json.loads(path.with_suffix(".json").read_text())["config"]
    state_dict = {key.removeprefix("sd/"): value for key, value in self.io.items() if key.startswith("sd/")}
    params = pretrained.transformer_from_torch(state_dict, num_heads=config["nhead"])
    others = config["num_vocal"] - config["offsets"]["depth_offset"] - config["num_embeddings_depth"]
    self.vocabulary = Vocabulary(config["num_bins"], config["num_classes"], config["num_embeddings"],
                                 config["num_embeddings_depth"], others)
    self.head = Transformer(
        vocab_size=config["num_vocal"], width=config["d_model"], num_encoder_layers=config["num_encoder_layers"],
        num_decoder_layers=config["num_decoder_layers"], num_heads=config["nhead"], mlp_dim=config["dim_feedforward"],
        max_len=config["dec_length"], parallel=True, num_tasks=len(params["det_embed"]))
    self.variables = Vars({"transformer": jax.tree.map(jnp.asarray, params)})
    self.src = jnp.asarray(self.io["in/src"].transpose(0, 2, 3, 1))
    self.call = functools.partial(self.head.apply, {"params": self.variables.params["transformer"]})

  def parts(self, *, parallel=False):
    """Parts of a solver whose sequences are as long as the stored ones."""
    grid, config = self.src.shape[1:3], self.config
    codes = config["mask_token_length"]
    tokenizers = {"depth": tokenizer(grid, config["num_embeddings_depth"]),
                  "instances": tokenizer((1, codes), config["num_embeddings"])}
    options = Options(tasks=("depth", "instances"), parallel=parallel, num_objects=config["num_objects"])
    return Parts(nn.Module(), self.head, self.vocabulary, tokenizers, options, tokenizers["depth"].input_size)

  def task(self, name):
    return jnp.full((len(self.src),), TASK_IDS[name])

  @functools.cached_property
  def memory(self):
    return jax.jit(functools.partial(self.call, method="encode"))(self.src)

  def close(self, got, key, tolerance=ATOL):
    want = self.io[key]
    assert np.shape(got) == want.shape, f"{self.name}: {key}: {np.shape(got)} is not {want.shape}"
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, err_msg=f"{self.name}: {key}")

  def same(self, got, key):
    np.testing.assert_array_equal(got, self.io[key], err_msg=f"{self.name}: {key}")

  def write_map(self, *, parallel=False, soft=False):
    """(tokens, logits) of the depth sequence."""
    run = jax.jit(functools.partial(
        predict.write_map, task="depth", parts=self.parts(parallel=parallel), soft_feedback=soft, temperature=0.0,
        top_p=0.0, decode="parallel" if parallel else "ar"))
    out = run(self.variables, self.memory, self.task("depth"), key=jax.random.key(0))
    return np.asarray(out.tokens[:, 0]), np.asarray(out.logits[:, 0])

  def write_objects(self, task, *, soft=False):
    parts = self.parts()
    parts = parts._replace(options=parts.options._replace(tasks=(task,)))
    run = jax.jit(functools.partial(predict.write_objects, task=task, parts=parts, decode="ar", soft_feedback=soft,
                                    temperature=0.0, top_p=0.0))
    written = run(self.variables, self.memory, self.task(task), key=jax.random.key(0))
    tokens = np.concatenate([np.asarray(group.tokens) for group in written.values()], axis=-1)
    return tokens.reshape(len(tokens), -1), written

  def scores(self, written):
    parts = self.parts()
    boxes = {name: group for name, group in written.items() if name != "mask"}
    return predict.to_objects(boxes, {}, parts=parts, soft=False, tau=1.0)["scores"]


@pytest.fixture(scope="module")
def cases(stored):
  return [Case(path) for path in stored("ait_transformer*.npz")]


def test_vocabulary(cases):
  for case in cases:
    offsets, vocabulary = case.config["offsets"], case.vocabulary
    assert offsets == {"class_offset": vocabulary.classes.start, "noise_label": vocabulary.noise,
                       "mask_offset": vocabulary.masks.start, "depth_offset": vocabulary.depth.start}
    assert vocabulary.size == case.config["num_vocal"]


def test_every_parameter_has_its_place(cases):
  for case in cases:
    shapes = jax.eval_shape(case.head.init, jax.random.key(0), case.src[:1], jnp.zeros((1, 2), jnp.int32),
                            jnp.zeros((1,), jnp.int32))["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, case.variables.params["transformer"])


def test_memory(cases):
  for case in cases:
    case.close(case.memory, "out/memory")


def test_teacher_forcing(cases):
  for case in cases:
    run = jax.jit(case.call)
    codes = jnp.asarray(case.io["in/depth_input_seq"], jnp.int32)
    case.close(run(case.src, codes, case.task("depth")), "out/tf_logits")
    case.close(run(case.src, jnp.asarray(case.io["in/mixed_input_seq"], jnp.int32),
                   jnp.asarray(case.io["in/mixed_task_id"], jnp.int32)), "out/mixed_tf_logits")


@pytest.mark.parametrize("soft", [False, True])
def test_depth_step_by_step(cases, soft):
  for case in cases:
    tokens, logits = case.write_map(soft=soft)
    kind = "soft" if soft else "hard"
    case.close(logits, f"out/depth_{kind}_logits")
    case.same(tokens, f"out/depth_{kind}_tokens")


def test_depth_in_one_pass(cases):
  for case in cases:
    hidden = jnp.ones(case.io["in/depth_input_seq"].shape, bool)
    logits = jax.jit(case.call)(case.src, jnp.zeros(hidden.shape, jnp.int32), case.task("depth"), hidden=hidden)
    case.close(logits, "out/parallel_tf_logits")
    tokens, logits = case.write_map(parallel=True)
    case.close(logits, "out/parallel_logits")
    case.same(tokens, "out/parallel_tokens")


def test_detection(cases):
  for case in cases:
    tokens, written = case.write_objects("detection")
    case.same(tokens, "out/det_tokens")
    case.close(case.scores(written), "out/det_scores")


@pytest.mark.parametrize("soft", [False, True])
def test_instances(cases, soft):
  for case in cases:
    tokens, written = case.write_objects("instances", soft=soft)
    kind = "soft" if soft else "hard"
    case.same(tokens, f"out/ins_{kind}_tokens")
    case.close(case.scores(written), f"out/ins_{kind}_scores")
    if soft:
      case.close(written["mask"].logits, "out/ins_soft_mask_logits")
    else:  # soft in the detokenizer alone: the same tokens, whose logits are kept
      case.same(tokens, "out/ins_softvae_tokens")
      case.close(written["mask"].logits, "out/ins_softvae_mask_logits")


def test_nucleus(cases):
  """The filtered distributions along the stored choices, each the most likely one."""
  for case in cases:
    stored = sorted(key for key in case.io if key.startswith("out/nucleus") and key.endswith("_probs"))
    if not stored:
      continue
    top_p = float(stored[0].split("/")[1].split("_")[0].removeprefix("nucleus"))
    modes = case.io[next(key for key in case.io if key.startswith("out/nucleus") and key.endswith("tokens_mode"))]
    ranges = [case.vocabulary.coordinates] * BOX + [case.vocabulary.classes]
    per_object = len(ranges)
    starts = np.array([ranges[i % per_object].start for i in range(modes.shape[1])])
    logits = jax.jit(case.call)(case.src, jnp.asarray(modes + starts, jnp.int32)[:, :-1], case.task("detection"))
    for key in stored:
      step = int(key.split("step")[1].split("_")[0])
      start, size = ranges[step % per_object]
      kept = jax.nn.softmax(sampling.keep_top_p(logits[:, step, start:start + size], top_p), axis=-1)
      case.close(kept, key, 1e-5)
      np.testing.assert_array_equal(np.argmax(kept, -1), modes[:, step])
