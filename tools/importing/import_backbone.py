"""Image backbones under other people's names: what `tools.import_weights --from=hf` reads.

Whose names they are is found out: those of the hub's library (`tools.export --format=hf` writes these), timm,
torchvision, or Swin's authors; the reading that puts most arrays into place is taken.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from uvim_like import trees, weights_hf, weights_peers, weights_rules, weights_torch
from uvim_like.errors import UserError
from uvim_like.models.vit import ViT
from uvim_like.systems import image_backbone
from uvim_like.systems.fields import build
from uvim_like.systems.image_backbone import ImageBackbone
from uvim_like.systems.uvim import lm, pretrained

Tree = dict[str, Any]
Flat = Mapping[str, np.ndarray]
HUB = ("hf", "timm", "torchvision", "swin")  # whose names `--from=hf` knows
FILES = ("model.safetensors", "pytorch_model.bin")  # of a folder of the hub
LANGUAGE_MODEL = "uvim.lm"
# Our ViT's names, and what the AugReg release calls them, whose way into the language model is known.
_AUGREG = ((r"position_embedding", "Transformer/posembed_input/pos_embedding"), (r"class_token", "cls"),
           (r"patch_embed/proj/(.*)", r"embedding/\1"), (r"norm/(.*)", r"Transformer/encoder_norm/\1"),
           (r"block(\d+)/norm1/(.*)", r"Transformer/encoderblock_\1/LayerNorm_0/\2"),
           (r"block(\d+)/norm2/(.*)", r"Transformer/encoderblock_\1/LayerNorm_1/\2"),
           (r"block(\d+)/attn/(.*)", r"Transformer/encoderblock_\1/MultiHeadDotProductAttention_0/\2"),
           (r"block(\d+)/mlp/fc1/(.*)", r"Transformer/encoderblock_\1/MlpBlock_0/Dense_0/\2"),
           (r"block(\d+)/mlp/fc2/(.*)", r"Transformer/encoderblock_\1/MlpBlock_0/Dense_1/\2"))


class Loaded(NamedTuple):
  """What a reader hands on.

  Attributes:
    tree: {"params", "state"} under the model's names, and, under their own, arrays that it has not.
    kept: patterns of the model's names that the source says nothing about: they keep their initial value.
  """
  tree: Tree
  kept: tuple[str, ...] = ()


def read(source: str, config: Mapping[str, Any], shapes: Tree, *, part: str = "all", resample: bool = False) -> Loaded:
  """The arrays of a backbone's file under the names of the config's model.

  Args:
    source: .safetensors, .pth, .bin or .npz, or a folder of the hub with one of `FILES`.
    config: plain; its system has an image backbone, or is UViM's language model.
    shapes: {"params", "state"} of the model.
    part: "all" or "encoder", which are the same here.
    resample: resize position tables that were made for another window or grid.

  Raises:
    UserError: another system, part or kind of file; a damaged one; a number of heads that is not the model's.
  """
  if part not in ("all", "encoder"):
    raise UserError(f"--part={part}: --from=hf reads a backbone; leave --part out")
  path = file_of(source)
  flat = weights_torch.read_state_dict(path)
  if config["model_name"].removeprefix("proj.") == LANGUAGE_MODEL:
    return read_language_model(flat, path, config, shapes)
  found = image_backbone.find(config, where="--from=hf")
  check_heads(path, found.module)
  with about(source):
    return place(flat, found, HUB, shapes, resample=resample)


@contextlib.contextmanager
def about(source: str) -> Iterator[None]:
  """Puts the source before the line of a UserError."""
  try:
    yield
  except UserError as error:
    raise UserError(f"--src={source}: {error}") from None


def file_of(source: str) -> pathlib.Path:
  """The file itself, or the one of a folder; UserError when the folder has none."""
  path = pathlib.Path(source).expanduser()
  if not path.is_dir():
    return path
  files = [path / name for name in FILES if (path / name).is_file()]
  if not files:
    raise UserError(f"--src: {path}: a folder without {' and '.join(FILES)}")
  return files[0]


def check_heads(path: pathlib.Path, module: Any) -> None:
  """Raises UserError when the config.json beside a file counts other heads than the model.

  The arrays of another number of heads have the same shapes: they would fit, and mean something else.
  """
  card = path.with_name("config.json")
  if not card.is_file() or not hasattr(module, "num_heads"):
    return
  try:
    told = json.loads(card.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{card}: is no JSON ({error})") from error
  heads = told.get("num_attention_heads") or told.get("num_heads")
  heads = tuple(heads) if isinstance(heads, list) else heads
  if heads and heads != module.num_heads:
    raise UserError(f"{card}: {heads} attention heads, but the config's model has {module.num_heads}")


def place(flat: Flat, found: ImageBackbone, formats: Sequence[str], shapes: Tree, *,
          resample: bool = False) -> Loaded:
  """A backbone's arrays where the system has its backbone; see `Loaded`.

  What no format has a name for (a pyramid on a ViT) keeps its initial value.
  """
  like = found.of(shapes)
  converted, table = best(flat, tables_of(found.module, formats), like, resample=resample)
  named = [name for name, _ in trees.flatten_names(like)]
  kept = [re.escape(found.full_name(name)) for name in named if not weights_rules.has_name(name, table)]
  return Loaded(found.within(converted.tree) | converted.rest, (*outside(found, shapes), *kept))


def outside(found: ImageBackbone, shapes: Tree) -> list[str]:
  """Patterns of the model's names that are not its backbone's."""
  groups = ["params"] if found.owns_state else ["params", "state"]
  return [f"{group}/(?!{found.name}/).*" for group in groups
          if any(name.partition("/")[0] != found.name for name, _ in trees.flatten_names(shapes[group] or {}))]


def tables_of(module: Any, formats: Sequence[str]) -> list[weights_rules.Table]:
  """The tables of those formats that know a kind of module; UserError when none does."""
  kind = type(module).__name__
  tables = [weights_hf.table(module)] if "hf" in formats and kind in weights_hf.TABLES else []
  tables += [weights_peers.table(module, name) for name in formats if kind in weights_peers.TABLES.get(name, ())]
  return tables or [weights_peers.table(module, formats[0])]  # which says what there is


def best(flat: Flat, tables: Sequence[weights_rules.Table], like: Tree, *,
         resample: bool = False) -> tuple[weights_rules.Converted, weights_rules.Table]:
  """The reading under which most arrays have a place and its shape.

  Raises:
    UserError: no table knows any of the names.
  """
  want = {name: tuple(leaf.shape) for name, leaf in trees.flatten_names(like)}

  def score(reading):
    leaves = trees.flatten_names(reading[0].tree)
    return sum(want.get(name) == leaf.shape for name, leaf in leaves), len(leaves)

  readings = [(weights_rules.to_ours(flat, table, like, resample=resample), table) for table in tables]
  found = max(readings, key=score)
  if not score(found)[1]:
    raise UserError(f"none of its names is one of the config's backbone; it begins with {', '.join(list(flat)[:3])}")
  return found


def read_language_model(flat: Flat, path: pathlib.Path, config: Mapping[str, Any], shapes: Tree) -> Loaded:
  """A ViT as the image side of UViM's language model; its position embedding is resampled to the model's grid."""
  model = build(lm.Model, config["model"], config, where="config.model")
  height, width = model.patch_size
  if height != width:
    raise UserError(f"config.model.patches: {model.patch_size}: ViTs of the hub have square patches")
  vit = ViT(width=model.emb_dim, depth=model.num_layers, num_heads=model.num_heads, mlp_dim=model.mlp_dim,
            patch=height, grid=(1, 1), class_token=True)
  check_heads(path, vit)
  like = weights_rules.eval_shapes(vit, (1, height, width, 3))
  del like["params"]["position_embedding"]  # of any grid: `vit_encoder` resamples it
  with about(str(path)):
    converted, _ = best(flat, tables_of(vit, HUB), like)
  named = trees.unflatten_names({augreg(name): leaf for name, leaf in trees.flatten_names(converted.tree["params"])})
  params = pretrained.lm_params(named, kind="encoder", model=model, where=f"--src={path}")
  return Loaded({"params": params} | converted.rest, tuple(pretrained.kept_patterns(shapes["params"], "encoder")))


def augreg(name: str) -> str:
  """A name of our ViT as the AugReg release has it."""
  return next(re.sub(pattern, to, name) for pattern, to in _AUGREG if re.fullmatch(pattern, name))
