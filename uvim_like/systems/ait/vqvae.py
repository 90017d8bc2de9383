"""AiT stage I: the tokenizer of a task's maps (arXiv 2301.02229, section 3.1): depth, instance masks or semantics."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from uvim_like import weights
from uvim_like.errors import UserError, unknown
from uvim_like.models.ait_vqvae import Code, Model
from uvim_like.ops import ema_codebook, quantize
from uvim_like.ops.losses import softmax_cross_entropy
from uvim_like.ops.masking import zero_patches
from uvim_like.systems.base import LossOut, System, Vars
from uvim_like.systems.fields import build
from uvim_like.systems.uvim.vit import usage

Array = jax.Array
Batch = Mapping[str, Array]
KINDS = {"depth": "depth", "instance_segmentation": "masks", "semantic_segmentation": "semantics"}
# Keys of a config that not all systems read, and their defaults. The commitment is of the released code; the paper gives
# no number.
READS = {"freeze_dict": False, "w_commitment": 0.25}
COMMITMENT = READS["w_commitment"]


def make(config: Mapping[str, Any]) -> System:
  """The system of a config whose `task` says which maps are tokenized and whose `model` block is `ait_vqvae.Model`.

  Raises:
    UserError: a task without a tokenizer, an unknown field, sizes that do not divide.
  """
  model = make_model(config["model"], config, where="config.model")
  kind = kind_of(config["task"], model, where="config")
  shared = dict(model=model, kind=kind)
  learns = not config.get("freeze_dict", False)
  weight = COMMITMENT if config.get("w_commitment") is None else config["w_commitment"]
  return System(init=functools.partial(init, **shared),
                loss=functools.partial(loss, **shared, w_commitment=weight, learns=learns),
                predict={"predict": functools.partial(predict, **shared)},
                advance=functools.partial(advance, model=model) if learns else None,
                load=functools.partial(load, source=config["model_init"],
                                       dont_load=(config.get("model_load") or {}).get("dont_load", ())
                                       ) if config.get("model_init") else None,
                label_limits=(model.classes + 1,) if kind == "semantics" else None, label_key="config.model.classes")


def make_model(fields: Mapping[str, Any], config: Mapping[str, Any], *, where: str) -> Model:
  """The tokenizer of a `model` block, checked before anything is compiled."""
  model = build(Model, fields, config, where=where)
  ratio, size = model.ratio, model.input_size
  if ratio < 2 or ratio & (ratio - 1):
    nearest = 2 ** max(1, round(ratio).bit_length() - 1)
    raise UserError(f"{where}.ratio: {ratio} is no power of two from 2 on; nearest: {nearest}")
  if not isinstance(size, tuple) or len(size) != 2 or any(side < ratio or side % ratio for side in size):
    raise UserError(f"{where}.input_size: {size} must be (height, width), multiples of ratio {ratio}")
  if not 0 <= model.mask_ratio < 1:
    raise UserError(f"{where}.mask_ratio: {model.mask_ratio} is no share from 0 to below 1; the paper's is 0.5")
  for name in ("first_width", "dict_size", "codeword_dim", "mask_patch"):
    if getattr(model, name) < 1:
      raise UserError(f"{where}.{name}: {getattr(model, name)} must be 1 or more")
  if model.remat != "none" or model.scan_layers:
    raise UserError(f"{where}: the tokenizer has no layers to compute again or to scan; leave config.remat and "
                    "config.scan_layers at their defaults")
  return model


def kind_of(task: str, model: Model, *, where: str) -> str:
  """What a task's tokenizer reads: "depth", "masks" or "semantics"; UserError when the model is of another kind."""
  short = task.removeprefix("proj.")
  if short not in KINDS:
    raise unknown("task of a tokenizer", task, KINDS, where=f"{where}.task")
  kind = KINDS[short]
  if bool(model.classes) != (kind == "semantics"):
    raise UserError(f"{where}.model.classes: {model.classes}, but a tokenizer of {kind} "
                    + ("needs the number of classes" if kind == "semantics" else "reads numbers: set 0"))
  if model.signed != (kind == "masks"):
    raise UserError(f"{where}.model.signed: {model.signed}, but a tokenizer of {kind} needs {kind == 'masks'}")
  return kind


