"""Start-up of several processes: what flags and environment say, and every way in which it does not come about."""

import argparse
import socket
import time

import pytest

from uvim_like.errors import UserError
from uvim_like.training import distributed
from uvim_like.training.distributed import Plan


def plan(*words, environment=None):
  parser = argparse.ArgumentParser()
  distributed.add_flags(parser)
  return distributed.plan(parser.parse_args(words), environment or {})


def test_a_single_process_needs_nothing():
  assert plan() is None


def test_flags_and_environment():
  by_hand = Plan("10.0.0.1:12355", 4, 3, 300)
  assert plan("--coordinator=10.0.0.1:12355", "--num_processes=4", "--process_id=3") == by_hand
  names = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:12355", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}
  assert plan(environment=names) == by_hand._replace(process_id=0)
  assert plan("--process_id=2", environment=names) == by_hand._replace(process_id=2)
  assert plan("--distributed") == Plan()
  alone = plan("--coordinator=[::1]:80", "--num_processes=1", "--process_id=0", "--start_timeout=5")
  assert alone == Plan("[::1]:80", 1, 0, 5)


@pytest.mark.parametrize("words, message", [
    (["--coordinator=h:1"], "--num_processes is missing"),
    (["--num_processes=2", "--process_id=1"], "--coordinator is missing"),
    (["--coordinator=h:1", "--num_processes=2"], "--process_id is missing (or $JAX_PROCESS_ID)"),
    (["--coordinator=h", "--num_processes=2", "--process_id=0"], "'h' is not host:port"),
    (["--coordinator=h:0", "--num_processes=2", "--process_id=0"], "is not host:port"),
    (["--coordinator=h:65536", "--num_processes=2", "--process_id=0"], "is not host:port"),
    (["--coordinator=h:1", "--num_processes=two", "--process_id=0"], "--num_processes: 'two' is no whole number"),
    (["--coordinator=h:1", "--num_processes=2", "--process_id=2"], "2 with --num_processes=2; valid: 0 to 1"),
    (["--start_timeout=soon"], "--start_timeout: 'soon' is no whole number")])
def test_wrong_flags(words, message):
  with pytest.raises(UserError) as error:
    plan(*words)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_a_port_that_is_taken():
  with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(UserError, match=rf"port {port} cannot be used on this machine: .* in use; free here: \d+"):
      distributed.check_port_free(f"127.0.0.1:{port}")
  distributed.check_port_free(f"127.0.0.1:{port}")


def test_a_coordinator_that_does_not_answer(two):
  began = time.monotonic()
  with pytest.raises(UserError, match=r"did not answer within 0.5 s \(Connection refused\); process 0 must run there"):
    distributed.wait_for(f"127.0.0.1:{two.free_port()}", seconds=0.5)
  assert time.monotonic() - began < 3


def test_a_coordinator_that_does_not_exist():
  with pytest.raises(UserError, match="no machine is called 'no-such-machine.invalid'"):
    distributed.wait_for("no-such-machine.invalid:80", seconds=5)


class Store(dict):
  """The runtime's key-value store, as far as it is used."""

  def key_value_set(self, key, value):
    self[key] = value

  def blocking_key_value_get(self, key, milliseconds):
    return self[key]


def test_processes_that_disagree_on_their_number():
  store = Store({"uvim_like/count/0": "2", "uvim_like/count/1": "2"})
  distributed.agree(store, process_id=0, count=2, seconds=1)
  store["uvim_like/count/1"] = "3"
  with pytest.raises(UserError, match="--num_processes: 2 in process 0, but 3 in process 1"):
    distributed.agree(store, process_id=0, count=2, seconds=1)
  with pytest.raises(UserError, match="--num_processes: 3 in process 1, but 2 in process 0"):
    distributed.agree(store, process_id=1, count=3, seconds=1)
