"""UViM stage II: a language model writes the guiding code from the image (arXiv 2205.10337, section 3.2)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uvim_like import keywords, weights
from uvim_like.decoding import autoregressive, masked, parallel
from uvim_like.errors import UserError, unknown
from uvim_like.models.layers import POSITIONS
from uvim_like.models.uvim import Model as BaseModel
from uvim_like.models.uvim_lm import Model
from uvim_like.ops.losses import example_mean, softmax_cross_entropy
from uvim_like.systems.base import LossOut, System, Vars
from uvim_like.systems.fields import build, check_choice, check_patches, check_width
from uvim_like.systems.uvim import pretrained, vit
from uvim_like.tasks.base import Task, bind

Array = jax.Array
READS = {"oracle": None}  # keys of a config that not all systems read, and their defaults
DECODE = ("cached", "masked", "parallel")
MASK_RATIOS = (1.0, 0.7)  # of masked training: every code once with all its words hidden, once with so many (MAD)
STAGES = (1.0, 0.8, 0.6, 0.4)  # of masked decoding: shares of words that are hidden (MAD's captions)


class Parts(NamedTuple):
  """What the functions of this system hold fixed: the language model, the stage I network and its task."""
  model: Model
  oracle: BaseModel
  task: Task


def make(config: Mapping[str, Any]) -> System:
  """The system of a config in the vocabulary of the paper's Listing 2.

  `System.frozen` is stage I from `config.oracle.model_init`: real arrays when that file exists, else shapes only
  (enough for `jax.eval_shape`; training refuses them).

  Raises:
    UserError: an unknown field, a vocabulary or length that differs from the oracle's dictionary or code.
  """
  block = config["oracle"]
  oracle = vit.make_model(block["model"], config, where="config.oracle.model")
  model = build(Model, config["model"], config, where="config.model")
  check_sizes(model, oracle)
  parts = Parts(model, oracle, bind(block["task"], config, where="config.oracle.task"))
  vit.check_task(oracle, parts.task, where="config.oracle.model")
  return System(init=functools.partial(init, parts=parts), loss=functools.partial(loss, parts=parts),
                predict={"predict": keywords.describe(
                    functools.partial(predict, parts=parts), rest=functools.partial(sequences, parts=parts),
                    task_options=vit.unpatched(parts.task)),
                         "sequences": functools.partial(sequences, parts=parts)},
                frozen=load_oracle(block.get("model_init"), oracle, parts.task),
                load=functools.partial(pretrained.load_lm, sources=config.get("model_init") or {}, model=model,
                                       dont_load=(config.get("model_load") or {}).get("dont_load", ())),
                label_limits=parts.task.limits(oracle.inputs), label_key="config.oracle.model.inputs")


def check_sizes(model: Model, oracle: BaseModel) -> None:
  """Raises UserError when the language model cannot write the oracle's code or cut its images into patches."""
  if model.vocab_size != oracle.dict_size + 1:
    raise UserError(f"config.model.vocab_size: {model.vocab_size}, but the oracle's dictionary of {oracle.dict_size} words "
                    f"and the start token need {oracle.dict_size + 1}")
  if model.seq_len != oracle.code_len:
    raise UserError(f"config.model.seq_len: {model.seq_len}, but the oracle's code has {oracle.code_len} words")
  if model.patches is not None and set(model.patches) != {"size"}:
    raise unknown("key", *[key for key in model.patches if key != "size"][:1], ["size"], where="config.model.patches")
  check_patches(model.input_size, model.patch_size, where="config.model")
  check_choice(model.posemb_type, POSITIONS, where="config.model.posemb_type")
  check_width(model.emb_dim, model.num_heads, model.posemb_type, where="config.model.emb_dim")
  if model.masked and model.parallel:
    raise UserError("config.model.parallel: a masked model fills in all words already; set one of the two")
  if oracle.zero_decoder_seq:
    raise UserError("config.oracle.model.zero_decoder_seq: a base model without a code leaves nothing to write; set it False")


