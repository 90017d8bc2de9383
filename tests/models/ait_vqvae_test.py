"""AiT's tokenizer: sizes and cost of the paper, transposed convolution by its definition, shapes of all variants."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models import ait_vqvae
from uvim_like.models.ait_vqvae import Model

DEPTH, MASK = Model(input_size=(480, 480)), Model(input_size=(64, 64), ratio=16, signed=True)


def shapes(model, size=None):
  x = jnp.zeros((1, *(size or model.input_size), 1), jnp.int32 if model.classes else jnp.float32)
  return jax.eval_shape(lambda key: model.init({"params": key, "state": key}, x), jax.random.key(0))


def multiply_adds(model: Model) -> dict[str, int]:
  """{"encoder", "decoder"}: multiplications of all convolutions for one map of `input_size`.

  A transposed convolution is counted as its input pixels times its kernel, as profilers do.
  """
  pixels = [math.prod(model.input_size) // 4 ** (i + 1) for i in range(len(model.widths))]
  stem, last = model.first_width if model.classes else 1, model.widths[-1]
  down = sum(16 * a * b * n for a, b, n in zip((stem, *model.widths), model.widths, pixels))
  middle = model.num_res_blocks * (2 * 9 + 1) * last * last * pixels[-1] + last * model.codeword_dim * pixels[-1]
  outs = model.widths[::-1]
  up = sum(16 * a * b * n for a, b, n in zip((last, *outs), outs, reversed(pixels)))
  head = outs[-1] * (model.classes or 1) * math.prod(model.input_size)
  return {"encoder": down + middle, "decoder": middle + up + head}


@pytest.mark.parametrize(("model", "encoder", "decoder", "giga"), [
    (DEPTH, 3_320_560, 4_368_641, (1.076, 2.717, 3.793)), (MASK, 861_936, 1_123_457, (0.0176, 0.0404, 0.0580))])
def test_parameters_and_cost_are_the_papers(model, encoder, decoder, giga):
  tree = shapes(model)
  count = {name: sum(leaf.size for leaf in jax.tree.leaves(tree["params"][name])) for name in ("encoder", "decoder")}
  assert count == {"encoder": encoder, "decoder": decoder}
  assert tree["state"]["dictionary"].shape == (128, 512)
  cost = multiply_adds(model)
  digits = 3 if giga[0] > 1 else 4
  assert (round(cost["encoder"] / 1e9, digits), round(cost["decoder"] / 1e9, digits),
          round(sum(cost.values()) / 1e9, digits)) == giga


def test_cost_is_what_the_compiler_counts():
  """Half of XLA's floating point operations, up to borders (a padded pixel costs nothing there) and additions."""
  model = Model(input_size=(64, 64), ratio=8, first_width=16)
  init = jax.jit(lambda key: model.init({"params": key, "state": key}, jnp.zeros((1, 64, 64, 1))))
  variables = init(jax.random.key(0))
  counted = {}
  for name, method, x in (("encoder", lambda m, x: m.encoder(x), jnp.zeros((1, 64, 64, 1))),
                          ("decoder", lambda m, x: m.decoder(x), jnp.zeros((1, 8, 8, 512)))):
    run = jax.jit(lambda v, x, method=method: model.apply(v, x, method=method))
    counted[name] = run.lower(variables, x).compile().cost_analysis()["flops"] / 2
  for name, want in multiply_adds(model).items():
    assert 0.85 < counted[name] / want < 1.25, (name, counted[name], want)


def test_transposed_convolution():
  """Each input pixel adds kernel[::-1, ::-1] times its value to a 4x4 window of the output at stride 2, border 1."""
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(4, 4, 4, 6))
  want = np.zeros((2, 3 * 2 + 2, 5 * 2 + 2, 6))
  for i in range(3):
    for j in range(5):
      want[:, 2 * i:2 * i + 4, 2 * j:2 * j + 4] += np.einsum("bc,yxco->byxo", x[:, i, j], kernel[::-1, ::-1])
  got = ait_vqvae.transposed_conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
  np.testing.assert_allclose(got, want[:, 1:-1, 1:-1], atol=1e-5)


@pytest.mark.parametrize("ratio", [8, 16, 32])
@pytest.mark.parametrize("fields", [dict(first_width=8), dict(num_res_blocks=5, dict_size=64), dict(classes=7)])
def test_every_size_of_the_tables(ratio, fields):
  model = Model(input_size=(64, 96), ratio=ratio, codeword_dim=24, **fields)
  assert model.grid == (64 // ratio, 96 // ratio) and model.code_len == 64 * 96 // ratio ** 2
  x = jax.ShapeDtypeStruct((2, 64, 96, 1), jnp.int32 if model.classes else jnp.float32)
  tree = shapes(model)
  out, code = jax.eval_shape(model.apply, tree, x)
  assert out.shape == (2, 64, 96, fields.get("classes", 1)) and code.code.shape == (2, *model.grid)
  assert code.z.shape == (2, *model.grid, 24)
  assert len([name for name in tree["params"]["encoder"] if name.startswith("res")]) == model.num_res_blocks


def test_soft_decoding_of_a_certain_code_is_hard_decoding():
  model = Model(input_size=(32, 32), ratio=8, first_width=4, codeword_dim=6, dict_size=5)
  variables = model.init({"params": jax.random.key(0), "state": jax.random.key(1)}, jnp.zeros((1, 32, 32, 1)))
  code = jax.random.randint(jax.random.key(2), (2, 4, 4), 0, 5)
  hard = model.apply(variables, code, method="decode")
  soft = model.apply(variables, 1e4 * jax.nn.one_hot(code, 5), 1.0, method="decode_soft")
  np.testing.assert_allclose(soft, hard, atol=1e-5)
  even = model.apply(variables, 1e4 * jax.nn.one_hot(code, 5), 0.0, method="decode_soft")
  mean = jnp.broadcast_to(variables["state"]["dictionary"].mean(0), (2, 4, 4, 6))
  np.testing.assert_allclose(even, model.apply(variables, mean, method="decode"), atol=1e-5)


def test_masks_are_handled_between_minus_one_and_one():
  raw, signed = (Model(input_size=(16, 16), ratio=8, first_width=4, codeword_dim=6, dict_size=5, signed=s)
                 for s in (False, True))
  variables = raw.init({"params": jax.random.key(0), "state": jax.random.key(1)}, jnp.zeros((1, 16, 16, 1)))
  mask = (jax.random.uniform(jax.random.key(2), (1, 16, 16, 1)) > 0.5).astype(jnp.float32)
  out, code = signed.apply(variables, mask)
  inside, inside_code = raw.apply(variables, 2 * mask - 1)
  np.testing.assert_allclose(2 * out - 1, inside, atol=1e-6)
  np.testing.assert_array_equal(code.code, inside_code.code)
