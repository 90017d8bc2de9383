"""AiT's heads against stored runs of the authors' code: sequences, losses with their gradients, outputs."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.decoding.objects import Written
from uvim_like.evaluators.paste import paste_mask
from uvim_like.models.ait_transformer import Transformer
from uvim_like.models.ait_vqvae import Model as Tokenizer
from uvim_like.systems.ait import losses, predict, pretrained, sequences, solver
from uvim_like.systems.ait.ait_vocab import BOX, TASK_IDS, Vocabulary, box_pixels, box_tokens
from uvim_like.systems.ait.noise_boxes import Slots
from uvim_like.systems.ait.parts import Options, Parts, decode_maps, encode_maps
from uvim_like.systems.base import Vars

pytestmark = pytest.mark.parity
RTOL = 1e-5
FLIPPED = 8  # pixels at the contour of a pasted mask that may fall on the other side of one half


class Case:
  """One stored set of heads: arrays, our parts with the same tokenizers."""

  def __init__(self, path):
    self.name = path.stem
    with np.load(path) as data:
      self.io = {key: data[key] for key in data.files}
    self.config = c = json.loads(path.with_suffix(".json").read_text())["config"]
    others = c["V"] - c["depth_offset"] - c["Kd"]
    self.vocabulary = Vocabulary(c["num_bins"], c["num_classes"], c["K"], c["Kd"], others)
    self.tokenizers, self.frozen = {}, {}
    for task, name in (("depth", "depth_vqvae"), ("instances", "insseg_vqvae")):
      params, state = pretrained.from_torch({key.split("/", 1)[1].removeprefix(f"{name}."): value
                                             for key, value in self.io.items() if key.startswith(f"sd/{name}.")})
      block = c["depth_vae" if task == "depth" else "insseg_vae"]
      downs = sum(key.startswith("down") for key in params["encoder"])
      self.tokenizers[task] = Tokenizer(
          input_size=(block["mask_size"],) * 2, ratio=2 ** downs, first_width=block["hidden_dim"] // 2 ** (downs - 1),
          num_res_blocks=block["num_resnet_blocks"], dict_size=block["num_embeddings"],
          codeword_dim=block["embedding_dim"], signed=block["use_norm"])
      self.frozen[task] = Vars(jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, state))

  def __getitem__(self, key):
    return jnp.asarray(self.io[key])

  def parts(self, task):
    c = self.config
    options = Options(tasks=(task,), num_objects=c["nq"], box_norm=c["norm_val"], tau=c["tau"],
                      depth_weight=c["depth_loss_weight"], mask_tau=c["insseg_vae"]["tau"])
    size = self.tokenizers["depth"].input_size
    return Parts(nn.Module(), Transformer(vocab_size=c["V"]), self.vocabulary, self.tokenizers, options, size)

  def close(self, got, key, tolerance=RTOL):
    want = self.io[key]
    assert np.shape(got) == want.shape, f"{self.name}: {key}: {np.shape(got)} is not {want.shape}"
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(), 1e-6),
                               err_msg=f"{self.name}: {key}")

  def same(self, got, key):
    np.testing.assert_array_equal(got, self.io[key], err_msg=f"{self.name}: {key}")

  def objective(self, task, logits, sequence, truth=None, objects=None):
    """(un-normalised loss, gradient by the logits, metrics), as the heads return it."""
    number = jnp.sum(sequence.targets >= 0)
    ids = jnp.full((len(logits),), TASK_IDS[task])

    def total(logits):
      value, metrics = solver.objective(logits, sequence, truth or {}, objects, ids, self.frozen,
                                        parts=self.parts(task))
      return value * number, metrics

    (value, metrics), grad = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    return value, grad, metrics


@pytest.fixture(scope="module")
def cases(stored):
  return [Case(path) for path in stored("ait_heads*.npz")]


def depth_sequence(case):
  parts = case.parts("depth")
  batch = {"labels": np.asarray(case["in/depth"]).transpose(0, 2, 3, 1)}
  return jax.jit(functools.partial(solver.map_targets, batch, "depth", parts=parts))(case.frozen)


def test_depth_sequence(cases):
  for case in cases:
    sequence, _ = depth_sequence(case)
    case.same(sequence.inputs[:, :-1], "out/depth_input_seq")
    case.same(sequence.targets, "out/depth_target_seq")


def test_depth_loss(cases):
  for case in cases:
    sequence, truth = depth_sequence(case)
    value, grad, metrics = case.objective("depth", case["in/depth_logits"], sequence, {"depth": truth})
    case.close(value, "out/depth_loss")
    case.close(jnp.mean(metrics["loss_code"]), "out/depth_ce")
    case.close(grad, "out/depth_logits_grad")
    parts, logits = case.parts("depth"), case["in/depth_logits"]
    every = jnp.ones((len(logits),), bool)
    aux, _ = solver.depth_aux(logits, truth, every, case.frozen, 1.0, parts=parts)
    case.close(aux, "out/depth_silog")
    if "in/depth_target_with_ignore" in case.io:
      targets = case["in/depth_target_with_ignore"]
      targets = jnp.where(targets < 0, sequences.IGNORED, targets)
      value, _, _ = case.objective("depth", logits, sequence._replace(targets=targets), {"depth": truth})
      case.close(value, "out/depth_loss_with_ignore")


def test_depth_maps(cases):
  for case in cases:
    parts, rows = case.parts("depth"), case.vocabulary.depth
    logits = case["in/depth_logits"][..., rows.start:rows.start + rows.size]
    logits = logits.reshape(len(logits), *parts.map_grid("depth"), rows.size)
    soft = decode_maps(case.frozen, "depth", logits, parts=parts, tau=parts.options.tau)[..., 0]
    case.close(soft, "out/depth_soft_map")
    hard = decode_maps(case.frozen, "depth", jnp.argmax(logits, -1), parts=parts)[..., 0]
    case.close(hard, "out/depth_hard_map")


def test_losses_alone(cases):
  for case in cases:
    truth = case["in/silog_gt"]
    case.close(losses.silog(case["in/silog_pred"], truth, truth > 0), "out/silog")
    case.close(jnp.mean(losses.dice(case["in/dice_pred"], case["in/ins_masks"])), "out/dice")


def object_sequence(case, task):
  """The real objects' sequence, and Slots that hold them alone."""
  boxes, labels = case["in/ins_boxes"], case["in/ins_labels"].astype(jnp.int32) + 1
  slots = Slots(boxes[None], labels[None], jnp.arange(len(boxes))[None], jnp.ones((1, len(boxes)), bool))
  codes = None
  if task == "instances":
    codes = encode_maps(case.frozen, task, case["in/ins_masks"][..., None], parts=case.parts(task))
    codes = codes.reshape(1, len(boxes), -1)
  return sequences.of_objects(slots, jax.random.split(jax.random.key(0), 1), codes, vocabulary=case.vocabulary,
                              norm=case.config["norm_val"]), codes


