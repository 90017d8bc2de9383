"""Stored runs of the authors' kMaX-DeepLab and DeepLabv3+ as cases: sizes from the files, weights under our names."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.systems.polymax import deeplab2_names


class Case:
  """NAME.npz with NAME.json.

  Attributes:
    name: for messages.
    config: sizes.
    arrays: everything stored.
  """

  def __init__(self, path: pathlib.Path):
    self.name = path.stem
    self.config = json.loads(path.with_suffix(".json").read_text())["config"]
    with np.load(path) as data:
      self.arrays = {key: data[key] for key in data.files}

  def __getitem__(self, key):
    return self.arrays[key]

  def under(self, prefix: str) -> dict:
    """{rest of the name: array} below a prefix."""
    return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

  def variables(self, module, *inputs, group: str = "", root: str = "", stored: dict | None = None) -> dict:
    """{'params', 'state'} of a module from the stored weights, every one of which must find its place.

    Args:
      module: a Flax module.
      inputs: what it is called on, for its shapes.
      group: only weights whose name begins so; it is cut off.
      root: put before the names, where the module is a part of what the names describe.
      stored: other arrays than "sd/".
    """
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    weights = {root + name.removeprefix(group): value
               for name, value in (stored or self.under("sd/")).items() if name.startswith(group)}
    return place(weights, {part: shapes.get(part, {}) for part in ("params", "state")}, complete=stored is None)

  def close(self, got, key: str, tolerance: float):
    """Asserts that a result is the stored array, relative to the largest absolute value."""
    want = self.arrays[key]
    got = np.asarray(got)
    assert got.shape == want.shape, f"{self.name}: {key}: {got.shape} is not {want.shape}"
    assert np.all(np.isfinite(got)), f"{self.name}: {key}"
    error = np.max(np.abs(got - want)) / max(np.max(np.abs(want)), 1e-30)
    assert error <= tolerance, f"{self.name}: {key}: {error:.2e} of the largest value, {tolerance:g} is allowed"


def place(weights: dict, shapes: dict, *, complete: bool = True) -> dict:
  """Weights under the authors' names in a tree of our module; with `complete` nothing may be left over or missing."""
  from uvim_like.trees import flatten_names, unflatten_names
  prefixed = {f"{part}/{name}": leaf for part in shapes for name, leaf in flatten_names(shapes[part])}
  # The renamed names start with the part of the whole network that the module is; shorten them until they fit.
  ours = deeplab2_names.rename(list(weights))
  flat, lost = {}, []
  for name, array in weights.items():
    part = "state" if name.endswith(("moving_mean", "moving_variance")) else "params"
    parts = ours[name].split("/")
    found = next((key for i in range(len(parts)) if (key := "/".join((part, *parts[i:]))) in prefixed), None)
    if found is None:
      lost.append(name)
      continue
    flat[found] = jnp.asarray(deeplab2_names.fit(array, prefixed[found].shape, name=name))
  assert not lost, f"no place for {lost[:5]}"
  if complete:
    assert set(flat) == set(prefixed), f"no weights for {sorted(set(prefixed) - set(flat))[:5]}"
  tree = unflatten_names(flat)
  return {part: tree.get(part, {}) for part in shapes}


@pytest.fixture(scope="session")
def peers(stored):
  """peers("kmax_losses") -> the stored runs whose file name begins so, at least one."""
  return lambda stem: [Case(path) for path in stored(f"{stem}*.npz")]
