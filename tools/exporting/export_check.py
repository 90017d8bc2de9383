"""An exported model run in a process of its own and compared with the run's own preprocessing and prediction."""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import train
from tools.exporting.export_function import BATCH_KEYS, FULL_SIZE, Function, dataset_of, text_of
from uvim_like import scenes
from uvim_like.errors import UserError
from uvim_like.inference import full_size as full_sizes
from uvim_like.inference.views import AIT, MAD, UVIM_ONE, UVIM_TWO, View, system_of
from uvim_like.systems.base import System
from uvim_like.training.trained import Trained

PICTURES = 2
DRAWN = "generated rooms"
GENERATED = (96, 128)   # (H, W) of pictures that are drawn where the run's data is not at hand
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}   # of the largest value, by compute type
# Systems that choose: what is nearly as good as another may win in one of two programs that round differently, and
# moves what is decoded from it. (Stage I of UViM has a program only without a code; then its task may choose bins.)
CHOOSE = {UVIM_ONE: "bins", UVIM_TWO: "words of its code", AIT: "tokens", MAD: "tokens"}
SHARE_CHOSEN, SHARE_CLASSES = 0.99, 0.999   # of values that must agree, where words or classes are chosen
SECONDS = 1800   # for the other process
SCRIPT = "run.py"   # of an artefact


class NotRunning(Exception):
  """An artefact whose own script fails."""


class Difference(NamedTuple):
  """How one output of an artefact differs from the run's.

  Attributes:
    name: of the output.
    shape: of all values compared.
    largest: absolute difference; inf where shapes or names differ.
    share: of values within `allowed`.
    allowed: absolute difference.
    needed: share that must agree.
  """
  name: str
  shape: tuple[int, ...]
  largest: float
  share: float
  allowed: float
  needed: float

  @property
  def passed(self) -> bool:
    """Whether enough values agree."""
    return self.share >= self.needed

  def line(self) -> str:
    """For people."""
    verdict = "equal" if self.largest == 0 else "passed" if self.passed else "FAILED"
    agree = "equal" if self.allowed == 0 else f"within {self.allowed:.1e}"
    return (f"  {self.name} {list(self.shape)}: max abs difference {self.largest:.3g}, {100 * self.share:.4g} % "
            f"{agree} ({100 * self.needed:g} % needed): {verdict}")


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures_of(trained: Trained, view: View, *, count: int = PICTURES) -> tuple[list[np.ndarray], str]:
  """Pictures uint8 (H, W, 3) and where they come from: the view's own data, or, where it is not here, drawn rooms."""
  dataset, reason = dataset_of(trained.config, view), "npz holds pictures that are preprocessed"
  if dataset != "npz":
    try:
      found = _from_data(trained.config, view, count)
      if found:
        return found, f"{dataset}, the split of '{view.name}'"
      reason = "the split is empty"
    except (UserError, OSError, ImportError) as error:
      reason = " ".join(str(error).split())[:120]
  canvas = tuple(trained.config.model.get("input_size") or GENERATED)
  rooms = [scenes.example("validation", i, size=max(canvas))["image"][:canvas[0], :canvas[1]] for i in range(count)]
  return rooms, f"{DRAWN} ({reason})"


def size_of(pictures: Sequence[np.ndarray], source: str) -> tuple[int, int] | None:
  """(H, W) of the first picture of `pictures_of`; None of drawn ones, which say nothing about the run's."""
  return None if source.startswith(DRAWN) else pictures[0].shape[:2]


