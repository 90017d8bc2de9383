"""Runs of every system with random weights, and what the report sees of them, made once for all its tests."""

import contextlib
import pathlib

import jax
import pytest

from tests.tools import report_runs
from tools import report
from tools.reporting import runs
from tools.reporting.report_seen import Seen


@pytest.fixture(scope="session")
def workdirs(tmp_path_factory) -> dict[str, pathlib.Path]:
  """{what it is: workdir}: "stage1", "regression", "stage2", "tokenizer", "solver", "mad", "polymax"."""
  return report_runs.make_all(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def seen(workdirs) -> dict[str, Seen]:
  """{what it is: the run with its predictions}."""
  with quick_programs():
    return {name: report.look(run, print) for name, run in zip(workdirs, runs.read(list(workdirs.values())))}


@pytest.fixture
def quick():
  """For a test whose programs run once or twice."""
  with quick_programs():
    yield


@contextlib.contextmanager
def quick_programs():
  """Programs are compiled without optimisation, which would take most of the time of those that hardly run."""
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    yield
  finally:
    jax.config.update("jax_disable_most_optimizations", False)
