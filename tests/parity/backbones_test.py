"""Image backbones with weights of the hub's form: every map of the forward pass, and the names both ways."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like import weights_hf, weights_rules
from uvim_like.models.backbones import make_backbone

pytestmark = pytest.mark.parity
TOLERANCE = 2e-5  # of the largest value
KINDS = tuple(weights_hf.FIELDS)


class Case:
  """NAME.config.json with NAME.npz: a model of the hub, its weights, an image and what comes out."""

  def __init__(self, path):
    self.name = path.name.removesuffix(".config.json")
    self.config = json.loads(path.read_text())
    self.kind = self.config["model_type"]
    with np.load(path.with_name(f"{self.name}.npz")) as data:
      self.io = {key: data[key] for key in data.files}
    self.sd = {key.removeprefix("sd/"): value for key, value in self.io.items() if key.startswith("sd/")}
    self.fields = weights_hf.model_fields(self.config)
    if self.kind in ("resnet", "convnext"):
      self.fields["with_stem"] = True
    self.model = make_backbone(self.fields)
    self.table = weights_hf.table(self.model)
    self.like = weights_rules.eval_shapes(self.model, self.io["input"].shape)
    self.converted = weights_rules.to_ours(self.sd, self.table, self.like)

  @property
  def hidden(self):
    """The stored maps after the embedding and after each stage or block."""
    return [self.io[f"hidden/{i}"] for i in range(sum(key.startswith("hidden/") for key in self.io))]

  @functools.cached_property
  def outputs(self):
    """(features, {module name: what it returned})."""
    def run(variables, image):
      return self.model.apply(variables, image, mutable=["intermediates"],
                              capture_intermediates=lambda module, method: method == "__call__")

    features, captured = jax.jit(run)(self.converted.tree, self.io["input"])
    return features, {name: value["__call__"][0] for name, value in captured["intermediates"].items()
                      if name != "__call__" and "__call__" in value}

  def close(self, got, want, what):
    """Asserts equality up to the tolerance; maps may be stored with channels first, or flat."""
    got = np.asarray(got)
    if got.ndim == 4 and want.ndim == 4:
      got = got.transpose(0, 3, 1, 2)
    got = got.reshape(want.shape) if got.size == want.size and got.ndim != want.ndim else got
    assert got.shape == want.shape, f"{self.name}: {what}: {got.shape} is not {want.shape}"
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max(), err_msg=f"{self.name}: {what}")


@pytest.fixture(scope="module")
def cases(stored):
  paths = [path for path in stored("*.config.json")
           if json.loads(path.read_text()).get("model_type") in KINDS]
  return [Case(path) for path in paths]


def test_all_kinds_are_there(golden_dir, cases):
  if golden_dir.name == "golden" and golden_dir.parent.name == "tests":
    assert {case.kind for case in cases} == set(KINDS)


def test_every_array_finds_its_place(cases):
  for case in cases:
    report = weights_rules.merge(case.like, case.sd, case.table, where=case.name)[1]
    assert report.fits and not report.kept, f"{case.name}: {report.text()}"
    assert not case.converted.rest
    ignored = [name for name in case.converted.ignored if not name.startswith(("pooler.", "layernorm."))]
    assert all(name.endswith("num_batches_tracked") for name in ignored), f"{case.name}: {ignored}"


def test_names_there_and_back_are_the_same_bits(cases):
  for case in cases:
    back = weights_rules.to_theirs(case.converted.tree, case.table)
    assert set(back) == set(case.sd) - set(case.converted.ignored), case.name
    for name, array in back.items():
      assert array.dtype == case.sd[name].dtype and array.shape == case.sd[name].shape, f"{case.name}: {name}"
      assert array.tobytes() == np.ascontiguousarray(case.sd[name]).tobytes(), f"{case.name}: {name}"


def test_every_hidden_map(cases):
  for case in cases:
    features, captured = case.outputs
    if case.kind == "resnet":
      got = [nn.max_pool(features[0], (3, 3), (2, 2), ((1, 1), (1, 1))), *features[1:]]
    elif case.kind == "convnext":
      got = features
    elif case.kind == "vit":
      got = [None, *(captured[f"block{i}"] for i in range(case.model.depth))]
    else:
      last = len(case.model.depths) - 1
      got = [captured["patch_embed"], *(captured[f"merge{s + 1}"] for s in range(last)),
             captured[f"stage{last}_block{case.model.depths[last] - 1}"]]
    assert len(got) == len(case.hidden)
    for i, (have, want) in enumerate(zip(got, case.hidden)):
      if have is not None:  # the ViT's embedding has no module of its own; its first block covers it
        case.close(have, want, f"hidden/{i}")


def test_last_map(cases):
  for case in cases:
    features, captured = case.outputs
    case.close(captured["norm"] if case.kind == "vit" else features[-1], case.io["last_hidden_state"], "last")


def test_pooled(cases):
  """From the last map with the head's own weights, as a user of features would."""
  for case in cases:
    features, captured = case.outputs
    mean = jnp.mean(features[-1], (1, 2))
    if case.kind == "vit":
      weight, bias = (case.converted.ignored[f"pooler.dense.{name}"] for name in ("weight", "bias"))
      mean = jnp.tanh(captured["norm"][:, 0] @ weight.T + bias)
    elif case.kind == "convnext":
      norm = nn.LayerNorm(epsilon=case.config["layer_norm_eps"], use_fast_variance=False)
      scale, bias = (case.converted.ignored[f"layernorm.{name}"] for name in ("weight", "bias"))
      mean = norm.apply({"params": {"scale": scale, "bias": bias}}, mean)
    case.close(mean, case.io["pooler"], "pooler")
