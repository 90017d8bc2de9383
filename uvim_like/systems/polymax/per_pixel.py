"""The per-pixel baseline of PolyMaX: DeepLabv3+ that classifies or regresses every pixel, under the same recipe."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from uvim_like import keywords
from uvim_like.errors import UserError
from uvim_like.models.deeplab import Model
from uvim_like.systems import batch_stats
from uvim_like.systems.base import LossOut, System, Vars
from uvim_like.systems.fields import build
from uvim_like.systems.polymax import head as heads
from uvim_like.systems.polymax import variables as store
from uvim_like.systems.polymax.head import Head
from uvim_like.systems.polymax.kmax import check_encoder
from uvim_like.systems.polymax.maps import check_labels, fit, pad

Array = jax.Array
READS = {"head": {}, "losses": {}}  # keys of a config that not all systems read, and their defaults


def make(config: Mapping[str, Any]) -> System:
  """The system of a config: `task`, `model` (fields of `models.deeplab.Model`), `head`, `losses`, `model_init`.

  `model.outputs` is the number of classes for segmentation; other tasks know their own.

  Raises:
    UserError: an unknown task, field or option, or a task that needs queries.
  """
  head = heads.load(config)
  if not head.pixel_dim:
    head.pixel_outputs()  # says which system to take
  fields = dict(config["model"])
  if fields.get("outputs", head.pixel_dim) != head.pixel_dim:
    raise UserError(f"config.model.outputs: {fields['outputs']}, but the task '{config['task']}' has {head.pixel_dim}")
  model = build(Model, fields | {"outputs": head.pixel_dim}, config, where="config.model")
  check_encoder(model, where="config.model")
  load = functools.partial(store.load, sources=config["model_init"], encoder=fields["backbone"],
                           dont_load=(config.get("model_load") or {}).get("dont_load", ())) if config.get("model_init") else None
  shared = dict(model=model, head=head)
  return System(init=functools.partial(store.init, model=model), loss=functools.partial(loss, **shared),
                predict={"predict": keywords.describe(functools.partial(predict, **shared), rest=head.pixel_outputs)},
                advance=batch_stats.advance, load=load, label_limits=head.label_limits,
                label_key=head.label_key and "config.model.outputs")


def loss(variables: Vars, frozen: Any, batch: Mapping[str, Array], key: Array, train: bool, *, model: Model,
         head: Head) -> LossOut:
  """The task's losses on maps at the size of the image."""
  del frozen
  check_labels(batch, head.channels)
  raw, state = store.apply(model, variables, pad(batch["image"]), key, train=train)
  parts = head.pixel_losses(raw, batch["labels"])
  return LossOut(jnp.mean(sum(parts.values())), state, parts, batch_stats.sums(state) if train else ())


def predict(variables: Vars, frozen: Any, batch: Mapping[str, Array], key: Array, *, model: Model, head: Head,
            **options: Any) -> dict[str, Array]:
  """The task's outputs at the size of the image, whatever that is."""
  del frozen, key
  image = batch["image"]
  raw, _ = store.apply(model, variables, fit(image), jax.random.key(0), train=False)
  return head.pixel_outputs(raw, image.shape[1:3], **options)
