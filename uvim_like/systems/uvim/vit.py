"""UViM stage I: a base model guided by a short code that a restricted oracle writes (arXiv 2205.10337, section 3.1)."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from uvim_like import keywords, weights
from uvim_like.errors import UserError
from uvim_like.models.layers import POSITIONS
from uvim_like.models.uvim import Code, Model
from uvim_like.ops import quantize
from uvim_like.ops.losses import example_mean
from uvim_like.systems.base import LossOut, System, Vars
from uvim_like.systems.fields import build, check_choice, check_patches, check_width
from uvim_like.tasks.base import Task, bind

Array = jax.Array
CODE_DROPOUT = ("none", "random", "ordered")
QUANTIZERS = ("vq", "fsq")
READS = {"freeze_dict": False, "w_commitment": 0.0}  # keys of a config that not all systems read, and their defaults


def make(config: Mapping[str, Any]) -> System:
  """The system of a config in the vocabulary of the paper's Listing 1.

  Raises:
    UserError: an unknown task or model field, sizes that do not divide, a dictionary that does not fit its levels.
  """
  model = make_model(config["model"], config, where="config.model")
  task = bind(config["task"], config)
  check_task(model, task, where="config.model")
  shared = dict(model=model, task=task)
  loss = functools.partial(stage_one_loss, **shared, w_commitment=config.get("w_commitment", 0.0),
                           freeze_dict=config.get("freeze_dict", False))
  learns = model.quantizer == "vq" and not model.zero_decoder_seq and not config.get("freeze_dict", False)
  return System(init=functools.partial(init, **shared), loss=loss,
                predict={"predict": keywords.describe(functools.partial(predict, **shared),
                                                      task_options=unpatched(task))},
                advance=functools.partial(advance_codebook, model=model) if learns else None,
                load=functools.partial(load, source=config["model_init"],
                                       dont_load=(config.get("model_load") or {}).get("dont_load", ())
                                       ) if config.get("model_init") else None,
                label_limits=task.limits(model.inputs), label_key="config.model.inputs")


def make_model(fields: Mapping[str, Any], config: Mapping[str, Any], *, where: str) -> Model:
  """The stage I network of a `model` block, checked before anything is compiled."""
  model = build(Model, fields, config, where=where)
  check_patches(model.input_size, model.patch_size, where=where)
  for key, choices in (("code_dropout", CODE_DROPOUT), ("quantizer", QUANTIZERS), ("posemb", POSITIONS)):
    check_choice(getattr(model, key), choices, where=f"{where}.{key}")
  check_width(model.width, model.num_heads, model.posemb, where=f"{where}.width")
  for block in ("inputs", "outputs"):
    check_planes(getattr(model, block), model.patch_size, where=f"{where}.{block}")
  if model.code_len < 1:
    raise UserError(f"{where}.code_len: {model.code_len} words are no code; nearest: 1")
  if model.bottleneck_resize and model.code_side ** 2 != model.code_len:
    raise UserError(f"{where}.code_len: {model.code_len} is no square, which bottleneck_resize needs; "
                    f"nearest: {model.code_side ** 2}")
  if model.quantizer == "fsq":
    check_levels(model, where=where)
  return model


def check_planes(planes: Mapping[str, tuple[int, int]], patch: tuple[int, int], *, where: str) -> None:
  """Raises UserError unless every plane is (classes, pixels of a patch)."""
  for name, plane in planes.items():
    if not isinstance(plane, tuple) or len(plane) != 2:
      raise UserError(f"{where}: '{name}' is {plane!r}; (classes, pixels in a patch) is needed")
    if plane[1] != math.prod(patch):
      raise UserError(f"{where}: '{name}' has {plane[1]} pixels in a patch, patch_size {patch} has {math.prod(patch)}")


def check_levels(model: Model, *, where: str) -> None:
  """Raises UserError unless the levels of a finite scalar quantiser make the dictionary."""
  if not model.fsq_levels or min(model.fsq_levels) < 2:
    raise UserError(f"{where}.fsq_levels: {model.fsq_levels}; every coordinate needs 2 levels or more, 5 are better")
  if quantize.fsq_size(model.fsq_levels) != model.dict_size:
    raise UserError(f"{where}.dict_size: {model.dict_size} words, but fsq_levels {model.fsq_levels} make "
                    f"{quantize.fsq_size(model.fsq_levels)}")


def check_task(model: Model, task: Task, *, where: str) -> None:
  """Raises UserError unless the network reads and predicts exactly the task's planes."""
  for block in ("inputs", "outputs"):
    planes = getattr(model, block)
    if set(planes) != set(task.planes):
      wrong = sorted(set(planes) ^ set(task.planes))
      raise UserError(f"{where}.{block}: {sorted(planes)} do not go with the task, whose planes are {list(task.planes)}; "
                      f"look at {wrong}")


