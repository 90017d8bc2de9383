"""Many examples in order, rendered by worker processes when asked; the same examples for any number of workers."""

import multiprocessing
from collections.abc import Iterator

from uvim_like import scenes

_CHUNK = 8  # examples a worker takes at a time: about 0.1 s of work
_WORTH_A_POOL = 64  # starting a process costs about as much as rendering this many


def examples(split: str, count: int, *, size: int | tuple[int, int] = 128, workers: int = 1) -> Iterator[dict]:
  """The examples 0 .. count-1 of a split.

  Args:
    size: pixels, one number or (H, W).
    workers: processes, started afresh ("spawn", so that they inherit no threads of the caller). With more than one,
      the calling script needs the usual `if __name__ == "__main__"`.
  """
  if workers <= 1 or count < _WORTH_A_POOL:
    for index in range(count):
      yield scenes.example(split, index, size=size)
    return
  with multiprocessing.get_context("spawn").Pool(workers) as pool:
    yield from pool.imap(_render, ((split, index, size) for index in range(count)), chunksize=_CHUNK)


def _render(job: tuple) -> dict:
  split, index, size = job
  return scenes.example(split, index, size=size)
