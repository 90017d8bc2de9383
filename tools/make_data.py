"""Writes the generated dataset to disk: `python -m tools.make_data scenes --out=D --format=npz --config=mini`."""

import argparse
import importlib.util
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from tools import shell
from tools.checking import check_data
from tools.rendering import instance_arrays, scenes_arrays
from uvim_like import flags as flag_tools
from uvim_like import scenes
from uvim_like.errors import UserError, unknown
from uvim_like.scenes import stream

FORMATS = ("tfds", "folder", "coco", "npz")
_PACKAGES = {"tfds": ("tensorflow_datasets",), "folder": ("PIL", "pycocotools"), "coco": ("PIL", "pycocotools"),
             "npz": ()}
FILE_FORMATS = ("tfrecord", "array_record")
_MIN_SIDE = 16  # smaller images cannot hold a thing that is worth a label


def parse_flags(argv: list[str]) -> argparse.Namespace:
  """Flags of the command line, checked.

  Returns:
    A namespace with command, out (Path), formats, config (name), size (H, W), counts {split: n}, tasks, slots, box_mask,
    workers, file_format.

  Raises:
    UserError: naming the flag and the nearest valid value.
  """
  parser = flag_tools.Parser(prog="python -m tools.make_data", description=__doc__)
  commands = parser.add_subparsers(dest="command", parser_class=flag_tools.Parser)
  make = commands.add_parser("scenes", help="write the dataset")
  make.add_argument("--out", required=True, help="folder to write into; made when missing")
  make.add_argument("--format", default="tfds", help=f"one or more of {', '.join(FORMATS)}, with commas")
  make.add_argument("--config", default=scenes.DEFAULT_CONFIG, help=f"one of {', '.join(scenes.CONFIGS)}")
  make.add_argument("--size", default="", help="pixels, 64 or 96x128 (height x width); default: the config's")
  make.add_argument("--num", default="", help="only these splits: train:8000,validation:400; default: the config's")
  make.add_argument("--task", default="depth", help=f"for npz: one of {', '.join(scenes_arrays.TASKS)}, "
                    f"and {scenes_arrays.INSTANCES} (boxes, masks, joints, captions) alone or beside it: depth,instances")
  make.add_whole("--slots", default=instance_arrays.SLOTS, help="for npz instances: objects an image, at most")
  make.add_whole("--box_mask", default=instance_arrays.BOX_MASK, help="for npz instances: pixels of a mask in its box")
  make.add_whole("--workers", default=2, help="processes that render")
  make.add_argument("--file_format", default="tfrecord", help=f"for tfds: one of {', '.join(FILE_FORMATS)}")
  commands.add_parser("check", help="list all that is wrong with a dataset; see check --help", add_help=False)
  _check_command(argv, commands.choices)
  flags, rest = parser.parse_known_args(argv)
  if rest:
    valid = [option for action in make._actions for option in action.option_strings]
    raise unknown("flag", rest[0].split("=")[0], valid)
  return _checked(flags)


def _check_command(argv, commands) -> None:
  words = [word for word in argv if not word.startswith("-")]
  if not {"-h", "--help"} & set(argv) and (not words or words[0] not in commands):
    raise unknown("command", words[0] if words else "", commands)


def _checked(flags) -> argparse.Namespace:
  formats = [_one_of(name, FORMATS, "--format") for name in flags.format.split(",")]
  for name in formats:
    _require(_PACKAGES[name], f"--format={name}")
  out = pathlib.Path(flags.out).expanduser()
  if out.exists() and not out.is_dir():
    raise UserError(f"--out: '{flags.out}' is a file, not a folder")
  base = scenes.CONFIGS[_one_of(flags.config, scenes.CONFIGS, "--config")]
  return argparse.Namespace(
      command=flags.command, out=out, formats=list(dict.fromkeys(formats)), config=flags.config,
      size=parse_size(flags.size) if flags.size else (base.size, base.size),
      counts=parse_counts(flags.num) if flags.num else dict(base.splits),
      tasks=_tasks(flags.task), slots=flags.slots, box_mask=flags.box_mask, workers=flags.workers,
      file_format=_one_of(flags.file_format, FILE_FORMATS, "--file_format"))


def _require(packages, flag) -> None:
  missing = [package for package in packages if importlib.util.find_spec(package) is None]
  if missing:
    raise UserError(f"{flag} needs the package {missing[0]}; install it or choose another of: {', '.join(FORMATS)}")


def _one_of(name, choices, flag) -> str:
  if name not in choices:
    raise unknown("value", name, choices, where=flag)
  return name