def context(batch: Mapping[str, Array]) -> Array:
  """The image that guides the base model: `image_ctx` where the batch has one (stage II), else `image`."""
  return batch["image_ctx"] if "image_ctx" in batch else batch["image"]


def init(key: Array, batch: Mapping[str, Array], *, model: Model, task: Task) -> Vars:
  """Initial parameters and codebook from a batch of the right shapes."""
  params_key, state_key = jax.random.split(key)
  variables = model.init({"params": params_key, "state": state_key},
                         task.to_planes(batch["labels"], patch=model.patch_size, spec=model.inputs), context(batch))
  return Vars(params=variables["params"], state=variables.get("state", {}))


def load(variables: Vars, *, source: str, dont_load: Sequence[str] = ()) -> tuple[Vars, str]:
  """Fresh variables with those of a stage I file or workdir in their place, and the report of what was taken."""
  init = {"params": variables.params, "state": variables.state}
  merged, report = weights.merge(init, weights.load(source, where="config.model_init"), dont_load,
                                 where="config.model_init")
  return Vars(params=merged["params"], state=merged["state"]), report.text()


def stage_one_loss(variables: Vars, frozen: Any, batch: Mapping[str, Array], key: Array, train: bool, *, model: Model,
                   task: Task, w_commitment: float, freeze_dict: bool) -> LossOut:
  """Task losses plus the commitment of the oracle to its words (section 3.1; the weight is 0 in all released configs).

  In evaluation `parts` holds "code_use" (B, K) as well: the frequencies of the words in each code.
  """
  del frozen
  dropout_key, state_key = jax.random.split(key)
  planes = task.to_planes(batch["labels"], patch=model.patch_size, spec=model.inputs)
  outputs, code = apply(model, variables, planes, context(batch), train=train, rngs={"dropout": dropout_key})
  targets = planes if model.inputs == model.outputs else task.to_planes(
      batch["labels"], patch=model.patch_size, spec=model.outputs)
  losses = task.losses(outputs, targets)
  loss, parts = sum(part.mean for part in losses.values()), {name: part.per_example for name, part in losses.items()}
  if code is None:
    return LossOut(loss, variables.state, parts)
  commitment = example_mean(jnp.square(code.bottleneck - jax.lax.stop_gradient(code.quantized)))
  if w_commitment:
    loss += w_commitment * jnp.mean(commitment)
  stats = quantize.code_stats(code.bottleneck, code.code, model.dict_size)
  parts = parts | {"loss_commitment": commitment}
  if not train:
    return LossOut(loss, variables.state, parts | {"code_use": code_use(code, model.dict_size)})
  parts |= usage(stats.counts, batch=commitment.shape[0])
  learns = model.quantizer == "vq" and not freeze_dict
  state = advance_codebook(variables.state, stats, state_key, model=model) if learns else variables.state
  return LossOut(loss, state, parts, stats if learns else ())


def apply(model: Model, variables: Vars, *args, method: str | None = None, **kwargs) -> Any:
  """`model.apply` on `Vars`."""
  return model.apply({"params": variables.params, "state": variables.state}, *args, method=method, **kwargs)


