"""SwinV2 with the weights of AiT's program: every stage, padded windows, shifts, the position bias."""

import json

import jax
import numpy as np
import pytest

from uvim_like import weights_peers, weights_rules
from uvim_like.models.backbones import make_backbone
from uvim_like.models.swin_v2 import PositionBias, log_offsets

pytestmark = pytest.mark.parity
TOLERANCE = 3e-5  # absolute
CAPTURED = ("patch_embed", "stage0_block1")


class Case:
  """One stored run."""

  def __init__(self, path):
    self.name = path.stem
    config = json.loads(path.read_text())["config"]
    with np.load(path.with_suffix(".npz")) as data:
      self.io = {key: data[key] for key in data.files}
    self.sd = {key.removeprefix("sd/"): value for key, value in self.io.items() if key.startswith("sd/")}
    self.image = self.io["in/img"].transpose(0, 2, 3, 1)
    assert not config["ape"] and config["patch_norm"]
    self.model = make_backbone({
        "name": "swinv2_b", "width": config["embed_dim"], "depths": config["depths"],
        "num_heads": config["num_heads"], "window_size": config["window_size"], "use_shift": config["use_shift"],
        "pretrain_window": config["pretrain_window_size"], "position_hidden": config["rpe_hidden_dim"],
        "out_norms": config["out_indices"], "drop_path": config["drop_path_rate"]})
    self.table = weights_peers.table(self.model, "ait")
    self.like = weights_rules.eval_shapes(self.model, self.image.shape)
    self.converted = weights_rules.to_ours(self.sd, self.table, self.like)

  def close(self, got, key):
    want = self.io[key]
    got = np.asarray(got)
    got = got.transpose(0, 3, 1, 2) if want.ndim == got.ndim == 4 else got.reshape(want.shape)
    assert got.shape == want.shape, f"{self.name}: {key}"
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE, err_msg=f"{self.name}: {key}")


@pytest.fixture(scope="module")
def cases(stored):
  return [Case(path) for path in stored("ait_swinv2*.json")]


def test_names_both_ways(cases):
  for case in cases:
    report = weights_rules.merge(case.like, case.sd, case.table, where=case.name)[1]
    assert report.fits and not case.converted.rest, f"{case.name}: {report.text()}"
    back = weights_rules.to_theirs(case.converted.tree, case.table)
    assert set(back) == set(case.sd) - set(case.converted.ignored)
    for name, array in back.items():
      assert array.shape == case.sd[name].shape
      assert array.tobytes() == np.ascontiguousarray(case.sd[name]).tobytes(), f"{case.name}: {name}"


def test_prefixes_of_the_solver_and_of_pretraining(cases):
  for case in cases:
    for prefix in ("backbone.", "module.backbone.", "encoder."):
      renamed = {prefix + name: array for name, array in case.sd.items()}
      assert weights_rules.merge(case.like, renamed, case.table)[1].fits, prefix


def test_stages(cases):
  for case in cases:
    features, captured = jax.jit(lambda tree, image, model=case.model: model.apply(
        tree, image, capture_intermediates=lambda module, _: module.name in CAPTURED, mutable=["intermediates"]))(
            case.converted.tree, case.image)
    keys = [key for key in case.io if key.startswith("out/stage") and "block" not in key]
    assert keys
    for key in keys:
      case.close(features[int(key.removeprefix("out/stage"))], key)
    for name in CAPTURED:
      if f"out/{name}" in case.io:
        case.close(captured["intermediates"][name]["__call__"][0], f"out/{name}")


def test_position_bias(cases):
  for case in cases:
    window, pretrained = case.model.window_size[0], case.model.pretrain_window[0]
    case.close(log_offsets(window, pretrained), "out/rel_coords_table_l0")
    module = PositionBias(case.model.num_heads[0], window, pretrained, case.model.position_hidden)
    params = case.converted.tree["params"]["stage0_block0"]["attn"]["position"]
    case.close(module.apply({"params": params}), "out/rel_bias_l0b0")
