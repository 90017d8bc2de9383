"""Trains any system: `python -m train --config=configs/uvim/depth_stage1.py:scenes,runlocal --workdir=workdir/depth1`.

Same workdir, same config: the training goes on where it stopped. `--eval_only` evaluates the newest checkpoint.
"""

import argparse
import itertools
import os
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax

from uvim_like import config as configs
from uvim_like.errors import UserError
from uvim_like.training import batches, checkpoint, loop, setup

CACHE = "~/.cache/uvim_like/compiled"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; a person's mistake is one line and exit status 2 (`--debug` shows the traceback)."""
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    spec, overrides, rest = configs.split_argv(argv)
    options = parse(rest)
    if spec is None:
      raise UserError("--config is missing: --config=configs/uvim/depth_stage1.py:scenes,runlocal")
    config = configs.load_file(spec, overrides)
    if options.distributed:
      jax.distributed.initialize()
    run(config, pathlib.Path(options.workdir).expanduser(), eval_only=options.eval_only)
  except UserError as error:
    if "--debug" in argv:
      raise
    print(f"train: {error}", file=sys.stderr)
    return 2
  return 0


def parse(words: Sequence[str]) -> argparse.Namespace:
  """The flags beside `--config`."""
  parser = argparse.ArgumentParser(prog="python -m train", description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   epilog="--config=FILE.py[:arguments] and --config.key=value set the experiment.")
  parser.add_argument("--workdir", required=True, help="folder of the run: config, metrics, checkpoints, weights")
  parser.add_argument("--eval_only", action="store_true", help="evaluate the newest checkpoint and stop")
  parser.add_argument("--distributed", action="store_true",
                      help="several processes: find each other as TPU pods, Slurm and Open MPI tell them to")
  parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
  return parser.parse_args(words)


def run(config: Any, workdir: pathlib.Path, *, eval_only: bool = False) -> None:
  """Trains, or evaluates, what a config describes.

  Args:
    config: a ConfigDict in the vocabulary of `uvim_like.config.SCHEMA`.
    workdir: the run's folder; made when it does not exist.
    eval_only: evaluate the newest checkpoint instead.

  Raises:
    UserError: anything in the config, the data or the workdir that a person must mend.
  """
  configs.check(config)
  config = configs.with_defaults(config)
  use_compilation_cache(config.compilation_cache)
  system = setup.make_system(config)
  data = data_provider(config.dataset)
  place = dict(dataset=config.dataset, split=config.train_split, data_dir=config.data_dir)
  with checkpoint.Checkpoints(workdir, every=None if eval_only else config.checkpoint_steps,
                              keep_every=config.keep_checkpoint_steps, keep_last=config.keep_last_checkpoints) as saved:
    stream = training_batches(config, data, place, start_step=saved.latest() or 0)
    first = next(stream)
    prepared = setup.prepare(config, num_examples=data.num_examples(**place), batch=device_part(first), system=system)
    evaluators = setup.make_evaluators(prepared, data)
    if eval_only:
      loop.evaluate_only(prepared, saved, evaluators, workdir)
      return
    say = print if jax.process_index() == 0 else lambda *_: None
    say(setup.overview(prepared))
    write_config(workdir, config)
    state = loop.restore_or_init(prepared, saved, device_part(first), say=say)
    if int(state.step) >= prepared.total_steps:
      say(f"{workdir} is finished: {int(state.step)} steps; give another workdir or a longer training")
      return
    if int(state.step) != (saved.latest() or 0):  # the newest checkpoint was damaged: data from the one that was taken
      stream = training_batches(config, data, place, start_step=int(state.step))
      first = next(stream)
    state = loop.train(prepared, state, itertools.chain([first], stream), evaluators, saved=saved, workdir=workdir)
    loop.finish(prepared, state, saved, workdir)
    say(f"done: {workdir / loop.WEIGHTS_FILE}")


def use_compilation_cache(folder: str | None) -> None:
  """Keeps compiled programs on disk, so that a second start does not compile again; "" turns it off."""
  if folder == "":
    return
  jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder or CACHE))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def data_provider(dataset: str) -> ModuleType:
  """The module whose `train_batches`, `eval_batches` and `num_examples` serve a dataset.

  Finished numpy examples (`npz`) need no TensorFlow; everything else goes through the preprocessing strings.
  """
  if dataset == "npz":
    return batches
  from pp_ops import pipeline  # TensorFlow: seconds to import, and absent on some machines
  return pipeline


def training_batches(config: Any, data: ModuleType, place: dict, *, start_step: int):
  """This process's rows of every batch from `start_step` on."""
  return data.train_batches(
      **place, pp=config.pp_train, batch_size=config.batch_size, seed=config.seed, start_step=start_step,
      pp_modules=config.pp_modules, shuffle_buffer_size=config.shuffle_buffer_size, prefetch=config.prefetch,
      process_index=jax.process_index(), process_count=jax.process_count())


def device_part(batch: dict) -> dict:
  """The entries of a batch that the model sees."""
  return {key: value for key, value in batch.items() if key in setup.DEVICE_KEYS}


def write_config(workdir: pathlib.Path, config: Any) -> None:
  """`config.json` in the workdir, by the first process."""
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(configs.to_json(config), encoding="utf-8")


if __name__ == "__main__":
  sys.exit(main())
