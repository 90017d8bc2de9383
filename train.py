"""Trains any system: `python -m train --config=configs/uvim/depth_stage1.py:scenes,runlocal --workdir=workdir/depth1`.

Same workdir, same config: the training goes on where it stopped. `--eval_only` evaluates the newest checkpoint;
`--replay_step=7` takes step 7 apart, example by example.

Exit status: 0 done, 2 a mistake that a person must mend (one line says which), 75 stopped by SIGTERM or Ctrl-C with
everything saved: the same command goes on. A second Ctrl-C stops at once.
"""

import argparse
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Collection, Sequence
from types import ModuleType
from typing import Any

import jax

from uvim_like import config as configs
from uvim_like import flags
from uvim_like.errors import UserError
from uvim_like.own_data import form
from uvim_like.training import batches, checkpoint, distributed, loop, replay, setup, signals
from uvim_like.training import workdir as workdirs

CACHE = "~/.cache/uvim_like/compiled"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command and returns its exit status; a mistake is one line (`--debug` shows the traceback)."""
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    spec, overrides, rest = configs.split_argv(argv)
    options = parse(rest)
    folder = pathlib.Path(options.workdir).expanduser()
    config = read_config(spec, overrides, folder, stored=options.replay_step is not None)
    with distributed.running(distributed.plan(options)):
      run(config, folder, eval_only=options.eval_only, replay_step=options.replay_step, accept=options.accept.split(","))
  except signals.Stopped as stopped:
    print(f"train: {stopped}", file=sys.stderr)
    return signals.EXIT_STOPPED
  except (UserError, OSError) as error:
    reason = None if isinstance(error, UserError) else workdirs.disk_reason(error)
    if "--debug" in argv or not (reason or isinstance(error, UserError)):
      raise
    print(f"train: {f'{error.filename or folder}: {reason}; what was saved stays' if reason else error}",
          file=sys.stderr)
    return 2
  return 0


def read_config(spec: str | None, overrides: Sequence[str], folder: pathlib.Path, *, stored: bool) -> Any:
  """The config of the command line; without `--config`, where that is allowed, the one that the workdir was trained with."""
  if spec is not None:
    return configs.load_file(spec, overrides)
  if not stored or not (folder / workdirs.CONFIG_FILE).is_file():
    raise UserError("--config is missing: --config=configs/uvim/depth_stage1.py:scenes,runlocal")
  config = configs.from_json((folder / workdirs.CONFIG_FILE).read_text(encoding="utf-8"))
  for text in overrides:
    configs.override(config, text)
  return config


def parse(words: Sequence[str]) -> argparse.Namespace:
  """The flags beside `--config`."""
  parser = flags.Parser(prog="python -m train", description=__doc__,
                        epilog="--config=FILE.py[:arguments] and --config.key=value set the experiment.")
  parser.add_argument("--workdir", required=True, help="folder of the run: config, metrics, checkpoints, weights")
  parser.add_argument("--eval_only", action="store_true", help="evaluate the newest checkpoint and stop")
  parser.add_whole("--replay_step", metavar="K",
                   help="make step K again from the checkpoint before it and print the losses of its examples")
  parser.add_argument("--accept", default="", metavar="KEYS",
                      help="config keys, separated by commas, that may differ from those the workdir was trained with")
  distributed.add_flags(parser)
  return parser.parse_args(words)


def run(config: Any, workdir: pathlib.Path, *, eval_only: bool = False, replay_step: int | None = None,
        accept: Collection[str] = ()) -> None:
  """Trains, or evaluates, or replays, what a config describes.

  Args:
    config: a ConfigDict in the vocabulary of `uvim_like.config.SCHEMA`.
    workdir: the run's folder; made when it does not exist.
    eval_only: evaluate the newest checkpoint instead.
    replay_step: take this step apart instead; nothing is written.
    accept: config keys that may differ from the workdir's.

  Raises:
    UserError: anything in the config, the data or the workdir that a person must mend.
    signals.Stopped: SIGTERM or SIGINT came; what there was to save is saved.
  """
  configs.check(config)
  config = configs.with_defaults(config)
  use_compilation_cache(config.compilation_cache)
  if eval_only or replay_step is not None:
    read_only(config, workdir, replay_step=replay_step)
    return
  say = print if jax.process_index() == 0 else lambda *_: None
  with signals.StopRequest() as stop, workdirs.hold(workdir):
    with checkpoint.Checkpoints(workdir, every=config.checkpoint_steps, keep_every=config.keep_checkpoint_steps,
                                keep_last=config.keep_last_checkpoints) as saved:
      if saved.recorded() is not None or saved.latest() is not None:
        for change in workdirs.check_same_config(workdir, config, accept=accept):
          say(f"changed since the last start: {change}")
        if (done := workdirs.finished_step(workdir, config)) is not None:
          say(f"{workdir} is finished: {done} steps; give another workdir or a longer training")
          return
      train(config, workdir, saved, stop, say=say)


def train(config: Any, workdir: pathlib.Path, saved: checkpoint.Checkpoints, stop: signals.StopRequest, *,
          say: Callable[[str], None]) -> None:
  """The training of `run`, in a workdir that is held."""
  system = setup.make_system(config)
  data, place = data_provider(config.dataset), place_of(config)
  begin = saved.latest() or 0
  stream = training_batches(config, data, place, start_step=begin, limits=system.label_limits)
  first = next(stream)
  loop.check_labels(first, system.label_limits, where=f"{config.dataset} {config.train_split}", key=system.label_key)
  prepared = setup.prepare(config, num_examples=data.num_examples(**place), batch=device_part(first), system=system)
  evaluators = setup.make_evaluators(prepared, data)
  if text := form.summary(config):
    say(text)
  say(setup.overview(prepared))
  state = loop.restore_or_init(prepared, saved, device_part(first), say=say)
  if (start := int(state.step)) > prepared.total_steps:
    raise UserError(f"config: the training ends after {prepared.total_steps} steps, but the checkpoints of {workdir} are at "
                    f"{start} already; give another --workdir or a longer training")
  write_config(workdir, config)
  if start != begin:  # the newest checkpoint was damaged, and is set aside now: data from the one that was taken
    stream.close()
    stream = training_batches(config, data, place, start_step=start, limits=system.label_limits)
    first = next(stream)
  state = loop.train(prepared, state, itertools.chain([first], stream), evaluators, saved=saved, workdir=workdir, stop=stop)
  loop.finish(prepared, state, saved, workdir)
  say(f"done: {workdir / loop.WEIGHTS_FILE}")


def read_only(config: Any, workdir: pathlib.Path, *, replay_step: int | None) -> None:
  """Evaluates the newest checkpoint, or takes a step apart; a live run may hold the workdir."""
  system = setup.make_system(config)
  data, place = data_provider(config.dataset), place_of(config)
  with checkpoint.Checkpoints(workdir) as saved:
    if replay_step is None and saved.latest() is None:  # a replay begins at step 0 then
      raise UserError(f"--eval_only: no checkpoint in {workdir}")
    first = next(training_batches(config, data, place, start_step=0, limits=system.label_limits))
    prepared = setup.prepare(config, num_examples=data.num_examples(**place), batch=device_part(first), system=system)
    if replay_step is None:
      loop.evaluate_only(prepared, saved, setup.make_evaluators(prepared, data), workdir)
      return
    state = replay.start(prepared, saved, device_part(first), number=replay_step)
    stream = training_batches(config, data, place, start_step=int(state.step), limits=system.label_limits)
    result = replay.replay(prepared, state, stream, number=replay_step)
    print(replay.text(result, where=f"{config.dataset} {config.train_split}"))


def place_of(config: Any) -> dict[str, Any]:
  """Which examples are trained on."""
  return dict(dataset=config.dataset, split=config.train_split, data_dir=config.data_dir)


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


def training_batches(config: Any, data: ModuleType, place: dict, *, start_step: int, limits: Sequence[int] | None):
  """This process's rows of every batch from `start_step` on; `limits` as `System.label_limits`."""
  return data.train_batches(
      **place, pp=config.pp_train, batch_size=config.batch_size, seed=config.seed, start_step=start_step,
      pp_modules=config.pp_modules, shuffle_buffer_size=config.shuffle_buffer_size, prefetch=config.prefetch,
      on_bad_example=config.on_bad_example, max_bad_share=config.max_bad_share, label_limits=limits,
      process_index=jax.process_index(), process_count=jax.process_count())


def device_part(batch: dict) -> dict:
  """The entries of a batch that the model sees."""
  return {key: value for key, value in batch.items() if key in setup.DEVICE_KEYS}


def write_config(workdir: pathlib.Path, config: Any) -> None:
  """`config.json` in the workdir, by the first process."""
  if jax.process_index() == 0:
    workdirs.write_text(workdir / workdirs.CONFIG_FILE, configs.to_json(config))


if __name__ == "__main__":
  sys.exit(main())
