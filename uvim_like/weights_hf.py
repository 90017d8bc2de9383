"""The hub's checkpoints (Hugging Face transformers) of our image backbones: names, and the fields of a config.json."""

from collections.abc import Callable, Mapping
from typing import Any

from uvim_like.errors import UserError, unknown
from uvim_like.weights_rules import Rule, Table, batch_norm, conv, dense, norm, rule

BLOCK = "stage{s}_block{b}"
PREFIXES = ("module.", "resnet.", "convnext.", "swin.", "swinv2.", "vit.")
HEADS = ("classifier\\..*", "pooler\\..*", "head\\..*")


def table(model: Any) -> Table:
  """The names of a backbone module of ours in the hub's format.

  Raises:
    UserError: a kind of module that has none.
  """
  kind = type(model).__name__
  if kind not in TABLES:
    raise unknown("backbone", kind, TABLES, where="hf")
  return TABLES[kind](model)


def resnet(model: Any) -> Table:
  """Names of ResNetModel."""
  theirs = "encoder.stages.{s}.layers.{b}"

  def conv_norm(ours: str, name: str) -> tuple[Rule, ...]:
    return (*conv(f"{ours}/conv", f"{name}.convolution", bias=False),
            *batch_norm(f"{ours}/norm", f"{name}.normalization"))

  rules = (*conv_norm("stem", "embedder.embedder"), *conv_norm(f"{BLOCK}/conv{{i}}", theirs + ".layer.{i}"),
           *conv_norm(f"{BLOCK}/shortcut", theirs + ".shortcut"))
  return Table(rules, (".*num_batches_tracked", *HEADS), PREFIXES)


def convnext(model: Any) -> Table:
  """Names of ConvNextModel; its last norm belongs to the classifier."""
  theirs = "encoder.stages.{s}.layers.{b}"
  down = "encoder.stages.{s}.downsampling_layer"
  rules = (
      *conv("stem/conv", "embeddings.patch_embeddings"), *norm("stem/norm", "embeddings.layernorm"),
      *norm("downsample{s}/norm", f"{down}.0"), *conv("downsample{s}/conv", f"{down}.1"),
      rule(f"{BLOCK}/layer_scale", theirs + ".layer_scale_parameter"),
      *conv(f"{BLOCK}/dwconv", theirs + ".dwconv"), *norm(f"{BLOCK}/norm", theirs + ".layernorm"),
      *dense(f"{BLOCK}/pwconv1", theirs + ".pwconv1"), *dense(f"{BLOCK}/pwconv2", theirs + ".pwconv2"))
  return Table(rules, ("layernorm\\..*", *HEADS), PREFIXES)


def _hierarchy(model: Any, mlp: tuple[tuple[str, str], ...]) -> tuple[Rule, ...]:
  """What Swin and SwinV2 have in common; `mlp` holds the names of fc1 and fc2 in the newer and the older library."""
  theirs = "encoder.layers.{s}.blocks.{b}"
  rules = [*conv("patch_embed/proj", "embeddings.patch_embeddings.projection"),
           *norm("patch_embed/norm", "embeddings.norm"),
           *norm(f"{BLOCK}/norm1", theirs + ".layernorm_before"), *norm(f"{BLOCK}/norm2", theirs + ".layernorm_after")]
  for first, second in mlp:
    rules += [*dense(f"{BLOCK}/mlp/fc1", theirs + first), *dense(f"{BLOCK}/mlp/fc2", theirs + second)]
  # Merging belongs to the stage before it there, to the stage after it here.
  rules += [*norm("merge{s+1}/norm", "encoder.layers.{s}.downsample.norm"),
            *dense("merge{s+1}/reduction", "encoder.layers.{s}.downsample.reduction", bias=False)]
  last = len(model.depths) - 1
  if last in model.out_norms:
    rules += norm(f"norm{last}", "layernorm")
  # Of the library's backbones, which number the outputs from 1.
  return (*rules, *norm("norm{s}", "hidden_states_norms.stage{s+1}"))


NEW_MLP, OLD_MLP = (".mlp.fc1", ".mlp.fc2"), (".intermediate.dense", ".output.dense")


