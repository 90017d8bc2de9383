"""Inference of AiT's solver: encode the image, write tokens (step by step or at once), turn them into the task's
outputs.

B images, L tokens of a map, Q objects, T tokens of a mask, S its side, J joints.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from uvim_like.decoding import autoregressive, masked, objects, parallel
from uvim_like.decoding import soft as soft_tokens
from uvim_like.errors import UserError, unknown
from uvim_like.systems.ait.ait_vocab import BOX, JOINTS, TASK_IDS, box_pixels, to_fractions
from uvim_like.systems.ait.parts import OBJECTS, Parts, decode_maps, normalize
from uvim_like.systems.base import Vars

Array = jax.Array
DECODE = ("ar", "masked", "parallel")
STAGES = (1.0, 0.8, 0.6, 0.4)  # of masked decoding: shares of tokens that are hidden (MAD's captions)
MIN_DEPTH = 1e-3  # metres; predictions are clipped to it, and not from above


def encode(variables: Vars, batch: Mapping[str, Array], task: str, *, parts: Parts) -> tuple[Array, Array]:
  """(memory (B, M, D), task ids (B,)) of images (B, H, W, 3), padded at the end to the canvas.

  Raises:
    UserError: images larger than the canvas.
  """
  image = batch["image"]
  ids = jnp.full((image.shape[0],), TASK_IDS[task])
  room = [side - size for side, size in zip(parts.input_size, image.shape[1:3])]
  if min(room) < 0:
    raise UserError(f"predict: images of {image.shape[1]} x {image.shape[2]} pixels are larger than "
                    f"config.model.input_size {parts.input_size}; use windows, or resize in preprocessing")
  image = jnp.pad(normalize(batch, ids, standardize=parts.options.standardize), ((0, 0), (0, room[0]), (0, room[1]), (0, 0)))
  features = parts.backbone.apply({"params": variables.params["backbone"], "state": variables.state}, image)
  return head_call(variables, parts)(features[-1], method="encode"), ids


def head_call(variables: Vars, parts: Parts):
  """`head.apply` on its parameters."""
  return functools.partial(parts.head.apply, {"params": variables.params["transformer"]})


def trained_form(parts: Parts) -> str:
  """How the model was trained to write: one of `DECODE`."""
  return "masked" if parts.options.masked else "parallel" if parts.options.parallel else "ar"


def feeds_back(parts: Parts, decode: str | None, soft_feedback: bool | None) -> bool:
  """Whether mixtures of tokens are fed back: where nothing is said, whenever one token is written after the other."""
  return (decode or trained_form(parts)) == "ar" if soft_feedback is None else soft_feedback


def settings(parts: Parts, decode: str | None, soft_feedback: bool) -> str:
  """How to decode: as the model was trained where nothing is said; UserError for what it cannot do."""
  decode = decode or trained_form(parts)
  if decode not in DECODE:
    raise unknown("decode", decode, DECODE, where="predict")
  if (decode == "masked") != parts.options.masked:
    raise UserError(f"predict: decode='{decode}', but the model is {trained_form(parts)} (config.solver.masked and "
                    ".parallel)")
  if decode == "parallel" and not parts.options.parallel:
    raise UserError("predict: decode='parallel' needs a model trained with config.solver.parallel=True")
  if decode == "ar" and parts.options.parallel:
    raise UserError("predict: a parallel model never learned to read dense tokens; use decode='parallel'")
  if decode == "parallel" and soft_feedback:
    raise UserError("predict: parallel decoding feeds nothing back; leave soft_feedback unset")
  if decode == "masked" and soft_feedback:
    raise UserError("predict: masked decoding feeds chosen tokens back; leave soft_feedback unset")
  return decode


def write_map(variables: Vars, memory: Array, ids: Array, task: str, key: Array, *, parts: Parts, decode: str,
              soft_feedback: bool, temperature: float, top_p: float,
              refine: Mapping[str, Any] | None = None) -> autoregressive.Sequences:
  """A map's tokens (B, 1, L), counted from the first word of the task's tokenizer, with logits (B, 1, L, K).

  `refine`: stages, order and combine of `decoding.masked.decode`, for a masked model.
  """
  call = head_call(variables, parts)
  rows, length = parts.rows(task), parts.length(task)
  if decode == "masked":
    if temperature or top_p:
      raise UserError("predict: masked decoding takes the likeliest tokens; leave temperature and top_p at 0")

    def fill_in(tokens, hidden):
      states = call(call(tokens[:, 0] + rows.start, ids, hidden[:, 0], method="fill_in"), memory, method="decode")
      return call(states, rows.start, rows.size, method="logits")[:, None]

    found = masked.decode(fill_in, key, shape=(ids.shape[0], 1, length), **(refine or {"ratios": STAGES}))
    return autoregressive.Sequences(found.tokens, found.logprobs, jnp.sum(found.logprobs, axis=-1), found.logits)
  options = dict(temperature=temperature, top_p=top_p, forbidden=(), keep_logits=True)
  if decode == "parallel":
    hidden = jnp.ones((ids.shape[0], length - 1), bool)
    inputs = call(jnp.zeros(hidden.shape, jnp.int32), ids, hidden, method="inputs")
    logits = call(call(inputs, memory, method="decode"), rows.start, rows.size, method="logits")
    return parallel.decode(logits, key, **options)
  first = call(ids, method="task_token")

  def step(last, position, cache):
    if soft_feedback:
      x = call(last, rows.start, method="mix")
    else:
      x = call(last + rows.start, method="embed")
    hidden, cache = call(jnp.where(position == 0, first, x), ids, position, cache, method="step")
    return call(hidden, rows.start, rows.size, method="logits"), cache

  return autoregressive.decode(step, call(memory, length, method="start"), key, batch=ids.shape[0], length=length,
                               vocab_size=rows.size, soft=1.0 if soft_feedback else None, **options)


def write_objects(variables: Vars, memory: Array, ids: Array, task: str, key: Array, *, parts: Parts, decode: str,
                  soft_feedback: bool, temperature: float, top_p: float) -> dict[str, objects.Written]:
  """{"box" (B, Q, 4), "class" (B, Q, 1), "mask" (B, Q, T) or "joints" (B, Q, 2 J)}: tokens counted from the start of
  their own rows."""
  call = head_call(variables, parts)
  vocabulary, slots = parts.vocabulary, parts.options.num_objects
  dense = "parallel" if decode == "parallel" else "soft" if soft_feedback else "hard"
  count = vocabulary.num_classes
  groups = [objects.Group("box", BOX, *vocabulary.coordinates),
            objects.Group("class", 1, vocabulary.classes.start, count + 2, legal=count, keep_logits=True)]
  if task == "instances":
    codes = parts.tokenizers["instances"].code_len
    groups.append(objects.Group("mask", codes, *vocabulary.masks, feedback=dense, keep_logits=True))
  if task == "keypoints":  # coordinates as those of the box: chosen ones are fed back
    groups.append(objects.Group("joints", JOINTS, *vocabulary.coordinates,
                                feedback="parallel" if dense == "parallel" else "hard"))
  decoder = objects.Decoder(
      step=lambda x, position, cache: call(x, ids, position, cache, method="step"),
      logits=functools.partial(call, method="logits"), embed=functools.partial(call, method="embed"),
      mix=functools.partial(call, method="mix"), fill=functools.partial(call, method="fill"))
  cache = call(memory, parts.length(task), method="start")
  return objects.decode(decoder, cache, call(ids, method="task_token"), key, num_objects=slots, groups=tuple(groups),
                        temperature=temperature, top_p=top_p)


def tokens(variables: Vars, frozen: Any, batch: Mapping[str, Array], key: Array, *, parts: Parts,
           task: str | None = None, decode: str | None = None, soft_feedback: bool | None = None, temperature: float = 0.0,
           top_p: float = 0.0, stages: Sequence[float] = STAGES, order: str = "random",
           combine: str = "average") -> dict[str, Array]:
  """What the decoder writes for each image, before it becomes a map or objects; options as in `predict`."""
  del frozen
  task = which(task, parts)
  soft_feedback = feeds_back(parts, decode, soft_feedback)
  memory, ids = encode(variables, batch, task, parts=parts)
  how = dict(parts=parts, decode=settings(parts, decode, soft_feedback), soft_feedback=soft_feedback,
             temperature=temperature, top_p=top_p)
  if task in OBJECTS:
    written = write_objects(variables, memory, ids, task, key, **how)
    return {name: group.tokens for name, group in written.items()}
  out = write_map(variables, memory, ids, task, key, refine=dict(ratios=tuple(stages), order=order, combine=combine),
                  **how)
  return {"tokens": out.tokens[:, 0], "logits": out.logits[:, 0], "logprobs": out.logprobs[:, 0]}


def which(task: str | None, parts: Parts) -> str:
  """The task to predict: the only one, or the one that is named."""
  tasks = parts.options.tasks
  if task is None and len(tasks) == 1:
    return tasks[0]
  if task not in tasks:
    raise unknown("task", str(task), tasks, where="predict")
  return task


def predict(variables: Vars, frozen: Any, batch: Mapping[str, Array], key: Array, *, parts: Parts,
            task: str | None = None, decode: str | None = None, soft_feedback: bool | None = None,
            soft_detokenizer: bool = True, tau: float | None = None, temperature: float = 0.0, top_p: float = 0.0,
            windows: int = 0, flip: bool = False, stages: Sequence[float] = STAGES, order: str = "random",
            combine: str = "average") -> dict[str, Array]:
  """The task's outputs from images.

  Args:
    variables: backbone and head.
    frozen: {task: tokenizer}.
    batch: "image".
    key: random key of sampling.
    parts: networks and options.
    task: which one, where there are several.
    decode: "ar", "parallel" or "masked"; as the model was trained by default.
    soft_feedback: the next step reads the mixture of all words in place of the chosen one, at dense positions; on by
      default where decoding is autoregressive.
    soft_detokenizer: the map is decoded from the mixture of codewords.
    tau: factor on the logits in that mixture; the config's by default.
    temperature: 0 is greedy; the released instance recipe samples at 1 with `top_p`.
    top_p: nucleus (0.3 instances, 0.4 detection in the release); 0 is off. Sampling needs a temperature.
    windows: depth only: that many square windows side by side, their overlap averaged (2 in NYU's protocol); 0 for
      none.
    flip: depth only: averaged with the mirrored image's.
    stages, order, combine: of masked decoding, see `decoding.masked.decode`.

  Returns:
    {"depth"}, {"semantics"}, or {"boxes", "scores", "classes"} and "masks" (B, Q, S, S) inside the boxes, or
    "keypoints" (B, Q, J, 3).
  """
  task = which(task, parts)
  soft_feedback = feeds_back(parts, decode, soft_feedback)
  how = dict(parts=parts, decode=settings(parts, decode, soft_feedback), soft_feedback=soft_feedback,
             temperature=temperature, top_p=top_p)
  if task in OBJECTS:
    memory, ids = encode(variables, batch, task, parts=parts)
    written = write_objects(variables, memory, ids, task, key, **how)
    return to_objects(written, frozen, parts=parts, soft=soft_detokenizer,
                      tau=parts.options.mask_tau if tau is None else tau)
  how |= {"refine": dict(ratios=tuple(stages), order=order, combine=combine)}
  tau = (parts.options.tau if tau is None else tau) if soft_detokenizer else None
  draw = functools.partial(draw_map, variables, frozen, task=task, key=key, tau=tau, how=how)
  if task == "semantics":
    return {"semantics": jnp.argmax(draw(batch), axis=-1).astype(jnp.int32) + 1}
  depth = in_windows(draw, batch["image"], windows=windows, flip=flip) if windows or flip else draw(batch)[..., 0]
  return {"depth": jnp.maximum(depth, MIN_DEPTH)}


def draw_map(variables: Vars, frozen: Any, batch: Mapping[str, Array], *, task: str, key: Array, tau: float | None,
             how: Mapping[str, Any]) -> Array:
  """(B, H, W, C) maps of images, at most of `map_size`; `tau` None means hard words."""
  parts = how["parts"]
  memory, ids = encode(variables, batch, task, parts=parts)
  out = write_map(variables, memory, ids, task, key, **how)
  grid = parts.map_grid(task)
  code = out.tokens[:, 0] if tau is None else out.logits[:, 0]
  maps = decode_maps(frozen, task, code.reshape(ids.shape[0], *grid, *code.shape[2:]), parts=parts, tau=tau)
  height, width = batch["image"].shape[1:3]
  return maps[:, :height, :width]


def in_windows(draw, image: Array, *, windows: int, flip: bool) -> Array:
  """(B, H, W) from square windows of images (B, H, W, 3), the overlap averaged; mirrored views averaged first.

  All views of a batch go through the network in one call (NYU: windows at x = 0 and 160, and both mirrored).
  """
  batch, height, width = image.shape[:3]
  side = height if windows else width
  count = max(windows, 1)
  lefts = [round(i * (width - side) / max(count - 1, 1)) for i in range(count)]
  views = jnp.concatenate([image[:, :, left:left + side] for left in lefts])
  if flip:
    views = jnp.concatenate([views, views[:, :, ::-1]])
  maps = draw({"image": views})[..., 0]
  if flip:
    straight, mirrored = jnp.split(maps, 2)
    maps = (straight + mirrored[:, :, ::-1]) / 2
  total, hits = jnp.zeros((batch, height, width)), jnp.zeros((width,))
  for i, left in enumerate(lefts):
    total = total.at[:, :, left:left + side].add(maps[i * batch:(i + 1) * batch])
    hits = hits.at[left:left + side].add(1.0)
  return total / hits


def to_objects(written: Mapping[str, objects.Written], frozen: Any, *, parts: Parts, soft: bool,
               tau: float) -> dict[str, Array]:
  """Tokens of objects as boxes in fractions of the canvas, scores, classes 1..C, and masks inside the boxes or joints.

  The score is the chosen class's share of all classes and noise together. Masks are about 0 to 1, but not clipped: the
  contour at one half is interpolated between the decoder's own values. Joints are (y, x, 1) in fractions of the canvas:
  every one is placed, and none is said to be hidden.
  """
  vocabulary, options = parts.vocabulary, parts.options
  classes = written["class"].tokens[..., 0]
  logits = written["class"].logits[..., 0, :]
  legal = jnp.concatenate([logits[..., :vocabulary.num_classes], logits[..., -1:]], axis=-1)
  scores = jnp.take_along_axis(soft_tokens.mixture(legal), classes[..., None], axis=-1)[..., 0]
  place = lambda tokens: jnp.clip(  # noqa: E731
      to_fractions(box_pixels(tokens, vocabulary, options.box_norm), parts.input_size), 0.0, 1.0)
  out = {"boxes": place(written["box"].tokens), "scores": scores, "classes": classes + 1}
  if "joints" in written:
    points = place(written["joints"].tokens).reshape(*classes.shape, -1, 2)
    out["keypoints"] = jnp.concatenate([points, jnp.ones_like(points[..., :1])], axis=-1)
  if "mask" not in written:
    return out
  model, group = parts.tokenizers["instances"], written["mask"]
  code = group.logits if soft else group.tokens
  batch, slots = code.shape[:2]
  code = code.reshape(batch * slots, *model.grid, *code.shape[3:])
  masks = decode_maps(frozen, "instances", code, parts=parts, tau=tau if soft else None)[..., 0]
  return out | {"masks": masks.reshape(batch, slots, *masks.shape[1:])}
