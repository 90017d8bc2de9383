"""AiT's layer-wise rates and weight decays against the authors' optimizer groups, parameter by parameter, exactly."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ait_common
from uvim_like.models.ait_transformer import Transformer
from uvim_like.models.backbones import make_backbone
from uvim_like.training import optim

pytestmark = pytest.mark.parity
MODULES = {"wq": "query", "wk": "key", "wv": "value", "attn": "attention", "crossattn": "cross"}


@pytest.fixture(scope="module")
def cases(stored):
  return {path: json.loads(path.read_text()) for path in stored("ait_optimizer_groups*.json")}


def shapes_of(depths):
  """Our solver's parameters in shapes; the groups depend on names and depths alone, so widths are small."""
  backbone = make_backbone(dict(name="swinv2_b", width=8, depths=depths, num_heads=(1,) * len(depths), window_size=4,
                                use_shift=False, pretrain_window=4))
  head = Transformer(vocab_size=5, width=16, mlp_dim=8, num_heads=2, max_len=3, parallel=True)
  image = jnp.zeros((1, 64, 64, 3))
  shapes = jax.eval_shape(lambda key: backbone.init(key, image), jax.random.key(0))["params"]
  head_shapes = jax.eval_shape(lambda key: head.init(key, jnp.zeros((1, 2, 2, 8)), jnp.zeros((1, 1), jnp.int32),
                                                     jnp.zeros((1,), jnp.int32)), jax.random.key(0))["params"]
  return {"backbone": shapes, "transformer": head_shapes}


def our_name(theirs):
  """The release's name of a parameter as ours."""
  name = theirs.replace(".", "/")
  leaf = {"weight": "kernel"}
  if match := re.fullmatch(r"backbone/layers/(\d+)/blocks/(\d+)/(.+)", name):
    stage, block, rest = match.groups()
    rest = rest.replace("rpe_mlp/0", "position/fc1").replace("rpe_mlp/2", "position/fc2")
    name = f"backbone/stage{stage}_block{block}/{rest}"
  elif match := re.fullmatch(r"backbone/layers/(\d+)/downsample/(.+)", name):
    name = f"backbone/merge{int(match[1]) + 1}/{match[2]}"
  elif match := re.fullmatch(r"transformer/(encoder|decoder)/blocks/(\d+)/(\w+)/(.+)", name):
    tower, block, part, rest = match.groups()
    first, _, last = rest.partition("/")
    rest = "/".join(filter(None, ["out" if first == "proj" else MODULES.get(first, first), last]))
    name = f"transformer/{tower}/block{block}/{MODULES.get(part, part)}/{rest}"
  if re.search(r"norm\d*/weight$|_ln/weight$", name):
    leaf = {"weight": "scale"}
  return re.sub(r"weight$", leaf["weight"], name)


def test_rates_are_the_authors(cases):
  for path, case in cases.items():
    config, stored = case["config"], case["lr_and_weight_decay"]
    lr_mults, wd_mults = ait_common.layer_rates(tuple(config["depths"]), config["layer_decay_rate"])
    ours = optim.rates({"lr_mults": lr_mults, "wd_mults": wd_mults}, shapes_of(tuple(config["depths"])))
    renamed = {our_name(name): rates for name, rates in stored.items()}
    assert set(renamed) <= set(ours), f"{path.name}: {sorted(set(renamed) - set(ours))[:5]}"
    left = set(ours) - set(renamed)
    assert not [name for name in left if "mask_embed" not in name], f"{path.name}: {sorted(left)[:5]}"
    for name, (lr, wd) in renamed.items():
      rate = ours[name]
      np.testing.assert_allclose(config["lr"] * rate.lr, lr, rtol=1e-12, err_msg=name)
      # Ours is added apart from the learning rate: config.wd = lr * wd, times the layer's rate where it decays.
      np.testing.assert_allclose(config["weight_decay"] * rate.wd, wd * rate.lr, rtol=1e-12, err_msg=name)
