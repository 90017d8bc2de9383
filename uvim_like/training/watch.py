"""Notices within a second or two that another process of the training is gone, where the runtime needs a minute.

Process 0 keeps a connection to every other one. The operating system closes the connections of a process that dies,
however it dies; a machine that vanishes is found by TCP's own probes. Only a thread that sleeps in `select` runs.
"""

import logging
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

KEY = "uvim_like/watch"
DONE, FAILED, LOST = "done", "failed", "lost"
GRACE_SECONDS = 2.0  # an error that all processes meet at once is told by each in its own words first
CONNECT_SECONDS = 10
STORE_MILLISECONDS = 60_000
MAX_LINE = 256
# A silent connection is probed after 10 s, every 5 s, four times: half a minute for a machine without power.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
WORDS = {
    LOST: "process {} is gone: killed, or its machine failed. This one stops too; start all of them again with the "
          "same --workdir to go on from the last checkpoint",
    FAILED: "process {} stopped after an error, which its own output names; this one stops too",
}


class Watch:
  """The connections of this process to the others, and the thread that reads them.

  Args:
    process_id: this process's.
    peers: process -> connection, as far as they are known already.
    server: of process 0, where the others connect.
    token: what they say first.
    lost: called in the thread with a line of text; it ends the process.
  """

  def __init__(self, process_id: int, *, peers: dict[int, socket.socket] | None = None,
               server: socket.socket | None = None, token: str = "", lost: Callable[[str], object] = print):
    self.process_id, self._server, self._token, self._lost = process_id, server, token, lost
    self._peers = dict(peers or {})
    self._names = {sock: process for process, sock in self._peers.items()}
    self._buffers: dict[socket.socket, bytes] = {}
    self._closed = threading.Event()
    self._selector = selectors.DefaultSelector()
    for sock in (*self._peers.values(), *([server] if server else [])):
      self._selector.register(sock, selectors.EVENT_READ)
    self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
    if self._peers or server:
      self._thread.start()

  def close(self, word: str) -> None:
    """Tells the others how this process ends, `DONE` or `FAILED`, and stops watching them."""
    self._closed.set()
    self._tell(word, self.process_id)
    if self._thread.is_alive() and threading.current_thread() is not self._thread:
      self._thread.join(timeout=GRACE_SECONDS)
    for sock in (*list(self._names), *([self._server] if self._server else [])):
      sock.close()

  def _tell(self, word: str, about: int) -> None:
    for process, sock in list(self._peers.items()):
      if process != about:
        try:
          sock.sendall(f"{word} {about}\n".encode())
        except OSError:
          log.debug("process %d does not listen any more", process)

  def _run(self) -> None:
    while not self._closed.is_set():
      for key, _ in self._selector.select(timeout=0.1):
        if key.fileobj is self._server:
          self._accept()
        else:
          self._read(key.fileobj)

  def _accept(self) -> None:
    sock, _ = self._server.accept()
    keep_alive(sock)
    self._buffers[sock] = b""
    self._selector.register(sock, selectors.EVENT_READ)

  def _read(self, sock: socket.socket) -> None:
    try:
      data = sock.recv(MAX_LINE)
    except OSError:
      data = b""
    *lines, rest = (self._buffers.get(sock, b"") + data).split(b"\n")
    self._buffers[sock] = rest[:MAX_LINE]
    for line in lines:
      if sock.fileno() >= 0:  # it may have said that it ends
        self._heard(sock, line.decode("ascii", "replace"))
    if not data and sock.fileno() >= 0:
      process = self._names.get(sock)
      self._forget(sock)
      if process is not None:
        self._end(LOST, process)

  def _heard(self, sock: socket.socket, line: str) -> None:
    word, _, number = line.partition(" ")
    if sock not in self._names:  # a stranger, until it has said the token
      if self._server and secrets.compare_digest(word.encode(), self._token.encode()) and number.isdigit():
        self._names[sock], self._peers[int(number)] = int(number), sock
      else:
        self._forget(sock)
    elif word == DONE:
      self._forget(sock)
    elif word in WORDS and number.isdigit():
      self._end(word, int(number))

  def _forget(self, sock: socket.socket) -> None:
    if sock in self._selector.get_map():
      self._selector.unregister(sock)
    self._peers.pop(self._names.pop(sock, -1), None)
    sock.close()

  def _end(self, word: str, process: int) -> None:
    """Passes the news on and ends this process, unless it is ending already."""
    self._tell(word, process)
    # Without process 0 the runtime aborts this one within some tenths of a second: the line must come first.
    until = time.monotonic() + (0 if (word, process) == (LOST, 0) else GRACE_SECONDS)
    while time.monotonic() < until and not self._closed.is_set():
      time.sleep(0.05)
    if not self._closed.is_set():
      self._lost(WORDS[word].format(process))


def start(store, *, coordinator: str, process_id: int, count: int, lost: Callable[[str], object]) -> Watch:
  """The watch of this process.

  Args:
    store: the runtime's key-value store, where process 0 leaves its address.
    coordinator: "host:port"; process 0 is on that host.
    process_id, count: this process, of so many.
    lost: see `Watch`.
  """
  host = coordinator.rpartition(":")[0].strip("[]")
  if count == 1:
    return Watch(process_id, lost=lost)
  if process_id == 0:
    token = secrets.token_hex(16)
    server = socket.create_server(("127.0.0.1" if host in ("localhost", "127.0.0.1") else "", 0), backlog=count)
    store.key_value_set(KEY, f"{server.getsockname()[1]} {token}")
    return Watch(0, server=server, token=token, lost=lost)
  port, _, token = store.blocking_key_value_get(KEY, STORE_MILLISECONDS).partition(" ")
  try:
    sock = socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS)
    sock.settimeout(None)
    keep_alive(sock)
    sock.sendall(f"{token} {process_id}\n".encode())
  except OSError as error:
    log.warning("process 0 cannot be watched at %s:%s (%s): a process that dies is noticed by the runtime's heartbeat "
                "alone, after a minute", host, port, error)
    return Watch(process_id, lost=lost)
  return Watch(process_id, peers={0: sock}, lost=lost)


def keep_alive(sock: socket.socket) -> None:
  """Probes a silent connection, as far as the system lets one set how."""
  sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in KEEPALIVE.items():
    if hasattr(socket, name):
      sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