def swin(model: Any) -> Table:
  """Names of SwinModel, newer and older."""
  theirs = "encoder.layers.{s}.blocks.{b}.attention."
  new = dense(f"{BLOCK}/attn/qkv", *(f"{theirs}{name}_proj" for name in "qkv")) + (
      *dense(f"{BLOCK}/attn/proj", theirs + "o_proj"),
      rule(f"{BLOCK}/attn/position_bias", theirs + "relative_position_bias.relative_position_bias_table",
           layout="offsets"))
  old = dense(f"{BLOCK}/attn/qkv", *(f"{theirs}self.{name}" for name in ("query", "key", "value"))) + (
      *dense(f"{BLOCK}/attn/proj", theirs + "output.dense"),
      rule(f"{BLOCK}/attn/position_bias", theirs + "self.relative_position_bias_table", layout="offsets"))
  return Table((*_hierarchy(model, (NEW_MLP, OLD_MLP)), *new, *old), (".*relative_position_index", *HEADS), PREFIXES)


def swin_v2(model: Any) -> Table:
  """Names of Swinv2Model."""
  theirs = "encoder.layers.{s}.blocks.{b}.attention."
  names = [f"{theirs}self.{name}.weight" for name in ("query", "key", "value")]
  rules = (
      rule(f"{BLOCK}/attn/qkv/kernel", *names, layout="dense"),
      rule(f"{BLOCK}/attn/q_bias", theirs + "self.query.bias"),
      rule(f"{BLOCK}/attn/v_bias", theirs + "self.value.bias"),
      rule(f"{BLOCK}/attn/logit_scale", theirs + "self.logit_scale", layout="per_head"),
      *dense(f"{BLOCK}/attn/position/fc1", theirs + "self.continuous_position_bias_mlp.0"),
      *dense(f"{BLOCK}/attn/position/fc2", theirs + "self.continuous_position_bias_mlp.2", bias=False),
      *dense(f"{BLOCK}/attn/proj", theirs + "output.dense"))
  computed = (".*relative_position_index", ".*relative_coords_table")
  return Table((*_hierarchy(model, (OLD_MLP, NEW_MLP)), *rules), (*computed, *HEADS), PREFIXES)


def vit(model: Any) -> Table:
  """Names of ViTModel, newer and older."""
  first = [*conv("patch_embed/proj", "embeddings.patch_embeddings.projection"),
           rule("position_embedding", "embeddings.position_embeddings", layout="positions")]
  ignored = ["embeddings\\.mask_token", *HEADS]
  if model.class_token:
    first.append(rule("class_token", "embeddings.cls_token"))
  else:
    ignored.append("embeddings\\.cls_token")
  if model.final_norm:
    first += norm("norm", "layernorm")
  else:
    ignored.append("layernorm\\..*")
  new = "layers.{b}.", ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", *(
      name[1:] for name in NEW_MLP))
  old = "encoder.layer.{b}.", (*(f"attention.attention.{name}" for name in ("query", "key", "value")),
                               "attention.output.dense", *(name[1:] for name in OLD_MLP))
  rules = [row for prefix, names in (new, old) for row in vit_block(prefix, names)]
  return Table((*first, *rules), tuple(ignored), PREFIXES)


def vit_block(prefix: str, names: tuple[str, ...],
              norms: tuple[str, str] = ("layernorm_before", "layernorm_after")) -> tuple[Rule, ...]:
  """Rules of one encoder block; names of query, key, value, out, fc1, fc2 there, and of the norms."""
  *inputs, out, fc1, fc2 = (prefix + name for name in names)
  rules = [row for i, name in enumerate(norms) for row in norm(f"block{{b}}/norm{i + 1}", prefix + name)]
  rules += [*dense("block{b}/mlp/fc1", fc1), *dense("block{b}/mlp/fc2", fc2)]
  for ours, theirs in zip(("query", "key", "value"), inputs):
    rules += [rule(f"block{{b}}/attn/{ours}/kernel", f"{theirs}.weight", layout="heads_in"),
              rule(f"block{{b}}/attn/{ours}/bias", f"{theirs}.bias", layout="heads_bias")]
  rules += [rule("block{b}/attn/out/kernel", f"{out}.weight", layout="heads_out"),
            rule("block{b}/attn/out/bias", f"{out}.bias")]
  return tuple(rules)


