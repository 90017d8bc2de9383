"""Several processes of one training: how they find each other, and what the others do when one of them is gone.

The runtime's own answer to a process that died is to abort the others after a minute, with pages of its internals. Here
every process holds a connection to process 0 (see `watch`), which the operating system closes the moment its owner
dies: the others say so in one line and exit with `EXIT_PEER_LOST`.
"""

import atexit
import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple, NoReturn

import jax
from jax._src import distributed as runtime  # the key-value store that all processes share has no public name

from uvim_like.errors import UserError
from uvim_like.flags import whole
from uvim_like.training import signals, watch

EXIT_MISTAKE = 2
EXIT_PEER_LOST = 69  # sysexits' EX_UNAVAILABLE
START_SECONDS = 300
# A machine that vanishes without a word, or a process that is stopped: noticed by the runtime's own heartbeat.
HEARTBEAT_SECONDS = 60
SHUTDOWN_SECONDS = 600  # the others wait at the end until process 0 has written the weights
GRACE_SECONDS = 2.0  # beyond the time limit, for the checks that say more exactly what is missing
MEET_SECONDS = 5.0  # for processes that were told to stop and end at the same step
# Flag -> environment variable that stands in for it.
VARIABLES = {"coordinator": "JAX_COORDINATOR_ADDRESS", "num_processes": "JAX_NUM_PROCESSES",
             "process_id": "JAX_PROCESS_ID"}


class Plan(NamedTuple):
  """How to start.

  Attributes:
    coordinator: "host:port" of process 0; None: TPU pod, Slurm or Open MPI tell.
    num_processes: of the whole training.
    process_id: this one's, from 0.
    timeout: seconds for all processes to come together.
  """
  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  timeout: int = START_SECONDS


def add_flags(parser) -> None:
  """The flags that `plan` reads."""
  parser.add_argument("--distributed", action="store_true",
                      help="several processes: find each other as TPU pods, Slurm and Open MPI tell them to")
  parser.add_argument("--coordinator", metavar="HOST:PORT", help="several processes, by hand: where process 0 runs, "
                      f"and a free port there; or ${VARIABLES['coordinator']}")
  parser.add_argument("--num_processes", metavar="N", help=f"of the whole training; or ${VARIABLES['num_processes']}")
  parser.add_argument("--process_id", metavar="I", help=f"of this process, from 0; or ${VARIABLES['process_id']}")
  parser.add_argument("--start_timeout", default=str(START_SECONDS), metavar="SECONDS",
                      help="for all processes to come together")


def plan(flags, environment: Mapping[str, str] = os.environ) -> Plan | None:
  """What flags and environment say; None: a single process.

  Raises:
    UserError: some of the three are given and some are not; no address, number or id.
  """
  timeout = whole(flags.start_timeout, "--start_timeout")
  given = {name: getattr(flags, name) or environment.get(variable) for name, variable in VARIABLES.items()}
  if not any(given.values()):
    return Plan(timeout=timeout) if flags.distributed else None
  missing = [name for name, value in given.items() if not value]
  if missing:
    raise UserError(f"--{missing[0]} is missing (or ${VARIABLES[missing[0]]}): several processes need --coordinator, "
                    "--num_processes and --process_id, or --distributed alone on TPU pods, Slurm and Open MPI")
  match = re.fullmatch(r"(?:\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})", given["coordinator"])
  if not match or not 0 < int(match[1]) < 2 ** 16:
    raise UserError(f"--coordinator: '{given['coordinator']}' is not host:port, e.g. 10.0.0.1:12355")
  count = whole(given["num_processes"], "--num_processes")
  process_id = whole(given["process_id"], "--process_id", least=0)
  if process_id >= count:
    raise UserError(f"--process_id: {process_id} with --num_processes={count}; valid: 0 to {count - 1}")
  return Plan(given["coordinator"], count, process_id, timeout)


@contextlib.contextmanager
def running(plan: Plan | None) -> Iterator[None]:
  """Starts what `plan` says, and ends it: all processes together, or this one alone after an error.

  Raises:
    UserError: the coordinator does not answer, its port is taken, the processes do not agree on their number, or do not
      all come in time.
  """
  if plan is None:
    yield
    return
  with _time_limit(plan):
    start(plan)
  state = runtime.global_state
  guard = watch.start(_store(), coordinator=state.coordinator_address, process_id=state.process_id,
                      count=state.num_processes, lost=leave)
  try:
    yield
  except BaseException as error:
    if not isinstance(error, (UserError, signals.Stopped)):
      time.sleep(watch.GRACE_SECONDS + 0.5)  # a broken connection is told by the watch, which ends the process
    together = isinstance(error, signals.Stopped) and _all_here("stopped")
    guard.close(watch.DONE if together else watch.FAILED)
    # Registered last, so it runs before the runtime's own farewell, which would wait for processes that never come.
    status = (signals.EXIT_STOPPED if isinstance(error, signals.Stopped) else
              EXIT_MISTAKE if isinstance(error, (UserError, OSError)) else 1)
    atexit.register(_leave, status, linger=runtime.global_state.process_id == 0 and not together)
    raise
  jax.distributed.shutdown()  # all are at their end: the connections may close now
  guard.close(watch.DONE)


