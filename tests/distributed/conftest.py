"""Trainings of two processes of four virtual CPU devices each, on this machine."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import types

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = {"width": 32, "num_heads": 2, "mlp_dim": 48, "oracle_depth": 1, "base_model_depth": 1, "codeword_dim": 16,
         "code_len": 4, "dict_size": 8}


def environment(devices: int) -> dict[str, str]:
  """Of a process with so many virtual devices; programs are compiled quickly rather than well."""
  flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
  return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def words(workdir: pathlib.Path, data: pathlib.Path, *settings: str, steps: int = 4) -> list[str]:
  """The flags of a depth stage I training that takes seconds; three evaluation images, so that padding matters."""
  given = ["dataset=npz", f"data_dir={data}", "train_split=train", "val_split=validation", "batch_size=8",
           f"total_steps={steps}", "schedule.warmup_steps=1", "log_training_steps=1", "log_eval_steps=100",
           "checkpoint_steps=2", "evals=[('depth_val', 'nyu_depth')]", "depth_val.split=validation",
           "depth_val.metric={'preset': 'plain'}", "depth_val.batch_size=8",
           f"compilation_cache={ROOT / '.cache' / 'jax'}",
           *(f"model.{key}={value}" for key, value in SMALL.items()), *settings]
  return [f"--config={ROOT / 'configs' / 'uvim' / 'depth_stage1.py'}:scenes,runlocal,res=32,patch=8",
          f"--workdir={workdir}", *(f"--config.{setting}" for setting in given)]


def start(flags, *, index: int, count: int, port: int, devices: int = 4, module=("-m", "train")) -> subprocess.Popen:
  """One process of a training, or of another program that takes the same flags."""
  where = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={index}"]
  return subprocess.Popen([sys.executable, *module, *flags, *where], cwd=ROOT, env=environment(devices), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run_together(flags, *, count: int = 2, devices: int = 4, timeout: int = 120) -> list[tuple[int, str, str]]:
  """(exit status, output, errors) of all processes of a training."""
  port = free_port()
  running = [start(flags, index=i, count=count, port=port, devices=devices) for i in range(count)]
  return [finish(process, timeout) for process in running]


def finish(process: subprocess.Popen, timeout: float) -> tuple[int, str, str]:
  try:
    out, err = process.communicate(timeout=timeout)
  except subprocess.TimeoutExpired:
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate()
    return -999, out, err
  return process.returncode, out, err


def run_alone(flags, *, devices: int = 8, timeout: int = 120) -> tuple[int, str, str]:
  """The same training in one process."""
  return finish(subprocess.Popen([sys.executable, "-m", "train", *flags], cwd=ROOT, env=environment(devices), text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE), timeout)


def metrics(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> pathlib.Path:
  """Sixteen examples to train on, three to evaluate."""
  folder, numbers = tmp_path_factory.mktemp("arrays"), np.random.RandomState(0)
  for split, count in (("train", 16), ("validation", 3)):
    depth = numbers.uniform(0, 10, (count, 32, 32)).astype(np.float16)
    np.savez(folder / f"{split}.npz", image=numbers.randint(0, 255, (count, 32, 32, 3)).astype(np.uint8),
             labels=depth[..., None], depth=depth)
  return folder


@pytest.fixture(scope="session")
def two() -> types.SimpleNamespace:
  """The functions above."""
  return types.SimpleNamespace(environment=environment, free_port=free_port, words=words, start=start, finish=finish,
                               run_together=run_together, run_alone=run_alone, metrics=metrics)