def _from_data(config: Any, view: View, count: int) -> list[np.ndarray]:
  """The first pictures as the dataset stores them."""
  block = config.get(view.name) if view.name != "pp_eval" else None
  split = block.split if block else config.val_split or config.train_split
  place = dict(dataset=dataset_of(config, view), split=split, pp=view.pp,
               data_dir=(block or config).get("data_dir") or config.get("data_dir"))
  raw = {} if block else {"pp": f"decode|{view.pp.removeprefix('decode|')}"}
  batches = train.data_provider(place["dataset"]).eval_batches(
      **place | raw, batch_size=count, pp_modules=config.get("pp_modules"), target_keys=("image",))
  for _, targets in batches:
    return [np.asarray(target["image"]) for target in targets if np.asarray(target["image"]).dtype == np.uint8]
  return []


def suited(pictures: Sequence[np.ndarray], size: tuple[int, int] | None,
           largest: tuple[int, int] | None) -> list[np.ndarray]:
  """The pictures at a size that the artefact takes, resized by Pillow where they do not have one."""
  out = []
  for picture in pictures:
    image = Image.fromarray(picture)
    if size:
      image = image if picture.shape[:2] == size else image.resize(size[::-1])
    elif largest:
      image.thumbnail(largest[::-1])
    out.append(np.asarray(image))
  return out


