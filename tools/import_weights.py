"""Foreign weights to ours: `python -m tools.import_weights --from=big_vision --src=S --config=C --out=O`.

  --from=big_vision   .npz files of UViM's release and of ViTs, and our own
  --from=hf           an image backbone (ViT, Swin, SwinV2, ConvNeXt, ResNet) of the hub's library, timm, torchvision
                      or its authors, into that of MAD, AiT or PolyMaX; a ViT into UViM's language model
  --from=ait          AiT's state dicts: a solver, a tokenizer (a file of its own, or inside a solver's), a SimMIM
                      backbone (--part=encoder)
  --from=detectron    MAD's state dicts, or a detectron2 backbone (--part=encoder)
  --from=deeplab2     variables of kMaX-DeepLab or DeepLabv3+ in an .npz, or their encoder (--part=encoder)

hf, ait and detectron read .safetensors, .npz and what torch.save writes (.pth, .pt, .bin), without torch.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tools import shell
from tools.importing import import_ait, import_backbone, import_big_vision, import_deeplab2, import_detectron
from uvim_like import config as configs
from uvim_like import flags as flags_lib
from uvim_like import names, trees, weights
from uvim_like.config_schema import task_of
from uvim_like.errors import UserError, unknown
from uvim_like.systems.base import System, Vars
from uvim_like.tasks.base import bind

READERS = {"big_vision": import_big_vision.read, "hf": import_backbone.read, "ait": import_ait.read,
           "detectron": import_detectron.read, "deeplab2": import_deeplab2.read}
RESAMPLING = ("hf", "detectron")  # forms of backbones with tables of positions
ANY_SIZE = (64, 64)  # of an image, for models that take any and whose arrays do not depend on it
PARTS = ("all", "encoder", "base_model")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Any]:
  """Flags, checked, and the config with its overrides.

  Raises:
    UserError: naming the flag and the nearest valid value.
  """
  spec, overrides, rest = configs.split_argv(argv)
  parser = flags_lib.Parser(
      prog="python -m tools.import_weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
      epilog="--config=FILE.py[:arguments] and --config.key=value say which model the weights are for.")
  parser.add_argument("--from", dest="format", required=True, help=f"whose layout: {', '.join(READERS)}")
  parser.add_argument("--src", required=True, help="file; for big_vision also a workdir or published name, for hf a "
                      "folder of the hub")
  parser.add_argument("--out", required=True, help=".npz file to write")
  parser.add_argument("--dont_load", default="", help="regexes of names that keep their initial value, with commas")
  parser.add_argument("--part", default="all", help="what the source is: all, or, for a language model, encoder "
                      "(a ViT) or base_model (a stage I), for the other systems encoder (a backbone); the rest keeps "
                      "its initial value. With --from=hf the source is always a backbone")
  parser.add_argument("--resample", action="store_true", help=f"with {' or '.join(RESAMPLING)}: resize position tables "
                      "that were made for another window or grid; else they are mis-shaped")
  flags = parser.parse_args(rest)
  for value, choices, flag in ((flags.format, READERS, "--from"), (flags.part, PARTS, "--part")):
    if value not in choices:
      raise unknown("value", value, choices, where=flag)
  if flags.resample and flags.format not in RESAMPLING:
    raise UserError(f"--resample: --from={flags.format} has no tables to resize; forms that have: {', '.join(RESAMPLING)}")
  if spec is None:
    raise UserError("--config is missing: --config=configs/uvim/panoptic_stage2.py")
  if not flags.out.endswith(".npz"):
    raise UserError(f"--out: '{flags.out}' is no .npz file name; did you mean '{flags.out.rstrip('/')}.npz'?")
  flags.dont_load = [pattern for pattern in flags.dont_load.split(",") if pattern]
  return flags, configs.load_file(spec, overrides)


def batch_spec(config: Mapping[str, Any], batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a training batch of a config, without its data: image, labels and, with an oracle, image_ctx.

  Args:
    config: has a task and, where they matter, model.input_size and, in stage II, oracle.model.input_size (the labels'
      size there).
    batch_size: B.
  """
  size = tuple(config["model"].get("input_size") or ANY_SIZE)
  oracle = config.get("oracle")
  label_size = tuple(oracle["model"]["input_size"]) if oracle else size
  labels = bind(task_of(config), config).labels
  spec = {"image": jax.ShapeDtypeStruct((batch_size, *size, 3), jnp.float32),
          "labels": jax.ShapeDtypeStruct((batch_size, *label_size, *labels.shape), labels.dtype)}
  if oracle:
    spec["image_ctx"] = jax.ShapeDtypeStruct((batch_size, *label_size, 3), jnp.float32)
  return spec


