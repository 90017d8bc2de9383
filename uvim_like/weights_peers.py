"""Names of our image backbones in the checkpoints of AiT, kMaX-DeepLab, detectron2, torchvision and Swin's authors."""

from collections.abc import Callable
from typing import Any

from uvim_like.errors import unknown
from uvim_like.weights_hf import BLOCK
from uvim_like.weights_rules import Rule, Table, batch_norm, conv, dense, norm, rule

COUNTERS = (".*num_batches_tracked",)
COMPUTED = (".*relative_position_index", ".*relative_coords_table", ".*attn_mask")
STATISTICS = {"mean": "moving_mean", "var": "moving_variance"}
VARIABLE = "/.ATTRIBUTES/VARIABLE_VALUE"  # ends every key of an object-based TensorFlow checkpoint


def table(model: Any, source: str) -> Table:
  """The names of a backbone module of ours in a format.

  Args:
    model: a module of `uvim_like.models`.
    source: "ait", "kmax", "detectron2", "torchvision" or "swin" (its authors' releases).

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


def _swin_rules(model: Any) -> tuple[Rule, ...]:
  """What the authors' Swin and AiT's SwinV2 have in common."""
  theirs = "layers.{s}.blocks.{b}."
  rules = [*conv("patch_embed/proj", "patch_embed.proj"), *norm("patch_embed/norm", "patch_embed.norm"),
           *norm(f"{BLOCK}/norm1", theirs + "norm1"), *norm(f"{BLOCK}/norm2", theirs + "norm2"),
           *dense(f"{BLOCK}/mlp/fc1", theirs + "mlp.fc1"), *dense(f"{BLOCK}/mlp/fc2", theirs + "mlp.fc2"),
           *dense(f"{BLOCK}/attn/proj", theirs + "attn.proj"),
           *norm("merge{s+1}/norm", "layers.{s}.downsample.norm"),
           *dense("merge{s+1}/reduction", "layers.{s}.downsample.reduction", bias=False), *norm("norm{s}", "norm{s}")]
  last = len(model.depths) - 1
  return (*rules, *(norm(f"norm{last}", "norm") if last in model.out_norms else ()))


def authors_swin(model: Any) -> Table:
  """Names of the Swin authors' releases, which detectron2's Swin and thus MAD keep."""
  theirs = "layers.{s}.blocks.{b}.attn."
  rules = (*_swin_rules(model), *dense(f"{BLOCK}/attn/qkv", theirs + "qkv"),
           rule(f"{BLOCK}/attn/position_bias", theirs + "relative_position_bias_table", layout="offsets"))
  return Table(rules, (*COMPUTED, "head\\..*"), ("backbone.", "module."))


def ait_swin_v2(model: Any) -> Table:
  """Names of AiT's SwinV2 and of the SimMIM pre-training that it starts from."""
  theirs = "layers.{s}.blocks.{b}.attn."
  rules = (*_swin_rules(model), *dense(f"{BLOCK}/attn/qkv", theirs + "qkv", bias=False),
           rule(f"{BLOCK}/attn/q_bias", theirs + "q_bias"), rule(f"{BLOCK}/attn/v_bias", theirs + "v_bias"),
           rule(f"{BLOCK}/attn/logit_scale", theirs + "logit_scale", layout="per_head"),
           *dense(f"{BLOCK}/attn/position/fc1", theirs + "rpe_mlp.0"),
           *dense(f"{BLOCK}/attn/position/fc2", theirs + "rpe_mlp.2", bias=False))
  return Table(rules, (*COMPUTED, "head\\..*", "mask_token"), ("module.", "backbone.", "encoder."))


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
    "ait": {"SwinV2": ait_swin_v2},
    "kmax": {"ResNet": kmax_resnet, "ConvNeXt": kmax_convnext},
    "detectron2": {"ResNet": detectron2_resnet, "Swin": authors_swin},
    "torchvision": {"ResNet": torchvision_resnet},
    "swin": {"Swin": authors_swin},
}
