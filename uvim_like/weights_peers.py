"""Names of our image backbones in the checkpoints of AiT, kMaX-DeepLab, detectron2, torchvision, timm, Swin's authors."""

import functools
from collections.abc import Callable
from typing import Any

from uvim_like.errors import unknown
from uvim_like.weights_hf import BLOCK, vit_block
from uvim_like.weights_rules import Fused, Rule, Table, batch_norm, conv, dense, norm, rule

COUNTERS = (".*num_batches_tracked",)
COMPUTED = (".*relative_position_index", ".*relative_coords_table", ".*attn_mask")
STATISTICS = {"mean": "moving_mean", "var": "moving_variance"}
MERGE = {"swin": "layers.{s}.downsample", "timm": "layers.{s+1}.downsample"}  # before which stage it counts; ours: s + 1
VARIABLE = "/.ATTRIBUTES/VARIABLE_VALUE"  # ends every key of an object-based TensorFlow checkpoint


def table(model: Any, source: str) -> Table:
  """The names of a backbone module of ours in a format.

  Args:
    model: a module of `uvim_like.models`.
    source: "ait", "kmax", "detectron2", "torchvision", "timm" or "swin" (its authors' releases).

  Raises:
    UserError: an unknown format, or one that has no names for this kind of module.
  """
  if source not in TABLES:
    raise unknown("format", source, TABLES)
  kind = type(model).__name__
  if kind not in TABLES[source]:
    raise unknown("backbone", kind, TABLES[source], where=source)
  return TABLES[source][kind](model)


def torchvision_resnet(model: Any) -> Table:
  """Names of torchvision's ResNets."""
  rules = [*conv("stem/conv", "conv1", bias=False), *batch_norm("stem/norm", "bn1")]
  theirs = "layer{s+1}.{b}."
  rules += [*conv(f"{BLOCK}/conv{{i}}/conv", theirs + "conv{i+1}", bias=False),
            *batch_norm(f"{BLOCK}/conv{{i}}/norm", theirs + "bn{i+1}"),
            *conv(f"{BLOCK}/shortcut/conv", theirs + "downsample.0", bias=False),
            *batch_norm(f"{BLOCK}/shortcut/norm", theirs + "downsample.1")]
  return Table(tuple(rules), (*COUNTERS, "fc\\..*"), ("module.",))


def detectron2_resnet(model: Any) -> Table:
  """Names of detectron2's ResNets, as in MAD's checkpoints (stages are res2 to res5)."""
  pairs = (("stem", "stem.conv1"), (f"{BLOCK}/conv{{i}}", "res{s+2}.{b}.conv{i+1}"),
           (f"{BLOCK}/shortcut", "res{s+2}.{b}.shortcut"))
  rules = [row for ours, theirs in pairs
           for row in (*conv(f"{ours}/conv", theirs, bias=False), *batch_norm(f"{ours}/norm", f"{theirs}.norm"))]
  return Table(tuple(rules), (*COUNTERS, "fc\\..*"), ("backbone.",))


def _swin_rules(model: Any, merge: str = MERGE["swin"]) -> tuple[Rule, ...]:
  """What all Swins and SwinV2s have in common; `merge` is the name of the step to stage s + 1."""
  theirs = "layers.{s}.blocks.{b}."
  rules = [*conv("patch_embed/proj", "patch_embed.proj"), *norm("patch_embed/norm", "patch_embed.norm"),
           *norm(f"{BLOCK}/norm1", theirs + "norm1"), *norm(f"{BLOCK}/norm2", theirs + "norm2"),
           *dense(f"{BLOCK}/mlp/fc1", theirs + "mlp.fc1"), *dense(f"{BLOCK}/mlp/fc2", theirs + "mlp.fc2"),
           *dense(f"{BLOCK}/attn/proj", theirs + "attn.proj"),
           *norm("merge{s+1}/norm", f"{merge}.norm"),
           *dense("merge{s+1}/reduction", f"{merge}.reduction", bias=False), *norm("norm{s}", "norm{s}")]
  last = len(model.depths) - 1
  return (*rules, *(norm(f"norm{last}", "norm") if last in model.out_norms else ()))


