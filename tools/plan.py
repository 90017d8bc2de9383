"""What a training would take, before anything is bought: `python -m tools.plan --config=C --devices=8`.

Compiles the training step of a config ahead of time over so many devices and prints parameters, memory of a device,
floating point operations and where every parameter would lie. No parameter is made and no data are read.

  --devices=8         virtual CPU devices: the CPU compiler's temporaries stand in for an accelerator's
  --topology=v5e:4x4  a TPU slice by jax's ahead-of-time compiler (needs the package libtpu, and no TPU)

Exit status: 0, 1 when it does not fit in --memory, 2 a mistake.
"""

import argparse
import math
import os
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from tools import shell
from uvim_like import config as configs
from uvim_like import flags as flags_lib
from uvim_like import trees
from uvim_like.errors import UserError
from uvim_like.training import batches, logs, setup, sharding

UNITS = {"KiB": 2 ** 10, "MiB": 2 ** 20, "GiB": 2 ** 30, "TiB": 2 ** 40}
NO_ROOM = 1
# Of the TPU compiler: it would look for chips and write logs otherwise.
TPU_SETTINGS = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_LOG_DIR": "disabled",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def parse(words: Sequence[str]) -> argparse.Namespace:
  """The flags beside `--config`; UserError names a wrong one."""
  parser = flags_lib.Parser(prog="python -m tools.plan", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter,
                            epilog="--config=FILE.py[:arguments] and --config.key=value set the experiment.")
  parser.add_argument("--devices", type=int, help="number of virtual CPU devices")
  parser.add_argument("--topology", help="name of a TPU slice, e.g. v5e:4x4, v6e:2x4, v4:2x2x4")
  parser.add_argument("--memory", help="of a device, e.g. 16GiB: says whether the step fits")
  flags = parser.parse_args(words)
  if (flags.devices is None) == (flags.topology is None):
    raise UserError("one of --devices=8 and --topology=v5e:4x4 is needed, and not both")
  if flags.devices is not None and flags.devices < 1:
    raise UserError(f"--devices={flags.devices}: at least 1 is needed")
  flags.memory = None if flags.memory is None else bytes_of(flags.memory)
  return flags


def bytes_of(text: str) -> int:
  """"16GiB" as a number of bytes; UserError for anything else."""
  match = re.fullmatch(rf"(\d+(?:\.\d+)?)({'|'.join(UNITS)})", text)
  if not match:
    raise UserError(f"--memory: '{text}' is no size; sizes are written 16GiB ({', '.join(UNITS)})")
  return int(float(match[1]) * UNITS[match[2]])


def text_of(size: int) -> str:
  """A number of bytes to be read by people."""
  unit = next((unit for unit in reversed(UNITS) if size >= UNITS[unit]), "KiB")
  return f"{size / UNITS[unit]:.2f} {unit}"


def cpu_devices(count: int) -> list[jax.Device]:
  """So many virtual devices of the CPU; UserError when jax runs already with fewer."""
  try:
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:  # jax runs already, in a program that imports this one
    pass
  if len(jax.devices("cpu")) < count:
    raise UserError(f"--devices={count}: this process has {len(jax.devices('cpu'))} CPU devices; start it without "
                    "xla_force_host_platform_device_count in XLA_FLAGS")
  return jax.devices("cpu")[:count]


def topology_devices(name: str) -> list[jax.Device]:
  """The devices of a TPU slice that is not there; UserError when its compiler is not installed, or the name is none."""
  from jax.experimental import topologies
  os.environ.update(TPU_SETTINGS)
  chips = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
  try:
    return list(topologies.get_topology_desc(name, platform="tpu", **chips).devices)
  except (RuntimeError, ValueError) as error:   # no compiler (or none that knows topologies); a name that it does not know
    raise UserError(f"--topology={name}: jax cannot compile for it here ({' '.join(str(error).split())[:200]}); it needs "
                    "`pip install libtpu` and a name such as v5e:4x4, v6e:2x4, v4:2x2x4; --devices=8 needs neither") from error