TABLES: dict[str, Callable[[Any], Table]] = {
    "ResNet": resnet, "ConvNeXt": convnext, "Swin": swin, "SwinV2": swin_v2, "ViT": vit}


def model_fields(config: Mapping[str, Any], *, where: str = "config.json") -> dict[str, Any]:
  """The block of `make_backbone` for the model that a hub's config.json describes.

  Args:
    config: the file's contents.
    where: place named in the error.

  Raises:
    UserError: another kind of model, or a setting that we do not have.
  """
  kind = config.get("model_type")
  if kind not in FIELDS:
    raise unknown("model_type", str(kind), FIELDS, where=where)
  wanted = "relu" if kind == "resnet" else "gelu"
  if config.get("hidden_act", wanted) != wanted:
    raise UserError(f"{where}: hidden_act '{config['hidden_act']}': only '{wanted}' is known for {kind}")
  if not config.get("qkv_bias", True) or config.get("use_absolute_embeddings"):
    raise UserError(f"{where}: qkv_bias=false and use_absolute_embeddings=true are not known here")
  return FIELDS[kind](config)


def _pair(size: Any) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else tuple(size)


def _patch(config: Mapping[str, Any]) -> int:
  height, width = _pair(config["patch_size"])
  if height != width:
    raise UserError(f"patch_size {config['patch_size']}: only square patches are known here")
  return height


def _resnet_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  return {"name": "resnet50", "depths": tuple(config["depths"]), "widths": tuple(config["hidden_sizes"]),
          "stem_width": config["embedding_size"], "bottleneck": config["layer_type"] == "bottleneck",
          "stride_in_3x3": not config.get("downsample_in_bottleneck", False),
          "first_stride": 2 if config.get("downsample_in_first_stage") else 1}


def _convnext_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  return {"name": "convnext_t", "depths": tuple(config["depths"]), "widths": tuple(config["hidden_sizes"]),
          "scale_init": config["layer_scale_init_value"], "patch": _patch(config),
          "drop_path": config.get("drop_path_rate", 0.0)}


def _swin_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  depths = tuple(config["depths"])
  return {"name": "swin_b", "width": config["embed_dim"], "depths": depths, "num_heads": tuple(config["num_heads"]),
          "window_size": config["window_size"], "mlp_ratio": config["mlp_ratio"],
          "patch": _patch(config), "epsilon": config["layer_norm_eps"],
          "out_norms": (len(depths) - 1,), "drop_path": config.get("drop_path_rate", 0.0), "shrink": True}


def _swin_v2_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """Windows are no larger than the maps of the config's own image size, and shifted only where they are smaller."""
  fields = _swin_fields(config) | {"name": "swinv2_b", "norm_epsilon": 1e-12, "norm_add": False}
  del fields["shrink"]
  stages = len(fields["depths"])
  rows = [_pair(config["image_size"])[0] // fields["patch"] // 2 ** stage for stage in range(stages)]
  pretrained = config.get("pretrained_window_sizes") or [0] * stages
  return fields | {"window_size": tuple(min(config["window_size"], row) for row in rows),
                   "use_shift": tuple(row > config["window_size"] for row in rows),
                   "pretrain_window": tuple(pretrained[:stages])}


def _vit_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  patch = _patch(config)
  return {"name": "vit_b", "width": config["hidden_size"], "depth": config["num_hidden_layers"],
          "num_heads": config["num_attention_heads"], "mlp_dim": config["intermediate_size"], "patch": patch,
          "grid": tuple(side // patch for side in _pair(config["image_size"])), "class_token": True,
          "epsilon": config["layer_norm_eps"]}


FIELDS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "resnet": _resnet_fields, "convnext": _convnext_fields, "swin": _swin_fields, "swinv2": _swin_v2_fields,
    "vit": _vit_fields}