def apply(model: Model, variables: Vars, *args, method: str | None = None) -> Any:
  """`model.apply` on `Vars`."""
  return model.apply({"params": variables.params, "state": variables.state}, *args, method=method)


def maps_of(batch: Batch, kind: str) -> tuple[Array, Array]:
  """(maps (M, H, W, 1), present (M,) bool): M = B, or B * N masks inside their boxes, of which empty slots are
  absent."""
  if kind == "masks":
    masks = batch["box_masks"].astype(jnp.float32)
    return masks.reshape(-1, *masks.shape[2:], 1), batch["box_labels"].reshape(-1) > 0
  labels = batch["labels"]
  labels = labels.astype(jnp.int32) if kind == "semantics" else labels.astype(jnp.float32)
  return labels, jnp.ones(labels.shape[:1], bool)


def init(key: Array, batch: Batch, *, model: Model, kind: str) -> Vars:
  """Initial parameters and codebook; the batch's sizes do not matter to either."""
  del batch
  params_key, state_key = jax.random.split(key)
  example = jnp.zeros((1, model.ratio, model.ratio, 1), jnp.int32 if kind == "semantics" else jnp.float32)
  variables = model.init({"params": params_key, "state": state_key}, example)
  return Vars(params=variables["params"], state=variables["state"])


def load(variables: Vars, *, source: str, dont_load: tuple[str, ...] = ()) -> tuple[Vars, str]:
  """Fresh variables with those of a tokenizer's file or workdir in their place, and the report of what was taken."""
  fresh = {"params": variables.params, "state": variables.state}
  merged, report = weights.merge(fresh, weights.load(source, where="config.model_init"), dont_load,
                                 where="config.model_init")
  return Vars(params=merged["params"], state=merged["state"]), report.text()


def reconstruction(output: Array, maps: Array, kind: str) -> tuple[Array, Array]:
  """Summed loss and number of pixels that count, (M,) each.

  Depth: squared metres where depth was measured. Masks: squared error in [-1, 1], the decoder's own range. Semantics:
  cross entropy where the label is no void.
  """
  if kind == "semantics":
    counts = (maps > 0) & (maps <= output.shape[-1])
    error = softmax_cross_entropy(output, jnp.where(counts, maps, 0)[..., 0] - 1)[..., None]
  elif kind == "masks":
    error, counts = jnp.square(2 * (output - maps)), jnp.ones(maps.shape, bool)
  else:
    counts = maps > 0
    error = jnp.where(counts, jnp.square(output - maps), 0.0)
  return jnp.sum(error, axis=(1, 2, 3)), jnp.sum(counts, axis=(1, 2, 3)).astype(jnp.float32)


def pooled(sums: Array, counts: Array, present: Array) -> Array:
  """Σ sums / Σ counts over the present maps, 0 where nothing counts."""
  weight = present.astype(jnp.float32)
  return jnp.sum(sums * weight) / jnp.maximum(jnp.sum(counts * weight), 1.0)


def per_image(sums: Array, counts: Array, present: Array, batch: int) -> Array:
  """`pooled` for each of the B images apart, from (M,) sums and counts."""
  return jax.vmap(pooled)(*(x.reshape(batch, -1) for x in (sums, counts, present)))


