"""The shape of the house: what imports what, without TensorFlow where promised, and how long a file may be."""

import ast
import functools
import importlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("uvim_like", "pp_ops", "tools")
GROUND = "ground"   # modules directly under uvim_like: errors, trees, names, config, weights …
MAX_LINES, MAX_TEST_LINES = 400, 450

# Who may import whom, beside itself and the ground floor. No closure is meant: each arrow stands for itself.
ARROWS = {
    GROUND: ("own_data",),
    "own_data": ("tasks",),
    "ops": (),
    "scenes": (),
    "models": ("ops",),
    "tasks": ("ops", "scenes"),
    "decoding": ("ops", "models"),
    "systems": ("models", "tasks", "ops", "decoding"),
    "evaluators": ("tasks", "ops"),
    "training": ("ops", "systems.base", "evaluators", "evaluators.base"),
    "inference": ("training", "evaluators", "systems", "tasks"),
    "pp_ops": ("tasks", "scenes", "own_data"),
    "tools": ("inference", "own_data", "ops", "scenes", "models", "tasks", "decoding", "systems", "evaluators", "training", "pp_ops", "train"),
    "train": ("own_data", "ops", "models", "tasks", "decoding", "systems", "evaluators", "training", "pp_ops"),
    "configs": ("configs.common",),
}
TENSORFLOW = ("tensorflow", "tensorflow_datasets", "tensorboard", "clu.metric_writers", "clu.periodic_actions",
              "pp_ops")
FACADES = ("uvim_like",)  # `from uvim_like import load` reaches all of the package


def python_files(*roots: str) -> list[pathlib.Path]:
  """Sources below the roots (folders or files) that exist."""
  found = [path for root in roots for path in ([ROOT / root] if root.endswith(".py") else (ROOT / root).rglob("*.py"))]
  return sorted(path for path in found if path.is_file())


def module_of(path: pathlib.Path) -> str:
  """Dotted name of a source."""
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = python_files(*PACKAGES, "train.py")
CONFIGS = python_files("configs")
COMMANDS = sorted((ROOT / "tools").glob("*.py"))
TESTS = python_files("tests")


def layer_of(module: str) -> str:
  """The layer of `ARROWS` that a module of ours is in."""
  parts = module.split(".")
  if parts[0] != "uvim_like":
    return parts[0]
  return parts[1] if len(parts) > 1 and (ROOT / "uvim_like" / parts[1]).is_dir() else GROUND


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_module(name: str) -> bool:
  base = ROOT.joinpath(*name.split("."))
  return base.with_suffix(".py").is_file() or base.is_dir()


def imports_of(path: pathlib.Path, *, top_level: bool = False) -> set[str]:
  """Dotted names that a file imports, `from a import b` as a.b where that is a module, else a; relative ones resolved.

  Args:
    path: the source.
    top_level: leave out what is imported inside functions.
  """
  tree = tree_of(path)
  inner = {id(node) for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
           for node in ast.walk(function)} if top_level else set()
  found = set()
  for node in ast.walk(tree):
    if id(node) in inner:
      continue
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
      package = module_of(path).split(".")[:-node.level if path.name != "__init__.py" else -node.level + 1 or None]
      base = ".".join(filter(None, [*(package if node.level else []), node.module]))
      joined = {f"{base}.{alias.name}" for alias in node.names}
      ours = base.split(".")[0] in (*PACKAGES, "configs")
      found |= {name if not ours or is_module(name) else base for name in joined} if ours else {base} | joined
  return found


def our_imports(path: pathlib.Path, *, top_level: bool = False) -> set[str]:
  return {name for name in imports_of(path, top_level=top_level)
          if name.split(".")[0] in (*PACKAGES, "configs") or name == "train"}


def ids(paths: list[pathlib.Path]) -> dict:
  return dict(argvalues=paths, ids=[str(path.relative_to(ROOT)) for path in paths])


@pytest.mark.parametrize("path", **ids(SOURCES))
def test_everything_imports(path):
  importlib.import_module(module_of(path))


