"""Image backbones by name: published sizes, any field of which a config may override."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from uvim_like.errors import UserError, unknown
from uvim_like.models.convnext import ConvNeXt
from uvim_like.models.layers import REMAT
from uvim_like.models.resnet import ResNet
from uvim_like.models.swin import Swin
from uvim_like.models.swin_v2 import SwinV2
from uvim_like.models.vit import ViT

# Depths and widths of the papers: ResNet table 1, ConvNeXt section 3, Swin section 3.3, SwinV2 section 4.1, ViT
# table 1.
_RESNETS = {
    "resnet18": {"depths": (2, 2, 2, 2), "widths": (64, 128, 256, 512), "bottleneck": False},
    "resnet34": {"depths": (3, 4, 6, 3), "widths": (64, 128, 256, 512), "bottleneck": False},
    "resnet50": {"depths": (3, 4, 6, 3)},
    "resnet101": {"depths": (3, 4, 23, 3)},
    "resnet152": {"depths": (3, 8, 36, 3)},
}
_CONVNEXTS = {
    "convnext_t": {"depths": (3, 3, 9, 3), "widths": (96, 192, 384, 768)},
    "convnext_s": {"depths": (3, 3, 27, 3), "widths": (96, 192, 384, 768)},
    "convnext_b": {"depths": (3, 3, 27, 3), "widths": (128, 256, 512, 1024)},
    "convnext_l": {"depths": (3, 3, 27, 3), "widths": (192, 384, 768, 1536)},
}
_SWINS = {
    "t": {"width": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "s": {"width": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "b": {"width": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "l": {"width": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}
_VITS = {
    "vit_s": {"width": 384, "num_heads": 6},
    "vit_b": {"width": 768, "num_heads": 12},
    "vit_l": {"width": 1024, "depth": 24, "num_heads": 16},
}
# kMaX-DeepLab's encoders (arXiv 2207.04044 and its code).
_KMAX_RESNET = {"max_pool": False, "first_stride": 2, "activate": False, "with_stem": True, "zero_last_scale": True,
                "momentum": 0.99, "epsilon": 1e-3}
_KMAX_CONVNEXT = {"pad_odd": True, "with_stem": True}

PRESETS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    **{name: (ResNet, fields) for name, fields in _RESNETS.items()},
    **{name: (ConvNeXt, fields) for name, fields in _CONVNEXTS.items()},
    **{f"swin_{size}": (Swin, fields) for size, fields in _SWINS.items()},
    **{f"swinv2_{size}": (SwinV2, fields) for size, fields in _SWINS.items()},
    **{name: (ViT, fields) for name, fields in _VITS.items()},
    **{f"kmax_{name}": (ResNet, fields | _KMAX_RESNET) for name, fields in _RESNETS.items()},
    **{f"kmax_{name}": (ConvNeXt, fields | _KMAX_CONVNEXT) for name, fields in _CONVNEXTS.items()},
}
_NOT_FIELDS = ("parent", "name", "dtype", "remat")


def make_backbone(fields: Mapping[str, Any], *, where: str = "backbone", dtype: Any = jnp.float32,
                  remat: str = "none") -> nn.Module:
  """The backbone of a config block.

  Args:
    fields: {"name": one of `PRESETS`} and any fields of its module that are to differ; lists may stand for tuples.
    where: the block's name, for messages.
    dtype: compute type.
    remat: what blocks compute again in the backward pass: "none", "dots" or "full".

  Returns:
    A module: (image (B, H, W, 3), *, train) -> tuple of maps (B, h, w, C), with their strides in `.strides`.

  Raises:
    UserError: no name, an unknown name, field or remat, each with the nearest; fields that do not fit each other.
  """
  fields = {key: _plain(value) for key, value in fields.items()}
  if "name" not in fields:
    raise UserError(f"{where}: 'name' is missing, e.g. '{next(iter(PRESETS))}'")
  name = fields.pop("name")
  if name not in PRESETS:
    raise unknown("backbone", str(name), PRESETS, where=f"{where}.name")
  if remat not in REMAT:
    raise unknown("value", str(remat), REMAT, where="config.remat")
  module, preset = PRESETS[name]
  known = {field.name: field for field in dataclasses.fields(module) if field.name not in _NOT_FIELDS}
  for key, value in fields.items():
    if key not in known:
      raise unknown("field", key, known, where=f"{where} ({name})")
    _check_kind(value, known[key].default, f"{where}.{key}")
  backbone = module(**preset | fields, dtype=dtype, remat=remat)
  _check(backbone, where)
  return backbone


def _plain(value: Any) -> Any:
  return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _check_kind(value: Any, default: Any, place: str) -> None:
  """A value must be of the kind of its field's default: yes or no, a whole number, a number, or a tuple of such."""
  sample = default[0] if isinstance(default, tuple) and default else default
  items = value if isinstance(value, tuple) else (value,)
  kinds = {bool: (bool,), float: (int, float)}.get(type(sample), (int,))
  wrong = [item for item in items if not isinstance(item, kinds) or (isinstance(item, bool) and bool not in kinds)]
  if (wrong or isinstance(value, tuple) and not isinstance(default, (tuple, bool, int))) and value != default:
    raise UserError(f"{place}: {value!r} cannot stand here; its default is {default!r}")


def _check(model: nn.Module, where: str) -> None:
  """Raises UserError when fields of a backbone contradict each other."""
  stages = len(model.depths) if hasattr(model, "depths") else 0
  for key in ("widths", "num_heads", "window_size", "use_shift", "pretrain_window"):
    value = getattr(model, key, None)
    if stages and isinstance(value, tuple) and len(value) != stages:
      raise UserError(f"{where}.{key}: {value} has {len(value)} values for {stages} stages (depths {model.depths})")
  heads = model.num_heads if hasattr(model, "num_heads") else ()
  for stage, number in enumerate(heads if isinstance(heads, tuple) else (heads,)):
    width = model.width * 2 ** stage
    if number < 1 or width % number:
      raise UserError(f"{where}.num_heads: width {width} is no multiple of {number}; nearest: "
                      f"{max(n for n in range(1, max(number, 1) + 1) if width % n == 0)}")
  if isinstance(model, ResNet) and model.bottleneck and any(width % 4 for width in model.widths):
    raise UserError(f"{where}.widths: {model.widths}: bottlenecks need multiples of 4")
  if isinstance(model, ConvNeXt) and model.pad_odd and model.patch != 4:
    raise UserError(f"{where}.pad_odd: kMaX's padding is for a patch of 4, not {model.patch}")
  if any(stage not in range(stages) for stage in getattr(model, "out_norms", ())):
    raise UserError(f"{where}.out_norms: {model.out_norms} names stages other than 0 to {stages - 1}")
  if isinstance(model, ViT):
    _check_vit(model, where)


def _check_vit(model: ViT, where: str) -> None:
  """Raises UserError for a pyramid or windows that a ViT cannot have."""
  strides = tuple(stride for stride in (model.patch // 4, model.patch // 2, model.patch, model.patch * 2) if stride)
  if any(stride not in strides for stride in model.pyramid):
    raise UserError(f"{where}.pyramid: {model.pyramid}: strides over a patch of {model.patch} can be {strides}")
  if model.window and model.class_token:
    raise UserError(f"{where}.class_token: windows have no place for a class token; set class_token=False")
  if any(block not in range(model.depth) for block in model.global_blocks):
    raise UserError(f"{where}.global_blocks: {model.global_blocks} names blocks other than 0 to {model.depth - 1}")
