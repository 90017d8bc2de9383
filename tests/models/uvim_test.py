"""Stage I's network: the published trees and sizes, and what each field changes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.models.uvim import Model, flatten_grid
from uvim_like.trees import flatten_names

SMALL = dict(inputs={"semantics": (5, 12), "instances": (4, 12)}, outputs={"semantics": (5, 12), "instances": (4, 12)},
             input_size=(9, 16), patch_size=(3, 4), code_len=4, width=8, oracle_depth=1, base_model_depth=2, mlp_dim=12,
             num_heads=2, dict_size=6, codeword_dim=5, with_encoder_ctx=True, with_decoder_ctx=True)
RELEASED = dict(input_size=(512, 512), patch_size=(16, 16), code_len=256, width=768, oracle_depth=6,
                base_model_depth=12, num_heads=12, mlp_dim=3072, dict_size=4096, codeword_dim=768,
                with_encoder_ctx=True, with_decoder_ctx=True)


def shapes(**fields):
  """{"params", "state"} of shapes, with labels of the first task's kind."""
  model = Model(**fields)
  ctx = jax.ShapeDtypeStruct((1, *model.input_size, 3), jnp.float32)
  patches = math.prod(model.grid)
  planes = {k: jax.ShapeDtypeStruct((1, patches, p) if k != "color" else (1, patches, c, p),
                                    jnp.int32 if k != "color" else jnp.float32) for k, (c, p) in model.inputs.items()}
  return jax.eval_shape(model.init, {"params": jax.random.key(0), "state": jax.random.key(0)}, planes, ctx)


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("planes, params", [
    ({"semantics": (134, 256), "instances": (100, 256)}, 223_593_984), ({"color": (3, 256)}, 132_701_184),
    ({"depth": (256, 256)}, 232_249_600)])
def test_published_sizes(planes, params):
  tree = shapes(**RELEASED, inputs=planes, outputs=planes, bottleneck_resize=True)
  assert count(tree["params"]) == params and count(tree["state"]) == 3_149_824
  learned = shapes(**RELEASED, inputs=planes, outputs=planes)
  assert count(learned["params"]) == params + 524_288


@functools.cache
def example():
  """(model, variables, planes, image) of a small network with heads that are not zero."""
  model, rng = Model(**SMALL), np.random.default_rng(0)
  planes = {k: jnp.asarray(rng.integers(-1, c + 1, (2, 12, p)).astype(np.int32)) for k, (c, p) in model.inputs.items()}
  image = jnp.asarray(rng.uniform(-1, 1, (2, 9, 16, 3)).astype(np.float32))
  variables = jax.jit(model.init)({"params": jax.random.key(0), "state": jax.random.key(1)}, planes, image)
  params = dict(variables["params"])
  for k in model.outputs:
    params[f"head_{k}"] = jax.tree.map(lambda x: jax.random.normal(jax.random.key(2), x.shape), params[f"head_{k}"])
  return model, variables | {"params": params}, planes, image


def apply(*args, model=None, variables=None, **options):
  default, stored, *_ = example()
  return jax.jit(functools.partial((model or default).apply, **options))(variables or stored, *args)


def values(outputs):
  return {k: planes.values() for k, planes in outputs.items()}


def test_shapes_of_everything():
  _, _, planes, image = example()
  outputs, code = apply(planes, image)
  assert code.bottleneck.shape == code.quantized.shape == (2, 4, 5) and code.code.shape == (2, 4)
  assert {k: v.shape for k, v in values(outputs).items()} == {"semantics": (2, 12, 5, 12), "instances": (2, 12, 4, 12)}
  assert apply(method="words").shape == (6, 5)


def test_start_of_training():
  model, _, planes, image = example()
  model = model.clone(head_bias=-2.0)
  variables = jax.jit(model.init)({"params": jax.random.key(0), "state": jax.random.key(1)}, planes, image)
  outputs, _ = apply(planes, image, model=model, variables=variables)
  assert all(np.all(x == -2.0) for x in values(outputs).values())
  np.testing.assert_array_equal(variables["state"]["counts"], 1)
  big = shapes(**SMALL | {"dict_size": 64})
  assert big["state"]["dictionary"].shape == (64, 5)
  other = jax.jit(model.init)({"params": jax.random.key(0), "state": jax.random.key(9)}, planes, image)
  assert not np.array_equal(other["state"]["dictionary"], variables["state"]["dictionary"])
  for (name, a), (_, b) in zip(flatten_names(other["params"]), flatten_names(variables["params"])):
    np.testing.assert_array_equal(a, b, err_msg=name)


def test_code_of_given_words_is_decoded():
  _, _, planes, image = example()
  code = apply(planes, image, method="encode")
  from_code, from_vectors = (values(apply(x, image, method="decode")) for x in (code.code, code.quantized))
  for k in from_code:
    np.testing.assert_allclose(from_code[k], from_vectors[k], rtol=1e-5, atol=2e-5)
  last = values(apply(jnp.full((2, 4), 5), image, method="decode"))
  wrapped = values(apply(jnp.full((2, 4), -1), image, method="decode"))
  none, zeros = (values(apply(x, image, method="decode")) for x in (None, jnp.zeros((2, 4, 5))))
  for k in last:
    np.testing.assert_array_equal(last[k], wrapped[k])
    np.testing.assert_array_equal(none[k], zeros[k])
    assert not np.allclose(last[k], none[k])


