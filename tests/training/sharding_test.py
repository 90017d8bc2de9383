"""Meshes, placements by rule, and batches over eight virtual devices."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from uvim_like.errors import UserError
from uvim_like.ops import constraint
from uvim_like.training import optim, sharding


def abstract(**shapes):
  return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("axes, shape", [
    (None, {"data": 8}),
    ({"data": 4, "fsdp": 2}, {"data": 4, "fsdp": 2}),
    ([("data", -1), ("fsdp", 2)], {"data": 4, "fsdp": 2}),
    ((("fsdp", 8), ("data", -1)), {"fsdp": 8, "data": 1}),
    (ml_collections.FrozenConfigDict({"data": 2, "fsdp": -1}), {"data": 2, "fsdp": 4})])
def test_mesh_shapes(axes, shape):
  mesh = sharding.make_mesh(axes)
  assert dict(mesh.shape) == shape and list(mesh.shape) == list(shape)
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize("axes", [{"data": 3}, {"data": 4}, {"data": -1, "fsdp": -1}, {"data": -1, "fsdp": 3},
                                  {"data": 0}, {"model": 8}, [("data", 2), ("data", 4)]])
def test_mesh_that_does_not_fit(axes):
  with pytest.raises(UserError, match="config.mesh"):
    sharding.make_mesh(axes)


def test_mesh_error_lists_valid_sizes():
  with pytest.raises(UserError, match=r"there are 8; valid sizes of an axis: \[1, 2, 4, 8\]"):
    sharding.make_mesh({"data": 3})


def test_batch_goes_over_both_axes_in_order():
  mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
  image = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
  batch = sharding.to_global(mesh, {"image": image, "_mask": np.ones(16, np.float32)})
  np.testing.assert_array_equal(batch["image"], image)
  assert {shard.data.shape for shard in batch["image"].addressable_shards} == {(2, 3)}
  assert sharding.batch_sharding(mesh).spec == P(("data", "fsdp"))


def test_batch_size():
  mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
  sharding.check_batch_size(16, mesh)
  with pytest.raises(UserError, match=r"batch_size: 12 does not divide among 8 devices; nearest that does: 8 or 16"):
    sharding.check_batch_size(12, mesh)
  with pytest.raises(UserError, match="nearest that does: 8$"):
    sharding.check_batch_size(3, mesh)
  with pytest.raises(UserError, match="^config.val.batch_size: 1 does not divide"):
    sharding.check_batch_size(1, mesh, where="config.val.batch_size")
  with pytest.raises(UserError, match="accumulation"):
    sharding.check_batch_size(24, mesh, grad_accum_steps=2)


def test_rules():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  tree = {"params": {"encoder": abstract(kernel=(512, 256), bias=(256,), odd=(257, 255)),
                     "decoder": abstract(kernel=(256, 512), square=(256, 256))}, **abstract(step=())}
  placed = sharding.state_shardings(mesh, tree, [("decoder/.*kernel", (None, ("data", "fsdp"))), (".*", "fsdp")])
  spec = jax.tree.map(lambda s: s.spec, placed, is_leaf=lambda s: isinstance(s, jax.sharding.NamedSharding))
  assert spec["params"]["encoder"]["kernel"] == P("fsdp", None)
  assert spec["params"]["encoder"]["bias"] == P()  # small
  assert spec["params"]["encoder"]["odd"] == P()  # nothing divides
  assert spec["params"]["decoder"]["kernel"] == P(None, ("data", "fsdp"))
  assert spec["params"]["decoder"]["square"] == P(None, "fsdp")
  assert spec["step"] == P()
  small = sharding.state_shardings(mesh, tree, [(".*", "fsdp")], min_size=1)
  assert small["params"]["encoder"]["bias"].spec == P("fsdp")
  assert all(s.spec == P() for s in jax.tree.leaves(sharding.state_shardings(mesh, tree)))


@pytest.mark.parametrize("rules, message", [
    ([("encodr/.*", "fsdp"), (".*", "replicate")], "'encodr/.*' matches no leaf; did you mean"),
    ([(".*/kernel", "fsdp")], "no rule for 'params/encoder/bias'"),
    ([(".*", "fdsp")], "did you mean 'fsdp'"),
    ([(".*", (None, "model"))], "unknown mesh axis 'model'"),
    ([(".*", (None, "fsdp"))], "has 2 entries"),
    ([(".*", 3)], "a placement is")])
def test_wrong_rules(rules, message):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  with pytest.raises(UserError, match=message):
    sharding.state_shardings(mesh, {"params": {"encoder": abstract(bias=(8,), kernel=(8, 8))}}, rules)


def test_placement_that_does_not_divide():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  with pytest.raises(UserError, match=r"axis 1 of 'kernel' \(8, 6\) does not divide into 4 parts over fsdp"):
    sharding.state_shardings(mesh, abstract(kernel=(8, 6)), [(".*", (None, "fsdp"))])


def test_optimiser_state_follows_the_parameters():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
  params = {"encoder": {"a": {"kernel": jnp.ones((64, 128)), "bias": jnp.ones((128,))}}}
  config = {"optax_name": "scale_by_adafactor", "lr": 0.1, "wd": 0.1, "grad_clip_norm": 1.0}
  tx, _ = optim.make(config, params, total_steps=4)
  rules = [("encoder/.*kernel", (None, "fsdp")), (".*", "replicate")]
  placed = sharding.state_shardings(mesh, jax.eval_shape(tx.init, params), rules)
  state = jax.jit(tx.init, out_shardings=placed)(params)
  moments = state[1][0]
  assert moments.v_row["encoder"]["a"]["kernel"].shape == (64, 1)
  assert moments.v_row["encoder"]["a"]["kernel"].sharding.spec in (P(), P(None, None))
  assert moments.v_col["encoder"]["a"]["kernel"].addressable_shards[0].data.shape == (1, 32)
  sharded = jax.device_put(params, sharding.state_shardings(mesh, params, rules))
  grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), params)
  got, _ = jax.jit(tx.update)(jax.device_put(grads, sharding.state_shardings(mesh, grads, rules)), state, sharded)
  want, _ = jax.jit(tx.update)(grads, tx.init(params), params)
  np.testing.assert_allclose(got["encoder"]["a"]["kernel"], want["encoder"]["a"]["kernel"], rtol=1e-5, atol=1e-7)


def test_constraint_splits_the_batch_and_nothing_without_a_mesh():
  mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
  x = jnp.ones((16, 4))
  assert constraint.constrain_batch(x) is x

  def step(x, kernel):
    with constraint.use_mesh(mesh):
      return constraint.constrain_batch(x @ kernel)

  kernel = jax.device_put(jnp.ones((4, 8)), jax.sharding.NamedSharding(mesh, P(None, "fsdp")))
  out = jax.jit(step)(jax.device_put(x, sharding.replicated(mesh)), kernel)
  assert out.addressable_shards[0].data.shape == (2, 8)
  assert constraint.constrain_batch(x) is x
