"""Small trainings that can be killed: config files of both stages, made-up examples, and what a run leaves behind."""

import json
import multiprocessing
import os
import pathlib
import runpy
import time
from collections.abc import Callable

import numpy as np
import pytest

import train
from uvim_like import weights
from uvim_like.trees import flatten_names

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHILD = pathlib.Path(__file__).with_name("child.py")
PRELOADED = ["train", "uvim_like.systems.uvim.lm", "uvim_like.tasks.depth"]
PATIENCE = 150  # seconds without progress before a test gives up
SPEED = {"img/s", "step_seconds", "mfu"}  # of a run's log: the only numbers that may differ

# A dictionary of as many words as a batch writes, with a high threshold: splits at many steps.
CONFIG = '''"""A training of a few milliseconds a step."""

import ml_collections as mlc

NET = dict(input_size=(16, 16), patch_size=(8, 8), code_len=4, width=16, num_heads=2, mlp_dim=16, oracle_depth=1,
           base_model_depth=1, dict_size=32, codeword_dim=8, dict_momentum=0.9, dict_min_count=3.0, dropout=0.1,
           with_encoder_ctx=True, with_decoder_ctx=True, code_dropout="random", inputs={"depth": (6, 64)},
           outputs={"depth": (6, 64)})
WRITER = dict(input_size=(16, 16), patches=dict(size=(8, 8)), num_layers=1, num_heads=2, mlp_dim=16, emb_dim=16,
              dropout=0.1, vocab_size=33, seq_len=4)


def get_config(stage=1):
  c = mlc.ConfigDict()
  c.task, c.dataset, c.data_dir = "depth", "npz", "%(data)s"
  c.train_split, c.val_split = "train", "validation"
  c.pp_train = c.pp_eval = "flip_lr"
  c.batch_size, c.total_steps, c.seed = 8, 30, 3
  c.lr, c.wd = 1e-3, 1e-4
  c.optax_name = "scale_by_adam"
  c.schedule = dict(decay_type="cosine", warmup_steps=4)
  c.log_training_steps, c.checkpoint_steps, c.log_eval_steps = 1, 6, 10
  c.compilation_cache = ""  # the environment's is used
  if stage == 1:
    c.model_name, c.model, c.w_commitment = "uvim.vit", NET, 0.25
  else:
    c.model_name, c.model = "uvim.lm", WRITER
    c.oracle = dict(task="depth", model_name="uvim.vit", model=NET, model_init="")
  return c
'''


def npz_data(folder: pathlib.Path, count: int = 20) -> pathlib.Path:
  """Pictures and depths of 16 x 16 pixels."""
  folder.mkdir(parents=True)
  numbers = np.random.RandomState(0)
  for split, size in (("train", count), ("validation", 8)):
    np.savez(folder / f"{split}.npz", image=numbers.randint(0, 255, (size, 16, 16, 3)).astype(np.uint8),
             labels=numbers.uniform(0.1, 10, (size, 16, 16, 1)).astype(np.float32))
  return folder


class Child:
  """A running training; its words end up in two files beside the workdir."""

  def __init__(self, context, experiment: "Experiment", workdir: pathlib.Path, words: list[str], *, devices: int, before: str):
    self._files = [workdir.parent / f"{workdir.name}.{name}" for name in ("out", "err")]
    given = dict(words=words, devices=devices, before=before, cache=str(ROOT / ".cache" / "jax"),
                 output=str(self._files[0]), errors=str(self._files[1]))
    self._process = context.Process(target=runpy.run_path, args=(str(CHILD), given))
    self._process.start()

  def alive(self) -> bool:
    return self._process.is_alive()

  def send(self, number: int) -> None:
    os.kill(self._process.pid, number)

  def wait(self, seconds: float = PATIENCE) -> int:
    """The exit status; negative for a signal."""
    self._process.join(seconds)
    if self.alive():
      self._process.kill()
      raise AssertionError(f"still running after {seconds} s: {self.words()[1][-2000:]}")
    return self._process.exitcode

  def wait_until(self, condition: Callable[[], bool]) -> bool:
    """Waits for a condition; False when the training ended first."""
    end = time.monotonic() + PATIENCE
    while self.alive():
      if condition():
        return True
      assert time.monotonic() < end, "no progress"
      time.sleep(0.0005)
    return False

  def words(self) -> tuple[str, str]:
    """Standard output and error so far."""
    return tuple(path.read_text() if path.exists() else "" for path in self._files)


class Experiment:
  """A config file for each stage, and the data they read."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.data = npz_data(folder / "data")
    text = CONFIG % {"data": self.data}
    for stage in (1, 2):
      (folder / f"stage{stage}.py").write_text(text.replace("def get_config(stage=1)", f"def get_config(stage={stage})"))
    # Children are forked from a process that has imported everything and started nothing: seconds less for each.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    self._context = multiprocessing.get_context("forkserver")
    self._context.set_forkserver_preload(PRELOADED)

  def arguments(self, workdir: pathlib.Path, *settings: str, stage: int = 1) -> list[str]:
    """What stands after `python -m train`."""
    return [f"--config={self.folder / f'stage{stage}.py'}", f"--workdir={workdir}",
            *(f"--config.{setting}" for setting in settings)]

  def run(self, workdir: pathlib.Path, *settings: str, stage: int = 1, flags: tuple[str, ...] = ()) -> int:
    """The exit status of a training in this process, on its eight devices: for what ends before compilation."""
    return train.main([*self.arguments(workdir, *settings, stage=stage), *flags])

  def start(self, workdir: pathlib.Path, *settings: str, stage: int = 1, flags: tuple[str, ...] = (), devices: int = 1,
            before: str = "") -> Child:
    """A training in a process of its own; `before` is code that it runs first."""
    words = [*self.arguments(workdir, *settings, stage=stage), *flags]
    return Child(self._context, self, workdir, words, devices=devices, before=before)

  def complete(self, workdir: pathlib.Path, *settings: str, **options) -> str:
    """Runs a training to its end in a process of its own; what it printed."""
    child = self.start(workdir, *settings, **options)
    assert child.wait() == 0, child.words()[1][-2000:]
    return child.words()[0]

  @staticmethod
  def lines(workdir: pathlib.Path) -> list[dict]:
    """The log without the speed."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in SPEED} for line in found]

  @staticmethod
  def steps(workdir: pathlib.Path) -> list[int]:
    """Finished checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []

  def assert_same(self, got: pathlib.Path, want: pathlib.Path) -> None:
    """Every logged number, and every weight, to the last bit."""
    assert self.lines(got) == self.lines(want)
    first, second = (dict(flatten_names(weights.load_npz(folder / "weights.npz"))) for folder in (got, want))
    assert first.keys() == second.keys()
    different = [name for name in first if first[name].tobytes() != second[name].tobytes()]
    assert not different


@pytest.fixture(scope="session")
def experiment(tmp_path_factory) -> Experiment:
  return Experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="session")
def finished(experiment) -> pathlib.Path:
  """An uninterrupted training of stage I."""
  workdir = experiment.folder / "whole1"
  experiment.complete(workdir)
  return workdir


@pytest.fixture(scope="session")
def finished_two(experiment, finished) -> pathlib.Path:
  """An uninterrupted training of stage II on it."""
  workdir = experiment.folder / "whole2"
  experiment.complete(workdir, f"oracle.model_init={finished}", stage=2)
  return workdir