def _tasks(text) -> list[str]:
  """"depth,instances" -> ["depth", "instances"]: of the tasks with labels at most one."""
  tasks = list(dict.fromkeys(_one_of(name.strip(), scenes_arrays.CHOICES, "--task") for name in text.split(",")))
  labelled = [name for name in tasks if name in scenes_arrays.TASKS]
  if len(labelled) > 1:
    raise UserError(f"--task: {' and '.join(labelled)} both want the array 'labels'; write them to two folders")
  return tasks


def parse_size(text: str) -> tuple[int, int]:
  """"64" → (64, 64), "96x128" → (96, 128): height, width."""
  sides = text.lower().split("x")
  if len(sides) > 2:
    raise UserError(f"--size: '{text}' is neither a number nor HEIGHTxWIDTH, such as 64 or 96x128")
  h, w = (flag_tools.whole(side, "--size", least=_MIN_SIDE) for side in (sides[0], sides[-1]))
  return h, w


def parse_counts(text: str) -> dict[str, int]:
  """"train:8000,validation:400" → {"train": 8000, "validation": 400}."""
  counts = {}
  for entry in text.split(","):
    split, colon, number = entry.partition(":")
    _one_of(split, scenes.SPLITS, "--num")
    if not colon or split in counts:
      raise UserError(f"--num: '{entry}' is not SPLIT:NUMBER, each split once, such as train:8000,validation:400")
    counts[split] = flag_tools.whole(number, "--num")
  return counts


def make_scenes(flags: argparse.Namespace) -> list[pathlib.Path]:
  """Writes all formats and returns the paths; a run that stops half-way leaves nothing under a final name."""
  flags.out.mkdir(parents=True, exist_ok=True)
  written = []
  with tempfile.TemporaryDirectory(dir=flags.out, prefix=".partial-") as scratch:
    scratch = pathlib.Path(scratch)
    patterns = _write_tfds(flags, scratch) if "tfds" in flags.formats else []
    plain = [name for name in flags.formats if name != "tfds"]
    for split, count in flags.counts.items():
      for name in plain:  # one pass for each: rendering is cheaper than keeping everything in memory
        patterns += _write_plain(flags, scratch, name, split, count)
    for pattern in dict.fromkeys(patterns):  # the text model of all splits is one file
      written += publish(scratch, flags.out, pattern)
  return list(dict.fromkeys(written))


def _write_plain(flags, scratch, name, split, count) -> list[str]:
  rendered = _watched(stream.examples(split, count, size=flags.size, workers=flags.workers), count, f"{name} {split}")
  if name == "npz":
    return scenes_arrays.write(rendered, count, scratch, split, tasks=flags.tasks, slots=flags.slots,
                               box_mask=flags.box_mask)
  from tools.rendering import scenes_files  # Pillow: npz does without

  writer = scenes_files.write_folder if name == "folder" else scenes_files.write_coco
  return writer(rendered, scratch, split)


def _watched(items: Iterable, total: int, name: str) -> Iterator:
  """The items, with a progress bar on the terminal's error stream."""
  return iter(tqdm(items, total=total, desc=name, unit="image", file=sys.stderr))


def _write_tfds(flags, scratch) -> list[str]:
  import tensorflow_datasets as tfds

  from pp_ops import scenes_builder  # TensorFlow: only this format needs it

  builder = scenes_builder.builder(flags.config, data_dir=str(scratch), size=flags.size, counts=flags.counts,
                                   workers=flags.workers, file_format=flags.file_format)
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  return [str(pathlib.Path(builder.data_dir).relative_to(scratch))]


def publish(scratch: pathlib.Path, out: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  """Moves what matches the pattern from one folder to the other by renaming; what matched there before is gone.

  Returns:
    The new paths; for a pattern with a wildcard only the folder that holds them.
  """
  for old in list(out.glob(pattern)):
    shutil.rmtree(old) if old.is_dir() else old.unlink()
  for new in sorted(scratch.glob(pattern)):
    target = out / new.relative_to(scratch)
    target.parent.mkdir(parents=True, exist_ok=True)
    new.rename(target)
  return [out / (pattern.rpartition("/")[0] if "*" in pattern else pattern)]


def main(argv: list[str]) -> int:
  """Runs the command; returns the exit code: 0, 1 when `check` finds problems, or 2 after a mistake in the flags, shown as one line."""
  if list(argv[:1]) == ["check"]:
    return check_data.main(argv[1:])
  return shell.exit_status("make_data", run, argv)


def run(argv: list[str]) -> None:
  """Writes the dataset and says what was written."""
  flags = parse_flags(argv)
  written = make_scenes(flags)
  h, w = flags.size
  counts = ", ".join(f"{count} {split}" for split, count in flags.counts.items())
  print(f"scenes {scenes.VERSION}, {h} x {w} pixels: {counts}")
  for path in written:
    print(f"  {path}")


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
