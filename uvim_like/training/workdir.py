"""A run's folder: held by one live run, of one config, and in plain words when its disk takes no more."""

import contextlib
import errno
import fcntl
import fnmatch
import json
import logging
import os
import pathlib
import socket
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax

from uvim_like import config as configs
from uvim_like.errors import UserError, unknown
from uvim_like.weight_sources import WEIGHTS_FILE

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
LOCK_FILE = "lock"
FINISHED_FILE = "finished.json"

# Keys that may differ from the workdir's ("*" stands for any name): they change neither what its checkpoints mean nor which batch comes next.
# The blocks of evaluators may differ as well. All other keys are refused.
MAY_CHANGE = {
    "data_dir": "where the same data lies",
    "class_names": "what is told",
    "prefetch": "speed", "shuffle_buffer_size": "speed: the order is a permutation of the whole split",
    "log_training_steps": "what is told", "log_eval_steps": "what is told", "evals": "what is told",
    "val_split": "what is told", "pp_eval": "what is told",
    "checkpoint_steps": "what is kept", "keep_checkpoint_steps": "what is kept", "keep_last_checkpoints": "what is kept",
    "mesh": "checkpoints restore on any", "sharding": "checkpoints restore on any",
    "remat": "memory", "scan_layers": "names of parameters stay",
    "compilation_cache": "speed",
    "model_init": "read at step 0 only", "model_load": "read at step 0 only",
    "oracle.model_init": "where stage I lies; a checksum of its weights is kept in the checkpoints",
    "tokenizers.*.model_init": "where AiT's stage I lies; the same",
    "skip_nonfinite": "how much is forgiven", "on_bad_example": "how much is forgiven",
    "max_bad_share": "how much is forgiven",
}
MAY_GROW = ("total_steps", "num_epochs")
LENGTH_KEYS = ("num_epochs", "batch_size", "dataset", "data_dir", "train_split")  # what num_epochs is counted in

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
DISK = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only", errno.EACCES: "access is not permitted",
        errno.EPERM: "access is not permitted", errno.EFBIG: "the limit of file sizes is reached",
        errno.ENOTDIR: "a part of the path is a file", errno.EEXIST: "a part of the path is a file",
        errno.EIO: "the disk reports an error"}


def disk_reason(error: BaseException) -> str | None:
  """Why the disk took no more, in words; None when an error is about something else.

  Storage libraries wrap the system's error, or only quote its text.
  """
  seen: list[BaseException] = []
  while error is not None and error not in seen:
    if isinstance(error, OSError) and error.errno in DISK:
      return DISK[error.errno]
    seen.append(error)
    error = error.__cause__ or error.__context__
  texts = [str(error) for error in seen]
  return next((words for code, words in DISK.items() if any(os.strerror(code) in text for text in texts)), None)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all; the folder is made when it is missing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
  try:
    with os.fdopen(handle, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, path.stat().st_mode if path.exists() else 0o644)
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  """A small JSON object, whole or not at all."""
  write_text(path, json.dumps(values) + "\n")


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
  """What `write_json` wrote, None when there is no such file; UserError when it is something else."""
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise UserError(f"{path}: no JSON ({error}); remove it if the checkpoints beside it are all right") from None
  if not isinstance(values, dict):
    raise UserError(f"{path}: an object is expected")
  return values


# --- one live run -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hold(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other runs off a workdir while the block runs; only the first process of a run does.

  The lock belongs to the open file, so a run that died, however it died, holds nothing.

  Raises:
    UserError: another live run holds it, with its process and machine; the folder cannot be made or written.
  """
  if jax.process_index() != 0:
    yield
    return
  try:
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / LOCK_FILE, "a+", encoding="utf-8")
  except OSError as error:
    raise UserError(f"--workdir: {folder} cannot be written: {disk_reason(error) or error.strerror}; "
                    "give a folder that can") from error
  with file:
    _lock(file, folder)
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    yield


def _lock(file: Any, folder: pathlib.Path) -> None:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    raise UserError(f"--workdir: {folder} is held by a live run: {file.read().strip() or 'not yet named'}; "
                    "stop that one, or give another folder") from None
  except OSError as error:
    if error.errno not in NO_LOCKS:
      raise
    log.warning("%s: this file system has no locks (%s); take care that no other run uses the folder",
                folder, error.strerror)


# --- one config -------------------------------------------------------------------------------------------------------


def check_same_config(folder: pathlib.Path, config: Any, *, accept: Collection[str] = ()) -> list[str]:
  """Compares a config with that of the workdir's checkpoints.

  Args:
    folder: the workdir.
    config: with defaults.
    accept: keys whose change a person has confirmed; "lr" or "model.width".

  Returns:
    The changes that are made, as "key: old → new".

  Raises:
    UserError: keys differ that change what the checkpoints mean; all of them, old and new value.
  """
  path = folder / CONFIG_FILE
  for key in filter(None, accept):
    if key.split(".")[0] not in config:
      raise unknown("key", key, config, where="--accept")
  if not path.is_file():
    return []
  try:
    old = configs.with_defaults(configs.from_json(path.read_text(encoding="utf-8")))
  except (UserError, AttributeError, KeyError, TypeError) as error:
    raise UserError(f"{path}: cannot be read ({error}); put it back, or give another --workdir") from error
  blocks = {*configs.eval_blocks(configs.plain(old)), *configs.eval_blocks(configs.plain(config))}
  changes = configs.diff(old, config)
  refused = [change for change in changes if not _harmless(*change, blocks=blocks, accept=accept)]
  if refused:
    names = ",".join(dict.fromkeys(key.split(".")[0] for key, _, _ in refused))
    raise UserError(f"{folder} was trained with another config: {'; '.join(_shown(*change) for change in refused)}. "
                    f"Give another --workdir, set the old values, or confirm with --accept={names}")
  return [_shown(*change) for change in changes]


def _harmless(key: str, old: Any, new: Any, *, blocks: Collection[str], accept: Collection[str]) -> bool:
  top = key.split(".")[0]
  allowed = top in MAY_CHANGE or any(fnmatch.fnmatchcase(key, pattern) for pattern in MAY_CHANGE)
  if allowed or top in blocks or top in accept or key in accept:
    return True
  numbers = all(isinstance(value, (int, float)) for value in (old, new))
  return key in MAY_GROW and numbers and new >= old


def _shown(key: str, old: Any, new: Any) -> str:
  return f"{key}: {old!r} → {new!r}"


# --- a finished run -----------------------------------------------------------------------------------------------------


def note_finished(folder: pathlib.Path, config: Any, step: int) -> None:
  """Notes that everything was done up to a step: the last checkpoint, the evaluations and the weights."""
  write_json(folder / FINISHED_FILE, {"step": step, **{key: config[key] for key in LENGTH_KEYS}})


def finished_step(folder: pathlib.Path, config: Any) -> int | None:
  """The last step of a run that has nothing left to do; None when it has, or when only the data can tell.

  A run whose weights were removed has them to write again.
  """
  noted = read_json(folder / FINISHED_FILE)
  if noted is None or not (folder / WEIGHTS_FILE).is_file():
    return None
  if config.total_steps is not None:
    return noted["step"] if config.total_steps <= noted["step"] else None
  return noted["step"] if all(noted.get(key) == config[key] for key in LENGTH_KEYS) else None
