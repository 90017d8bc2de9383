"""Predicts pictures with a trained run: `python -m tools.predict --workdir=D --image photos/ --out=O`.

`--image` takes files, folders (with those below) and patterns. Results have each picture's own size, under O:
  depth/      16-bit PNG in millimetres (0 = none, at most 65.535 m), and npz with "depth", float32 metres
  semantic/   PNG of classes from 0, 255 = void
  panoptic/   COCO's PNG, with panoptic.json
  normals/    PNG (n + 1) / 2 · 255, and npz with "normals", float32 unit vectors
  color/      PNG
  instances.json keypoints.json captions.json   lists in COCO's form of results, masks as run lengths
  overlay/    one picture for people: input, result, legend
  predictions.json   which picture is which, the classes, the run, what failed
`--labels` writes the same as a folder to train on: images/ beside PNGs, and annotations in instances.json and
captions.json.

A command that is stopped leaves the lists of what is done, and predictions.json says what is not.

Exit status: 0 all pictures done; 1 some could not be read or predicted, each with its line, the others are done; 2 a
mistake that a person must mend before anything starts.
"""

import argparse
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

import train
from tools import shell
from tools.predicting import overlay, predict_files, predict_inputs
from tools.predicting.predict_inputs import Source
from uvim_like import flags, pictures
from uvim_like.errors import UserError
from uvim_like.inference import model as models
from uvim_like.inference import sizes
from uvim_like.own_data import layout
from uvim_like.training import workdir as workdirs

INDEX = "predictions.json"
NOT_REACHED = "not predicted: the command was stopped before"
SHOWN = 3   # names in a line about files that are left out


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command and returns its exit status; a mistake is one line (`--debug` shows the traceback)."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  return shell.exit_status("predict", command, argv)


def command(argv: Sequence[str]) -> int:
  """1 where pictures failed, else 0."""
  overrides, rest = shell.overrides_of_run(argv)
  return int(run(parse(rest), overrides) > 0)


def parse(words: Sequence[str]) -> argparse.Namespace:
  """The flags, checked.

  Raises:
    UserError: naming the flag and the nearest valid one.
  """
  parser = flags.Parser(prog="python -m tools.predict", description=__doc__,
                        epilog="--config.key=value changes the run's config, e.g. --config.oracle.model_init=D.")
  parser.add_argument("--workdir", required=True, help="folder of a training, or its weights.npz")
  parser.add_whole("--step", least=0, help="of a kept checkpoint; default: the newest")
  parser.add_argument("--image", required=True, nargs="+", action="extend", help="files, folders, patterns")
  parser.add_argument("--out", required=True, help="folder of the results; made when it does not exist")
  parser.add_argument("--temperature", type=float, help="of sampling; default: as the run's evaluation")
  parser.add_argument("--decode", help="form of decoding. UViM: cached, parallel, masked; AiT: ar, parallel; "
                      "MAD: masked, one_stage")
  parser.add_whole("--samples", default=1, help="several predictions of each picture (UViM's stage II)")
  parser.add_whole("--seed", least=0, help="of sampling; default: the run's")
  parser.add_whole("--batch_size", help="pictures at a time; default: the evaluation's, or all pictures")
  parser.add_argument("--score", type=float, default=overlay.SCORE,
                      help="detections below are neither drawn nor made labels (instances.json has them all)")
  parser.add_whole("--max_side", default=sizes.MAX_SIDE,
                   help="networks without a size of their own see larger pictures reduced to this")
  parser.add_argument("--overlay", type=switch, default=True, metavar="true|false", help="pictures for people")
  parser.add_argument("--npz", type=switch, metavar="true|false", help="arrays beside PNGs (but not of labels)")
  parser.add_argument("--labels", type=switch, nargs="?", const=True, default=False, metavar="true|false",
                      help="write a folder to train on")
  # "--image=a b" as "--image a b": argparse takes one value after "=".
  split = [part for word in words for part in (("--image", word.removeprefix("--image=")) if word.startswith("--image=")
                                               else (word,))]
  options = parser.parse_args(split)
  if options.labels and options.npz:
    raise UserError("--npz: of a label there must be one file; leave it out with --labels")
  options.npz = not options.labels if options.npz is None else options.npz
  if options.labels and options.samples > 1:
    raise UserError("--labels: a picture has one label; leave --samples out")
  return options


def switch(text: str) -> bool:
  """true or false."""
  if text.lower() not in ("true", "false", "1", "0"):
    raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
  return text.lower() in ("true", "1")