def authors_swin(model: Any, *, merge: str = MERGE["swin"]) -> Table:
  """Names of the Swin authors' releases, which detectron2's Swin and thus MAD keep."""
  theirs = "layers.{s}.blocks.{b}.attn."
  rules = (*_swin_rules(model, merge), *dense(f"{BLOCK}/attn/qkv", theirs + "qkv"),
           rule(f"{BLOCK}/attn/position_bias", theirs + "relative_position_bias_table", layout="offsets"))
  return Table(rules, (*COMPUTED, "head\\..*"), ("backbone.", "module."))


def authors_swin_v2(model: Any, *, merge: str = MERGE["swin"], position: str = "cpb_mlp") -> Table:
  """Names of the SwinV2 authors' releases and of the SimMIM pre-training; `position` is the MLP of the positions."""
  theirs = "layers.{s}.blocks.{b}.attn."
  rules = (*_swin_rules(model, merge), *dense(f"{BLOCK}/attn/qkv", theirs + "qkv", bias=False),
           rule(f"{BLOCK}/attn/q_bias", theirs + "q_bias"), rule(f"{BLOCK}/attn/v_bias", theirs + "v_bias"),
           rule(f"{BLOCK}/attn/logit_scale", theirs + "logit_scale", layout="per_head"),
           *dense(f"{BLOCK}/attn/position/fc1", f"{theirs}{position}.0"),
           *dense(f"{BLOCK}/attn/position/fc2", f"{theirs}{position}.2", bias=False))
  return Table(rules, (*COMPUTED, "head\\..*", "mask_token"), ("module.", "backbone.", "encoder."))


def timm_convnext(model: Any) -> Table:
  """Names of timm's ConvNeXts and of their authors' releases; the last norm belongs to the classifier."""
  rules: list[Rule] = []
  for stem, down, block, depthwise, mlp in (
      ("stem", "stages.{s}.downsample", "stages.{s}.blocks.{b}.", "conv_dw", ("mlp.fc1", "mlp.fc2")),
      ("downsample_layers.0", "downsample_layers.{s}", "stages.{s}.{b}.", "dwconv", ("pwconv1", "pwconv2"))):
    rules += [*conv("stem/conv", f"{stem}.0"), *norm("stem/norm", f"{stem}.1"),
              *norm("downsample{s}/norm", f"{down}.0"), *conv("downsample{s}/conv", f"{down}.1"),
              rule(f"{BLOCK}/layer_scale", f"{block}gamma"), *conv(f"{BLOCK}/dwconv", block + depthwise),
              *norm(f"{BLOCK}/norm", f"{block}norm"), *dense(f"{BLOCK}/pwconv1", block + mlp[0]),
              *dense(f"{BLOCK}/pwconv2", block + mlp[1])]
  return Table(tuple(rules), ("norm\\..*", "head\\..*"), ("module.", "backbone."))


