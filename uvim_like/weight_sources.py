"""Where weights are: files, workdirs of finished trainings, and published names looked up in one local folder."""

import os
import pathlib

from uvim_like.errors import UserError, suggest

WEIGHTS_FILE = "weights.npz"  # what a finished training leaves in its workdir
CHECKPOINTS = "checkpoints"  # and the folder of its checkpoints
FOLDER_VARIABLE, FOLDER = "UVIM_LIKE_WEIGHTS", "~/.cache/uvim_like/weights"
STORAGE = "https://storage.googleapis.com/"
# Names of published weights that configs use, and where they are published (UViM's release; Listing 2 of its paper).
PUBLISHED = {
    "howto-i21k-L/16": STORAGE + "vit_models/augreg/"
                       "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0.npz",
    **{f"uvim/{task}_stage{stage}_params.npz": f"{STORAGE}big_vision/uvim/{task}_stage{stage}_params.npz"
       for task in ("panoptic", "color", "depth") for stage in ("I", "II")},
}


def exists(source: str | os.PathLike) -> bool:
  """Whether there is something at a source, see `locate`.

  A workdir that has checkpoints but no final weights yet counts, so that `locate` can say what to do about it.
  """
  path = _find(source)
  return path is not None and (path.is_file() or (path / CHECKPOINTS).is_dir())


def locate(source: str | os.PathLike) -> pathlib.Path:
  """The weights file that a source denotes; nothing is ever downloaded.

  Args:
    source: an .npz file; the workdir of a finished training; a published name of `PUBLISHED`, its file name or its
      address (gs:// or https://), then looked up by file name in the folder $UVIM_LIKE_WEIGHTS (default
      ~/.cache/uvim_like/weights).

  Raises:
    UserError: nothing there; for a published name with the file's name and address, for a workdir without the final
      weights with the command that makes them.
  """
  path = _find(source)
  if path is None:
    if address := _address(source):
      name = address.rpartition("/")[2]
      raise UserError(f"no weights for '{source}': expected {folder() / name}; download {address} to there, or set "
                      f"{FOLDER_VARIABLE} to the folder that has it")
    place = pathlib.Path(source).expanduser()
    near = [p.name for p in place.parent.glob("*.npz")] if place.parent.is_dir() else []
    raise UserError(f"no weights file or workdir {place}; {suggest(place.name, [*near, *PUBLISHED])}")
  if path.is_file():
    return path
  if (path / CHECKPOINTS).is_dir():
    raise UserError(f"{path}: has checkpoints but no {WEIGHTS_FILE} yet; make it with "
                    f"python -m tools.export --workdir={path} --format=npz --out={path / WEIGHTS_FILE}")
  raise UserError(f"{path}: a folder without {WEIGHTS_FILE} and without checkpoints; "
                  f"{suggest(WEIGHTS_FILE, [p.name for p in path.glob('*.npz')])}")


def folder() -> pathlib.Path:
  """Where published weights are looked up."""
  return pathlib.Path(os.environ.get(FOLDER_VARIABLE) or FOLDER).expanduser()


def _find(source: str | os.PathLike) -> pathlib.Path | None:
  """The file, or the folder when it has no final weights; None when there is neither."""
  path = pathlib.Path(source).expanduser()
  if (path / WEIGHTS_FILE).is_file():
    return path / WEIGHTS_FILE
  if path.exists():
    return path
  published = folder() / (_address(source) or "").rpartition("/")[2]
  return published if published.is_file() else None


def _address(source: str | os.PathLike) -> str | None:
  """The public address of a published name, file name or address; None for anything else."""
  source = os.fspath(source)
  if source.startswith("gs://"):
    return STORAGE + source.removeprefix("gs://")
  if source.startswith("https://"):
    return source
  by_file = {address.rpartition("/")[2]: address for address in PUBLISHED.values()}
  return PUBLISHED.get(source) or by_file.get(source)