def calls_of(pictures: Sequence[np.ndarray], shape: Sequence[str | int]) -> list[np.ndarray]:
  """Batches (B, H, W, 3) that use what an artefact leaves open: of two pictures, and at another height and width."""
  first, last = pictures[0], pictures[-1]
  if shape[0] != "b":
    return [first[None], last[None]] if len(pictures) > 1 else [first[None]]
  second = last if last.shape == first.shape else first[:, ::-1]
  calls = [np.stack([first, second])]
  if shape[1] == "h":
    height, width = last.shape[:2]   # two again: then the run's own prediction is not compiled anew
    calls.append(np.stack([last, last[:, ::-1]])[:, :height - height // 3, :width - width // 4])
  return calls


# --- both sides -------------------------------------------------------------------------------------------------------


def references(trained: Trained, function: Function, calls: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
  """What the run itself makes of batches of pictures: its preprocessing in TensorFlow, its predict functions."""
  from pp_ops import image_part  # TensorFlow
  first = function.views[0]
  part = image_part.make(text_of(trained.config, first), trained.config.get("pp_modules"))
  predict = jax.jit(functools.partial(_predict, system=trained.system, views=function.views))
  place = jax.local_devices(backend="cpu" if exclusive() else None)[0]
  variables, frozen, key = jax.device_put((trained.vars, trained.frozen, jax.random.key(trained.config.seed)), place)
  out = []
  for call in calls:
    rows = [{name: value for name, value in part(picture).items() if name in BATCH_KEYS} for picture in call]
    entries = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    found = jax.device_get(predict(variables, frozen, entries, key))
    found |= {"valid_size": entries["valid_size"]} if "valid_size" in entries else {}
    out.append({name: _at_full_size(name, value, rows, call) if function.full_size and name in FULL_SIZE else value
                for name, value in found.items()})
  return out


def exclusive() -> bool:
  """Whether only one process may use the accelerator (TPUs): both sides then run on the host."""
  return jax.default_backend() == "tpu"


def _predict(variables: Any, frozen: Any, entries: Mapping[str, Any], key: jax.Array, *, system: System,
             views: Sequence[View]) -> dict[str, jax.Array]:
  """The outputs of all views, those of the first ones where names collide."""
  out: dict[str, jax.Array] = {}
  for view in views:
    out = system.predict[view.pred](variables, frozen, entries, key, **view.options) | out
  return {name: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for name, x in out.items()}


def _at_full_size(name: str, maps: np.ndarray, rows: Sequence[Mapping[str, np.ndarray]],
                  call: np.ndarray) -> np.ndarray:
  """The maps of a batch as the evaluators bring them to the pictures' size."""
  def bring(x, row):
    if x.ndim > (3 if name == "normals" else 2):
      return np.stack([bring(sample, row) for sample in x])
    return full_sizes.map_to(x, row, call.shape[1:3], fill=0, square=False)
  return np.stack([bring(x, row) for x, row in zip(maps, rows)])


def run_alone(folder: pathlib.Path, calls: Sequence[np.ndarray],
              encoded: Sequence[np.ndarray] = ()) -> list[dict[str, np.ndarray]]:
  """What an artefact's own script makes of batches, in a new process that cannot import this code.

  Args:
    folder: of the artefact.
    calls: batches of pixels.
    encoded: batches of one picture, which it gets as PNG files after them.

  Raises:
    NotRunning: the process failed; with its last line.
  """
  with tempfile.TemporaryDirectory() as name:
    room = pathlib.Path(name)
    files = [room / f"call{i}.npy" for i in range(len(calls))]
    for file, call in zip(files, calls):
      np.save(file, call)
    pngs = [room / f"encoded{i}.png" for i in range(len(encoded))]
    for file, call in zip(pngs, encoded):
      Image.fromarray(call[0]).save(file)
    files += pngs
    out = room / "out"
    whole = folder.resolve()
    command = [sys.executable, "-I", str(whole / SCRIPT), str(whole), str(out), *map(str, files)]
    own = dict(os.environ) | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}   # two processes share an accelerator
    own |= {"JAX_PLATFORMS": "cpu"} if exclusive() else {}
    try:
      done = subprocess.run(command, cwd=room, env=own, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
      raise NotRunning(f"no answer within {SECONDS} seconds") from None
    if done.returncode:
      lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
      raise NotRunning(lines[-1][:300] if lines else f"status {done.returncode}")
    return [dict(np.load(out / f"{file.stem}.npz", allow_pickle=False)) for file in files]


# --- comparison -------------------------------------------------------------------------------------------------------


def chosen(config: Any) -> str | None:
  """What a run's prediction chooses among; None where its numbers depend on the pixels without a jump."""
  return None if "regression" in (config.get("task") or "") else CHOOSE.get(system_of(config))


def tolerances(config: Any, tolerance: float | None = None) -> tuple[float, float]:
  """(relative tolerance of numbers, share of numbers that must keep it) of a run."""
  relative = TOLERANCE[config.get("dtype") or "float32"] if tolerance is None else tolerance
  return relative, SHARE_CHOSEN if chosen(config) else 1.0


def compare(got: Sequence[Mapping[str, np.ndarray]], want: Sequence[Mapping[str, np.ndarray]], *, relative: float,
            needed: float) -> list[Difference]:
  """One line for each output, over all calls.

  Args:
    got: of the artefact, by call.
    want: of the run.
    relative: what numbers may differ by, relative to the largest of the output (of 1 where that is less).
    needed: share of numbers that must keep it; classes and tokens must be equal in `SHARE_CLASSES`, or in this share
      where it is less.
  """
  names = dict.fromkeys([*(key for call in want for key in call), *(key for call in got for key in call)])
  return [_difference(name, [call.get(name) for call in got], [call.get(name) for call in want], relative, needed)
          for name in names]


def _difference(name: str, got: Sequence[np.ndarray | None], want: Sequence[np.ndarray | None], relative: float,
                needed: float) -> Difference:
  if any(x is None or y is None or x.shape != y.shape for x, y in zip(got, want)):
    return Difference(name, (), float("inf"), 0.0, 0.0, needed)
  whole = all(y.dtype.kind in "iub" for y in want)
  found, wanted = (np.concatenate([np.asarray(x, np.float64).ravel() for x in side]) for side in (got, want))
  allowed = 0.0 if whole else relative * max(1.0, float(np.max(np.abs(wanted), initial=0.0, where=np.isfinite(wanted))))
  same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
  apart = np.where(same, 0.0, np.nan_to_num(np.abs(found - wanted), nan=np.inf))
  return Difference(name, tuple(want[0].shape), float(np.max(apart, initial=0.0)),
                    float(np.mean(apart <= allowed)) if apart.size else 1.0, allowed,
                    min(SHARE_CLASSES, needed) if whole else needed)