def batch_shapes(config: Any) -> tuple[dict[str, jax.ShapeDtypeStruct], str]:
  """What the step reads, whole batch, in shapes; and, where the config's data are not at hand, why they were left out.

  Raises:
    UserError: the preprocessing does not resolve, neither with the config's data nor without.
  """
  place = dict(dataset=config.dataset, split=config.train_split, data_dir=config.data_dir)
  if config.dataset == batches.DATASET:
    found = next(batches.train_batches(**place, pp=config.pp_train, batch_size=config.batch_size, seed=config.seed))
    rows, said = {key: (value.shape[1:], value.dtype) for key, value in found.items()}, ""
  else:
    from pp_ops import pipeline
    options = dict(pp=config.pp_train, pp_modules=config.pp_modules)
    try:
      specs, said = pipeline.batch_specs(**place, **options), ""
    except UserError as error:
      try:
        specs = pipeline.batch_specs(**place, **options, at_hand=False)
      except UserError as other:
        raise UserError(f"{error}; without data: {other}") from error
      said = f"shapes from the preprocessing string alone, since {' '.join(str(error).split())[:200]}"
    rows = {key: (tuple(spec.shape), spec.dtype.as_numpy_dtype) for key, spec in specs.items()}
  return {key: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype) for key, (shape, dtype) in rows.items()
          if key in setup.DEVICE_KEYS}, said


def device_bytes(tree: Any) -> int:
  """Bytes that one device holds of a tree of shapes with their places."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def table(params: Any) -> str:
  """Every parameter with its shape, placement and bytes on one device."""
  rows = [(name, "x".join(map(str, leaf.shape)) or "()", leaf.sharding.spec, f"{device_bytes(leaf):,}")
          for name, leaf in trees.flatten_names(params)]
  return logs.table_text(("parameter", "shape", "placement", "bytes a device"), rows)


def peak_of(memory: Any) -> int:
  """Bytes of a device that the step needs at once; outputs may lie in the place of arguments."""
  return (memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
          + memory.temp_size_in_bytes)


def summary(run: setup.Run, state: Any, batch: Mapping[str, Any], memory: Any, flops: float) -> str:
  """Sizes of the run, memory of a device, floating point operations."""
  held = {"parameters": state.vars.params, "state": state.vars.state, "optimizer": state.opt, "average": state.ema,
          "frozen stage": run.frozen, "batch": batch}
  size, count = run.config.batch_size, sum(leaf.size for leaf in jax.tree.leaves(state.vars.params))
  return "\n".join([
      f"{count:,} parameters; batch {size} over {run.mesh.size} x {run.mesh.devices.flat[0].device_kind}, mesh "
      f"{dict(run.mesh.shape)}",
      f"a device holds: {', '.join(f'{name} {text_of(device_bytes(tree))}' for name, tree in held.items() if tree)}",
      f"memory a device: arguments {text_of(memory.argument_size_in_bytes)}, outputs "
      f"{text_of(memory.output_size_in_bytes)} ({text_of(memory.alias_size_in_bytes)} in the place of arguments), "
      f"temporaries {text_of(memory.temp_size_in_bytes)}; together {text_of(peak_of(memory))}",
      f"FLOPs a step: {flops:.4g}, of an image {flops / size:.4g}"])


def run(words: Sequence[str]) -> int:
  """Plans, prints; returns the exit status."""
  spec, overrides, rest = configs.split_argv(words)
  flags = parse(rest)
  if spec is None:
    raise UserError("--config is missing: --config=configs/uvim/depth_stage1.py:scenes,runlocal")
  config = configs.load_file(spec, overrides)
  configs.check(config)
  config = configs.with_defaults(config)
  jax.config.update("jax_platforms", "cpu")  # accelerators of this machine are left alone
  devices = topology_devices(flags.topology) if flags.topology else cpu_devices(flags.devices)
  rows, said = batch_shapes(config)
  # The length of the training changes nothing here, and only the data know it.
  prepared = setup.prepare(config, num_examples=config.batch_size, batch=rows, devices=devices, in_shapes=True)
  state = sharding.placed_shapes(prepared.abstract, prepared.shardings)
  batch = sharding.placed_shapes(rows, sharding.batch_sharding(prepared.mesh))
  print("\n".join(filter(None, [said, table(state.vars.params)])), flush=True)
  try:
    memory = setup.compile_step(prepared, state, batch).memory_analysis()
  except jax.errors.JaxRuntimeError as error:  # what a compiler says that knows its device's memory
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    print(f"does not fit: {' '.join(str(error).split())[:300]}")
    return NO_ROOM
  print(summary(prepared, state, batch, memory, setup.step_flops(prepared, state, batch)))
  if flags.memory is None:
    return 0
  fits = peak_of(memory) <= flags.memory
  print(f"{'fits' if fits else 'does not fit'} in {text_of(flags.memory)}: {peak_of(memory) / flags.memory:.0%} of it")
  return 0 if fits else NO_ROOM


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status, a mistake as one line."""
  return shell.exit_status("plan", run, argv)


if __name__ == "__main__":
  soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
  if soft != hard and any(word.startswith("--topology") for word in sys.argv):  # the TPU compiler overflows 8 MB of stack
    resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))
    os.execv(sys.executable, [sys.executable, "-m", "tools.plan", *sys.argv[1:]])
  sys.exit(main())