def full_sequence(case, task):
  """All slots' sequence from the stored tokens, of which the first objects are real."""
  width = BOX + 1 + (case.tokenizers["instances"].code_len if task == "instances" else 0)
  tokens = case["in/ins_full_seq" if task == "instances" else "in/det_full_seq"].astype(jnp.int32)
  tokens = tokens.reshape(1, -1, width)
  real = jnp.arange(tokens.shape[1])[None] < case.config["ngt"]
  targets = sequences.object_targets(tokens, real).reshape(1, -1)
  dense = jnp.broadcast_to(jnp.arange(width) > BOX, tokens.shape).reshape(1, -1)
  weights = jnp.where(dense, case.parts(task).options.mask_weight, 1.0)
  return sequences.Sequence(tokens.reshape(1, -1), targets, weights, dense), real


@pytest.mark.parametrize(("task", "name"), [("instances", "ins"), ("detection", "det")])
def test_object_sequences(cases, task, name):
  for case in cases:
    sequence, codes = object_sequence(case, task)
    case.same(sequence.targets, f"out/{name}_seq_gt")
    if codes is not None:
      case.same(codes[0], "out/ins_mask_tokens")
    full, _ = full_sequence(case, task)
    case.same(jnp.where(full.targets < 0, -100, full.targets), f"out/{name}_targets")


def test_detection_loss(cases):
  for case in cases:
    sequence, _ = full_sequence(case, "detection")
    value, _, _ = case.objective("detection", case["in/det_logits"], sequence)
    case.close(value, "out/det_loss")


def test_instance_loss(cases):
  for case in cases:
    sequence, real = full_sequence(case, "instances")
    masks = jnp.zeros((1, real.shape[1], *case.io["in/ins_masks"].shape[1:]))
    masks = masks.at[0, :case.config["ngt"]].set(case["in/ins_masks"])
    objects = sequences.Objects(masks, real)
    value, grad, metrics = case.objective("instances", case["in/ins_logits"], sequence, objects=objects)
    case.close(value, "out/ins_loss")
    case.close(jnp.linalg.norm(grad, axis=-1), "out/ins_logits_grad_norm_per_pos", 2e-5)
    if "out/ins_decoder_aux_ce" in case.io:
      case.close(metrics["loss_mask"][0], "out/ins_decoder_aux_ce")
    weight = case.io["out/ins_class_weight"]
    rows = case.vocabulary.masks
    assert np.allclose(weight[rows.start:rows.start + rows.size], 0.2) and np.sum(weight != 1) == rows.size


def test_boxes_and_masks_of_tokens(cases):
  for case in cases:
    config, vocabulary = case.config, case.vocabulary
    tokens, logits = case["in/post_tokens"], case["in/post_mask_logits"]
    canvas = (config["norm_val"],) * 2
    parts = case.parts("instances")._replace(input_size=canvas)
    scores = jnp.zeros((1, len(tokens), 1, vocabulary.num_classes + 2))
    written = {"box": Written(tokens[None, :, :BOX], None), "class": Written(tokens[None, :, BOX:BOX + 1], scores),
               "mask": Written(tokens[None, :, BOX + 1:], logits[None])}
    scale = np.asarray(config["scale_factor"])
    want_boxes = case.io["out/post_boxes"][:, :4]
    boxes = box_pixels(tokens[:, :BOX], vocabulary, config["norm_val"]) / scale
    np.testing.assert_allclose(boxes, want_boxes, rtol=1e-5)
    np.testing.assert_array_equal(
        box_tokens(jnp.asarray(want_boxes * scale), vocabulary, config["norm_val"]), tokens[:, :BOX])
    for soft in (False, True):
      out = predict.to_objects(written, case.frozen, parts=parts, soft=soft, tau=parts.options.mask_tau)
      np.testing.assert_array_equal(out["classes"][0] - 1, case.io["out/post_classes"])
      stored = np.unpackbits(case.io[f"out/post_masks_{'soft' if soft else 'hard'}"], axis=-1)
      for mask, box, want in zip(out["masks"][0], want_boxes, stored, strict=True):
        size = tuple(config["ori_shape"])
        pasted = paste_mask(np.asarray(mask), box[[1, 0, 3, 2]], size)
        assert np.sum(pasted != want[:, :size[1]]) <= FLIPPED, case.name
