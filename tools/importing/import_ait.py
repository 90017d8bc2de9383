"""Checkpoints of AiT's own program under our names: what `tools.import_weights --from=ait` reads.

A solver's file (state dict with `backbone.`, `transformer.` and heads), a tokenizer's file, a tokenizer inside a
solver's file, or the SimMIM backbone that the recipes start from; which one is wanted follows from the config.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tools.importing import import_backbone
from tools.importing.import_backbone import Loaded
from uvim_like import weights_torch
from uvim_like.errors import UserError
from uvim_like.systems import image_backbone
from uvim_like.systems.ait import pretrained, vqvae
from uvim_like.systems.ait.parts import make_parts

Tree = dict[str, Any]
Flat = Mapping[str, np.ndarray]
SYSTEMS = ("ait.solver", "ait.vqvae")
# Of a solver's file: copies of the one transformer in every head, frozen tokenizers, loss weights, a computed table.
PASSED_OVER = r"\w+_head\.(transformer\..+|vqvae\..+|loss_seq\.weight)|transformer\.enc_embed"
HEADS = {"depth": "depth_head.vqvae.", "masks": "insseg_head.vqvae."}
TRANSFORMER = (r"(encoder|decoder)\.blocks\.\d+\.(norm[123]|mlp\.fc[12]|(attn|crossattn)\.(wq|wk|wv|proj))\."
               r"(weight|bias)|(input_proj|stem_ln|encout_ln|proj|proj_ln|proj_mlp_ln|proj_mlp\.fc[12]|norm)\."
               r"(weight|bias)"
               r"|" + "|".join(pretrained.RAW))
TOKENIZER = r"(encoder|decoder)\.\d+\.(weight|bias|net\.[024]\.(weight|bias))|_vq_vae\.(" + "|".join(
    pretrained.STATE) + ")"


def read(source: str, config: Mapping[str, Any], shapes: Tree, *, part: str = "all", resample: bool = False) -> Loaded:
  """The arrays of a file under the names of the config's model; names that it has not stay as they are.

  Args:
    source: .pth, .safetensors or .npz.
    config: plain; its system is one of `SYSTEMS`.
    shapes: {"params", "state"} of the model.
    part: "all", or, for a solver, "encoder": the file is a backbone's (SimMIM).
    resample: no choice here: AiT's networks have no table of positions.

  Raises:
    UserError: another system, part or kind of file; a damaged one.
  """
  del resample
  system = config["model_name"].removeprefix("proj.")
  if system not in SYSTEMS:
    raise UserError(f"--from=ait: config.model_name is '{system}'; valid: {', '.join(SYSTEMS)}")
  flat = pretrained.strip(weights_torch.read_state_dict(source))
  with import_backbone.about(source):
    if part == "encoder" and system == "ait.solver":
      return backbone(flat, config, shapes)
    if part != "all":
      raise UserError(f"AiT's solver has no part '{part}'; use --part=all, or --part=encoder for its backbone"
                      if system == "ait.solver" else "a tokenizer has no parts; use --part=all")
    if system == "ait.solver":
      return Loaded(read_solver(flat, config, shapes))
    model = vqvae.make_model(config["model"], config, where="config.model")
    return Loaded(read_tokenizer(flat, kind=vqvae.kind_of(config["task"], model, where="config")))


def backbone(flat: Flat, config: Mapping[str, Any], shapes: Tree) -> Loaded:
  """A SwinV2's arrays, of a file of its own or of a solver's without "backbone."."""
  found = image_backbone.find(config, where="--from=ait")
  return import_backbone.place(flat, found, ("ait",), shapes)


def read_solver(flat: Flat, config: Mapping[str, Any], shapes: Tree) -> Tree:
  """Backbone and transformer of a solver's state dict, and, under their own names, arrays that are neither."""
  body = below(flat, "backbone.")
  head = below(flat, "transformer.")
  known = {name: value for name, value in head.items() if re.fullmatch(TRANSFORMER, name)}
  if "voc_embed" not in known or not body:
    raise UserError("no AiT solver: it has no 'transformer.voc_embed' and 'backbone.…'; a backbone alone is read with "
                    "--part=encoder, a tokenizer with its own config")
  heads = make_parts(config).head.num_heads
  check_heads(known, heads)
  found = backbone(body, config, shapes).tree
  params = found.pop("params") | {"transformer": pretrained.transformer_from_torch(known, num_heads=heads)}
  rest = {f"transformer.{name}": value for name, value in head.items() if name not in known}
  rest |= {f"backbone.{name}": value for name, value in found.items() if name != "state"}
  rest |= {name: value for name, value in flat.items() if not name.startswith(("backbone.", "transformer."))}
  return {"params": params, "state": {}, **{n: x for n, x in rest.items() if not re.fullmatch(PASSED_OVER, n)}}


def check_heads(flat: Flat, heads: int) -> None:
  """Raises UserError unless all projections of attention can be split into so many heads."""
  for name, value in flat.items():
    if match := re.fullmatch(r".*attn\.(?:w[qkv]|(proj))\.(?:(weight)|bias)", name):
      out, is_matrix = match[1], bool(match[2])
      split = value.shape[-1 if out else 0] if value.ndim == 1 + is_matrix else -1
      if split < 0 or (split % heads and (is_matrix or not out)):
        raise UserError(f"'transformer.{name}' of {value.shape} does not divide into config.model.num_heads {heads}")


def below(flat: Flat, prefix: str) -> dict[str, np.ndarray]:
  """The arrays whose names begin with a prefix, without it."""
  return {name.removeprefix(prefix): value for name, value in flat.items() if name.startswith(prefix)}


def read_tokenizer(flat: Flat, *, kind: str) -> Tree:
  """Parameters and codebook of a tokenizer's state dict, or of the one inside a solver's.

  Args:
    flat: the file's arrays.
    kind: of `vqvae.KINDS`: which tokenizer of a solver's file.

  Raises:
    UserError: a module that lacks an array, or whose weight is no convolution's.
  """
  inside = below(flat, HEADS[kind]) if kind in HEADS else {}
  flat = inside or dict(flat)
  known = {name: value for name, value in flat.items() if re.fullmatch(TOKENIZER, name)}
  check_modules(known)
  params, state = pretrained.from_torch(known)
  return {"params": params, "state": state, **{n: x for n, x in flat.items() if n not in known}}


def check_modules(flat: Flat) -> None:
  """Raises UserError unless every module of a tokenizer has all its arrays, and its weights four axes."""
  modules: dict[str, set[str]] = {}
  for name, value in flat.items():
    if match := re.fullmatch(r"((?:encoder|decoder)\.\d+)\.(.+)", name):
      modules.setdefault(match[1], set()).add(match[2])
      if name.endswith("weight") and value.ndim != 4:
        raise UserError(f"'{name}' has the shape {value.shape}; a convolution's has four sides")
  for module, names in modules.items():
    pair = {"weight", "bias"}
    wanted = pair if names & pair else {f"net.{i}.{kind}" for i in (0, 2, 4) for kind in pair}
    if missing := sorted(wanted - names):
      raise UserError(f"'{module}.{missing[0]}' is missing")