def advance_codebook(state: Mapping[str, Array], stats: quantize.CodebookStats, key: Array, *,
                     model: Model) -> dict[str, Array]:
  """The next dictionary and counts: discounted sums, then the most used word shares with every unused one."""
  dictionary, counts = quantize.ema_update(state["dictionary"], state["counts"], stats, momentum=model.dict_momentum)
  dictionary, counts, _ = quantize.split_unused(dictionary, counts, key, min_count=model.dict_min_count)
  return {"dictionary": dictionary, "counts": counts}


def usage(counts: Array, *, batch: int) -> dict[str, Array]:
  """{"codebook_max_ratio", "codebook_zeros_ratio"}: (B,) of a batch's word counts (K,), the same for every example."""
  values = {"codebook_max_ratio": jnp.max(counts) / jnp.sum(counts), "codebook_zeros_ratio": jnp.mean(counts == 0)}
  return {name: jnp.full((batch,), value) for name, value in values.items()}


def code_use(code: Code, size: int) -> Array:
  """(B, K) share of each word in each example's code; its mean over an evaluation tells usage and perplexity."""
  rows = jnp.arange(code.code.shape[0])[:, None]
  return jnp.zeros((code.code.shape[0], size)).at[rows, code.code].add(1 / code.code.shape[1])


def predict(variables: Vars, frozen: Any, batch: Mapping[str, Array], key: Array, *, model: Model, task: Task,
            corrupt: str = "none", fraction: float = 0.0,
            task_options: Mapping[str, Any] | None = None) -> dict[str, Array]:
  """What the base model makes of the oracle's code; `labels` must be in the batch.

  Args:
    variables: parameters and codebook.
    frozen: unused.
    batch: image and labels.
    key: random key of the corruption.
    model: the network.
    task: what is predicted.
    corrupt: the masked-code experiment of the paper's appendix B: "none", "zero", "random" or "word", see `corrupt_code`.
    fraction: share of the code's positions that is corrupted.
    task_options: of the task's `from_planes`, e.g. {"min_fraction": 0.001} or {"estimate": "mean"}.

  Returns:
    The task's outputs.
  """
  del frozen
  code = None
  if not model.zero_decoder_seq:
    planes = task.to_planes(batch["labels"], patch=model.patch_size, spec=model.inputs)
    encoded = apply(model, variables, planes, context(batch), method="encode")
    code = encoded.quantized
    if corrupt != "none":
      words = apply(model, variables, method="words")
      code = corrupt_code(key, code, words, mode=corrupt, fraction=fraction)
  return decode(variables, code, context(batch), model=model, task=task, **(task_options or {}))


def unpatched(task: Task) -> functools.partial:
  """The task's `from_planes` with what the network says of it: what it still takes are `task_options`."""
  return functools.partial(task.from_planes, grid=None, patch=None)


def decode(variables: Vars, code: Array | None, ctx: Array, *, model: Model, task: Task, **options) -> dict[str, Array]:
  """A code (B, L) or (B, L, C) and an image (see `Model.decode`) to the task's outputs."""
  outputs = apply(model, variables, code, ctx, method="decode")
  return task.from_planes(outputs, grid=model.grid, patch=model.patch_size, **options)


def corrupt_code(key: Array, vectors: Array, words: Array, *, mode: str, fraction: float) -> Array:
  """Replaces a random share of a code's vectors (appendix B of the paper).

  Args:
    key: random key.
    vectors: (B, L, C) code.
    words: (K, C) dictionary.
    mode: "zero" puts zero vectors, "random" a random word at each position, "word" one random word for all of them.
    fraction: share of the L positions, rounded to a whole number of them.
  """
  batch, length, _ = vectors.shape
  order_key, word_key = jax.random.split(key)
  order = jax.random.permutation(order_key, jnp.tile(jnp.arange(length), (batch, 1)), axis=1, independent=True)
  hit = (order < round(fraction * length))[..., None]
  if mode == "zero":
    return jnp.where(hit, 0.0, vectors)
  if mode not in ("random", "word"):
    raise UserError(f"predict: corrupt='{mode}' is none of none, zero, random, word")
  shape = (batch, length if mode == "random" else 1)
  return jnp.where(hit, words[jax.random.randint(word_key, shape, 0, words.shape[0])], vectors)
