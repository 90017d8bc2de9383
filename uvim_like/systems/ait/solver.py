"""AiT stage II: one encoder-decoder writes depth, semantics, boxes, masks and joints as tokens (arXiv 2301.02229,
section 3.2)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from uvim_like import weights
from uvim_like.decoding import masked
from uvim_like.errors import UserError
from uvim_like.models.ait_transformer import INIT_STD, sine_positions
from uvim_like.systems import batch_stats
from uvim_like.systems.ait import losses, predict, sequences, vqvae
from uvim_like.systems.ait.ait_vocab import JOINTS, TASK_IDS
from uvim_like.systems.ait.parts import (
  MAPS,
  Parts,
  decode_maps,
  encode_maps,
  load_tokenizers,
  make_parts,
  normalize,
  valid_size,
)
from uvim_like.systems.base import LossOut, System, Vars
from uvim_like.trees import flatten_names, unflatten_names

Array = jax.Array
Batch = Mapping[str, Array]
READS = {"tokenizers": None, "solver": {}}  # keys of a config that not all systems read, and their defaults
MASK_RATIOS = (1.0, 0.7)  # of masked training: every map once with all its tokens hidden, once with so many (MAD)


def make(config: Mapping[str, Any]) -> System:
  """The system of a config; `frozen` is {task: tokenizer} from `config.tokenizers`.

  Raises:
    UserError: see `parts.make_parts`.
  """
  parts = make_parts(config)
  frozen = load_tokenizers(config, parts.tokenizers)
  source, kept = config.get("model_init"), (config.get("model_load") or {}).get("dont_load", ())
  tasks = parts.options.tasks
  classes = parts.tokenizers["semantics"].classes + 1 if tasks == ("semantics",) else None
  return System(init=functools.partial(init, parts=parts), loss=functools.partial(loss, parts=parts),
                predict={"predict": functools.partial(predict.predict, parts=parts),
                         "tokens": functools.partial(predict.tokens, parts=parts)},
                frozen=frozen, advance=batch_stats.advance,
                load=functools.partial(load, source=source, dont_load=kept) if source else None,
                label_limits=(classes,) if classes else None, label_key="config.tokenizers.semantics.model.classes")


def init(key: Array, batch: Batch, *, parts: Parts) -> Vars:
  """Initial parameters {"backbone", "transformer"}; batch statistics of the backbone, if it has any, are the state."""
  backbone_key, head_key, state_key = jax.random.split(key, 3)
  image = jnp.zeros((1, *parts.input_size, 3))
  variables = parts.backbone.init({"params": backbone_key, "state": state_key}, image)
  features = jax.eval_shape(lambda v: parts.backbone.apply(v, image), variables)[-1]
  head = parts.head.init(head_key, jnp.zeros(features.shape), jnp.zeros((1, 1), jnp.int32), jnp.zeros((1,), jnp.int32))
  head = aligned(head["params"], features.shape[1:3], parts=parts) if parts.options.aligned else head["params"]
  return Vars(params={"backbone": variables["params"], "transformer": head}, state=variables.get("state", {}))


def aligned(params: Mapping[str, Any], grid: tuple[int, int], *, parts: Parts) -> dict[str, Any]:
  """Parameters of a fresh transformer each of whose map tokens first looks at its own place of the image.

  The positions of a map's tokens start as the memory's, and the keys of cross-attention as its queries, so that their
  product is largest where the two places are the same. All that is drawn is drawn wider: deviation 1 / sqrt(width)
  instead of 0.02, which would leave that product, and all signals, in the flat middle of the softmax. No paper's; for
  training without pretrained weights.

  Args:
    params: of the transformer.
    grid: (h, w) of the memory.
    parts: networks and options.
  """
  widen = parts.head.width ** -0.5 / INIT_STD
  out = unflatten_names({name: leaf if name.endswith(("/scale", "/bias")) else leaf * widen
                         for name, leaf in flatten_names(params)})
  for task in set(parts.options.tasks) & set(MAPS):
    # The memory's cell under the middle of each token's.
    rows, columns = (((jnp.arange(count) + 0.5) * side / count).astype(jnp.int32)
                     for count, side in zip(parts.map_grid(task), grid))
    positions = sine_positions(grid, parts.head.width)[(rows[:, None] * grid[1] + columns).ravel()]
    out["dec_embed"] = out["dec_embed"].at[TASK_IDS[task], :len(positions)].set(positions)
  for block in out["decoder"].values():
    block["cross"]["key"]["kernel"] = block["cross"]["query"]["kernel"]
  return out


def load(variables: Vars, *, source: str | Mapping[str, str], dont_load: tuple[str, ...] = ()) -> tuple[Vars, str]:
  """Fresh variables with weights in their place: a whole solver, or {"backbone": file} and {"solver": file}.

  A detection model starts the instance and joint recipes; what the two do not share keeps its initial value by
  `model_load.dont_load` ("transformer/decoder/.*" and rows that differ in number).
  """
  sources = {"solver": source} if isinstance(source, str) else dict(source)
  params, reports = variables.params, []
  for kind, path in sources.items():
    where = f"config.model_init.{kind}"
    if kind not in ("solver", "backbone"):
      raise UserError(f"{where}: '{kind}' is no part; valid: solver, backbone")
    loaded = weights.load(path, where=where)["params"]
    if kind == "backbone":
      merged, report = weights.merge(params["backbone"], loaded.get("backbone", loaded), dont_load, where=where)
      params = {**params, "backbone": merged}
    else:
      params, report = weights.merge(params, loaded, dont_load, where=where)
    reports.append(f"{kind} from {path}: {report.text()}")
  return variables.replace(params=params), "\n".join(reports)


def task_ids(batch: Batch, parts: Parts) -> Array:
  """(B,) row of the task embedding of each example; with several tasks the batch's "task_id" counts them in order."""
  tasks = parts.options.tasks
  size = batch["image"].shape[0]
  if len(tasks) == 1:
    return jnp.full((size,), TASK_IDS[tasks[0]])
  if "task_id" not in batch:
    raise UserError(f"the batch has no 'task_id', but config.solver.tasks has several tasks: {', '.join(tasks)}")
  return jnp.asarray([TASK_IDS[task] for task in tasks])[batch["task_id"]]


