"""Blocks of the transformers: attention by its formula, layer stacks that are one function however compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.layers import Attention, Encoder, LayerNorm, MlpBlock, sincos_2d
from uvim_like.trees import flatten_names

WIDTH, HEADS = 8, 2


def tokens(length=5, seed=0):
  return jax.random.normal(jax.random.key(seed), (2, length, WIDTH))


@functools.cache
def attention(use_bias=True):
  module = Attention(HEADS, use_bias=use_bias)
  params = jax.eval_shape(module.init, jax.random.key(1), tokens())["params"]
  return module, jax.tree.map(lambda x: jax.random.normal(jax.random.key(2), x.shape), params)


def by_formula(params, x, kv, mask=None):
  """Multi-head attention in numpy, one head after the other."""
  x, kv = np.asarray(x, np.float64), np.asarray(kv, np.float64)
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

  def project(name, x, h):
    return x @ params[name]["kernel"][:, h] + params[name].get("bias", np.zeros((HEADS, 1)))[h]

  out = params["out"].get("bias", 0.0)
  for h in range(HEADS):
    query, key, value = project("query", x, h), project("key", kv, h), project("value", kv, h)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    scores = scores if mask is None else np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = out + weights / weights.sum(-1, keepdims=True) @ value @ params["out"]["kernel"][h]
  return out


@pytest.mark.parametrize("use_bias", [True, False])
def test_attention(use_bias):
  module, params = attention(use_bias)
  leaves = ("kernel", "bias") if use_bias else ("kernel",)
  names = {f"{projection}/{leaf}" for projection in ("query", "key", "value", "out") for leaf in leaves}
  assert {name for name, _ in flatten_names(params)} == names
  x, other = tokens(), tokens(7, seed=3)
  apply = functools.partial(module.apply, {"params": params})
  np.testing.assert_allclose(apply(x), by_formula(params, x, x), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(apply(x, other), by_formula(params, x, other), rtol=1e-4, atol=1e-4)
  past = np.tri(5, dtype=bool)
  np.testing.assert_allclose(apply(x, causal=True), by_formula(params, x, x, past), rtol=1e-4, atol=1e-4)
  mask = np.random.default_rng(0).random((5, 5)) < 0.6
  mask[:, 0] = True
  np.testing.assert_allclose(apply(x, mask=jnp.asarray(mask)), by_formula(params, x, x, mask), rtol=1e-4, atol=1e-4)


def test_attention_with_kept_keys_and_values():
  module, params = attention()
  x, other = tokens(), tokens(7, seed=3)
  kept = module.apply({"params": params}, other, only_kv=True)
  assert [part.shape for part in kept] == [(2, 7, HEADS, WIDTH // HEADS)] * 2
  kept = tuple(part.swapaxes(1, 2) for part in kept)  # heads outside, as a cache holds them
  without = {name: params[name] for name in ("query", "out")}  # nothing else is projected
  np.testing.assert_allclose(module.apply({"params": without}, x, cached=kept),
                             module.apply({"params": params}, x, other), rtol=1e-5, atol=1e-5)


def test_mlp():
  x = tokens()
  variables = MlpBlock(12).init(jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, variables["params"]["Dense_0"]) == {"kernel": (WIDTH, 12), "bias": (12,)}
  layers = variables["params"]
  hidden = np.asarray(x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], np.float64)
  hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden ** 3)))
  want = hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
  np.testing.assert_allclose(MlpBlock(12).apply(variables, x), want, rtol=1e-5, atol=1e-5)
  wide = jax.eval_shape(MlpBlock().init, jax.random.key(0), x)["params"]["Dense_0"]["kernel"]
  assert wide.shape == (WIDTH, 4 * WIDTH)


def test_layer_norm_epsilon():
  x = 1e-3 * tokens()
  variables = LayerNorm().init(jax.random.key(0), x)
  centred = np.asarray(x - x.mean(-1, keepdims=True))
  want = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(LayerNorm().apply(variables, x), want, rtol=1e-3, atol=1e-4)


# ---- stacks of layers ----


def stack(**options):
  return Encoder(depth=3, mlp_dim=12, num_heads=HEADS, **options)


@functools.cache
def stack_params():
  return jax.jit(stack().init)(jax.random.key(0), tokens())["params"]


@functools.cache
def stack_result(remat, scan):
  """(loss, gradients) of a stack."""
  x = tokens()
  run = lambda params: jnp.mean(jnp.square(stack(remat=remat, scan=scan).apply({"params": params}, x)))  # noqa: E731
  return jax.jit(jax.value_and_grad(run))(stack_params())


@pytest.mark.parametrize("remat, scan", [("none", True), ("dots", False), ("dots", True), ("full", False),
                                         ("full", True)])
def test_remat_and_scan_change_nothing(remat, scan):
  fresh = jax.jit(stack(remat=remat, scan=scan).init)(jax.random.key(0), tokens())["params"]
  for (name, got), (want_name, want) in zip(flatten_names(fresh), flatten_names(stack_params()), strict=True):
    assert name == want_name
    np.testing.assert_array_equal(got, want)
  (loss, grads), (want_loss, want_grads) = stack_result(remat, scan), stack_result("none", False)
  np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
  for (name, got), (_, want) in zip(flatten_names(grads), flatten_names(want_grads), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7, err_msg=name)


def test_scan_is_one_loop_and_full_remat_saves_less():
  x = tokens()
  lower = lambda scan: jax.jit(lambda p: stack(scan=scan).apply({"params": p}, x)).lower(stack_params())  # noqa: E731
  program, flat = lower(True).as_text(), lower(False).as_text()
  assert "while" in program and "while" not in flat

  def saved(remat):
    def run(params):
      return jnp.sum(stack(remat=remat).apply({"params": params}, tokens()))
    return str(jax.make_jaxpr(jax.grad(run))(stack_params())).count("remat")

  assert saved("full") > 0 and saved("dots") > 0 and saved("none") == 0


def test_names_of_layers():
  names = {name.split("/")[0] for name, _ in flatten_names(stack_params())}
  assert names == {"encoderblock_0", "encoderblock_1", "encoderblock_2", "encoder_norm"}
  kernels = [np.asarray(stack_params()[f"encoderblock_{i}"]["MlpBlock_0"]["Dense_0"]["kernel"]) for i in range(3)]
  assert not np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[1], kernels[2])


def test_missing_layer_is_named():
  params = {name: leaf for name, leaf in stack_params().items() if name != "encoderblock_1"}
  with pytest.raises(KeyError, match="encoderblock_1"):
    stack().apply({"params": params}, tokens())


@pytest.mark.parametrize("scan", [False, True])
def test_dropout(scan):
  run = lambda seed, deterministic: stack(dropout=0.5, scan=scan).apply(  # noqa: E731
      {"params": stack_params()}, tokens(), deterministic, rngs={"dropout": jax.random.key(seed)})
  clean = stack().apply({"params": stack_params()}, tokens())
  np.testing.assert_allclose(run(0, True), clean, rtol=1e-5, atol=1e-5)
  assert not np.allclose(run(0, False), clean) and not np.allclose(run(0, False), run(1, False))
  np.testing.assert_array_equal(run(0, False), run(0, False))


def test_stack_of_no_layers_is_the_norm():
  empty = Encoder(depth=0, num_heads=HEADS)
  variables = empty.init(jax.random.key(0), tokens())
  np.testing.assert_allclose(empty.apply(variables, tokens()), LayerNorm().apply(
      {"params": variables["params"]["encoder_norm"]}, tokens()), rtol=1e-6, atol=1e-6)


def test_bfloat16_stack_is_near():
  out = stack(dtype=jnp.bfloat16).apply({"params": stack_params()}, tokens())
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), stack().apply({"params": stack_params()}, tokens()), atol=0.1)


# ---- position embedding ----


def test_fixed_positions():
  table = np.asarray(sincos_2d((3, 2), 8))
  assert table.shape == (1, 6, 8)
  frequency = np.array([1.0, 1e-4])
  for row, column in np.ndindex(3, 2):
    want = np.concatenate([f(axis * frequency) for axis in (column, row) for f in (np.sin, np.cos)])
    np.testing.assert_allclose(table[0, row * 2 + column], want, atol=1e-6)
