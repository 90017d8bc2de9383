"""Weights of MAD's own program (a detectron2 checkpoint's `model` dict) under our names, all but the backbone."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from uvim_like.errors import UserError
from uvim_like.trees import unflatten_names

_ENCODER = {"attentions.0": "attend", "norms.0": "norm_0", "norms.1": "norm_1"}
_DECODER = {"attentions.0": "attend_self", "attentions.1": "attend_cross", "norms.0": "norm_0", "norms.1": "norm_1",
            "norms.2": "norm_2"}
_FEED_FORWARD = {"ffns.0.layers.0.0": "feed_forward/dense_0", "ffns.0.layers.1": "feed_forward/dense_1"}
_PLAIN = {"seq_pos_embed": "position_embedding", "vocab_embed.embeddings.weight": "token_embedding",
          "vocab_embed.logit_scale": "logit_scale"}
_DENSE = {"input_proj": "input_proj", "vocab_embed.predictor.layers.0": "head_0",
          "vocab_embed.predictor.layers.1": "head_1"}


def from_detectron(state: Mapping[str, np.ndarray], *,
                   num_heads: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Our parameter tree, without "features", and, under their own names, the arrays that are no parameters of MAD's.

  Args:
    state: {name: array} in torch's layouts, without the backbone's.
    num_heads: of all attention layers.

  Raises:
    UserError: projections of attention that cannot be split into so many heads.
  """
  flat: dict[str, np.ndarray] = {}
  rest: dict[str, np.ndarray] = {}
  for name, value in state.items():
    found = _converted(name, np.asarray(value), num_heads)
    flat |= found
    rest |= {} if found else {name: value}
  return unflatten_names(flat), rest


def _converted(name: str, value: np.ndarray, heads: int) -> dict[str, np.ndarray]:
  """{our name: array} of an array of theirs, {} when it is no parameter of MAD's."""
  if name in _PLAIN:
    return {_PLAIN[name]: value}
  module, _, kind = name.rpartition(".")
  if module in _DENSE:
    return _dense(_DENSE[module], kind, value[..., 0, 0] if value.shape[2:] == (1, 1) else value)  # a 1x1 convolution
  if module == "transformer.decoder.post_norm_layer":
    return _norm("decoder_norm", kind, value)
  match = re.fullmatch(r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(.+)", name)
  if match is None:
    return {}
  side, layer, rest = match.groups()
  names = _FEED_FORWARD | (_ENCODER if side == "encoder" else _DECODER)
  part = next((part for part in names if rest.startswith(part + ".")), None)
  if part is None:
    return {}
  target, rest = f"{side}_{layer}/{names[part]}", rest.removeprefix(part + ".")
  if part.startswith("attentions"):
    return _attention(target, rest, value, heads, name)
  return _norm(target, rest, value) if part.startswith("norms") else _dense(target, rest, value)


def _dense(target: str, kind: str, value: np.ndarray) -> dict[str, np.ndarray]:
  return {f"{target}/kernel": value.T} if kind == "weight" else {f"{target}/bias": value}


def _norm(target: str, kind: str, value: np.ndarray) -> dict[str, np.ndarray]:
  return {f"{target}/{'scale' if kind == 'weight' else 'bias'}": value}


def _attention(target: str, rest: str, value: np.ndarray, heads: int, name: str) -> dict[str, np.ndarray]:
  """Fused query, key and value matrices (3 D, D), or the output matrix (D, D)."""
  split = {"attn.in_proj_weight": (2, 0, 3 * heads), "attn.in_proj_bias": (1, 0, 3 * heads),
           "attn.out_proj.weight": (2, 1, heads)}.get(rest)  # axes, the one that is split, into what
  if split and (value.ndim != split[0] or value.shape[split[1]] % split[2]):
    raise UserError(f"'{name}' of {value.shape} does not divide into config.model.num_heads {heads}")
  if rest == "attn.in_proj_weight":
    return {f"{target}/{part}/kernel": matrix.T.reshape(matrix.shape[1], heads, -1)
            for part, matrix in zip(("query", "key", "value"), np.split(value, 3))}
  if rest == "attn.in_proj_bias":
    return {f"{target}/{part}/bias": bias.reshape(heads, -1)
            for part, bias in zip(("query", "key", "value"), np.split(value, 3))}
  if rest == "attn.out_proj.weight":
    return {f"{target}/out/kernel": value.T.reshape(heads, -1, value.shape[0])}
  return {f"{target}/out/bias": value} if rest == "attn.out_proj.bias" else {}
