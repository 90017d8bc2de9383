"""kMaX-DeepLab's encoders with the weights of its program: un-activated and activated maps of every stage."""

import json

import jax
import numpy as np
import pytest

from uvim_like import weights_peers, weights_rules
from uvim_like.models.backbones import make_backbone

pytestmark = pytest.mark.parity
TOLERANCE = 1e-5  # of the largest value
STEM, WIDTHS = 64, (256, 512, 1024, 2048)  # of ResNet-50, which the configs scale


def fields_of(name, config):
  """The block of `make_backbone` for a stored encoder."""
  if "convnext" in name:
    return {"name": "kmax_convnext_t", "depths": config["depths"], "widths": config["dims"],
            "drop_path": 1.0 - config["keep"]}
  return {"name": "kmax_resnet50", "depths": config["num_blocks"], "stem_width": round(STEM * config["sm"]),
          "widths": [round(width * config["wm"]) for width in WIDTHS]}


class Case:
  """One stored run; names of the variables are those of an object-based checkpoint."""

  def __init__(self, path):
    self.name = path.stem
    config = json.loads(path.read_text())["config"]
    with np.load(path.with_suffix(".npz")) as data:
      self.io = {key: data[key] for key in data.files}
    self.sd = {config["object_keys"][key.removeprefix("sd/")]: value for key, value in self.io.items()
               if key.startswith("sd/")}
    self.image = self.io["in/image_0_255"].astype(np.float32) / 127.5 - 1
    self.model = make_backbone(fields_of(self.name, config))
    self.table = weights_peers.table(self.model, "kmax")
    self.like = weights_rules.eval_shapes(self.model, self.image.shape)
    self.converted = weights_rules.to_ours(self.sd, self.table, self.like)


@pytest.fixture(scope="module")
def cases(stored):
  return [Case(path) for path in stored("kmax_resnet*.json", "kmax_convnext*.json")]


def test_names_both_ways(cases):
  for case in cases:
    report = weights_rules.merge(case.like, case.sd, case.table, where=case.name)[1]
    assert report.fits and not case.converted.rest, f"{case.name}: {report.text()}"
    back = weights_rules.to_theirs(case.converted.tree, case.table)
    # The prefix "encoder/" is read and not written: it is the name of the encoder inside a whole model.
    want = {name.removeprefix("encoder/"): array for name, array in case.sd.items()}
    assert set(back) == set(want)
    for name, array in back.items():
      assert array.tobytes() == want[name].tobytes() and array.shape == want[name].shape, f"{case.name}: {name}"


def test_endpoints(cases):
  for case in cases:
    features = jax.jit(case.model.apply)(case.converted.tree, case.image)
    assert len(features) == 5 and case.model.strides[1:] == (4, 8, 16, 32)
    keys = [key for key in case.io if key.startswith("out/")]
    assert {"out/stage1", "out/stage5", "out/res5"} <= set(keys)
    for key in keys:
      got = features[int(key[-1]) - 1]
      got = case.model.activation(got) if key.startswith("out/res") else got
      want = case.io[key]
      assert got.shape == want.shape, f"{case.name}: {key}"
      np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max(), err_msg=f"{case.name}: {key}")
