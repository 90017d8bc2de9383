"""Pretrained weights for stage II's image encoder: an ImageNet ViT (AugReg layout) or stage I's own base model."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.ndimage

from uvim_like import weights
from uvim_like.errors import UserError, unknown
from uvim_like.models.uvim_lm import Model
from uvim_like.systems.base import Vars
from uvim_like.trees import flatten_names, unflatten_names

Tree = Any
Flat = dict[str, np.ndarray]
SOURCES = ("encoder", "base_model", "lm")


def load_lm(variables: Vars, *, sources: Mapping[str, str] | str, model: Model) -> tuple[Vars, str]:
  """Fresh variables with the weights that `config.model_init` names.

  Args:
    variables: fresh.
    sources: {"encoder": ViT file or name} as in the paper's Listing 2, {"base_model": stage I file or workdir} whose
      base model reads the image in the same way, {"lm": file or workdir} or a bare string for a whole language model.
    model: the network, for the grid of patches.

  Returns:
    variables and the report of what was taken.

  Raises:
    UserError: an unknown kind of source, a file that is not there, weights that do not fit.
  """
  sources = {"lm": sources} if isinstance(sources, str) else dict(sources)
  params, reports = variables.params, []
  for kind, source in sources.items():
    if kind not in SOURCES:
      raise unknown("source", kind, SOURCES, where="config.model_init")
    loaded = weights.load(source)["params"]
    grid = tuple(size // patch for size, patch in zip(model.input_size, model.patch_size))
    if kind == "encoder":
      loaded = vit_encoder(loaded, grid=grid)
    elif kind == "base_model":
      loaded = base_model_encoder(loaded)
    keep = () if kind == "lm" else ("decoder/.*", "pos_embedding_decoder")
    params, report = weights.merge(params, loaded, dont_load=keep, where=f"config.model_init.{kind}")
    reports.append(f"{kind} from {source}: {report.text()}")
  return variables.replace(params=params), "\n".join(reports)


def vit_encoder(params: Tree, *, grid: tuple[int, int]) -> Tree:
  """A ViT in the layout of the AugReg release, old or new, as the image side of the language model.

  Args:
    params: nested dict of arrays with "Transformer", "embedding" and a position embedding in one of its three places.
    grid: (gh, gw) patches of the new model; the position embedding is resampled to it.

  Raises:
    UserError: no position embedding, or one that is no square grid.
  """
  flat = {}
  for name, leaf in flatten_names(weights.renumber(params)):
    if name.startswith(("head/", "pre_logits/")) or name == "cls":
      continue
    if "pos" in name and name.endswith(("posembed_input/pos_embedding", "pos_embedding")):
      flat["pos_embedding_encoder"] = resample_positions(np.asarray(leaf), grid)
    elif name.startswith("Transformer/"):
      flat["encoder/" + name.removeprefix("Transformer/")] = leaf
    elif name.startswith("embedding/"):
      flat["EmbedPatches/" + name.removeprefix("embedding/")] = leaf
    else:
      flat[name] = leaf
  if "pos_embedding_encoder" not in flat:
    raise UserError("config.model_init.encoder: the file has no position embedding; is it a ViT of the AugReg layout?")
  return unflatten_names(flat)


def resample_positions(positions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """(1, k*k [+ 1], E) to (1, gh * gw, E): the class token's row is dropped, the grid resampled corner-aligned linearly."""
  old = math.isqrt(positions.shape[1])
  if old * old + 1 == positions.shape[1]:
    positions = positions[:, 1:]
  elif old * old != positions.shape[1]:
    raise UserError(f"config.model_init.encoder: {positions.shape[1]} positions are no square grid")
  square = positions.reshape(old, old, -1)
  if grid != (old, old):
    square = scipy.ndimage.zoom(square, (grid[0] / old, grid[1] / old, 1), order=1)
  return square.reshape(1, grid[0] * grid[1], -1)


def base_model_encoder(params: Tree) -> Tree:
  """Stage I's base model, which reads the image beside the code, as the image side of the language model.

  The stand-in where no ImageNet weights are at hand: same blocks, same patches, its code input left out.
  """
  moves = {"ctx_dec_embedding/": "EmbedPatches/", "decoder/": "encoder/", "pos_embedding_decoder": "pos_embedding_encoder"}
  flat = {}
  for name, leaf in flatten_names(params):
    for old, new in moves.items():
      if name.startswith(old):
        flat[new + name.removeprefix(old)] = leaf
  return unflatten_names(flat)
