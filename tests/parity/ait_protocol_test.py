"""AiT's depth test against stored runs: two windows and mirrored views averaged, and the metrics of Eigen's crop."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.evaluators import nyu_depth
from uvim_like.systems.ait import predict

pytestmark = pytest.mark.parity
COARSE = 8  # stored metric maps are this many times smaller than NYU's
NAMES = {"d1": "delta1", "d2": "delta2", "d3": "delta3", "abs_rel": "abs_RE", "rmse": "RMSE"}  # where ours differ


@pytest.fixture(scope="module")
def cases(stored):
  found = {}
  for path in stored("ait_depth_test_protocol*.npz"):
    with np.load(path) as data:
      found[path.stem] = (json.loads(path.with_suffix(".json").read_text())["config"],
                          {key: data[key] for key in data.files})
  return found


def toy_head(batch):
  """The stated head: mean colour times a ramp over the columns, plus a hundredth of the row."""
  height, width = batch["image"].shape[1:3]
  depth = jnp.mean(batch["image"], -1) * jnp.linspace(0.5, 1.5, width) + 0.01 * jnp.arange(height)[:, None]
  return depth[..., None]


def test_windows(cases):
  for name, (config, io) in cases.items():
    image = jnp.asarray(io["in/img"].transpose(0, 2, 3, 1))
    depth = predict.in_windows(toy_head, image, windows=config["shift_size"], flip=config["flip"])
    depth = jnp.maximum(depth, predict.MIN_DEPTH)
    np.testing.assert_allclose(depth, io["out/windowed"], rtol=0, atol=1e-5 * np.abs(io["out/windowed"]).max(),
                               err_msg=name)


def test_metrics(cases):
  metric = nyu_depth.make("nyu_eigen")
  for name, (_, io) in cases.items():
    enlarge = lambda x: np.repeat(np.repeat(x, COARSE, 0), COARSE, 1)  # noqa: E731
    for i, (pred, truth) in enumerate(zip(io["in/metric_pred_coarse"], io["in/metric_gt_coarse"])):
      stats = metric.update(metric.init(), {"depth": enlarge(pred)}, {"depth": enlarge(truth)})
      got = metric.compute(stats)
      stored = {key.split("/")[-1]: value for key, value in io.items() if key.startswith(f"out/metric{i}/")}
      assert stored
      for key, want in stored.items():
        np.testing.assert_allclose(got[NAMES.get(key, key)], want, rtol=1e-5, atol=1e-6, err_msg=f"{name}: {key}")