def load_oracle(source: str | None, oracle: BaseModel, task: Task) -> Vars:
  """Stage I's parameters and codebook from a weights file or a finished workdir; shapes only when there is none."""
  shapes = jax.eval_shape(functools.partial(vit.init, model=oracle, task=task), jax.random.key(0), {
      "image": jax.ShapeDtypeStruct((1, *oracle.input_size, 3), jnp.float32),
      "labels": jax.ShapeDtypeStruct((1, *oracle.input_size, *task.labels.shape[-1:]), task.labels.dtype)})
  if not source or not weights.exists(source):
    return shapes
  loaded = weights.load(source, where="config.oracle.model_init")
  merged, _ = weights.merge({"params": shapes.params, "state": shapes.state}, loaded, where="config.oracle.model_init")
  return Vars(params=merged["params"], state=merged["state"])


def init(key: Array, batch: Mapping[str, Array], *, parts: Parts) -> Vars:
  """Initial parameters of the language model; stage I is not part of what is learned."""
  targets = jnp.zeros((batch["image"].shape[0], parts.model.seq_len), jnp.int32)
  return Vars(params=parts.model.init(key, batch["image"], targets)["params"])


def targets(frozen: Vars, batch: Mapping[str, Array], *, parts: Parts) -> Array:
  """(B, L) int32 tokens to write: the oracle's words + 1, token 0 starts a sequence."""
  planes = parts.task.to_planes(batch["labels"], patch=parts.oracle.patch_size, spec=parts.oracle.inputs)
  code = vit.apply(parts.oracle, frozen, planes, vit.context(batch), method="encode").code
  return jax.lax.stop_gradient(code + 1)


def loss(variables: Vars, frozen: Vars, batch: Mapping[str, Array], key: Array, train: bool, *, parts: Parts) -> LossOut:
  """Cross entropy of the oracle's words, teacher-forced, over all V tokens: mean over L, then over the batch."""
  tokens = targets(frozen, batch, parts=parts)
  if parts.model.masked:
    return masked_loss(variables, batch, tokens, key, train, model=parts.model)
  logits = parts.model.apply({"params": variables.params}, batch["image"], tokens, train=train, rngs={"dropout": key})
  per_example = example_mean(softmax_cross_entropy(logits, tokens))
  accuracy = example_mean((jnp.argmax(logits, axis=-1) == tokens).astype(jnp.float32))
  return LossOut(jnp.mean(per_example), variables.state, {"loss_code": per_example, "accuracy": accuracy})


def masked_loss(variables: Vars, batch: Mapping[str, Array], tokens: Array, key: Array, train: bool, *,
                model: Model) -> LossOut:
  """Cross entropy of the hidden words, over all copies of a code; "accuracy" is that of the fully hidden one."""
  call = functools.partial(model.apply, {"params": variables.params})
  encoded = call(batch["image"], train=train, rngs={"dropout": key}, method="encode")
  losses, hits, hidden = [], [], []
  for i, ratio in enumerate(MASK_RATIOS):
    draws = jax.random.uniform(jax.random.fold_in(key, i), tokens.shape)
    hidden.append(masked.lowest(draws, int(tokens.shape[-1] * ratio)))
    logits = call(jnp.where(hidden[-1], 0, tokens), encoded, method="fill")
    losses.append(softmax_cross_entropy(logits, tokens) * hidden[-1])
    hits.append(jnp.argmax(logits, axis=-1) == tokens)
  count = sum(jnp.sum(mask, axis=-1) for mask in hidden)
  per_example = sum(jnp.sum(loss, axis=-1) for loss in losses) / count
  return LossOut(jnp.mean(per_example), variables.state,
                 {"loss_code": per_example, "accuracy": example_mean(hits[0].astype(jnp.float32))})


