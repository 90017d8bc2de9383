"""MAD (Masked AutoDecoder, CVPR 2024): boxes, masks, keypoints and captions from one decoder of masked token sequences.

Where the paper and its released code differ, the paper's form is the default of `Objectives`, `Vocabulary` and
`predict`, and the code's form a switch there; `settings.CODE_FORM` lists them. `form="autoregressive"` is the baseline
of the paper's table 2 on the same network.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvim_like import weights
from uvim_like.errors import UserError, unknown
from uvim_like.models.mad import Model, Picture
from uvim_like.systems import batch_stats
from uvim_like.systems.base import LossOut, System, Vars
from uvim_like.systems.fields import build, check_choice
from uvim_like.systems.mad import autoregressive, inference, losses, masking, sequences
from uvim_like.systems.mad.settings import Objectives, check_model, check_objectives, check_vocabulary, fill
from uvim_like.systems.mad.vocabulary import TASKS, Vocabulary

Array = jax.Array
READS = {"sequences": {}, "objectives": {}}  # keys of a config that not all systems read, and their defaults


class Parts(NamedTuple):
  """What the functions of this system hold fixed."""
  model: Model
  vocabulary: Vocabulary
  objectives: Objectives


def make(config: Mapping[str, Any]) -> System:
  """The system of a config with the blocks `model`, `sequences` (`Vocabulary`) and `objectives` (`Objectives`).

  Raises:
    UserError: an unknown field, task, form or backbone; sizes or ratios that cannot be.
  """
  vocabulary = check_vocabulary(fill(Vocabulary, config.get("sequences") or {}, where="config.sequences"))
  objectives = check_objectives(fill(Objectives, config.get("objectives") or {}, where="config.objectives"))
  fields = dict(config["model"])
  for name in ("vocab_size", "max_length"):
    if name in fields:
      raise UserError(f"config.model.{name}: follows from config.sequences; leave it out")
  model = build(Model, fields | dict(vocab_size=vocabulary.size, max_length=vocabulary.max_length), config,
                where="config.model")
  check_model(model, where="config.model")
  parts = Parts(model, vocabulary, objectives)
  source, kept = config.get("model_init"), (config.get("model_load") or {}).get("dont_load", ())
  return System(init=functools.partial(init, parts=parts), loss=functools.partial(loss, parts=parts),
                predict={"predict": functools.partial(predict, parts=parts)}, advance=batch_stats.advance,
                load=functools.partial(load, source=source, dont_load=kept) if source else None)


def load(variables: Vars, *, source: Any, dont_load: Sequence[str] = ()) -> tuple[Vars, str]:
  """Fresh variables with those of a file or workdir in their place; {"backbone": source} fills the backbone alone.

  Returns:
    The variables and the report of what was taken.
  """
  if isinstance(source, str):
    loaded = weights.load(source, where="config.model_init")
  else:
    for part in source:
      if part != "backbone":
        raise unknown("part", part, ["backbone"], where="config.model_init")
    found = weights.load(source["backbone"], where="config.model_init.backbone")
    loaded = {group: {"features": tree.get("features", tree)} for group, tree in found.items() if tree}
    dont_load = (*dont_load, r"(params|state)/(?!features/).*")
  full = {"params": variables.params, "state": variables.state}
  merged, report = weights.merge(full, {"params": {}, "state": {}, **loaded}, dont_load, where="config.model_init")
  return Vars(params=merged["params"], state=merged["state"]), report.text()


def init(key: Array, batch: Mapping[str, Array], *, parts: Parts) -> Vars:
  """Initial parameters, and batch statistics of the backbone, from a batch of the right shapes."""
  params_key, dropout_key = jax.random.split(key)
  tokens = jnp.zeros((1, 1, parts.vocabulary.max_length), jnp.int32)
  image = batch["image"][:1]
  size = jnp.array([image.shape[1:3]])
  variables = dict(parts.model.init({"params": params_key, "dropout": dropout_key}, image, size, tokens))
  return Vars(params=variables["params"], state=variables.get("state", {}))


# --- training -------------------------------------------------------------------------------------------------------


def loss(variables: Vars, frozen: Any, batch: Mapping[str, Array], key: Array, train: bool, *,
         parts: Parts) -> LossOut:
  """Weighted sum over the tasks of the cross entropy of their hidden (or, autoregressive, all) tokens.

  Each task is the sum over the decoder's layers of the mean over all tokens that count, with one denominator for the
  whole batch. `parts` hold each image's mean over its own tokens and layers.
  """
  del frozen
  dropout_key, draw_key = jax.random.split(key)
  call = functools.partial(_apply, parts.model, variables, dropout_key)
  picture, state = encode(parts.model, variables, batch, dropout_key, train=train)
  objectives, total, shown = parts.objectives, 0.0, {}
  for index, task in enumerate(objectives.tasks):
    sums = task_loss(task, call, picture, batch, jax.random.fold_in(draw_key, TASKS.index(task)), train, parts=parts,
                     stream=index)
    total += objectives.weights[task] * parts.model.decoder_layers * sums.mean
    shown[f"loss_{task}"] = sums.per_example
  return LossOut(total, state, shown, batch_stats.sums(state) if train else ())


def encode(model: Model, variables: Vars, batch: Mapping[str, Array], key: Array, *,
           train: bool) -> tuple[Picture, Any]:
  """The encoded images, and the next batch statistics."""
  tree = {"params": variables.params, "state": variables.state}
  arguments = batch["image"], sequences.picture_size(batch)
  if not train:
    return model.apply(tree, *arguments, method="encode"), variables.state
  picture, changed = model.apply(tree, *arguments, train=True, method="encode", rngs={"dropout": key},
                                 mutable=["state"])
  return picture, {**variables.state, **changed.get("state", {})}


def _apply(model: Model, variables: Vars, key: Array, method: str, *args, stream: int = 0, **kwargs) -> Any:
  return model.apply({"params": variables.params, "state": variables.state}, *args, method=method,
                     rngs={"dropout": jax.random.fold_in(key, 1 + stream)}, **kwargs)


def task_loss(task: str, call: Any, picture: Picture, batch: Mapping[str, Array], key: Array, train: bool, *,
              parts: Parts, stream: int) -> losses.Sums:
  """One task: its sequences, one call of the decoder, targets of every layer, cross entropy."""
  vocabulary, objectives = parts.vocabulary, parts.objectives
  causal = objectives.form == "autoregressive"
  training = training_sequences(task, batch, key, parts=parts)
  tokens = autoregressive.causal_inputs(training) if causal else training.inputs
  outputs = call("decode", tokens, picture, causal=causal, train=train, stream=stream)
  first = training.prompts.shape[-1] - causal
  outputs = jnp.stack([layer[:, :, first:] for layer in outputs])
  logits = call("logits", outputs, vocabulary.rows(task))
  targets = losses.every_layer(logits.shape[0], training)
  if task == "boxes" and not causal:
    found = sequences.objects(batch, vocabulary)
    wanted = vocabulary.to_local(task, found.tokens)
    costs = losses.box_costs(logits, vocabulary.to_local(task, training.responses), training.masked, wanted)
    targets = losses.match_boxes(costs, wanted, found.valid, training.masked, vocabulary=vocabulary,
                                 noise_weight=objectives.noise_weight, solver=objectives.matcher)
  if task == "captions" and not causal:
    ratios = objectives.mask_ratios
    full = ratios.index(1.0) if 1.0 in ratios else None
    counts = [masking.sequences_of(ratio, captions_of(batch, parts).shape[1]) for ratio in ratios]
    targets = losses.choose_caption(logits, training, captions_of(batch, parts),
                                    None if full is None else sum(counts[:full]))
  return losses.cross_entropy(logits, targets)


def captions_of(batch: Mapping[str, Array], parts: Parts) -> Array:
  """(B, R, L) text pieces of the batch."""
  return sequences.fit_captions(require(batch, "captions"), references=parts.objectives.references,
                                length=parts.vocabulary.caption_length)


def require(batch: Mapping[str, Array], name: str) -> Array:
  """An entry of the batch; UserError when the preprocessing did not keep it."""
  if name not in batch:
    raise UserError(f"MAD needs '{name}' in the batch for its tasks; keep it in pp_train, or drop the task from "
                    f"config.objectives.tasks (there are {sorted(batch)})")
  return batch[name]


def training_sequences(task: str, batch: Mapping[str, Array], key: Array, *, parts: Parts) -> sequences.Training:
  """The sequences of one task from a batch and fresh draws."""
  vocabulary, objectives = parts.vocabulary, parts.objectives
  draw_key, ratio_key = jax.random.split(key)
  causal, size = objectives.form == "autoregressive", batch["image"].shape[0]
  ratios = (1.0,) if causal else objectives.mask_ratios
  shared = dict(vocabulary=vocabulary, ratios=ratios)
  if task == "captions":
    captions = captions_of(batch, parts)
    if causal:
      return autoregressive.caption_training(captions, vocabulary=vocabulary)
    draws = masking.draw_captions(draw_key, batch=size, references=captions.shape[1], **shared)
    return sequences.caption_training(captions, draws, noise=objectives.caption_noise,
                                      noise_masked=objectives.noise_masked_captions, key=ratio_key, **shared)
  slots = require(batch, "boxes").shape[1]
  found = sequences.objects(batch, vocabulary)
  if task == "boxes":
    if slots > vocabulary.queries:
      raise UserError(f"config.sequences.queries: {vocabulary.queries}, but the batch has {slots} object slots; "
                      f"nearest: {slots}")
    if causal:
      return autoregressive.box_training(found, draw_key, vocabulary=vocabulary, noise_weight=objectives.noise_weight)
    return sequences.box_training(found, masking.draw_boxes(draw_key, batch=size, **shared), key=ratio_key, **shared)
  instances = min(objectives.instances, slots)
  chosen = dict(slots=slots, instances=instances)
  if task == "masks":
    bits = require(batch, "box_masks")
    if bits.shape[-1] != vocabulary.mask_side:
      raise UserError(f"config.sequences.mask_side: {vocabulary.mask_side}, but box_masks are {bits.shape[-2:]}; "
                      f"nearest: {bits.shape[-1]}")
    draws = masking.draw_masks(draw_key, batch=size, **chosen, **shared)
    return sequences.mask_training(found, bits, draws, instances=instances, key=ratio_key, **shared)
  points, seen = joints_of(batch, parts)
  draws = masking.draw_keypoints(draw_key, batch=size, **chosen, **shared)
  return sequences.keypoint_training(found, points, seen, draws, instances=instances, key=ratio_key, **shared)


def joints_of(batch: Mapping[str, Array], parts: Parts) -> tuple[Array, Array]:
  """(x, y fractions of the picture (B, N, J, 2), whether the place counts (B, N, J)) of "keypoints"."""
  keypoints = require(batch, "keypoints")
  if keypoints.shape[2] != parts.vocabulary.joints:
    raise UserError(f"config.sequences.joints: {parts.vocabulary.joints}, but the batch has {keypoints.shape[2]}")
  places = keypoints[..., :2] * sequences.to_picture(batch)[:, None, None]
  seen = keypoints[..., 2] > (0 if parts.objectives.occluded_visible else 1)
  return places[..., ::-1], seen


# --- prediction -----------------------------------------------------------------------------------------------------


def predict(variables: Vars, frozen: Any, batch: Mapping[str, Array], key: Array, *, parts: Parts,
            tasks: Sequence[str] | None = None, instances: int | None = None,
            stages: Mapping[str, Sequence[float]] | None = None, order: Mapping[str, str] | None = None,
            combine: str = "average", top_p: Mapping[str, float] | None = None, all_rows: bool = False,
            requantise: bool = False, half_bin: bool | Sequence[str] = False,
            chunk: int = inference.CHUNK) -> dict[str, Array]:
  """Detects, then writes a mask, keypoints and a caption, in one call for the batch.

  A model that was not trained to detect takes the batch's own boxes.

  Args:
    variables: parameters and batch statistics.
    frozen: unused.
    batch: image and, where there is padding, valid_size.
    key: random key.
    parts: model, vocabulary, objectives.
    tasks: those to run; all that were trained by default.
    instances: masks and keypoints of the so many best boxes; None for all.
    stages: {task: shares of tokens that are hidden in each stage}, over `inference.STAGES`.
    order: {task: "random" or "confidence"}, what is hidden again, over `inference.ORDER`.
    combine: how stages are combined, see `decoding.masked.decode`.
    top_p: {task: nucleus, 0 for greedy} of the autoregressive form.
    all_rows: class probabilities over the whole table before the text (code), else over the task's tokens.
    requantise: prompts of boxes that went through floats (code).
    half_bin: coordinates in the middle of their bins; True, or the tasks of which ("boxes", "keypoints").
    chunk: sequences of an image that are decoded at a time; bounds memory.

  Returns:
    "boxes" (B, Q, 4) yxyx of the canvas, "scores" (B, Q), "classes" (B, Q); "masks" (B, Q, side, side); "keypoints"
    (B, Q, J, 3); "captions" (B, L).
  """
  del frozen
  trained = parts.objectives.tasks
  for task in tasks or ():
    check_choice(task, trained, where="predict: tasks")
  for task in () if isinstance(half_bin, bool) else half_bin:
    check_choice(task, ("boxes", "keypoints"), where="predict: half_bin")
  picture, _ = encode(parts.model, variables, batch, key, train=False)
  tree = {"params": variables.params, "state": variables.state}
  if parts.objectives.form == "autoregressive":
    step = lambda tokens, start, caches, rows: parts.model.apply(  # noqa: E731
        tree, tokens, start, caches, picture, rows, method="step")
    stepper = autoregressive.Stepper(lambda *sizes: parts.model.apply(tree, *sizes, method="start"), step,
                                     parts.vocabulary)
    decode = functools.partial(autoregressive.decode, stepper=stepper,
                               top_p=_over(autoregressive.TOP_P, top_p, "top_p"))
  else:
    network = inference.Network(lambda tokens, picture: parts.model.apply(tree, tokens, picture, method="decode")[-1],
                                functools.partial(parts.model.apply, tree, method="logits"), picture,
                                parts.vocabulary, chunk)
    decode = functools.partial(inference.masked_decode, network=network, combine=combine, all_rows=all_rows,
                               stages=_over(inference.STAGES, stages, "stages"),
                               order=_over(inference.ORDER, order, "order"))
  wanted = [task for task in TASKS if task in (tasks or trained)]
  return inference.infer(decode, batch, key, vocabulary=parts.vocabulary, tasks=wanted, instances=instances,
                         half_bin=half_bin, requantise=requantise,
                         all_rows=all_rows and parts.objectives.form == "masked")


def _over(defaults: Mapping[str, Any], given: Mapping[str, Any] | None, option: str) -> dict[str, Any]:
  """Defaults of every task with those that were given."""
  for task in given or {}:
    check_choice(task, TASKS, where=f"predict: {option}")
  return {**defaults, **(given or {})}
