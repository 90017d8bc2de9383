"""Stage II's network: published size, shifted targets, cached steps, fixed positions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from uvim_like.models.uvim_lm import Model

SMALL = dict(vocab_size=7, seq_len=5, input_size=(8, 12), patches={"size": (4, 3)}, num_layers=2, num_heads=2,
             mlp_dim=12, emb_dim=16, posemb_type="learn")
IMAGE = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
TOKENS = jax.random.randint(jax.random.key(1), (2, 5), 1, 7)


@functools.cache
def params():
  fresh = jax.jit(Model(**SMALL).init)(jax.random.key(0), IMAGE, TOKENS)["params"]
  kernel = jax.random.normal(jax.random.key(2), fresh["decoder"]["LogitsDense"]["kernel"].shape)
  return fresh | {"decoder": fresh["decoder"] | {"LogitsDense": fresh["decoder"]["LogitsDense"] | {"kernel": kernel}}}


def apply(*args, **options):
  return jax.jit(functools.partial(Model(**SMALL).apply, {"params": params()}, **options))(*args)


def test_published_size():
  model = Model(vocab_size=4097, seq_len=256, input_size=(512, 512), patches={"size": (16, 16)}, num_layers=24,
                num_heads=16, mlp_dim=4096, emb_dim=1024, posemb_type="learn")
  tree = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32),
                        jax.ShapeDtypeStruct((1, 256), jnp.int32))
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == 715_729_921


def test_each_token_is_predicted_from_those_before_it():
  logits = apply(IMAGE, TOKENS)
  assert logits.shape == (2, 5, 7)
  for i in range(5):
    changed = apply(IMAGE, TOKENS.at[:, i].set(TOKENS[:, i] % 6 + 1))
    np.testing.assert_array_equal(logits[:, :i + 1], changed[:, :i + 1])
    assert i == 4 or np.abs(logits - changed)[:, i + 1:].max() > 1e-4


def test_shorter_targets():
  np.testing.assert_allclose(apply(IMAGE, TOKENS[:, :3]), apply(IMAGE, TOKENS)[:, :3], rtol=1e-5, atol=1e-5)


def test_cached_steps_are_teacher_forcing():
  encoded = apply(IMAGE, method="encode")
  caches, last, out = apply(encoded, sequences=1, method="start"), jnp.zeros((2, 1), jnp.int32), []
  step = jax.jit(functools.partial(Model(**SMALL).apply, {"params": params()}, method="step"))
  for i in range(5):
    logits, caches = step(last, jnp.int32(i), caches)
    out.append(logits[:, 0])
    last = TOKENS[:, i:i + 1]
  np.testing.assert_allclose(jnp.stack(out, 1), apply(IMAGE, TOKENS), rtol=1e-5, atol=2e-5)


def test_fixed_positions_have_no_parameters():
  tree = jax.eval_shape(Model(**SMALL | {"posemb_type": "sincos2d"}).init, jax.random.key(0), IMAGE, TOKENS)["params"]
  assert sorted(tree) == ["EmbedPatches", "decoder", "encoder"]
  assert sorted(params()) == ["EmbedPatches", "decoder", "encoder", "pos_embedding_decoder", "pos_embedding_encoder"]
  assert params()["pos_embedding_encoder"].shape == (1, 8, 16) and params()["pos_embedding_decoder"].shape == (1, 5, 16)


def test_every_parameter_learns():
  grads = jax.jit(jax.grad(lambda p: jnp.square(Model(**SMALL).apply({"params": p}, IMAGE, TOKENS)).mean()))(params())
  paths = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(grads)]
  assert not [name for name, leaf in paths if not np.any(leaf) and "'key']['bias'" not in name]
