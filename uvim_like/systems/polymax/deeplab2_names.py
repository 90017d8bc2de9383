"""Weights under the variable names of the authors' TensorFlow code, as trees of our modules.

The names differ little on purpose: kernels of 1x1 convolutions become matrices, depthwise kernels change axes, and norms
lose their axes of length 1.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from uvim_like.errors import UserError
from uvim_like.trees import flatten_names, unflatten_names

Tree = Any
# Applied one after the other to a name.
_PARTS = (
    (r"^(encoder|pixel_decoder|transformer_decoder|predictor)::", ""),
    (r"^resnet\d*/stem/", r"encoder/stem/"),
    (r"^resnet\d*/stage(\d)/block(\d+)/", lambda m: f"encoder/stage{int(m[1]) - 2}_block{int(m[2]) - 1}/"),
    (r"^(encoder/.*)/conv([123])_bn(_act)?/", lambda m: f"{m[1]}/conv{int(m[2]) - 1}/"),
    (r"^(encoder/.*)/batch_norm/", r"\1/norm/"),
    (r"^kmax_pixel_decoder/kmax_pixel_decoder_skip_connection_(\d)/", r"pixel_decoder/fuse_\1/"),
    (r"^kmax_pixel_decoder/kmax_pixeldecoder_(\d)/block(\d+)/", r"pixel_decoder/stage_\1_block\2/"),
    (r"^kmax_pixel_decoder/layer_normalization/", r"pixel_decoder/norm_0/"),
    (r"^kmax_pixel_decoder/layer_normalization_(\d)/", r"pixel_decoder/norm_\1/"),
    (r"^cluster_centers$", r"transformer_decoder/cluster_centers"),
    (r"^kmax_transformer_decoder/(kmax_transformer_decoder_os\d+_\d+)/block1_transformer/", r"transformer_decoder/\1/"),
    (r"^kmax_transformer_decoder/(?!kmax)", r"transformer_decoder/"),
    (r"MaXDeepLab/auxiliary_semantic_decoder/", r"semantic_branch/"),
    (r"MaXDeepLab/auxiliary_semantic_head/conv_block/conv1_bn_act/", r"semantic_branch/head/"),
    (r"MaXDeepLab/auxiliary_semantic_head/final_conv/", r"semantic_branch/final_conv/"),
    (r"^DeepLabv3Plus/", r"decoder/"),
    (r"^(decoder/)ASPP/", r"\1aspp/"),
    (r"(aspp_\w+)/conv_bn_act/", r"\1/"),
    (r"fuse/conv(\d)_bn_act/", r"fuse_conv\1/"),
    (r"^(decoder/final_conv)/conv/", r"\1/"),
    (r"MaXDeepLab/", "predictor/"),
    (r"pixel_space_head/conv_block/conv1_bn_act/", "pixel_space_head/"),
    (r"pixel_space_head/final_conv/", "pixel_space_final_conv/"),
    (r"(fusion_conv\d)/conv1_bn_act/", r"\1/"),
    (r"transformer_class_head/conv/", "transformer_class_head/"),
    (r"depthwise/depthwise_conv/depthwise_kernel$", "depthwise/conv/kernel"),
    (r"qkv_kernel$", "qkv/kernel"),
    (r"_rpe/embeddings$", "_rpe"),
    (r"/gamma$", "/scale"),
    (r"/beta$", "/bias"),
    (r"/moving_mean$", "/mean"),
    (r"/moving_variance$", "/var"),
)
_LAYER = r"kmax_transformer_decoder_os(\d+)_(\d+)"


def rename(names: list[str]) -> dict[str, str]:
  """{variable's name: ours}; layers of the transformer decoder are numbered from the coarsest level on."""
  ours = {}
  for name in names:
    new = name
    for pattern, to in _PARTS:
      new = re.sub(pattern, to, new)
    ours[name] = new
  layers = sorted({(-int(m[1]), int(m[2])) for name in ours.values() if (m := re.search(_LAYER, name))})
  number = {f"kmax_transformer_decoder_os{-stride}_{i}": f"layer_{n}" for n, (stride, i) in enumerate(layers)}
  return {name: re.sub(_LAYER, lambda m: number[m[0]], new) for name, new in ours.items()}


def to_variables(arrays: Mapping[str, np.ndarray], init: Mapping[str, Tree]) -> dict[str, Tree]:
  """{'params', 'state'} of arrays under TensorFlow's names, in the shapes of `init`.

  Further names, and arrays that are no rearrangement of the model's, stay as they are: the report of a merge names them.

  Args:
    arrays: {variable's name: array}.
    init: {'params', 'state'} arrays or shapes of the model.
  """
  names = rename(list(arrays))
  wanted = {part: dict(flatten_names(init[part])) for part in ("params", "state")}
  flat: dict[str, dict[str, np.ndarray]] = {"params": {}, "state": {}}
  for name, array in arrays.items():
    part = "state" if name.endswith(("moving_mean", "moving_variance")) else "params"
    want = wanted[part].get(names[name])
    known = want is not None and without_ones(array.shape) == without_ones(want.shape)
    flat[part][names[name]] = fit(array, tuple(want.shape), name=name) if known else array
  return {part: unflatten_names(leaves) for part, leaves in flat.items()}


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
  """A shape without its axes of length 1."""
  return tuple(n for n in shape if n != 1)


def fit(array: np.ndarray, shape: tuple[int, ...], *, name: str) -> np.ndarray:
  """The array in our layout: axes of length 1 removed or added, a depthwise kernel (h, w, C, 1) as (h, w, 1, C)."""
  if array.ndim == 4 and name.endswith("depthwise_kernel"):
    array = np.swapaxes(array, 2, 3)
  if without_ones(array.shape) != without_ones(shape):
    raise UserError(f"'{name}': shape {array.shape} does not fit {shape}")
  return np.asarray(array).reshape(shape)