def forward(variables: Vars, image: Array, sequence: sequences.Sequence, task: Array, key: Array, train: bool, *,
            parts: Parts) -> tuple[Array, Any]:
  """Teacher-forced logits (B, L, V) of normalised images, and the backbone's next state."""
  feature_key, head_key = jax.random.split(key)
  features, state = encode(variables, image, feature_key, train, parts=parts)
  hidden = sequence.dense[:, :-1] if parts.options.parallel else None
  logits = parts.head.apply({"params": variables.params["transformer"]}, features[-1], sequence.inputs[:, :-1], task,
                            hidden=hidden, train=train, rngs={"dropout": head_key})
  return logits, state


def encode(variables: Vars, image: Array, key: Array, train: bool, *, parts: Parts) -> tuple[Any, Any]:
  """The backbone's features of normalised images, and its next state."""
  features, updated = parts.backbone.apply(
      {"params": variables.params["backbone"], "state": variables.state}, image, train=train, rngs={"dropout": key},
      mutable=["state"])
  return features, updated.get("state", {}) if train else variables.state


def masked_forward(variables: Vars, image: Array, sequence: sequences.Sequence, task: Array, key: Array, train: bool, *,
                   parts: Parts) -> tuple[Array, sequences.Sequence, Any]:
  """Logits (B, C L, V) of C copies of the sequences with tokens hidden, what these ask for, and the next state.

  The copies lie side by side. The first one is hidden as a whole: what depends on all of a map (the auxiliary loss)
  reads that one.
  """
  feature_key, head_key, draw_key = jax.random.split(key, 3)
  features, state = encode(variables, image, feature_key, train, parts=parts)
  call = functools.partial(parts.head.apply, {"params": variables.params["transformer"]})
  memory = call(features[-1], train=train, rngs={"dropout": head_key}, method="encode")
  logits, hidden = [], []
  for i, ratio in enumerate(MASK_RATIOS):
    draws = jax.random.uniform(jax.random.fold_in(draw_key, i), sequence.inputs.shape)
    hidden.append(masked.lowest(draws, int(draws.shape[1] * ratio)))
    x = call(sequence.inputs, task, hidden[-1], method="fill_in")
    states = call(x, memory, train=train, rngs={"dropout": jax.random.fold_in(head_key, i)}, method="decode")
    logits.append(call(states, method="logits"))
  copies = [sequence._replace(targets=jnp.where(mask, sequence.targets, sequences.IGNORED)) for mask in hidden]
  side_by_side = sequences.Sequence(*(jnp.concatenate(arrays, axis=1) for arrays in zip(*copies)))
  return jnp.concatenate(logits, axis=1), side_by_side, state


