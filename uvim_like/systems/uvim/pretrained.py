"""Pretrained weights for stage II: an ImageNet ViT (AugReg layout) or stage I's base model as image encoder, or all."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.ndimage

from uvim_like import weights
from uvim_like.errors import UserError, unknown
from uvim_like.models.uvim_lm import Model
from uvim_like.systems.base import Vars
from uvim_like.trees import flatten_names, match_first, unflatten_names

Tree = Any
SOURCES = ("encoder", "base_model", "lm")
DECODER_SIDE = ("decoder/.*", "pos_embedding_decoder")  # what an image encoder leaves at its initial values
# Where the AugReg release and its predecessors keep the position embedding.
POSITIONS = ("pos_embedding", "Transformer/pos_embedding", "Transformer/posembed_input/pos_embedding")
CLASSIFIER = ("cls", "head/.*", "pre_logits/.*")  # of the ViT; a language model has no use for it


def load_lm(variables: Vars, *, sources: Mapping[str, str] | str, model: Model,
            dont_load: Sequence[str] = ()) -> tuple[Vars, str]:
  """Fresh variables with the weights that `config.model_init` names.

  Args:
    variables: fresh.
    sources: {"encoder": ViT file or name} as in the paper's Listing 2, {"base_model": stage I file or workdir} whose
      base model reads the image in the same way, {"lm": file or workdir} or a bare string for a whole language model.
    model: the network, for the grid of patches.
    dont_load: patterns of full names that keep their initial value.

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
    where = f"config.model_init.{kind}"
    loaded = lm_params(weights.load(source, where=where)["params"], kind=kind, model=model, where=where)
    params, report = weights.merge(params, loaded, dont_load=[*kept_patterns(params, kind), *dont_load],
                                   where=f"{where}: {source}")
    reports.append(f"{kind} from {source}: {report.text()}")
  return variables.replace(params=params), "\n".join(reports)


def lm_params(params: Tree, *, kind: str, model: Model, where: str = "config.model_init.encoder") -> Tree:
  """What a source of this kind (in `SOURCES`) holds for the language model, under the language model's names."""
  if kind == "encoder":
    grid = tuple(size // patch for size, patch in zip(model.input_size, model.patch_size))
    params = vit_encoder(params, grid=grid, where=where)
  elif kind == "base_model":
    params = base_model_encoder(params)
  return params


def kept_patterns(params: Tree, kind: str) -> list[str]:
  """Patterns of the names that a source of this kind leaves alone; those only that a model has (sincos2d has fewer)."""
  names = [name for name, _ in flatten_names(params)]
  patterns = () if kind == "lm" else DECODER_SIDE
  return [pattern for pattern in patterns if any(match_first(name, [pattern]) is not None for name in names)]


def vit_encoder(params: Tree, *, grid: tuple[int, int], where: str = "config.model_init.encoder") -> Tree:
  """A ViT in the layout of the AugReg release, old or new, as the image side of the language model.

  Args:
    params: nested dict of arrays with "Transformer", "embedding" and a position embedding in one of its three places;
      or what this function returned, which passes unchanged.
    grid: (gh, gw) patches of the new model; the position embedding is resampled to it.
    where: place named in the error.

  Raises:
    UserError: no position embedding, or one that is no square grid.
  """
  flat = {}
  for name, leaf in flatten_names(weights.renumber(params)):
    if match_first(name, list(CLASSIFIER)) is not None:
      continue
    if name in POSITIONS:
      flat["pos_embedding_encoder"] = resample_positions(np.asarray(leaf), grid, where=where)
    elif name.startswith("Transformer/"):
      flat["encoder/" + name.removeprefix("Transformer/")] = leaf
    elif name.startswith("embedding/"):
      flat["EmbedPatches/" + name.removeprefix("embedding/")] = leaf
    else:
      flat[name] = leaf
  if "pos_embedding_encoder" not in flat:
    raise UserError(f"{where}: the file has no position embedding; is it a ViT of the AugReg layout?")
  return unflatten_names(flat)


def resample_positions(positions: np.ndarray, grid: tuple[int, int], *,
                       where: str = "config.model_init.encoder") -> np.ndarray:
  """(1, k*k [+ 1], E) to (1, gh * gw, E): the class token's row is dropped, the grid resampled corner-aligned linearly.

  Raises:
    UserError: the positions are no square grid.
  """
  count = positions.shape[1] if positions.ndim == 3 and positions.shape[0] == 1 else 0
  old = math.isqrt(count)
  if count == 0 or count not in (old * old, old * old + 1):
    raise UserError(f"{where}: a position embedding of shape {positions.shape} is no square grid (1, k * k, E) "
                    "with or without a class token")
  square = positions[:, count - old * old:].reshape(old, old, -1)
  if tuple(grid) != (old, old):
    # scipy knows neither float16 nor bfloat16.
    square = scipy.ndimage.zoom(square.astype(np.float32), (grid[0] / old, grid[1] / old, 1), order=1)
  return square.reshape(1, grid[0] * grid[1], -1)


def base_model_encoder(params: Tree) -> Tree:
  """Stage I's base model, which reads the image beside the code, as the image side of the language model.

  Same patches, same blocks, its code input left out; it must be as deep and as wide as the language model. The
  stand-in where no ImageNet weights are at hand.
  """
  moves = {"ctx_dec_embedding/": "EmbedPatches/", "decoder/": "encoder/",
           "pos_embedding_decoder": "pos_embedding_encoder"}
  flat = {}
  for name, leaf in flatten_names(params):
    for old, new in moves.items():
      if name.startswith(old):
        flat[new + name.removeprefix(old)] = leaf
  return unflatten_names(flat)
