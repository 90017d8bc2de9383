"""`jax.lax.scan` that can be written out: XLA's cost analysis counts the body of a loop once, however often it runs.

For loops with matrix products; a loop of additions, as in `embed`, adds less than a hundredth to a count.
"""

import contextlib
import contextvars

import jax

_WRITTEN_OUT = contextvars.ContextVar("loops_written_out", default=False)


def scan(body, init, xs):
  """`jax.lax.scan(body, init, xs)`; a straight line of code while tracing under `written_out`."""
  return jax.lax.scan(body, init, xs, unroll=True if _WRITTEN_OUT.get() else 1)


@contextlib.contextmanager
def written_out():
  """Traces loops as straight lines, for an honest count of floating point operations; not for running."""
  token = _WRITTEN_OUT.set(True)
  try:
    yield
  finally:
    _WRITTEN_OUT.reset(token)