def make_system(config: Mapping[str, Any]) -> System:
  """The config's system, its frozen stage left in shapes: nothing but the imported weights is read."""
  config = dict(config)
  if config.get("oracle"):
    config["oracle"] = config["oracle"] | {"model_init": None}
  module = names.load("uvim_like.systems", config["model_name"], where="config.model_name", needs="make")
  return module.make(config)


def fit(source: str, config: Mapping[str, Any], *, part: str = "all", dont_load: Sequence[str] = (),
        form: str = "big_vision", resample: bool = False) -> tuple[System, dict[str, Any], weights.Report, list[str]]:
  """Reads a source under the names of the config's model and compares the two, in shapes only.

  Args:
    source: what the form's reader takes.
    config: plain, checked.
    part: one of `PARTS`.
    dont_load: patterns of full names that keep their initial value.
    form: one of `READERS`.
    resample: resize position tables that were made for another window or grid.

  Returns:
    The system, the loaded {"params", "state"}, the report, and all patterns that keep initial values.

  Raises:
    UserError: no such source, a part that the system has not, a pattern that matches nothing.
  """
  system = make_system(config)
  shapes = as_tree(jax.eval_shape(system.init, jax.random.key(0), batch_spec(config)))
  loaded = READERS[form](source, config, shapes, part=part, resample=resample)
  keep = full_patterns([*loaded.kept, *dont_load], shapes, loaded.tree)
  return system, loaded.tree, weights.compare(shapes, loaded.tree, keep, where=source), keep


def full_patterns(patterns: Sequence[str], *variables: Mapping[str, Any]) -> list[str]:
  """Patterns of parameters' names, as configs write them, under "params/" where only so they match anything."""
  known = [name for tree in variables for name, _ in trees.flatten_names(tree)]

  def matches(pattern):
    try:
      return any(re.fullmatch(pattern, name) for name in known)
    except re.error:  # named by `weights.compare`
      return False

  return [f"params/(?:{pattern})" if not matches(pattern) and matches(f"params/(?:{pattern})") else pattern
          for pattern in patterns]


def as_tree(variables: Vars) -> dict[str, Any]:
  """{"params": …, "state": …}: the names in files."""
  return {"params": variables.params, "state": variables.state}


def initial(system: System, config: Mapping[str, Any], kept: Sequence[str]) -> dict[str, Any]:
  """The shapes of all variables, and, under the names in `kept`, the values that the config's seed gives them.

  Only those are computed: a large model fits in memory once, as it comes from the file.
  """
  spec = batch_spec(config)

  def values(key, batch):
    return {name: leaf for name, leaf in trees.flatten_names(as_tree(system.init(key, batch))) if name in kept}

  key = jax.random.key(config.get("seed") or 0)
  shapes = as_tree(jax.eval_shape(system.init, key, spec))
  if not kept:
    return shapes
  zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in spec.items()}
  fresh = jax.device_get(jax.jit(values)(key, zeros))
  return trees.map_names(lambda name, leaf: fresh.get(name, leaf), shapes)


def run(flags: argparse.Namespace, config: Any) -> None:
  """Fits, prints the report, writes the file.

  Raises:
    UserError: see `fit`; weights that do not fit, in which case nothing is written.
  """
  configs.check(config)
  config = configs.plain(config)
  system, loaded, report, keep = fit(flags.src, config, part=flags.part, dont_load=flags.dont_load,
                                     form=flags.format, resample=flags.resample)
  print(report.text())
  if not report.fits:
    raise UserError(f"{flags.src}: does not fit the model of the config: {report.line()}; nothing is written "
                    "(--dont_load=REGEX,… leaves names at their initial value)")
  merged, _ = weights.merge(initial(system, config, report.kept), loaded, keep, where=flags.src)
  weights.save_npz(pathlib.Path(flags.out).expanduser(), merged)
  print(f"wrote {flags.out}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit code: 0, or 2 after a person's mistake, shown as one line."""
  return shell.exit_status("import_weights", lambda words: run(*parse(words)), argv)


if __name__ == "__main__":
  sys.exit(main())
