"""Depth bins and panoptic post-processing against stored outputs of the authors' definitions."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.tasks import depth, panoptic_segmentation

pytestmark = pytest.mark.parity
PUBLISHED_BINS = 256


def cases_of(golden_dir, kind):
  """(description, arrays) of every stored case of a kind."""
  found = []
  for path in sorted(golden_dir.rglob("*.json")):
    case = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(case, dict) and case.get("kind") == kind:
      with np.load(path.with_name(case["npz"])) as data:
        found.append((case, dict(data)))
  assert found, f"no case of kind {kind} under {golden_dir}"
  return found


def test_depth_bins(golden_dir):
  for case, data in cases_of(golden_dir, "uvim_depth_bins"):
    bins = int(case.get("bins", PUBLISHED_BINS))
    got = np.asarray(depth.to_bins(jnp.asarray(data["depth"]), bins))
    exact = (data["depth"].astype(np.float64) - depth.MIN_DEPTH) / (depth.MAX_DEPTH - depth.MIN_DEPTH) * bins
    clear = np.abs(exact - np.round(exact)) > 1e-4  # nearer to an edge, float32 rounding decides
    np.testing.assert_array_equal(got[clear], data["bins"][clear])
    assert np.abs(got - data["bins"]).max() <= 1
    np.testing.assert_allclose(depth.from_bins(jnp.asarray(data["bins"]), bins), data["decoded"],
                               atol=case["tol"]["decoded_atol"])


def test_depth_planes(golden_dir):
  """The same through the task's own function, as images of one row."""
  for case, data in cases_of(golden_dir, "uvim_depth_bins"):
    bins = int(case.get("bins", PUBLISHED_BINS))
    image = jnp.asarray(data["depth"]).reshape(1, 1, -1, 1)
    planes = depth.to_planes(image, patch=(1, 1), spec={"depth": (bins, 1)})["depth"]
    np.testing.assert_array_equal(planes.reshape(-1), depth.to_bins(jnp.asarray(data["depth"]), bins))


def test_panoptic_merging(golden_dir):
  for case, data in cases_of(golden_dir, "uvim_post"):
    for i, fraction in enumerate(case["min_fraction"]):
      got = panoptic_segmentation.merge(jnp.asarray(data["semantics"]), jnp.asarray(data["instances"]),
                                        min_fraction=fraction)
      for channel, name in enumerate(panoptic_segmentation.PLANES):
        assert got[name].dtype == jnp.int32
        np.testing.assert_array_equal(got[name], data[f"out_{i}"][..., channel], err_msg=f"{name}, {fraction}")
