"""A backbone's config.json in the hub's words, the inverse of `uvim_like.weights_hf.model_fields`."""

import dataclasses
from typing import Any

from uvim_like.errors import unknown

IMAGE = (224, 224)   # (height, width) where the run leaves the size open, as the hub's own configs have it
OURS = "uvim_like"   # key under which all of our own fields stand: the hub has no words for some
SKIPPED = ("parent", "name", "dtype", "remat")


def config_of(model: Any, size: tuple[int, ...] = ()) -> dict[str, Any]:
  """What `config.json` says of a backbone module.

  Args:
    model: of `uvim_like.models.backbones`.
    size: (height, width) of the pictures that it was trained with; () for the hub's 224.

  Raises:
    UserError: a kind of module that the hub has not.
  """
  kind = type(model).__name__
  if kind not in KINDS:
    raise unknown("backbone", kind, KINDS, where="--format=hf")
  fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in SKIPPED}
  return KINDS[kind](model, tuple(size) or IMAGE) | {"num_channels": 3, OURS: {"module": kind, **fields}}


def _resnet(model: Any, size: tuple[int, int]) -> dict[str, Any]:
  del size
  return {"model_type": "resnet", "architectures": ["ResNetModel"], "hidden_act": "relu",
          "embedding_size": model.stem_width, "hidden_sizes": list(model.widths), "depths": list(model.depths),
          "layer_type": "bottleneck" if model.bottleneck else "basic",
          "downsample_in_first_stage": model.first_stride == 2, "downsample_in_bottleneck": not model.stride_in_3x3}


def _convnext(model: Any, size: tuple[int, int]) -> dict[str, Any]:
  return {"model_type": "convnext", "architectures": ["ConvNextModel"], "hidden_act": "gelu", "image_size": size[0],
          "patch_size": model.patch, "num_stages": len(model.depths), "hidden_sizes": list(model.widths),
          "depths": list(model.depths), "layer_scale_init_value": model.scale_init, "drop_path_rate": model.drop_path}


def _swin(model: Any, size: tuple[int, int]) -> dict[str, Any]:
  windows = model.window_size if isinstance(model.window_size, tuple) else (model.window_size,)
  return {"model_type": "swin", "architectures": ["SwinModel"], "hidden_act": "gelu", "image_size": list(size),
          "patch_size": model.patch, "embed_dim": model.width, "depths": list(model.depths),
          "num_heads": list(model.num_heads), "window_size": max(windows), "mlp_ratio": model.mlp_ratio,
          "qkv_bias": True, "use_absolute_embeddings": False, "layer_norm_eps": model.epsilon,
          "drop_path_rate": model.drop_path}


def _swin_v2(model: Any, size: tuple[int, int]) -> dict[str, Any]:
  stages = len(model.depths)
  pretrained = model.pretrain_window if isinstance(model.pretrain_window, tuple) else (model.pretrain_window,) * stages
  return _swin(model, size) | {"model_type": "swinv2", "architectures": ["Swinv2Model"],
                               "pretrained_window_sizes": list(pretrained)}


def _vit(model: Any, size: tuple[int, int]) -> dict[str, Any]:
  del size
  return {"model_type": "vit", "architectures": ["ViTModel"], "hidden_act": "gelu", "hidden_size": model.width,
          "num_hidden_layers": model.depth, "num_attention_heads": model.num_heads,
          "intermediate_size": model.mlp_dim or 4 * model.width, "patch_size": model.patch,
          "image_size": [side * model.patch for side in model.grid], "layer_norm_eps": model.epsilon, "qkv_bias": True}


KINDS = {"ResNet": _resnet, "ConvNeXt": _convnext, "Swin": _swin, "SwinV2": _swin_v2, "ViT": _vit}