def _all_here(name: str) -> bool:
  """Whether all processes come to this point within `MEET_SECONDS`."""
  try:
    _store().wait_at_barrier(f"uvim_like/{name}", int(MEET_SECONDS * 1000))
  except RuntimeError:  # the runtime's time-out, or its news that one of them is gone
    return False
  return True


def start(plan: Plan) -> None:
  """`jax.distributed.initialize`, with the checks that turn its time-outs into an explanation; see `running`."""
  if plan.coordinator and plan.process_id == 0:
    check_port_free(plan.coordinator)
  if plan.coordinator and plan.process_id:
    wait_for(plan.coordinator, seconds=plan.timeout)
  where = dict(coordinator_address=plan.coordinator, num_processes=plan.num_processes, process_id=plan.process_id,
               cluster_detection_method="deactivate") if plan.coordinator else {}
  # The runtime's own way with SIGTERM would take the signal before `signals` sees it.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(**where, initialization_timeout=plan.timeout + 60,
                               heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS)
  except ValueError as error:
    raise UserError(f"--distributed: no TPU pod, Slurm or Open MPI was found here ({_first_line(error)}); name the "
                    "processes with --coordinator=host:port --num_processes=N --process_id=I") from error
  except RuntimeError as error:
    raise UserError(_not_together(plan, _first_line(error))) from error
  agree(_store(), process_id=runtime.global_state.process_id, count=runtime.global_state.num_processes,
        seconds=plan.timeout)


def agree(store, *, process_id: int, count: int, seconds: float) -> None:
  """Raises UserError unless every process was told the same --num_processes."""
  store.key_value_set(f"uvim_like/count/{process_id}", str(count))
  for other in range(count) if process_id == 0 else (0,):
    told = int(store.blocking_key_value_get(f"uvim_like/count/{other}", int(seconds * 1000)))
    if told != count:
      raise UserError(f"--num_processes: {count} in process {process_id}, but {told} in process {other}; all need the "
                      "same")


def check_port_free(coordinator: str) -> None:
  """Raises UserError when another program listens on the coordinator's port: the runtime itself would share it."""
  port = int(coordinator.rpartition(":")[2])
  probe = socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
  with probe:
    if probe.family == socket.AF_INET6:
      probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an earlier run's closed connections do not matter
    try:
      probe.bind(("", port))
    except OSError as error:
      free = f"; free here: {_free_port()}" if error.errno != 13 else ""
      raise UserError(f"--coordinator: port {port} cannot be used on this machine: {error.strerror}{free}") from error


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("", 0))
    return probe.getsockname()[1]


def wait_for(coordinator: str, *, seconds: float) -> None:
  """Returns when something answers at the coordinator's address; UserError when nothing does in time."""
  host, _, port = coordinator.rpartition(":")
  until, reason = time.monotonic() + seconds, "no answer"
  while (left := until - time.monotonic()) > 0:
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=min(left, 5.0)).close()
      return
    except socket.gaierror as error:
      raise UserError(f"--coordinator: no machine is called '{host}': {error.strerror}") from error
    except OSError as error:
      reason = error.strerror or str(error)
    time.sleep(min(0.2, max(left, 0)))
  raise UserError(f"--coordinator: {coordinator} did not answer within {seconds:g} s ({reason}); process 0 must run "
                  "there, and --start_timeout=SECONDS waits longer")


@contextlib.contextmanager
def _time_limit(plan: Plan) -> Iterator[None]:
  """Ends the process when start-up takes longer than it may: the runtime, whose own limit is later, would abort it."""
  message = _not_together(plan, "time is up")
  timer = threading.Timer(plan.timeout + GRACE_SECONDS, leave, (message, EXIT_MISTAKE))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _not_together(plan: Plan, reason: str) -> str:
  count = f"all {plan.num_processes} processes" if plan.num_processes else "all processes"
  return (f"--num_processes: not {count} came together within {plan.timeout} s ({reason}); each needs the same "
          "--coordinator and --num_processes, and a --process_id of its own")


def _store():
  """The runtime's key-value store."""
  return runtime.global_state.client


def leave(message: str, status: int = EXIT_PEER_LOST) -> NoReturn:
  """Ends this process now, with one line: nothing that waits for other processes may run any more."""
  sys.stderr.write(f"train: {message}\n")
  _leave(status)


def _leave(status: int, *, linger: bool = False) -> NoReturn:
  """Ends this process; `linger`: after the others had time for their own line, for the runtime aborts them then."""
  if linger:
    time.sleep(watch.GRACE_SECONDS + 0.5)
  for stream in (sys.stdout, sys.stderr):
    stream.flush()
  os._exit(status)


def _first_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