def test_several_codes_of_one_image():
  _, _, _, image = example()
  codes = jax.random.randint(jax.random.key(0), (2, 3, 4), 0, 6)
  together = values(apply(codes.reshape(6, 4), image, method="decode"))
  for sample in range(3):
    alone = values(apply(codes[:, sample], image, method="decode"))
    for k in alone:
      got = together[k].reshape(2, 3, *alone[k].shape[1:])[:, sample]
      np.testing.assert_allclose(got, alone[k], rtol=1e-5, atol=1e-5)


def test_gradient_goes_through_the_code_to_the_oracle():
  model, variables, planes, image = example()

  def run(params):
    outputs, _ = model.apply(variables | {"params": params}, planes, image)
    return sum(planes_.values().mean() for planes_ in outputs.values())

  grads = jax.jit(jax.grad(run))(variables["params"])
  for name, leaf in flatten_names(grads):
    if not name.endswith("/key/bias"):
      assert np.any(leaf), name


def test_contexts():
  model, _, planes, image = example()
  for field, kernel in (("with_encoder_ctx", "ctx_enc_embedding"), ("with_decoder_ctx", "ctx_dec_embedding")):
    assert kernel in shapes(**SMALL)["params"]
    assert kernel not in shapes(**SMALL | {field: False})["params"]
  blind = Model(**SMALL | {"with_encoder_ctx": False, "with_decoder_ctx": False})
  variables = jax.jit(blind.init)({"params": jax.random.key(0), "state": jax.random.key(1)}, planes, None)
  outputs, code = apply(planes, None, model=blind, variables=variables)
  assert code.code.shape == (2, 4) and outputs["semantics"].features.shape == (2, 12, 8)


def test_base_model_alone_has_no_oracle():
  fields = SMALL | {"zero_decoder_seq": True}
  tree = shapes(**fields)
  assert "state" not in tree
  assert {name.split("/")[0] for name, _ in flatten_names(tree["params"])} == {
      "bottleneck_upsample", "ctx_dec_embedding", "decoder", "decoder_stem", "head_instances", "head_semantics",
      "pos_embedding_decoder"}
  _, _, planes, image = example()
  model = Model(**fields)
  variables = jax.jit(model.init)({"params": jax.random.key(0)}, planes, image)
  outputs, code = apply(planes, image, model=model, variables=variables)
  assert code is None and outputs["semantics"].features.shape == (2, 12, 8)
  other, _ = apply(jax.tree.map(jnp.zeros_like, planes), image, model=model, variables=variables)
  np.testing.assert_array_equal(other["semantics"].features, outputs["semantics"].features)


@pytest.mark.parametrize("length", [1, 4, 9])
def test_resized_bottleneck(length):
  fields = SMALL | {"bottleneck_resize": True, "code_len": length}
  tree = shapes(**fields)["params"]
  assert "bottleneck_downsample" not in tree and "bottleneck_upsample" not in tree
  _, _, planes, image = example()
  model = Model(**fields)
  variables = jax.jit(model.init)({"params": jax.random.key(0), "state": jax.random.key(1)}, planes, image)
  outputs, code = apply(planes, image, model=model, variables=variables)
  assert code.code.shape == (2, length) and outputs["semantics"].features.shape == (2, 12, 8)


def test_finite_grid_has_no_state():
  fields = SMALL | {"quantizer": "fsq", "fsq_levels": (3, 2), "dict_size": 6}
  tree = shapes(**fields)
  assert "state" not in tree and tree["params"]["encoder_head"]["kernel"].shape == (8, 2)
  _, _, planes, image = example()
  model = Model(**fields)
  variables = jax.jit(model.init)({"params": jax.random.key(0)}, planes, image)
  code = apply(planes, image, model=model, variables=variables, method="encode")
  words = apply(model=model, variables=variables, method="words")
  np.testing.assert_allclose(words[code.code], code.quantized, atol=1e-6)


@pytest.mark.parametrize("mode", ["random", "ordered"])
def test_code_dropout_only_in_training(mode):
  model, variables, planes, image = example()
  model = model.clone(code_dropout=mode)
  rngs = {"dropout": jax.random.key(0)}
  clean, dropped, still = (values(model.apply(variables, planes, image, train=train, rngs=rngs)[0])["semantics"]
                           for model, train in ((example()[0], True), (model, True), (model, False)))
  np.testing.assert_array_equal(clean, still)
  assert not np.allclose(clean, dropped)


def test_fixed_positions_have_no_parameters():
  names = shapes(**SMALL | {"posemb": "sincos2d"})["params"]
  assert "pos_embedding_encoder" not in names and "pos_embedding_decoder" not in names


def test_scan_and_remat_keep_the_tree():
  tree = jax.tree.map(lambda x: x.shape, shapes(**SMALL))
  for options in ({"scan_layers": True}, {"remat": "full"}, {"remat": "dots", "scan_layers": True}):
    assert jax.tree.map(lambda x: x.shape, shapes(**SMALL | options)) == tree


def test_flatten_grid():
  np.testing.assert_array_equal(flatten_grid(jnp.arange(12).reshape(1, 2, 3, 2))[0, 4], [8, 9])
