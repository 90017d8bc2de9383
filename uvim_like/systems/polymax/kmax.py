"""PolyMaX: one cluster-prediction network for segmentation, depth and normals (arXiv 2311.05770)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from uvim_like import keywords
from uvim_like.errors import UserError
from uvim_like.models.backbones import make_backbone
from uvim_like.models.deeplab import IMAGE_STATS
from uvim_like.models.kmax import Model, Outputs
from uvim_like.models.kmax_decoder import HEADS
from uvim_like.models.kmax_pixel_decoder import BLOCKS
from uvim_like.systems import batch_stats
from uvim_like.systems.base import LossOut, System, Vars
from uvim_like.systems.fields import build, check_choice
from uvim_like.systems.polymax import head as heads
from uvim_like.systems.polymax import variables as store
from uvim_like.systems.polymax.head import Head
from uvim_like.systems.polymax.maps import check_labels, fit, pad, to_full

Array = jax.Array
READS = {"head": {}, "losses": {}}  # keys of a config that not all systems read, and their defaults
BY_TASK = ("value_dim", "semantic_classes")  # fields of the network that the task sets


def make(config: Mapping[str, Any]) -> System:
  """The system of a config: `task`, `model` (fields of `models.kmax.Model`), `head`, `losses`, `model_init`.

  Raises:
    UserError: an unknown task, field or option, sizes that do not divide.
  """
  head = heads.load(config)
  model = make_model(config, head)
  load = functools.partial(store.load, sources=config["model_init"], encoder=config["model"]["backbone"],
                           dont_load=(config.get("model_load") or {}).get("dont_load", ())) if config.get("model_init") else None
  weight = (config.get("losses") or {}).get("layers", 1.0)
  shared = dict(model=model, head=head)
  return System(init=functools.partial(store.init, model=model), loss=functools.partial(loss, layers=weight, **shared),
                predict={"predict": keywords.describe(functools.partial(predict, **shared), rest=head.query_outputs),
                         "maps": functools.partial(maps, **shared)},
                advance=batch_stats.advance, load=load, label_limits=head.label_limits, label_key=head.label_key)


def make_model(config: Mapping[str, Any], head: Head) -> Model:
  """The network, checked before anything is compiled."""
  where, fields = "config.model", dict(config["model"])
  for name in BY_TASK:
    if name in fields:
      raise UserError(f"{where}.{name}: the task '{config['task']}' sets it; leave it out")
  model = build(Model, fields | dict(value_dim=head.value_dim, semantic_classes=head.semantic_classes,
                                     num_classes=head.num_classes), config, where=where)
  check_encoder(model, where=where)
  levels = len(model.dims)
  if levels != 4 or len(model.blocks) != levels or len(model.kinds) != levels:
    raise UserError(f"{where}: dims {model.dims}, blocks {model.blocks} and kinds {model.kinds} need 4 values each")
  for kind in model.kinds:
    check_choice(kind, BLOCKS, where=f"{where}.kinds")
  if len(model.layers) != levels - 1 or sum(model.layers) < 1:
    raise UserError(f"{where}.layers: {model.layers}; one number for each of the strides 32, 16 and 8, not all 0")
  named = [(f"dims[{i}]", dim) for i, (dim, kind) in enumerate(zip(model.dims, model.kinds)) if kind == "axial"]
  for name, value in (*named, ("key_dim", model.key_dim)):
    if value < 1 or value % HEADS:
      raise UserError(f"{where}.{name}: {value} is no multiple of the {HEADS} heads; nearest: "
                      f"{max(1, round(value / HEADS)) * HEADS}")
  if model.num_queries < 1:
    raise UserError(f"{where}.num_queries: {model.num_queries}; at least 1 is needed")
  return model


def check_encoder(model: Any, *, where: str) -> None:
  """Raises UserError unless the backbone exists and gives maps at strides 4, 8, 16, 32."""
  check_choice(model.image_stats, tuple(IMAGE_STATS), where=f"{where}.image_stats")
  encoder = make_backbone(model.backbone, where=f"{where}.backbone")
  if tuple(encoder.strides[-4:]) != (4, 8, 16, 32):
    raise UserError(f"{where}.backbone: '{model.backbone['name']}' has maps at strides {tuple(encoder.strides)}; "
                    "4, 8, 16 and 32 are needed")
  if model.scan_layers:
    raise UserError("config.scan_layers: no two layers of this network are alike; set it to False")


def loss(variables: Vars, frozen: Any, batch: Mapping[str, Array], key: Array, train: bool, *, model: Model, head: Head,
         layers: float) -> LossOut:
  """The task's losses of the final prediction and, with the same weights, of every layer's (deep supervision).

  `parts` has each term for the final prediction, and with "_layers" the sum over the others.
  """
  del frozen
  check_labels(batch, head.channels)
  dropout_key, loss_key = jax.random.split(key)
  outputs, state = store.apply(model, variables, pad(batch["image"]), dropout_key, train=train)
  predictions = heads.at_stride_four(outputs.final, outputs.layers)
  terms = head.query_losses(predictions, outputs.semantic, batch["labels"], loss_key)
  final = {name: term[0] for name, term in terms.items()}
  deep = {f"{name}_layers": jnp.sum(term[1:], axis=0) for name, term in terms.items() if term.shape[0] > 1}
  total = sum(final.values()) + layers * sum(deep.values())
  return LossOut(jnp.mean(total), state, final | deep, batch_stats.sums(state) if train else ())


def forward(variables: Vars, image: Array, *, model: Model) -> Outputs:
  """The network's outputs in evaluation for images (B, H, W, 3) of any size."""
  return store.apply(model, variables, fit(image), jax.random.key(0), train=False)[0]


def predict(variables: Vars, frozen: Any, batch: Mapping[str, Array], key: Array, *, model: Model, head: Head,
            **options: Any) -> dict[str, Array]:
  """The task's outputs at the size of the image, whatever that is; `options` are those of the head's `query_outputs`."""
  del frozen, key
  image = batch["image"]
  return head.query_outputs(forward(variables, image, model=model).final, image.shape[1:3], **options)


def maps(variables: Vars, frozen: Any, batch: Mapping[str, Array], key: Array, *, model: Model,
         head: Head) -> dict[str, Array]:
  """The K probability maps of each image, in the order of what the queries stand for (PolyMaX, figures 8, 12, 13).

  Returns:
    "maps" (B, H, W, K) probabilities at the size of the image; "centers" (B, K, D): metres, vectors, or classes;
    and the task's outputs.
  """
  del frozen, key
  image = batch["image"]
  final = forward(variables, image, model=model).final
  centers = head.centers(final)
  order = head.order(centers)
  full = jax.nn.softmax(to_full(final.logits, image.shape[1:3]), axis=-1)
  return head.query_outputs(final, image.shape[1:3]) | {
      "maps": jnp.take_along_axis(full, order[:, None, None], axis=-1),
      "centers": jnp.take_along_axis(centers, order[..., None], axis=1)}