def timm_vit(model: Any) -> Table:
  """Names of timm's ViTs and of the releases of DeiT and MAE; queries, keys and values are one array there."""
  block = "blocks.{b}."
  rules = [*conv("patch_embed/proj", "patch_embed.proj"), rule("position_embedding", "pos_embed", layout="positions"),
           *vit_block(block, ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2"), ("norm1", "norm2"))]
  ignored = ["head\\..*", "mask_token", "decoder_.*"]  # the classifier, and MAE's decoder
  if model.class_token:
    rules.append(rule("class_token", "cls_token"))
  else:
    ignored.append("cls_token")
  if model.final_norm:
    rules += norm("norm", "norm")
  else:
    ignored.append("norm\\..*")
  fused = tuple(Fused(f"{block}attn.qkv.{kind}", tuple(f"{block}attn.{name}.{kind}" for name in "qkv"))
                for kind in ("weight", "bias"))
  return Table(tuple(rules), tuple(ignored), ("module.", "backbone."), fused)


def _tensorflow(ours: str, theirs: str, names: dict[str, str], part: str = "params") -> tuple[Rule, ...]:
  return tuple(Rule(f"{part}/{ours}/{name}", (f"{theirs}/{other}{VARIABLE}",)) for name, other in names.items())


def _kmax_norm(ours: str, theirs: str) -> tuple[Rule, ...]:
  return _tensorflow(ours, theirs, {"scale": "gamma", "bias": "beta"})


def kmax_resnet(model: Any) -> Table:
  """Object keys of kMaX-DeepLab's ResNet (stages are stage2 to stage5, blocks count from 1)."""
  block = "_stage{s+2}/_block{b+1}/"
  pairs = [("stem", "_stem"), (f"{BLOCK}/shortcut", f"{block}_shortcut")]
  last = 2 if model.bottleneck else 1
  pairs += [(f"{BLOCK}/conv{i}", f"{block}_conv{i + 1}_bn" + ("" if i == last else "_act")) for i in range(last + 1)]
  rules = [row for ours, theirs in pairs for row in (
      *_tensorflow(f"{ours}/conv", f"{theirs}/_conv", {"kernel": "kernel"}),
      *_kmax_norm(f"{ours}/norm", f"{theirs}/_batch_norm"),
      *_tensorflow(f"{ours}/norm", f"{theirs}/_batch_norm", STATISTICS, "state"))]
  return Table(tuple(rules), (), ("encoder/",))


def kmax_convnext(model: Any) -> Table:
  """Object keys of kMaX-DeepLab's ConvNeXt."""
  both = {"kernel": "kernel", "bias": "bias"}
  down, block = "downsample_layers/{s}/layer_with_weights-", "stages/{s}/layer_with_weights-{b}/"
  stem = "downsample_layers/0/layer_with_weights-"
  rules = [*_tensorflow("stem/conv", f"{stem}0", both), *_kmax_norm("stem/norm", f"{stem}1"),
           *_kmax_norm("downsample{s}/norm", f"{down}0"), *_tensorflow("downsample{s}/conv", f"{down}1", both),
           Rule(f"params/{BLOCK}/dwconv/kernel", (f"{block}depthwise_conv/kernel{VARIABLE}",)),
           Rule(f"params/{BLOCK}/dwconv/bias", (f"{block}depthwise_conv/bias{VARIABLE}",)),
           *_kmax_norm(f"{BLOCK}/norm", f"{block}norm"),
           *_tensorflow(f"{BLOCK}/pwconv1", f"{block}pointwise_conv1", both),
           *_tensorflow(f"{BLOCK}/pwconv2", f"{block}pointwise_conv2", both),
           Rule(f"params/{BLOCK}/layer_scale", (f"{block}layer_scale{VARIABLE}",), "per_channel")]
  return Table(tuple(rules), (), ("encoder/",))


TABLES: dict[str, dict[str, Callable[[Any], Table]]] = {
    "ait": {"SwinV2": functools.partial(authors_swin_v2, position="rpe_mlp")},
    "kmax": {"ResNet": kmax_resnet, "ConvNeXt": kmax_convnext},
    "detectron2": {"ResNet": detectron2_resnet, "Swin": authors_swin},
    "torchvision": {"ResNet": torchvision_resnet},
    "timm": {"ResNet": torchvision_resnet, "ConvNeXt": timm_convnext, "ViT": timm_vit,
             "Swin": functools.partial(authors_swin, merge=MERGE["timm"]),
             "SwinV2": functools.partial(authors_swin_v2, merge=MERGE["timm"])},
    "swin": {"Swin": authors_swin, "SwinV2": authors_swin_v2},
}
