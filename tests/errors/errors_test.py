"""Every mistake of `mistakes` gets its line: within 5 seconds, before anything compiles, without a traceback."""

import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("mistakes", pathlib.Path(__file__).with_name("mistakes.py"))
mistakes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mistakes)
MISTAKES, SCENES = mistakes.MISTAKES, mistakes.SCENES
SECONDS = 5
CONFIGS = {
    "comma.py": "import ml_collections as mlc\n\ndef get_config():\n  return mlc.ConfigDict(\n    dict(task='depth')\n",
    "name.py": "import ml_collections\n\ndef get_config():\n  return ml_colections.ConfigDict()\n",
    "import.py": "import ml_colections\n",
    "empty.py": "CONFIG = {}\n",
    "dict.py": "def get_config():\n  return dict(task='depth')\n",
    "notes.txt": "not a config\n",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
  """The names that commands and lines may use in braces: folders with config files, arrays and pictures."""
  tmp = tmp_path_factory.mktemp("mistakes")
  for name, text in CONFIGS.items():
    (tmp / name).write_text(text)
  return {"tmp": str(tmp), "configs": str(ROOT / "configs" / "uvim"), "arrays": str(write_arrays(tmp / "arrays")),
          "spare_mask": str(write_pictures(tmp / "spare"))}


def write_arrays(folder: pathlib.Path) -> pathlib.Path:
  """Splits of finished panoptic examples: one sound, the others each wrong in one way."""
  folder.mkdir()
  image, labels = np.zeros((16, 32, 32, 3), np.uint8), np.zeros((16, 32, 32, 2), np.int16)
  high = labels.copy()
  high[5, 3, 4, 0] = 11
  np.savez(folder / "train.npz", image=image, labels=labels)
  np.savez(folder / "high.npz", image=image, labels=high)
  np.savez(folder / "single.npz", image=image, labels=labels[..., :1])
  np.savez(folder / "pickled.npz", image=image, labels=np.array([{"a": 1}], object))
  np.savez(folder / "other.npz", **{"params/somewhere/kernel": np.zeros((2, 2), np.float32)})
  (folder / "text.npz").write_text("not an archive")
  return folder


def write_pictures(folder: pathlib.Path) -> pathlib.Path:
  """Three images with labels, and labels without image."""
  for kind, names in (("images", "abc"), ("labels", "abcd")):
    (folder / kind).mkdir(parents=True)
    for name in names:
      Image.new("RGB" if kind == "images" else "L", (40, 36)).save(folder / kind / f"{name}.png")
  return folder


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
  """Importing TensorFlow and jax is not part of anybody's mistake."""
  for name in ("train", "pp_ops.pipeline", "pp_ops.uvim.pp_ops", "uvim_like.systems.uvim.lm", "tools.make_data",
               "tools.checking.check_files", "tools.import_weights", "tools.export", "tools.report"):
    importlib.import_module(name)


def run(command: str) -> int:
  """The exit status of a command, run in this process."""
  program, *words = shlex.split(command.replace("'", "\\'"))
  module = importlib.import_module(program if program == "train" else f"tools.{program}")
  return module.main(words)


def pattern(line: str, places: dict[str, str]) -> str:
  """The regular expression of an expected line."""
  for name, place in places.items():
    line = line.replace(f"{{{name}}}", place)
  return ".*".join(map(re.escape, line.split("…")))


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m.what.replace(" ", "_") for m in MISTAKES])
def test_mistake(mistake, places, tmp_path, capsys):
  places = places | {"workdir": str(tmp_path / "run")}
  command = mistake.command
  for name, place in places.items():
    command = command.replace(f"{{{name}}}", place)
  began = time.process_time()  # of all threads; seconds on the clock depend on what else the machine does
  assert run(command) == 2
  seconds = time.process_time() - began
  told = capsys.readouterr()
  assert re.fullmatch(pattern(mistake.line, places), told.err.strip(), re.DOTALL), told.err
  assert "Traceback" not in told.err and "compiled" not in told.out
  assert seconds < SECONDS, f"{seconds:.1f} s"
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_there_are_enough_and_no_two_alike():
  assert len(MISTAKES) >= 40
  assert len({m.command for m in MISTAKES}) == len({m.what for m in MISTAKES}) == len(MISTAKES)


def test_a_process_of_its_own_says_the_same(places, tmp_path):
  """Start-up of Python and jax included, without TensorFlow: still seconds, one line, nothing else."""
  command = SCENES.replace("{configs}", places["configs"]).replace("{workdir}", str(tmp_path / "run"))
  began = time.monotonic()
  done = subprocess.run([sys.executable, "-m", *shlex.split(command), "--config.batch_sise=4"], cwd=ROOT,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert done.stderr == "train: config: unknown key 'batch_sise'; did you mean 'batch_size'?\n", done.stderr
  print(f"{time.monotonic() - began:.1f} s with the start of the interpreter")


def test_debug_shows_the_traceback(places, tmp_path):
  from uvim_like.errors import UserError
  command = SCENES.replace("{configs}", places["configs"]).replace("{workdir}", str(tmp_path / "run"))
  with pytest.raises(UserError, match="unknown key 'batch_sise'"):
    run(command + " --config.batch_sise=4 --debug")
