"""What AiT's solver is made of: backbone, head, vocabulary, frozen tokenizers, and the options of its recipe."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like import weights
from uvim_like.errors import UserError, unknown
from uvim_like.models.ait_transformer import Transformer
from uvim_like.models.ait_vqvae import Model as Tokenizer
from uvim_like.models.backbones import make_backbone
from uvim_like.systems.ait import vqvae
from uvim_like.systems.ait.ait_vocab import BOX, JOINTS, RELEASED_TASKS, TASK_IDS, Range, Vocabulary
from uvim_like.systems.base import Vars
from uvim_like.systems.fields import DTYPES, build

Array = jax.Array
MAPS = ("depth", "semantics")      # tasks that write one dense map
OBJECTS = ("instances", "detection", "keypoints")
TOKENIZERS = {"depth": "depth", "semantics": "semantic_segmentation", "instances": "instance_segmentation"}
# Means and deviations of ImageNet's colours, 0..255 (all tasks but depth, whose recipe scales to [0, 1] only).
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Options(NamedTuple):
  """The config's `solver` block.

  Attributes:
    tasks: any of "depth", "semantics", and one of "instances", "detection" and "keypoints"; with several the batch's
      "task_id" counts them in this order.
    parallel: AiT-P: every dense position reads the same learned token.
    masked: a map's tokens are learned from the others, all or some hidden (as MAD's), and decoded in stages.
    num_objects: Q, slots of a sequence.
    box_norm: pixels that the coordinate table spans.
    noise: fill sequences up with noise boxes and corrupt the classes that the decoder reads.
    map_size: (H, W) at the canvas's upper left that a map's code is for; None for the whole canvas.
    depth_weight: of depth's loss (0.2 in joint training).
    depth_aux: of the SILog through the frozen detokenizer; 0 for none.
    semantics_aux: of the cross entropy a pixel through the frozen detokenizer; 0 for none. After depth's: nothing of
      this task was released.
    mask_weight: of the cross entropy of mask codes.
    mask_aux: of dice and squared error through the frozen detokenizer, times `mask_weight`; 0 for none.
    tau: factor on the logits in the soft detokenizer of maps.
    mask_tau: the same of masks.
    standardize: images of depth, too, lose ImageNet's mean and deviation, as those of the other tasks do. The release
      leaves them in [0, 1], where the patches of a fresh backbone differ by a tenth of what they share.
    aligned: a fresh decoder looks at its own place first; see `solver.aligned`. Ours, for training from scratch.
  """
  tasks: tuple[str, ...] = ("depth",)
  parallel: bool = False
  masked: bool = False
  num_objects: int = 100
  box_norm: float = 640
  noise: bool = True
  map_size: tuple[int, int] | None = None
  depth_weight: float = 1.0
  depth_aux: float = 1.0
  semantics_aux: float = 1.0
  mask_weight: float = 0.2
  mask_aux: float = 5.0
  tau: float = 0.8
  mask_tau: float = 1.0
  standardize: bool = False
  aligned: bool = False


class Parts(NamedTuple):
  """What the functions of the system hold fixed.

  Attributes:
    backbone: image (B, H, W, 3) -> features, the last of which is read.
    head: encoder and decoder.
    vocabulary: rows.
    tokenizers: {task: network}.
    options: of the recipe.
    input_size: (H, W) of the canvas.
  """
  backbone: nn.Module
  head: Transformer
  vocabulary: Vocabulary
  tokenizers: Mapping[str, Tokenizer]
  options: Options
  input_size: tuple[int, int]

  @property
  def object_len(self) -> int:
    """Tokens of one object."""
    if "instances" in self.options.tasks:
      return BOX + 1 + self.tokenizers["instances"].code_len
    return BOX + 1 + (JOINTS if "keypoints" in self.options.tasks else 0)

  @property
  def map_size(self) -> tuple[int, int]:
    """(H, W) pixels that a map's code is for."""
    return self.options.map_size or self.input_size

  def map_grid(self, task: str) -> tuple[int, int]:
    """(h, w) tokens of a map."""
    ratio = self.tokenizers[task].ratio
    return self.map_size[0] // ratio, self.map_size[1] // ratio

  def length(self, task: str) -> int:
    """Tokens of a task's sequence."""
    return self.options.num_objects * self.object_len if task in OBJECTS else math.prod(self.map_grid(task))

  def rows(self, task: str) -> Range:
    """Rows of a map's codes."""
    return self.vocabulary.depth if task == "depth" else self.vocabulary.semantics