def test_the_model_side_imports_without_tensorflow():
  """In a process of its own, where TensorFlow and what needs it cannot be imported."""
  modules = [module_of(path) for path in python_files("uvim_like", "train.py")]
  blocked = "import sys; sys.modules.update(dict.fromkeys({!r}))".format([n for n in TENSORFLOW if "." not in n])
  code = f"{blocked}\nimport importlib\nfor name in {modules!r}: importlib.import_module(name)"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("path", **ids(python_files("uvim_like")))
def test_the_model_side_names_no_tensorflow(path):
  banned = {name for name in imports_of(path) if any(name == t or name.startswith(t + ".") for t in TENSORFLOW)}
  assert not banned


def test_train_imports_the_pipeline_inside_functions():
  """train.py may use pp_ops at its data line only, so that it imports without TensorFlow."""
  for path in python_files("train.py"):
    assert not [name for name in imports_of(path, top_level=True) if name.split(".")[0] in ("pp_ops", "tensorflow")]


@pytest.mark.parametrize("path", **ids(SOURCES + CONFIGS))
def test_arrows_point_down(path):
  module = module_of(path)
  layer = layer_of(module)
  if module in FACADES:
    layer = "tools"
  assert layer in ARROWS, f"a new layer '{layer}': say in ARROWS what it may import"
  for name in our_imports(path):
    target = layer_of(name)
    inside = name.removeprefix("uvim_like.")
    allowed = target in (layer, GROUND) or target in ARROWS[layer] or inside in ARROWS[layer]
    if layer == "configs":
      allowed = name in ("configs.common", "configs.own_data", "configs.ait_common", "configs.mad_common",
                         "configs.polymax_common", "configs", "uvim_like.errors")
    assert allowed, f"{module} ({layer}) imports {name}: not downwards"


def test_what_commands_are_made_of_imports_no_command():
  for path in python_files("tools"):
    commands = [name for name in our_imports(path) if (ROOT / f"{name.replace('.', '/')}.py") in COMMANDS]
    assert path.parent == ROOT / "tools" or not commands, f"{path} imports {commands}"


@pytest.mark.parametrize("path", **ids(CONFIGS))
def test_configs_are_data(path):
  allowed = {"ml_collections", "configs", "collections", "typing", "uvim_like"}
  assert {name.split(".")[0] for name in imports_of(path)} <= allowed


def test_configs_and_train_are_imported_by_nobody():
  for path in SOURCES:
    tops = {name.split(".")[0] for name in our_imports(path)}
    assert "configs" not in tops, path
    assert "train" not in tops or layer_of(module_of(path)) == "tools", path


def test_no_import_circle():
  graph = {module_of(path): {name for name in our_imports(path, top_level=True)} for path in SOURCES}
  done, open_ = set(), []

  def visit(name):
    assert name not in open_, " -> ".join([*open_[open_.index(name):], name])
    if name in done or name not in graph:
      return
    open_.append(name)
    for below in sorted(graph[name]):
      visit(below)
    open_.pop()
    done.add(name)

  for name in sorted(graph):
    visit(name)


@pytest.mark.parametrize("path", **ids(SOURCES + CONFIGS + TESTS))
def test_files_are_short(path):
  lines = len(path.read_text(encoding="utf-8").splitlines())
  assert lines <= (MAX_TEST_LINES if path in TESTS else MAX_LINES)


@pytest.mark.parametrize("path", **ids(SOURCES + CONFIGS))
def test_no_error_is_swallowed_whole(path):
  def broad(kind) -> bool:
    names = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return kind is None or any(isinstance(n, ast.Name) and n.id in ("Exception", "BaseException") for n in names)

  def passes_on(handler: ast.ExceptHandler) -> bool:
    """Tidies up and raises the same error again."""
    return isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None

  lines = [node.lineno for node in ast.walk(tree_of(path))
           if isinstance(node, ast.ExceptHandler) and broad(node.type) and not passes_on(node)]
  assert not lines, f"{path}: catches everything at line {lines}"


@pytest.mark.parametrize("path", **ids(SOURCES + CONFIGS))
def test_first_line_says_what_it_is_for(path):
  if path.read_text(encoding="utf-8").strip():
    assert ast.get_docstring(tree_of(path)), path