def map_targets(batch: Batch, task: str, frozen: Any, *, parts: Parts) -> tuple[sequences.Sequence, Array]:
  """A map task's sequences (B, L) and the truth (B, H, W, 1) inside `map_size`."""
  height, width = parts.map_size
  truth = batch["labels"][:, :height, :width]
  truth = truth.astype(jnp.int32 if task == "semantics" else jnp.float32)
  codes = encode_maps(frozen, task, truth, parts=parts)
  return sequences.of_map(codes.reshape(codes.shape[0], -1), parts.rows(task).start), truth


def object_targets(key: Array, batch: Batch, frozen: Any, *, parts: Parts
                   ) -> tuple[sequences.Sequence, sequences.Objects | None]:
  """Sequences of objects (B, L), and with masks what their auxiliary loss needs."""
  options = parts.options
  slots, keys = sequences.place_objects(key, batch, valid_size(batch), slots=options.num_objects)
  codes, objects, joints = None, None, None
  if "instances" in options.tasks:
    model = parts.tokenizers["instances"]
    masks = sequences.masks_of(slots, batch, side=model.input_size[0])
    codes = encode_maps(frozen, "instances", masks.reshape(-1, *masks.shape[2:], 1), parts=parts)
    codes = codes.reshape(*masks.shape[:2], -1)
    objects = sequences.Objects(masks, slots.real)
  if "keypoints" in options.tasks:
    if "keypoints" not in batch or batch["keypoints"].shape[2:] != (JOINTS // 2, 3):
      raise UserError(f"config.solver.tasks: keypoints need 'keypoints' of {JOINTS // 2} joints in the batch; "
                      "pp_train makes them by instances(keypoints=True) and must keep them")
    joints = sequences.joints_of(slots, batch, vocabulary=parts.vocabulary, norm=options.box_norm)
  sequence = sequences.of_objects(slots, keys, codes, vocabulary=parts.vocabulary, norm=options.box_norm,
                                  mask_weight=options.mask_weight, corrupt=options.noise, joints=joints)
  if not options.noise:
    empty = ~jnp.repeat(slots.real, parts.object_len, axis=1)
    sequence = sequence._replace(targets=jnp.where(empty, sequences.IGNORED, sequence.targets))
  return sequence, objects


def loss(variables: Vars, frozen: Any, batch: Batch, key: Array, train: bool, *, parts: Parts) -> LossOut:
  """Cross entropy of every task's tokens plus its auxiliary loss, over the number of tokens that the task asks for.

  total = Σ over tasks of weight · (Σ cross entropy + aux weight · aux · N_x) / N, with N the task's supervised tokens
  in the batch; N_x is N for maps and mask_weight · (number of mask tokens) for objects.
  """
  options = parts.options
  ids = task_ids(batch, parts)
  sequence_key, model_key = jax.random.split(key)
  found, truth, objects = {}, {}, None
  for task in options.tasks:
    if task in MAPS:
      found[TASK_IDS[task]], truth[task] = map_targets(batch, task, frozen, parts=parts)
    else:
      found[TASK_IDS[task]], objects = object_targets(sequence_key, batch, frozen, parts=parts)
  sequence = sequences.select(ids, found)
  image = normalize(batch, ids, standardize=options.standardize)
  if options.masked:
    logits, sequence, state = masked_forward(variables, image, sequence, ids, model_key, train, parts=parts)
  else:
    logits, state = forward(variables, image, sequence, ids, model_key, train, parts=parts)
  total, metrics = objective(logits, sequence, truth, objects, ids, frozen, parts=parts)
  return LossOut(total, state, metrics, batch_stats.sums(state) if train else ())


def objective(logits: Array, sequence: sequences.Sequence, truth: Mapping[str, Array],
              objects: sequences.Objects | None, ids: Array, frozen: Any, *,
              parts: Parts) -> tuple[Array, dict[str, Array]]:
  """The loss of logits (B, L, V), and what is reported of each example: () and {name: (B,)}; see `loss`.

  Args:
    logits: of all positions.
    sequence: what was asked for.
    truth: {map task: (B, H, W, 1)}.
    objects: masks of the objects, with instances.
    ids: (B,) row of the task embedding of each example.
    frozen: {task: tokenizer}.
    parts: networks and options.
  """
  options = parts.options
  tokens = losses.token_losses(logits, sequence.targets, sequence.weights)
  asked = sequence.targets >= 0
  right = (jnp.argmax(logits, axis=-1) == sequence.targets) & asked
  total, metrics = 0.0, {}
  for task in options.tasks:
    own = ids == TASK_IDS[task]
    count = jnp.sum(asked & own[:, None], axis=1).astype(jnp.float32)  # (B,)
    number = jnp.maximum(jnp.sum(count), 1.0)
    summed = jnp.sum(jnp.where(own[:, None], tokens, 0.0), axis=1)
    aux, shown = 0.0, {}
    if task == "depth" and options.depth_aux:
      aux, shown = depth_aux(logits, truth[task], own, frozen, number, parts=parts)
    if task == "semantics" and options.semantics_aux:
      aux, shown = semantics_aux(logits, truth[task], own, frozen, number, parts=parts)
    if task == "instances" and options.mask_aux:
      aux, shown = instance_aux(logits, objects, own, frozen, parts=parts)
    weight = options.depth_weight if task == "depth" else 1.0
    total += weight * (jnp.sum(summed) + aux) / number
    shown |= {"loss_code": summed / jnp.maximum(count, 1.0),
              "accuracy": jnp.sum(jnp.where(own[:, None], right, False), axis=1) / jnp.maximum(count, 1.0)}
    metrics |= {name if len(options.tasks) == 1 else f"{task}/{name}": share(part, own) for name, part in shown.items()}
  return total, metrics


def share(part: Array, own: Array) -> Array:
  """(B,) so that the mean over the batch is the mean over the task's own examples."""
  return jnp.where(own, part, 0.0) * own.shape[0] / jnp.maximum(jnp.sum(own), 1)


def soft_map(logits: Array, task: str, frozen: Any, *, parts: Parts) -> Array:
  """(B, H, W, C) map of a task that logits (B, L, V) stand for, softly decoded, so that it has a gradient."""
  rows, length = parts.rows(task), parts.length(task)
  code = logits[:, :length, rows.start:rows.start + rows.size].reshape(len(logits), *parts.map_grid(task), rows.size)
  return decode_maps(frozen, task, code, parts=parts, tau=parts.options.tau)


def depth_aux(logits: Array, truth: Array, own: Array, frozen: Any, number: Array, *,
              parts: Parts) -> tuple[Array, dict[str, Array]]:
  """SILog of the softly decoded map times the number of tokens, and (B,) each image's own SILog."""
  depth = soft_map(logits, "depth", frozen, parts=parts)
  valid = (truth > 0) & own[:, None, None, None]
  value = losses.silog(depth, truth, valid)
  each = jax.lax.stop_gradient(jax.vmap(losses.silog)(depth, truth, valid))
  return parts.options.depth_aux * value * number, {"loss_silog": each}


def semantics_aux(logits: Array, truth: Array, own: Array, frozen: Any, number: Array, *,
                  parts: Parts) -> tuple[Array, dict[str, Array]]:
  """Cross entropy a pixel of the softly decoded map times the number of tokens, and (B,) each image's own."""
  sums, counts = vqvae.reconstruction(soft_map(logits, "semantics", frozen, parts=parts), truth, "semantics")
  each = jax.lax.stop_gradient(sums / jnp.maximum(counts, 1.0))
  return parts.options.semantics_aux * vqvae.pooled(sums, counts, own) * number, {"loss_pixels": each}


def instance_aux(logits: Array, objects: sequences.Objects, own: Array, frozen: Any, *,
                 parts: Parts) -> tuple[Array, dict[str, Array]]:
  """Dice and squared error of the softly decoded masks times the weighted number of mask tokens, image by image."""
  rows, slots = parts.vocabulary.masks, parts.options.num_objects
  model = parts.tokenizers["instances"]
  length = parts.length("instances")
  code = logits[:, :length, rows.start:rows.start + rows.size].reshape(len(logits), slots, parts.object_len, rows.size)
  code = code[:, :, -model.code_len:].reshape(-1, *model.grid, rows.size)
  masks = decode_maps(frozen, "instances", code, parts=parts, tau=parts.options.mask_tau)
  masks = masks.reshape(*objects.masks.shape)
  error = losses.mask_error(masks, objects.masks, objects.real & own[:, None])
  tokens = jnp.sum(objects.real & own[:, None], axis=1) * model.code_len
  options = parts.options
  return options.mask_aux * options.mask_weight * jnp.sum(error * tokens), {"loss_mask": error}


