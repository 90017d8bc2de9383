"""AiT's released state dicts as our parameter trees: tokenizers, and the encoder-decoder of the solver."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from uvim_like.errors import UserError
from uvim_like.trees import unflatten_names

Tree = Any
StateDict = Mapping[str, np.ndarray]
# Names of a tokenizer, release -> ours; the release counts ReLUs as modules, so numbers depend on the sizes.
#   encoder.0, .2, .4 …      (out, in, 4, 4)  encoder/down0, down1, down2 …   kernel (4, 4, in, out)
#   encoder.N.net.{0,2,4}    (D, D, k, k)     encoder/res<i>/conv{0,1,2}, and the same in the decoder
#   encoder.<last>           (C, D, 1, 1)     encoder/to_code
#   decoder.0                (D, C, 1, 1)     decoder/from_code
#   decoder.N … (transposed) (in, out, 4, 4)  decoder/up<i>                   kernel flipped in both axes
#   decoder.<last>           (1, W, 1, 1)     decoder/out
#   _vq_vae._embedding, _ema_w, _ema_cluster_size   state: dictionary, sums, counts
STATE = {"_embedding": "dictionary", "_ema_w": "sums", "_ema_cluster_size": "counts"}
IGNORED = re.compile(r"codebook\.weight")
# Names of the solver's encoder-decoder, release -> ours.
BLOCK = {"norm1": "norm1", "norm2": "norm2", "norm3": "norm3", "attn": "attention", "crossattn": "cross", "mlp": "mlp"}
PROJECTIONS = {"wq": "query", "wk": "key", "wv": "value", "proj": "out"}
RAW = ("det_embed", "dec_embed", "voc_embed", "outp_bias", "mask_embed")


def from_torch(state_dict: StateDict) -> tuple[Tree, Tree]:
  """(params, state) of a released tokenizer.

  Args:
    state_dict: {name: array}, bare or under "weights", with or without the prefix "module." that distributed training
      left on its names; a stray "codebook.weight" is ignored.

  Raises:
    UserError: no tokenizer of this layout.
  """
  flat = strip(state_dict)
  params: dict[str, np.ndarray] = {}
  for tower in ("encoder", "decoder"):
    convs = _modules(flat, tower)
    if not convs:
      raise UserError(f"the file is no AiT tokenizer: it has no '{tower}.<number>' weights; valid: a state dict with "
                      "encoder.*, decoder.* and _vq_vae.*")
    for name, parts in _tower(tower, convs).items():
      params |= _conv(name, *parts)
  state = {ours: np.asarray(flat.pop(f"_vq_vae.{theirs}"), np.float32) for theirs, ours in STATE.items()
           if f"_vq_vae.{theirs}" in flat}
  if set(state) != set(STATE.values()):
    raise UserError(f"the file is no AiT tokenizer: of _vq_vae.{{{', '.join(STATE)}}} it has {sorted(state)}")
  return unflatten_names(params), state


def strip(state_dict: StateDict) -> dict[str, np.ndarray]:
  """The bare {name: array} of a file's contents.

  Containers "weights" and "state_dict" are opened, "module." is dropped, a stray codebook is left out.
  """
  for container in ("weights", "state_dict"):
    if isinstance(state_dict.get(container), Mapping):
      state_dict = state_dict[container]
  bare = {name.removeprefix("module."): value for name, value in state_dict.items()}
  return {name: np.asarray(value) for name, value in bare.items() if not IGNORED.fullmatch(name)}


def _modules(flat: StateDict, tower: str) -> dict[int, dict[str, np.ndarray]]:
  """{number: {"weight" | "net.0.weight" …: array}} of a tower's modules, in order."""
  found: dict[int, dict[str, np.ndarray]] = {}
  for name, value in flat.items():
    if match := re.fullmatch(rf"{tower}\.(\d+)\.(.+)", name):
      found.setdefault(int(match[1]), {})[match[2]] = value
  return dict(sorted(found.items()))


def _tower(tower: str, modules: dict[int, dict[str, np.ndarray]]) -> dict[str, tuple]:
  """{our name: (weight, bias, transposed)} of all convolutions of a tower."""
  out, steps, blocks = {}, 0, 0
  for number, arrays in modules.items():
    if "weight" not in arrays:
      for i in range(3):
        out[f"{tower}/res{blocks}/conv{i}"] = arrays[f"net.{2 * i}.weight"], arrays[f"net.{2 * i}.bias"], False
      blocks += 1
      continue
    pair = arrays["weight"], arrays["bias"]
    if pair[0].shape[-1] > 1:
      out[f"{tower}/{'down' if tower == 'encoder' else 'up'}{steps}"] = *pair, tower == "decoder"
      steps += 1
    elif tower == "decoder" and number == 0:
      out["decoder/from_code"] = *pair, False
    else:
      out["encoder/to_code" if tower == "encoder" else "decoder/out"] = *pair, False
  return out


def _conv(name: str, weight: np.ndarray, bias: np.ndarray, transposed: bool) -> dict[str, np.ndarray]:
  """{name/kernel, name/bias}: OIHW to HWIO; a transposed one (in, out, kh, kw) is turned by 180 degrees."""
  weight = np.asarray(weight, np.float32)
  kernel = weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1) if transposed else weight.transpose(2, 3, 1, 0)
  return {f"{name}/kernel": np.ascontiguousarray(kernel), f"{name}/bias": np.asarray(bias, np.float32)}


def transformer_from_torch(state_dict: StateDict, *, num_heads: int) -> Tree:
  """Parameters of `models.ait_transformer.Transformer` from a solver's state dict.

  Args:
    state_dict: {name: array} of what a solver's file has below "transformer."; see `strip`. Buffers (enc_embed) are
      left out: they are computed.
    num_heads: of all attention layers.

  Raises:
    UserError: no such names.
  """
  flat = strip(state_dict)
  if "voc_embed" not in flat:
    raise UserError("the file is no AiT solver: it has no 'voc_embed'")
  params: dict[str, np.ndarray] = {}
  for name, value in flat.items():
    value = np.asarray(value, np.float32)
    if name in RAW:
      params[name] = value
    elif match := re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)\.(\w+)\.(.+)", name):
      tower, number, part, rest = match.groups()
      params |= _layer(f"{tower}/block{number}/{BLOCK[part]}", rest, value, num_heads)
    elif name != "enc_embed":
      module, _, rest = name.partition(".")
      params |= _layer(module, rest, value, num_heads)
  return unflatten_names(params)


def _layer(name: str, rest: str, value: np.ndarray, num_heads: int) -> dict[str, np.ndarray]:
  """{our name: array} of a linear layer, a norm, or a projection of an attention layer split into heads."""
  *modules, kind = rest.split(".")
  module = modules[0] if modules else ""
  if module in PROJECTIONS:
    name, out = f"{name}/{PROJECTIONS[module]}", module == "proj"
    if kind == "weight":
      value = value.T
      shape = (num_heads, -1, value.shape[1]) if out else (value.shape[0], num_heads, -1)
      return {f"{name}/kernel": value.reshape(shape)}
    return {f"{name}/bias": value if out else value.reshape(num_heads, -1)}
  name = f"{name}/{module}" if module else name
  if kind == "weight":
    return {f"{name}/scale": value} if value.ndim == 1 else {f"{name}/kernel": value.T}
  return {f"{name}/bias": value}
