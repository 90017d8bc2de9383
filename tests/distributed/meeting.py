"""A program for the tests: starts as `train` does, gathers numbers over all processes for a while, ends as it is told.

  python tests/distributed/meeting.py --coordinator=… --num_processes=2 --process_id=0 [--end=error|bug|done] [--idle]
"""

import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from uvim_like import flags
from uvim_like.errors import UserError
from uvim_like.training import distributed

SECONDS = 60


def main() -> int:
  parser = flags.Parser()
  distributed.add_flags(parser)
  parser.add_argument("--end", default="")
  parser.add_argument("--idle", action="store_true")
  options = parser.parse_args()
  try:
    with distributed.running(distributed.plan(options)):
      total = multihost_utils.process_allgather(np.array([jax.process_index()]))
      print(f"READY {total.ravel().tolist()} {jax.device_count()} devices", flush=True)
      if options.end == "done":
        return 0
      if options.end == "error":
        raise UserError("this process has a mistake of its own")
      if options.end == "bug":
        raise ZeroDivisionError("a bug")
      until = time.monotonic() + SECONDS
      while time.monotonic() < until:
        time.sleep(0.1) if options.idle else multihost_utils.process_allgather(np.ones(3))
  except UserError as error:
    print(f"train: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
