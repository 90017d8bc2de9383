"""What our own sources must not do with what strangers made: unpickle it, run it, or hand it to a shell."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("uvim_like", "pp_ops", "tools", "configs")
SOURCES = sorted([*(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")), ROOT / "train.py"])
RUNS_TEXT = {"eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "pickle.load", "marshal.load",
             "marshal.loads", "dill.load", "joblib.load", "shelve.open", "cloudpickle.load", "cloudpickle.loads"}
# Statistics that the processes of one training send each other; nothing comes from a file.
PICKLES = {"uvim_like/evaluators/run.py"}


def calls(path: pathlib.Path):
  """(dotted name, the call) of every call of a file."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Call):
      yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str):
  """The constant that a call gives for a keyword, None without one."""
  return next((getattr(k.value, "value", None) for k in call.keywords if k.arg == name), None)


def wrong(path: pathlib.Path, root: pathlib.Path = ROOT) -> list[str]:
  """Places of a file that trust what they read."""
  found = []
  for name, call in calls(path):
    bad = (name in RUNS_TEXT or name == "pickle.loads" and str(path.relative_to(root)) not in PICKLES
           or name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") is not False
           or name.endswith("torch.load") and keyword(call, "weights_only") is not True
           or keyword(call, "shell") not in (None, False)
           or name.endswith((".extractall", ".extract")) and "tar" in name)
    if bad:
      found.append(f"{path.relative_to(root)}:{call.lineno}: {name}")
  return found


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_nothing_is_unpickled_or_run(path):
  assert wrong(path) == []


def test_the_test_sees_what_it_looks_for(tmp_path):
  for line in ("np.load('x')", "np.load('x', allow_pickle=True)", "pickle.loads(b'')", "eval('1')", "torch.load('x')",
               "subprocess.run('ls', shell=True)", "os.system('ls')"):
    path = tmp_path / "source.py"
    path.write_text(line + "\n")
    assert len(wrong(path, tmp_path)) == 1, line
