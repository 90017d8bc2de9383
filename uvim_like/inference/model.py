"""A trained model as a function of pictures: any size in, results at that size out, the numbers of its evaluation.

Preprocessing strings run in TensorFlow, of which this package knows nothing: the modules that run them are looked up by
name when a model is loaded. So `import uvim_like`, and everything else below it, works without TensorFlow.
"""

import functools
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from uvim_like import keywords
from uvim_like.errors import UserError
from uvim_like.inference import sizes, tables, views
from uvim_like.inference.full_size import Names, full_size
from uvim_like.inference.views import View
from uvim_like.training import batches, stored, trained
from uvim_like.training.trained import Trained

Picture = str | os.PathLike | np.ndarray
Results = dict[str, Any]
PICTURES, IMAGE_PART = "pp_ops.pictures", "pp_ops.image_part"
HELD = 4   # batches' worth of pictures that wait for others of their size


class Lens(NamedTuple):
  """A view made ready.

  Attributes:
    view: of the run.
    prepare: (uint8 (H, W, 3)) -> entries of a batch, without its first axis.
    fixed: pictures of all sizes become entries of one shape.
    square: the view shows the central square alone.
    left_out: ops of the evaluation that would change the picture but need its labels.
    predict: (vars, frozen, batch, key) -> outputs, compiled once a shape.
    names: of the classes.
  """
  view: View
  prepare: Callable[[np.ndarray], dict[str, np.ndarray]]
  fixed: bool
  square: bool
  left_out: tuple[str, ...]
  predict: Callable[..., Mapping[str, jax.Array]]
  names: Names


class Model(NamedTuple):
  """A trained model that predicts; call it with a picture.

  Attributes:
    trained: config, system, step.
    variables: on the device.
    frozen: on the device.
    lenses: one for every evaluation of the run that predicts something of its own.
    key: random key, that of the run's evaluations.
    batch_size: of the run's evaluations.
  """
  trained: Trained
  variables: Any
  frozen: Any
  lenses: tuple[Lens, ...]
  key: jax.Array
  batch_size: int

  def __call__(self, picture: Picture) -> Results:
    """The results of one picture (see `full_size.full_size`), and itself as "image", uint8 (H, W, 3), upright.

    Args:
      picture: a file's path, or an array uint8 (H, W), (H, W, 3) or (H, W, 4).

    Raises:
      UserError: what is no picture.
    """
    (_, found), = predict_all(self, [(0, read(picture, dataset=self.trained.config.dataset))], batch_size=1)
    if isinstance(found, UserError):
      raise found
    return found


def load(source: str | os.PathLike, *, step: int | None = None, temperature: float | None = None,
         decode: str | None = None, samples: int = 1, seed: int | None = None, max_side: int = sizes.MAX_SIDE,
         overrides: Iterable[str] = ()) -> Model:
  """A model from the workdir of its training.

  Args:
    source: a workdir, or its weights.npz.
    step: of a kept checkpoint; None for the newest.
    temperature, decode, samples: see `views.with_options`; by default as the run's evaluation has them.
    seed: of sampling; the run's by default.
    max_side: pixels of the longer side at which a network without a size of its own sees larger pictures.
    overrides: of the config, "key=value".

  Raises:
    UserError: nothing to load; a training that cannot predict from pictures; options that the system does not have.
  """
  return of(trained.restore(source, step=step, overrides=overrides), temperature=temperature, decode=decode,
            samples=samples, seed=seed, max_side=max_side)


def of(run: Trained, *, temperature: float | None = None, decode: str | None = None, samples: int = 1,
       seed: int | None = None, max_side: int = sizes.MAX_SIDE) -> Model:
  """A model from a restored training; arguments as `load`."""
  views.check_predictable(run.config)
  found = [views.with_options(view, run.config, temperature=temperature, decode=decode, samples=samples)
           for view in views.views(run.config)]
  lenses = tuple(_lens(run, view, max_side) for view in found)
  return Model(run, jax.device_put(run.vars), jax.device_put(run.frozen), lenses,
               jax.random.key(run.config.seed if seed is None else seed), min(view.batch_size for view in found))


def names_of(model: Model) -> Names:
  """The classes of the maps and of the objects, over all views."""
  return Names(*(next((one for one in found if one is not None), None)
                 for found in zip(*(lens.names for lens in model.lenses))))


def _lens(run: Trained, view: View, max_side: int) -> Lens:
  if view.pred not in run.system.predict:
    raise UserError(f"config.{view.name}.pred: '{view.pred}' is none of {', '.join(run.system.predict)}")
  keywords.check(run.system.predict[view.pred], view.options, where=f"config.{view.name}.pred_kw")
  part = _module(IMAGE_PART).make(view.pp, run.config.pp_modules)
  fixed = all(None not in shape for shape in part.shapes.values())
  target = None if fixed else functools.partial(network_size, config=run.config, view=view, max_side=max_side)
  prepare = functools.partial(entries_of, part=part, target=target, stored_form=run.config.dataset == batches.DATASET)
  predict = jax.jit(functools.partial(run.system.predict[view.pred], **view.options))
  objects = tables.object_table(run.config, view)
  names = Names(tables.semantic_table(run.config, view), objects, tables.person_label(objects, view))
  return Lens(view, prepare, fixed, part.square, part.left_out, predict, names)


def network_size(size: sizes.Size, *, config: Any, view: View, max_side: int) -> sizes.Size:
  """At which size a picture enters a network whose preprocessing keeps its size."""
  if views.system_of(config) == views.AIT:
    return sizes.on_canvas(size, views.canvas_of(config, view), view.options.get("windows", 0))
  return sizes.capped(size, max_side)