def make_parts(config: Mapping[str, Any]) -> Parts:
  """The parts of a config: blocks `model` (backbone, vocabulary, fields of the head), `solver`, `tokenizers`.

  Raises:
    UserError: an unknown field or task, a tokenizer that is missing or has another number of words than the vocabulary,
      sizes that do not divide, sequences longer than the decoder's positions.
  """
  fields = dict(config["model"])
  input_size = tuple(fields.pop("input_size", ()) or ())
  if len(input_size) != 2:
    raise UserError(f"config.model.input_size: {input_size or 'missing'}; (height, width) is needed, e.g. (480, 480)")
  if "backbone" not in fields:
    raise UserError("config.model: 'backbone' is missing, e.g. dict(name='swinv2_b')")
  dtype = DTYPES.get(config.get("dtype") or "float32", jnp.float32)
  backbone = make_backbone(fields.pop("backbone"), where="config.model.backbone", dtype=dtype,
                           remat=config.get("remat") or "none")
  vocabulary = named(Vocabulary, fields.pop("vocabulary", None) or {}, where="config.model.vocabulary")
  options = named(Options, config.get("solver") or {}, where="config.solver")
  options = options._replace(tasks=check_tasks(options.tasks))
  check_form(options)
  fields |= {"vocab_size": vocabulary.size, "parallel": options.parallel, "masked": options.masked}
  fields.setdefault("num_tasks", max(RELEASED_TASKS, *(TASK_IDS[task] + 1 for task in options.tasks)))
  shared = {name: config.get(name) for name in ("remat", "scan_layers")}  # the head computes in float32 whatever `dtype` is
  head = build(Transformer, fields, shared, where="config.model")
  parts = Parts(backbone, head, vocabulary, make_tokenizers(config, options.tasks), options, input_size)
  check_sizes(parts)
  return parts


def named(kind: type, values: Mapping[str, Any], *, where: str) -> Any:
  """A NamedTuple of a config block, lists as tuples; UserError for an unknown field."""
  for name in values:
    if name not in kind._fields:
      raise unknown("field", name, kind._fields, where=where)
  return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def check_tasks(tasks: tuple[str, ...] | str) -> tuple[str, ...]:
  """The tasks as a tuple; UserError for an unknown one, none, or several forms of the same objects."""
  tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
  for task in tasks:
    if task not in TASK_IDS:
      raise unknown("task", str(task), TASK_IDS, where="config.solver.tasks")
  if not tasks or len(set(OBJECTS) & set(tasks)) > 1 or len(set(tasks)) < len(tasks):
    raise UserError(f"config.solver.tasks: {tasks}; different ones are needed, and no two of {', '.join(OBJECTS)}")
  return tasks


def check_form(options: Options) -> None:
  """Raises UserError for masked training of objects, which would need a matching, or together with parallel tokens."""
  if options.masked and options.parallel:
    raise UserError("config.solver.parallel: a masked model fills in all tokens already; set one of the two")
  if options.masked and set(options.tasks) & set(OBJECTS):
    raise UserError(f"config.solver.masked: True, but of config.solver.tasks {', '.join(options.tasks)} only maps "
                    f"({', '.join(MAPS)}) are learned so; objects would need a matching, as MAD has it")


def make_tokenizers(config: Mapping[str, Any], tasks: tuple[str, ...]) -> dict[str, Tokenizer]:
  """{task: tokenizer} of the block `tokenizers`; UserError when one is missing, idle or of another kind."""
  blocks = config.get("tokenizers") or {}
  needed = [task for task in tasks if task in TOKENIZERS]
  for name in blocks:
    if name not in needed:
      raise unknown("tokenizer", name, needed, where="config.tokenizers")
  made = {}
  for task in needed:
    if task not in blocks:
      raise UserError(f"config.tokenizers: '{task}' is missing: dict({task}=dict(model=…, model_init='its workdir'))")
    where = f"config.tokenizers.{task}"
    model = vqvae.make_model(blocks[task]["model"], {}, where=f"{where}.model")
    vqvae.kind_of(TOKENIZERS[task], model, where=where)
    made[task] = model
  return made


