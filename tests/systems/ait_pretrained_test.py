"""Released state dicts of AiT in every form that users meet: prefixes, containers, strays; and a solver's transformer."""

import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.systems.ait import pretrained
from uvim_like.trees import flatten_names


def tokenizer(downs=2, blocks=1, width=3, words=5, dim=4):
  """A state dict as the release writes one, with random values."""
  rng = np.random.default_rng(0)
  out, widths = {}, [width * 2 ** i for i in range(downs)]

  def conv(name, *shape):
    out[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32)
    transposed = "decoder" in name and shape[-1] == 4
    out[f"{name}.bias"] = rng.normal(size=shape[transposed]).astype(np.float32)

  def block(name):
    for i, k in ((0, 3), (2, 3), (4, 1)):
      conv(f"{name}.net.{i}", widths[-1], widths[-1], k, k)

  for i, (a, b) in enumerate(zip([1, *widths], widths)):
    conv(f"encoder.{2 * i}", b, a, 4, 4)
  for i in range(blocks):
    block(f"encoder.{2 * downs + i}")
  conv(f"encoder.{2 * downs + blocks}", dim, widths[-1], 1, 1)
  conv("decoder.0", widths[-1], dim, 1, 1)
  for i in range(blocks):
    block(f"decoder.{2 + i}")
  for i, (a, b) in enumerate(zip([widths[-1], *widths[::-1]], widths[::-1])):
    conv(f"decoder.{2 + blocks + 2 * i}", a, b, 4, 4)
  conv(f"decoder.{2 + blocks + 2 * downs}", 1, width, 1, 1)
  for name, shape in (("_embedding", (words, dim)), ("_ema_w", (words, dim)), ("_ema_cluster_size", (words,))):
    out[f"_vq_vae.{name}"] = rng.normal(size=shape).astype(np.float32)
  return out


def same(a, b):
  for x, y in zip(a, b, strict=True):
    for (name, left), (other, right) in zip(flatten_names(x), flatten_names(y), strict=True):
      assert name == other
      np.testing.assert_array_equal(left, right)


def test_every_form_of_the_file_is_the_same_tokenizer():
  bare = tokenizer()
  want = pretrained.from_torch(bare)
  prefixed = {f"module.{name}": value for name, value in bare.items()}
  for form in ({"weights": bare}, prefixed, {"weights": prefixed | {"module.codebook.weight": np.zeros((5, 4))}},
               bare | {"codebook.weight": np.zeros((5, 4))}):
    same(pretrained.from_torch(form), want)
  assert set(want[0]["encoder"]) == {"down0", "down1", "res0", "to_code"}
  assert set(want[0]["decoder"]) == {"from_code", "res0", "up0", "up1", "out"}
  assert set(want[1]) == {"dictionary", "sums", "counts"}


def test_the_transformer_of_a_solver():
  rng = np.random.default_rng(0)
  head = {"voc_embed": rng.normal(size=(7, 4)), "encoder.blocks.0.attn.wq.weight": rng.normal(size=(4, 4)),
          "encoder.blocks.0.norm1.weight": np.ones(4), "proj_mlp.fc1.bias": np.ones(3),
          "enc_embed": np.zeros((1, 2, 2, 4))}
  params = pretrained.transformer_from_torch({"state_dict": head}, num_heads=2)
  query = params["encoder"]["block0"]["attention"]["query"]["kernel"]
  np.testing.assert_allclose(query.reshape(4, 4), head["encoder.blocks.0.attn.wq.weight"].T, rtol=1e-6)
  assert "enc_embed" not in params and params["proj_mlp"]["fc1"]["bias"].shape == (3,)


@pytest.mark.parametrize(("file", "message"), [
    ({"weight": np.ones(3)}, "it has no 'encoder"), (dict(list(tokenizer().items())[:-1]), "_ema_cluster_size")])
def test_other_files_are_named(file, message):
  with pytest.raises(UserError, match=message):
    pretrained.from_torch(file)
  with pytest.raises(UserError, match="no AiT solver"):
    pretrained.transformer_from_torch(file, num_heads=2)
