"""A name in a config is a path in the tree: finds the module of a task, a system or an evaluator."""

import importlib
import pathlib
import pkgutil
import re
from types import ModuleType

from uvim_like.errors import unknown


def load(package: str, name: str, *, where: str, needs: str) -> ModuleType:
  """The module that `name` denotes under `package`; a leading "proj." is dropped.

  Args:
    package: e.g. "uvim_like.tasks".
    name: e.g. "proj.uvim.vit" or "depth".
    where: the config key, for the message.
    needs: the function that makes a module one of its kind, e.g. "make"; modules without it are helpers.

  Raises:
    UserError: no such module, with the nearest that exists.
  """
  name = name.removeprefix("proj.")
  choices = module_names(package, needs=needs)
  if name not in choices:
    raise unknown("name", name, choices, where=where)
  return importlib.import_module(f"{package}.{name}")


def module_names(package: str, *, needs: str) -> list[str]:
  """Dotted names, relative to `package`, of the modules below it that define `needs`; none of them is imported."""
  root = importlib.import_module(package)
  found = [module for module in pkgutil.walk_packages(root.__path__, f"{package}.") if not module.ispkg]
  return [module.name.removeprefix(f"{package}.") for module in found
          if re.search(rf"^def {needs}\b", _source(module), re.MULTILINE)]


def _source(module: pkgutil.ModuleInfo) -> str:
  return pathlib.Path(module.module_finder.find_spec(module.name).origin).read_text(encoding="utf-8")
