"""The connections by which processes notice each other's end: threads of one process stand for the processes."""

import queue
import socket
import threading
import time

import pytest

from uvim_like.training import watch


class Store(dict):
  """The runtime's key-value store, as far as it is used."""

  def key_value_set(self, key, value):
    self[key] = value

  def blocking_key_value_get(self, key, milliseconds):
    return self[key]


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
  monkeypatch.setattr(watch, "GRACE_SECONDS", 0.2)


def together(count):
  """Watches of so many processes, and what each was told of the others."""
  store, told = Store(), [queue.Queue() for _ in range(count)]
  watches = [watch.start(store, coordinator="127.0.0.1:1", process_id=i, count=count, lost=told[i].put)
             for i in range(count)]
  until = time.monotonic() + 5
  while len(watches[0]._peers) < count - 1 and time.monotonic() < until:
    time.sleep(0.01)
  assert len(watches[0]._peers) == count - 1
  return watches, told


def die(victim):
  """What the operating system does when a process is killed."""
  victim._closed.set()
  for sock in (*victim._names, *([victim._server] if victim._server else [])):
    sock.close()


def test_the_end_of_one_is_told_to_all_others():
  watches, told = together(4)
  die(watches[2])
  for i in (0, 1, 3):
    assert "process 2 is gone" in told[i].get(timeout=5)
  assert told[2].empty()


def test_the_end_of_process_0_is_noticed_by_all():
  watches, told = together(3)
  die(watches[0])
  assert all("process 0 is gone" in told[i].get(timeout=5) for i in (1, 2))


def test_an_error_of_one_stops_the_others():
  watches, told = together(3)
  watches[1].close(watch.FAILED)
  assert all("process 1 stopped after an error" in told[i].get(timeout=5) for i in (0, 2))


def test_nobody_minds_the_regular_end_or_an_error_that_all_have():
  for word in (watch.DONE, watch.FAILED):
    watches, told = together(3)
    ends = [threading.Thread(target=one.close, args=(word,)) for one in watches]
    for thread in ends:
      thread.start()
    for thread in ends:
      thread.join()
    time.sleep(0.5)
    assert all(words.empty() for words in told)


def test_a_stranger_is_turned_away():
  watches, told = together(2)
  port = watches[0]._server.getsockname()[1]
  with socket.create_connection(("127.0.0.1", port)) as stranger:
    stranger.sendall(b"lost 1\n")
    assert stranger.recv(1) == b""
  time.sleep(0.4)
  assert all(words.empty() for words in told)
  for one in watches:
    one.close(watch.DONE)


def test_no_connection_is_a_warning(caplog):
  store = Store({watch.KEY: "1 token"})  # nothing listens on port 1
  alone = watch.start(store, coordinator="127.0.0.1:1", process_id=1, count=2, lost=print)
  assert "process 0 cannot be watched" in caplog.text
  alone.close(watch.DONE)
