"""AiT's keypoints: which joints are asked for, decoding as trained in both forms, and the way to the evaluator and back."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like import config as configs
from uvim_like.decoding.objects import Written
from uvim_like.errors import UserError
from uvim_like.evaluators import coco_instances, run
from uvim_like.systems.ait import predict, sequences, solver
from uvim_like.systems.ait.ait_vocab import BOX, JOINTS, TASK_IDS, to_pixels
from uvim_like.systems.ait.noise_boxes import Slots
from uvim_like.systems.ait.parts import make_parts

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "ait" / "keypoints.py"
KEY = jax.random.key(0)
SIZE, BINS, SLOTS = (16, 24), 48, 3   # half a pixel a bin
TOKENS = BOX + 1 + JOINTS
BACKBONE = dict(name="swinv2_t", width=8, depths=(1,), num_heads=(2,), window_size=2, pretrain_window=2,
                use_shift=(False,), position_hidden=4, out_norms=(0,), patch=8)


def config(model=None, **options):
  return {"model": dict(input_size=SIZE, backbone=BACKBONE, vocabulary=dict(num_bins=BINS, num_classes=3), width=16,
                        num_encoder_layers=1, num_decoder_layers=1, num_heads=2, mlp_dim=16, max_len=SLOTS * TOKENS,
                        dropout=0.0, drop_path=0.0) | (model or {}),
          "solver": dict(tasks=("keypoints",), num_objects=SLOTS, box_norm=24, **options)}


def batch():
  """One image with a person, three of whose joints are labelled, and something else."""
  points = np.zeros((1, 2, 17, 3), np.float32)
  points[0, 0, [0, 5, 16]] = [[0.5, 0.25, 2], [0.25, 0.5, 1], [1.0, 0.75, 2]]
  return {"image": np.random.default_rng(0).uniform(-1, 1, (1, *SIZE, 3)).astype(np.float32),
          "boxes": np.array([[[0.25, 0.25, 1, 0.75], [0, 0, 0.5, 0.5]]], np.float32),
          "box_labels": np.array([[2, 1]], np.int32), "keypoints": points}


def quickly(function, *args):
  """The result of a function that runs once: compiled without optimisation."""
  return jax.jit(function).lower(*args).compile(compiler_options={"xla_backend_optimization_level": 0})(*args)


def test_only_labelled_joints_are_asked_for():
  parts = make_parts(config())
  sequence = quickly(lambda b: solver.object_targets(KEY, b, {}, parts=parts)[0], batch())
  inputs, targets, weights, dense = (np.asarray(x).reshape(SLOTS, TOKENS) for x in sequence)
  assert np.all(weights == 1) and np.all(dense == (np.arange(TOKENS) > BOX))
  first = parts.vocabulary.classes.start
  person, other = (np.flatnonzero(targets[:, BOX] == first + label - 1)[0] for label in (2, 1))
  joints = targets[person, BOX + 1:].reshape(17, 2)
  assert joints[[0, 5, 16]].tolist() == [[12, 16], [24, 8], [36, 32]]   # x, y in bins of half a pixel
  assert np.all(np.delete(joints, [0, 5, 16], 0) == sequences.IGNORED)
  read = inputs[person, BOX + 1:].reshape(17, 2)
  assert read[[0, 5, 16]].tolist() == joints[[0, 5, 16]].tolist() and np.all(read[1] == [24, 20])   # the box's middle
  assert np.all(targets[other, :BOX] >= 0) and np.all(targets[other, BOX + 1:] == sequences.IGNORED)
  assert np.all(inputs[other, BOX + 1:] == np.tile([12, 8], 17))
  noise = ({0, 1, 2} - {int(person), int(other)}).pop()
  assert np.flatnonzero(targets[noise] >= 0).tolist() == [BOX] and targets[noise, BOX] == parts.vocabulary.noise


@pytest.mark.parametrize("parallel", [False, True])
def test_decoding_is_what_was_trained(parallel):
  """Tokens written with caches are the likeliest of the whole sequence read at once, and logits of classes are its."""
  system = solver.make(config(parallel=parallel))
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32),
                           jax.eval_shape(system.init, KEY, batch()))
  variables.params["transformer"]["dec_embed"] *= 10   # or all joints get the same token
  parts = system.predict["predict"].keywords["parts"]
  image = {"image": batch()["image"]}
  start, count = parts.vocabulary.classes

  def both(variables, image):
    memory, ids = predict.encode(variables, image, "keypoints", parts=parts)
    written = predict.write_objects(variables, memory, ids, "keypoints", KEY, parts=parts, temperature=0.0, top_p=0.0,
                                    decode="parallel" if parallel else "ar", soft_feedback=False)
    tokens = [written["box"].tokens, written["class"].tokens + start, written["joints"].tokens]
    tokens = jnp.concatenate(tokens, -1).reshape(1, -1)
    dense = jnp.tile(jnp.arange(TOKENS) > BOX, SLOTS)[None]
    sequence = sequences.Sequence(tokens, tokens, jnp.ones(tokens.shape), dense)
    logits, _ = solver.forward(variables, predict.normalize(image, ids, standardize=False), sequence, ids, KEY, False, parts=parts)
    outputs = predict.to_objects(written, {}, parts=parts, soft=True, tau=1.0)
    return written, logits.reshape(1, SLOTS, TOKENS, -1), outputs

  written, logits, outputs = quickly(both, variables, image)
  np.testing.assert_allclose(written["class"].logits[..., 0, :], logits[:, :, BOX, start:start + count + 2], atol=1e-5)
  for name, steps in (("box", slice(0, BOX)), ("joints", slice(BOX + 1, None))):
    np.testing.assert_array_equal(written[name].tokens, jnp.argmax(logits[:, :, steps, :BINS + 1], -1), err_msg=name)
  assert len(np.unique(written["joints"].tokens)) > 3
  points = np.asarray(outputs["keypoints"])
  assert points.shape == (1, SLOTS, 17, 3) and np.all(points[..., 2] == 1)
  x = np.asarray(written["joints"].tokens)[..., ::2] / 2 / SIZE[1]
  np.testing.assert_allclose(points[..., 1], np.clip(x, 0, 1), atol=1e-6)


def test_messages():
  with pytest.raises(UserError, match="no two of instances, detection, keypoints"):
    make_parts(config() | {"solver": dict(tasks=("keypoints", "detection"))})
  with pytest.raises(UserError, match="num_tasks: 4, but the tasks need 5 rows"):
    make_parts(config(model=dict(num_tasks=4)))
  assert make_parts(config()).head.num_tasks == 5
  with pytest.raises(UserError, match="need 'keypoints' of 17 joints in the batch"):
    bare = {key: value for key, value in batch().items() if key != "keypoints"}
    solver.object_targets(KEY, bare, {}, parts=make_parts(config()))


def written_truth(labelled, parts):
  """What a decoder without errors would have written for a batch."""
  labels, vocabulary = jnp.asarray(labelled["box_labels"]), parts.vocabulary
  slots = Slots(to_pixels(labelled["boxes"], parts.input_size), labels,
                jnp.broadcast_to(jnp.arange(labels.shape[1]), labels.shape), labels > 0)
  norm = parts.options.box_norm
  joints = sequences.joints_of(slots, labelled, vocabulary=vocabulary, norm=norm)
  sequence = sequences.of_objects(slots, jax.random.split(KEY, len(labels)), None, vocabulary=vocabulary, norm=norm,
                                  corrupt=False, joints=joints)
  tokens = sequence.inputs.reshape(*labels.shape, -1)
  classes = tokens[..., BOX:BOX + 1] - vocabulary.classes.start
  logits = 50 * jax.nn.one_hot(classes, vocabulary.num_classes + 2)
  return {"box": Written(tokens[..., :BOX], None), "joints": Written(tokens[..., BOX + 1:], None),
          "class": Written(jnp.where(labels > 0, classes[..., 0], 0)[..., None], logits)}


def test_perfect_tokens_are_measured_as_such():
  pipeline = pytest.importorskip("pp_ops.pipeline")
  cfg = configs.with_defaults(configs.load_file(f"{CONFIG}:scenes,runlocal"))
  parts, block = make_parts(cfg), cfg.object_val
  assert TASK_IDS["keypoints"] < parts.head.num_tasks and parts.length("keypoints") == cfg.model.max_len
  metric = coco_instances.make(dataset=block.dataset, **block.metric)
  batches = pipeline.eval_batches(dataset=block.dataset, split="validation[:48]", pp=block.pp, batch_size=16,
                                  pp_modules=cfg.pp_modules, target_keys=metric.target_keys)
  perfect = jax.jit(lambda b: predict.to_objects(written_truth(b, parts), {}, parts=parts, soft=True, tau=1.0))
  keys = ("image", "boxes", "box_labels", "keypoints")
  found = run.evaluate(lambda b: perfect({key: b[key] for key in keys}), batches, metric)
  assert found["images"] == 48 and found["keypoint_AP"] > 0.95 and found["box_AP"] > 0.9