def check_sizes(parts: Parts) -> None:
  """Raises UserError when codes, rows and positions do not fit each other."""
  vocabulary, options = parts.vocabulary, parts.options
  for task, model in parts.tokenizers.items():
    rows = vocabulary.mask_codes if task == "instances" else parts.rows(task).size
    if model.dict_size != rows:
      key = {"instances": "mask_codes", "depth": "depth_codes", "semantics": "other_codes"}[task]
      raise UserError(f"config.model.vocabulary.{key}: {rows}, but the tokenizer of {task} has {model.dict_size} words")
    if task in MAPS and any(side % model.ratio for side in parts.map_size):
      raise UserError(f"config.solver.map_size: {parts.map_size} is no multiple of the tokenizer's ratio {model.ratio}")
  if any(small > large for small, large in zip(parts.map_size, parts.input_size)):
    raise UserError(f"config.solver.map_size: {parts.map_size} is larger than config.model.input_size "
                    f"{parts.input_size}")
  row = max(TASK_IDS[task] for task in options.tasks)
  if row >= parts.head.num_tasks:
    raise UserError(f"config.model.num_tasks: {parts.head.num_tasks}, but the tasks need {row + 1} rows; leave it out")
  longest = max(map(parts.length, options.tasks))
  if longest > parts.head.max_len:
    raise UserError(f"config.model.max_len: {parts.head.max_len} positions, but a sequence has {longest} tokens")
  if parts.head.width % parts.head.num_heads:
    raise UserError(f"config.model.width: {parts.head.width} is no multiple of num_heads {parts.head.num_heads}")
  if parts.head.width % 4:
    raise UserError(f"config.model.width: {parts.head.width} is no multiple of 4, which the positions need")


def load_tokenizers(config: Mapping[str, Any], tokenizers: Mapping[str, Tokenizer]) -> dict[str, Vars]:
  """{task: parameters and codebook} from files or finished workdirs; shapes only where there is none yet."""
  loaded = {}
  for task, model in tokenizers.items():
    where = f"config.tokenizers.{task}.model_init"
    init = functools.partial(vqvae.init, batch={}, model=model, kind=vqvae.KINDS[TOKENIZERS[task]])
    shapes = jax.eval_shape(init, jax.random.key(0))
    source = config["tokenizers"][task].get("model_init")
    if source and weights.exists(source):
      merged, _ = weights.merge({"params": shapes.params, "state": shapes.state}, weights.load(source, where=where),
                                where=where)
      shapes = Vars(params=merged["params"], state=merged["state"])
    loaded[task] = shapes
  return loaded


def valid_size(batch: Mapping[str, Array]) -> Array:
  """(B, 2) rows and columns of the canvas that hold the image; all of it where the batch says nothing, or zeros."""
  canvas = jnp.broadcast_to(jnp.asarray(batch["image"].shape[1:3]), (batch["image"].shape[0], 2))
  if "valid_size" not in batch:
    return canvas
  return jnp.where(batch["valid_size"] > 0, batch["valid_size"], canvas)


def normalize(batch: Mapping[str, Array], task: Array, *, standardize: bool) -> Array:
  """Images (B, H, W, 3) in [-1, 1] as each task's recipe wants them; the padding of the canvas becomes 0."""
  image = batch["image"]
  unit = (image + 1) / 2
  coloured = (255 * unit - jnp.asarray(MEAN)) / jnp.asarray(DEVIATION)
  plain = (task == TASK_IDS["depth"]) & (not standardize)
  out = jnp.where(plain[:, None, None, None], unit, coloured)
  size = valid_size(batch)
  rows, columns = (jnp.arange(side) < size[:, axis, None] for axis, side in enumerate(image.shape[1:3]))
  return jnp.where((rows[:, :, None] & columns[:, None])[..., None], out, 0.0)


def encode_maps(frozen: Mapping[str, Vars], task: str, maps: Array, *, parts: Parts) -> Array:
  """(M, h, w) codes of maps (M, H, W, 1) by a task's frozen tokenizer; no gradient."""
  code = vqvae.apply(parts.tokenizers[task], frozen[task], maps, method="encode").code
  return jax.lax.stop_gradient(code)


def decode_maps(frozen: Mapping[str, Vars], task: str, code: Array, *, parts: Parts, tau: float | None = None) -> Array:
  """(M, H, W, C) maps of codes (M, h, w), or, with `tau`, of the mixture that logits (M, h, w, K) stand for."""
  model, variables = parts.tokenizers[task], frozen[task]
  if tau is None:
    return vqvae.apply(model, variables, code, method="decode")
  return model.apply({"params": variables.params, "state": variables.state}, code, tau, method="decode_soft")