def sequences(variables: Vars, frozen: Vars, batch: Mapping[str, Array], key: Array, *, parts: Parts,
              num_samples: int = 1, temperature: float = 0.0, top_k: int = 0, top_p: float = 0.0,
              prompts: Array | None = None, forbidden: tuple[int, ...] = (0,),
              eos_token: int = autoregressive.NO_END, decode: str | None = None, stages: Sequence[float] = STAGES,
              order: str = "random", combine: str = "average") -> dict[str, Array]:
  """Codes written for each image.

  Args:
    variables: the language model.
    frozen: unused.
    batch: image.
    key: random key.
    parts: the networks and the task.
    num_samples, temperature, top_k, top_p, prompts, eos_token: of `decoding.autoregressive.decode`.
    forbidden: words that are never chosen.
    decode: "cached", one word after the other, "masked", all at once and then in stages, or "parallel", all in one
      pass; as the model was trained by default. A parallel model decodes the same words one by one.
    stages, order, combine: of `decoding.masked.decode`.

  Returns:
    {"tokens": (B, S, L) int32, words + 1; "logprobs": (B, S, L); "scores": (B, S)}.
  """
  del frozen
  trained = "masked" if parts.model.masked else "parallel" if parts.model.parallel else "cached"
  how = decode or trained
  check_choice(how, DECODE, where="predict: decode")
  if how != trained and (how, trained) != ("cached", "parallel"):
    raise UserError(f"predict: decode='{how}', but the language model is {trained} (config.model.masked and .parallel)")
  call = functools.partial(parts.model.apply, {"params": variables.params})
  encoded = call(batch["image"], method="encode")
  if parts.model.masked:
    given = dict(temperature=temperature, top_k=top_k, top_p=top_p, prompts=prompts is not None,
                 eos_token=eos_token != autoregressive.NO_END)
    if ignored := [name for name, value in given.items() if value]:
      raise UserError(f"predict: {', '.join(ignored)}: a masked language model takes the likeliest words; leave it out")
    legal = ~jnp.isin(jnp.arange(parts.model.vocab_size), jnp.asarray(forbidden, jnp.int32))
    samples = jnp.repeat(encoded, num_samples, axis=0)
    found = masked.decode(functools.partial(_fill, call, samples), key, ratios=tuple(stages), legal=legal, order=order,
                          combine=combine, shape=(encoded.shape[0], num_samples, parts.model.seq_len))
    return {"tokens": found.tokens, "logprobs": found.logprobs, "scores": jnp.sum(found.logprobs, axis=-1)}
  if how == "parallel":
    if prompts is not None or eos_token != autoregressive.NO_END:
      raise UserError("predict: decode='parallel' knows no prompts and no end token; use decode='cached'")
    logits = call(jnp.zeros((encoded.shape[0], parts.model.seq_len), jnp.int32), encoded, method="decode")
    found = parallel.decode(logits, key, num_samples=num_samples, temperature=temperature, top_k=top_k, top_p=top_p,
                            forbidden=tuple(forbidden))
    return {"tokens": found.tokens, "logprobs": found.logprobs, "scores": found.scores}
  out = autoregressive.decode(
      functools.partial(call, method="step"), call(encoded, num_samples, method="start"), key,
      batch=encoded.shape[0], length=parts.model.seq_len,
      num_samples=num_samples, temperature=temperature, top_k=top_k, top_p=top_p, prompts=prompts,
      forbidden=tuple(forbidden), eos_token=eos_token)
  return {name: value for name, value in out._asdict().items() if value is not None}


def _fill(call: Any, encoded: Array, tokens: Array, hidden: Array) -> Array:
  """Logits (B, S, L, V) of codes (B, S, L) with hidden words; encoded (B · S, M, E)."""
  flat = jnp.where(hidden, 0, tokens).reshape(-1, tokens.shape[-1])
  return call(flat, encoded, method="fill").reshape(*tokens.shape, -1)


def predict(variables: Vars, frozen: Vars, batch: Mapping[str, Array], key: Array, *, parts: Parts,
            num_samples: int = 1, task_options: Mapping[str, Any] | None = None, **options) -> dict[str, Array]:
  """Writes a code for each image and lets the base model turn it into the task's outputs.

  Args:
    variables: the language model.
    frozen: stage I.
    batch: `image`, and `image_ctx` where the base model sees another size.
    key: random key.
    parts: the networks and the task.
    num_samples: S; with more than one the outputs are (B, S, …), and the image is encoded once for all.
    task_options: of the task's `from_planes`, e.g. {"min_fraction": 0.001} or {"estimate": "mean"}.
    **options: of `sequences`.

  Returns:
    The task's outputs.
  """
  tokens = sequences(variables, frozen, batch, key, parts=parts, num_samples=num_samples, **options)["tokens"]
  code = (tokens - 1).reshape(-1, tokens.shape[-1])
  out = vit.decode(frozen, code, vit.context(batch), model=parts.oracle, task=parts.task, **(task_options or {}))
  if num_samples == 1:
    return out
  return {name: x.reshape(-1, num_samples, *x.shape[1:]) for name, x in out.items()}