def entries_of(image: np.ndarray, *, part: Any, target: Callable[[sizes.Size], sizes.Size] | None,
               stored_form: bool) -> dict[str, np.ndarray]:
  """The entries of a batch that come from a picture.

  Args:
    image: uint8 (H, W, 3).
    part: the image part of a preprocessing string.
    target: size -> size at which the string gets the picture; None: as it is.
    stored_form: the run trains on finished bytes, whose scaling to [-1, 1] rounds otherwise than the string's op; the
      same levels are then scaled the same way.
  """
  if target is not None and target(image.shape[:2]) != image.shape[:2]:
    image = _module(IMAGE_PART).resize(image, target(image.shape[:2]))
  entries = part(image)
  return {key: as_stored(key, x) for key, x in entries.items()} if stored_form else entries


def as_stored(key: str, x: np.ndarray) -> np.ndarray:
  """A picture of whole levels in [-1, 1] as finished examples have it; anything else as it is."""
  if key not in stored.PICTURE_KEYS or x.dtype != np.float32:
    return x
  levels = np.round((x.astype(np.float64) + 1) * 127.5)
  whole = np.abs(levels / 127.5 - 1 - x).max(initial=0) < 1e-5
  return stored.convert(key, levels.astype(np.uint8)) if whole else x


def read(picture: Picture, *, dataset: str) -> np.ndarray:
  """A file or an array as uint8 (H, W, 3), upright; UserError for what is no picture. See `pp_ops.pictures.read`."""
  module = _module(PICTURES)
  return module.of_array(picture) if isinstance(picture, np.ndarray) else module.read(picture, dataset=dataset)


def _module(name: str) -> ModuleType:
  """A module of the preprocessing; UserError where TensorFlow is not installed."""
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name == name.partition(".")[0] or error.name == "tensorflow":
      raise UserError(f"predicting needs '{error.name}': preprocessing strings run in TensorFlow; install "
                      "requirements.txt") from error
    raise


# --- many pictures ----------------------------------------------------------------------------------------------------


class Waiting(NamedTuple):
  """A picture of which not all views are done: itself, the results so far, and how many views are to come."""
  image: np.ndarray
  results: Results
  views: int


class Item(NamedTuple):
  """One view of one picture, ready for a batch."""
  name: Any
  entries: dict[str, np.ndarray]


def predict_all(model: Model, pictures: Iterable[tuple[Any, np.ndarray]], *,
                batch_size: int | None = None) -> Iterator[tuple[Any, Results | UserError]]:
  """Predicts many pictures, those whose entries have one shape together in batches.

  Args:
    model: of `load`.
    pictures: (name, uint8 (H, W, 3)) pairs; names are different.
    batch_size: that of the run's evaluation by default; batches are filled up with zeros, as an evaluation's.

  Yields:
    (name, results), in the order in which they are done; (name, UserError) for a picture that preprocessing refuses.
  """
  size = batch_size or model.batch_size
  waiting: dict[Any, Waiting] = {}
  buckets: dict[tuple, list[Item]] = {}
  for name, image in pictures:
    try:
      entries = [lens.prepare(image) for lens in model.lenses]
    except UserError as error:
      yield name, error
      continue
    waiting[name] = Waiting(image, {"image": image}, len(entries))
    for number, own in enumerate(entries):
      bucket = (number, *((key, x.shape) for key, x in own.items()))
      buckets.setdefault(bucket, []).append(Item(name, own))
      if len(buckets[bucket]) == size:
        yield from _run_bucket(model, number, buckets.pop(bucket), waiting, size)
    if len(waiting) > HELD * size:
      yield from _run_all(model, buckets, waiting, size)
  yield from _run_all(model, buckets, waiting, size)


def _run_all(model: Model, buckets: dict[tuple, list[Item]], waiting: dict[Any, Waiting],
             size: int) -> Iterator[tuple[Any, Results]]:
  """Runs every bucket, however full, and empties it."""
  for bucket in list(buckets):
    yield from _run_bucket(model, bucket[0], buckets.pop(bucket), waiting, size)


def _run_bucket(model: Model, number: int, items: list[Item], waiting: dict[Any, Waiting],
                size: int) -> Iterator[tuple[Any, Results]]:
  """Predicts one batch and yields the pictures that are done with it."""
  lens = model.lenses[number]
  # A shape that comes once is not worth a batch of padding; a power of two keeps the number of programs small.
  rows = size if lens.fixed else min(size, 1 << (len(items) - 1).bit_length())
  outputs = jax.device_get(lens.predict(model.variables, model.frozen, stack(items, rows), model.key))
  for row, item in enumerate(items):
    image, results, missing = waiting.pop(item.name)
    own = {key: np.asarray(value[row]) for key, value in outputs.items()}
    results = results | full_size(own, item.entries, image, view=lens.view, names=lens.names, square=lens.square)
    if missing == 1:
      yield item.name, results
    else:
      waiting[item.name] = Waiting(image, results, missing - 1)


def stack(items: list[Item], rows: int) -> dict[str, np.ndarray]:
  """The batch of some items, filled up with zeros to `rows`."""
  batch = {key: np.stack([item.entries[key] for item in items]) for key in items[0].entries}
  return {key: np.pad(x, [(0, rows - len(items))] + [(0, 0)] * (x.ndim - 1)) for key, x in batch.items()}