def run(options: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
  """Predicts everything and returns how many pictures failed.

  Raises:
    UserError: nothing to predict, or nothing to predict with.
  """
  began, out = time.perf_counter(), pathlib.Path(options.out).expanduser()
  from pp_ops import pictures as readers  # TensorFlow: only once the flags are right
  inputs = predict_inputs.gather(options.image, suffixes=readers.suffixes(), out=out)
  model = models.load(pathlib.Path(options.workdir).expanduser(), step=options.step, temperature=options.temperature,
                      decode=options.decode, samples=options.samples, seed=options.seed, max_side=options.max_side,
                      overrides=overrides)
  train.use_compilation_cache(model.trained.config.compilation_cache)
  form = predict_files.Form(out, models.names_of(model), npz=options.npz, labels=options.labels, score=options.score)
  entries: dict[int, predict_files.Entries] = {}
  failed: dict[int, str] = {}
  about = functools.partial(index, model, inputs, form, entries, failed, options)
  predict_files.check_form(form, own=predict_files.pictures_of(out / INDEX, about()))
  for line in introduction(model, inputs):
    print(line)
  size = options.batch_size or min(model.batch_size, len(inputs.sources))
  predict_files.clear_documents(form, out / INDEX)
  workdirs.write_json(out / INDEX, about())   # an earlier command's would vouch for files that are overwritten now
  try:
    predict(model, inputs.sources, form, entries, failed, batch_size=size, read=functools.partial(
        readers.read, dataset=model.trained.config.dataset), score=options.score if options.overlay else None)
  finally:
    documents = predict_files.write_documents(form, [entries[i] for i in sorted(entries)])
    workdirs.write_json(out / INDEX, about())
    if left := len(inputs.sources) - len(entries) - len(failed):
      print(f"predict: stopped before {left} of {len(inputs.sources)} pictures, which {out / INDEX} names",
            file=sys.stderr)
  print(f"{len(entries)} of {len(inputs.sources)} pictures in {time.perf_counter() - began:.1f} s: "
        f"{', '.join(sorted({p.name + '/' for p in out.iterdir() if p.is_dir()}) + documents)} in {out}")
  return len(failed)


def introduction(model: models.Model, inputs: predict_inputs.Inputs) -> Iterator[str]:
  """What is predicted, and how the pictures are prepared, for the terminal."""
  run = model.trained
  age = f"after {run.step} steps" if run.step else "with its final weights"
  yield f"{run.workdir}: {run.config.model_name} {age}; {len(inputs.sources)} pictures"
  for lens in model.lenses:
    options = ", ".join(f"{key}={value!r}" for key, value in lens.view.options.items())
    yield f"as {lens.view.name} evaluates: {lens.view.pp}{f'  [{options}]' if options else ''}"
    if lens.left_out:
      yield f"  but without {', '.join(lens.left_out)}, which needs labels: the whole picture is seen"
    if lens.square:
      yield "  the central square of each picture is seen"
  if inputs.skipped:
    names = ", ".join(path.name.encode("utf-8", "replace").decode() for path in inputs.skipped[:SHOWN])
    more = ", …" if len(inputs.skipped) > SHOWN else ""
    yield f"{len(inputs.skipped)} files without the suffix of a picture left out: {names}{more}"


def predict(model: models.Model, sources: Sequence[Source], form: predict_files.Form,
            entries: dict[int, predict_files.Entries], failed: dict[int, str], *, batch_size: int,
            read: Callable[[pathlib.Path], np.ndarray], score: float | None) -> None:
  """Reads, predicts and writes all pictures, a line on the error stream for each that fails.

  Args:
    model: of `models.load`.
    sources: the pictures.
    form: of the files.
    entries: filled with what each picture adds to the JSON files, by position: known when the command is stopped, too.
    failed: filled with why others failed, the same.
    batch_size: pictures at a time.
    read: a file to uint8 (H, W, 3).
    score: of objects in overlays, at least; None for no overlays.
  """
  with tqdm(total=len(sources), unit="picture", desc="predict", file=sys.stderr, disable=None) as bar:
    for position, found in models.predict_all(model, readable(sources, read, failed, bar), batch_size=batch_size):
      source = sources[position]
      if isinstance(found, UserError):
        fail(failed, position, f"{source.path}: {found}", bar)
        continue
      copy = form.labels and trains_as(source.path, found["image"])
      entries[position] = predict_files.write_one(form, source, found, copy=copy)
      if score is not None:
        path = form.out / "overlay" / f"{source.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        overlay.overlay(found, form.names, score=score).save(path)
      bar.update()


def trains_as(path: pathlib.Path, image: np.ndarray) -> bool:
  """Whether the dataset `folder` reads a file as this picture, so that it can be copied as it is."""
  if path.suffix.lower() not in layout.IMAGE_SUFFIXES:
    return False
  try:
    return pictures.upright_size(path) == image.shape[:2]
  except UserError:   # another format under this suffix
    return False


def readable(sources: Sequence[Source], read: Callable[[pathlib.Path], np.ndarray], failed: dict[int, str],
             bar: tqdm) -> Iterator[tuple[int, np.ndarray]]:
  """(position, pixels) of the pictures that can be read; the others are noted in `failed`."""
  for position, source in enumerate(sources):
    try:
      yield position, read(source.path)
    except UserError as error:
      fail(failed, position, str(error), bar)


def fail(failed: dict[int, str], position: int, message: str, bar: tqdm) -> None:
  """Notes and says why a picture failed."""
  failed[position] = " ".join(message.split())
  bar.write(f"predict: {failed[position]}", file=sys.stderr)
  bar.update()


def index(model: models.Model, inputs: predict_inputs.Inputs, form: predict_files.Form,
          entries: dict[int, predict_files.Entries], failed: dict[int, str],
          options: argparse.Namespace) -> dict[str, Any]:
  """What is written beside the results: where they come from. A picture that was not reached has an error as well."""
  tables = {key: {"name": table.name, "categories": predict_files.coco_categories(table)}
            for key, table in (("semantic", form.names.semantic), ("objects", form.names.objects)) if table is not None}
  return {
      "workdir": str(model.trained.workdir), "step": model.trained.step, "model_name": model.trained.config.model_name,
      "task": model.trained.config.task, "temperature": options.temperature, "decode": options.decode,
      "samples": options.samples, "labels": form.labels, "classes": tables,
      "pictures": [{"name": source.name, "id": source.number, "file": str(source.path),
                    **({"height": entries[i].image["height"], "width": entries[i].image["width"]} if i in entries else
                       {"error": failed.get(i, NOT_REACHED)})} for i, source in enumerate(inputs.sources)]}


if __name__ == "__main__":
  sys.exit(main())