def loss(variables: Vars, frozen: Any, batch: Batch, key: Array, train: bool, *, model: Model, kind: str,
         w_commitment: float, learns: bool) -> LossOut:
  """Reconstruction plus commitment; the target is the whole map, also where masking hid it from the encoder.

  The batch is quantised with the old codebook; the next one comes with the state. In evaluation `parts` holds
  "code_use" (B, K) as well: the frequencies of the words.
  """
  del frozen
  maps, present = maps_of(batch, kind)
  mask_key, state_key = jax.random.split(key)
  seen = zero_patches(mask_key, maps, patch=model.mask_patch, ratio=model.mask_ratio) if train else maps
  output, code = apply(model, variables, seen)
  sums, counts = reconstruction(output, maps, kind)
  distance = jnp.mean(jnp.square(code.z - jax.lax.stop_gradient(lookup(variables, code))), axis=-1)
  commitment = jnp.sum(distance, axis=(1, 2)), jnp.full(present.shape, float(code.code[0].size))
  total = pooled(sums, counts, present) + w_commitment * pooled(*commitment, present)
  size = len(batch["image"] if "image" in batch else batch["box_labels"] if kind == "masks" else maps)
  parts = {"loss_reconstruction": per_image(sums, counts, present, size),
           "loss_commitment": per_image(*commitment, present, size)}
  if not train:
    return LossOut(total, variables.state, parts | {"code_use": code_use(code, present, size, model.dict_size)})
  stats = ema_codebook.masked_stats(code.z, code.code, model.dict_size,
                                    jnp.broadcast_to(present[:, None, None], code.code.shape))
  parts |= usage(stats.counts, batch=size)
  state = advance(variables.state, stats, state_key, model=model) if learns else variables.state
  return LossOut(total, state, parts, stats if learns else ())


def lookup(variables: Vars, code: Code) -> Array:
  """(M, h, w, C) words of a code, without the straight-through gradient."""
  return jnp.take(variables.state["dictionary"], code.code, axis=0)


def code_use(code: Code, present: Array, batch: int, size: int) -> Array:
  """(B, K) share of each word in the code (or the codes) of each image; zeros where an image has none."""
  owner = jnp.repeat(jnp.arange(batch), len(present) // batch)
  rows = jnp.where(present, owner, batch)[:, None, None]
  counts = jnp.zeros((batch, size)).at[jnp.broadcast_to(rows, code.code.shape), code.code].add(1.0, mode="drop")
  return counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1.0)


def advance(state: Mapping[str, Array], stats: quantize.CodebookStats, key: Array, *, model: Model) -> dict[str, Array]:
  """The next codebook; a batch without a single vector leaves it as it is while nothing was ever counted."""
  sums, counts = ema_codebook.update(state["sums"], state["counts"], stats, decay=model.dict_decay)
  if model.dict_reset:
    sums, counts, _ = quantize.split_unused(sums, counts, key, min_count=model.dict_reset)
  counted = jnp.sum(counts) > 0
  dictionary = jnp.where(counted, sums / jnp.where(counted, counts, 1.0)[:, None], state["dictionary"])
  return {"dictionary": dictionary, "sums": jnp.where(counted, sums, state["sums"]), "counts": counts}


def predict(variables: Vars, frozen: Any, batch: Batch, key: Array, *, model: Model, kind: str,
            masked: bool = False) -> dict[str, Array]:
  """What is left of the truth after its code: hard words, as a task's output; the truth must be in the batch.

  Args:
    variables: parameters and codebook.
    frozen: unused.
    batch: the truth.
    key: random key, of the hidden patches.
    model: the tokenizer.
    kind: which maps.
    masked: hide patches of the input as in training.
  """
  del frozen
  maps, _ = maps_of(batch, kind)
  if masked:
    maps = zero_patches(key, maps, patch=model.mask_patch, ratio=model.mask_ratio)
  output = apply(model, variables, apply(model, variables, maps, method="encode").code, method="decode")
  if kind == "depth":
    return {"depth": output[..., 0]}
  if kind == "semantics":
    return {"semantics": jnp.argmax(output, axis=-1).astype(jnp.int32) + 1}
  masks = output.reshape(*batch["box_masks"].shape)
  return {"boxes": batch["boxes"], "classes": batch["box_labels"].astype(jnp.int32), "masks": masks,
          "scores": (batch["box_labels"] > 0).astype(jnp.float32)}
