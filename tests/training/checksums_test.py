"""Checksums see what a plain sum does not, and do not see how a leaf lies on its devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.training import checksums, sharding

VALUES = np.random.RandomState(0).standard_normal((8, 12)).astype(np.float32)


def total(array, seed=5) -> tuple[int, ...]:
  return tuple(np.asarray(checksums.leaf_checksum(jnp.asarray(array), np.uint32(seed))).tolist())


def bits(array):
  return array.view(np.uint32)


def exchanged(array, a, b):
  out = array.copy()
  out[a], out[b] = array[b], array[a]
  return out


def flipped(array, *places, bit=31):
  out = array.copy()
  for place in places:
    bits(out)[place] ^= np.uint32(1 << bit)
  return out


@pytest.mark.parametrize("changed", [
    exchanged(VALUES, (0, 0), (0, 1)), exchanged(VALUES, (0, 0), (7, 11)), VALUES[::-1], VALUES[:, ::-1],
    flipped(VALUES, (0, 0), bit=0), flipped(VALUES, (3, 4)), flipped(VALUES, (0, 0), (0, 1)), flipped(VALUES, (0, 0), (5, 7)),
    flipped(VALUES, *((i, j) for i in range(8) for j in range(12))), VALUES.reshape(12, 8).T.copy(), np.zeros_like(VALUES)])
def test_what_changed_is_seen(changed):
  assert total(changed) != total(VALUES)


def test_every_single_bit_is_seen():
  seen = {total(flipped(VALUES, (row, column), bit=bit)) for row in (0, 3) for column in (0, 11) for bit in range(32)}
  assert len(seen) == 128 and total(VALUES) not in seen


def test_sums_of_random_pairs_do_not_meet():
  """Two compensating changes of a plain sum, many times: +d here, -d there."""
  numbers, base = np.random.RandomState(1), total(VALUES)
  for _ in range(200):
    changed, (a, b) = VALUES.copy(), numbers.choice(VALUES.size, 2, replace=False)
    delta = np.uint32(numbers.randint(1, 2 ** 31))
    flat = bits(changed).reshape(-1)
    flat[[a, b]] += np.array([delta, 2 ** 32 - int(delta)], np.uint64).astype(np.uint32)
    assert bits(changed).sum(dtype=np.uint32) == bits(VALUES).sum(dtype=np.uint32) and total(changed) != base


@pytest.mark.parametrize("spec", [("data", None), (None, "fsdp"), ("data", "fsdp"), (None, None)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_placement_does_not_matter(spec, dtype):
  mesh = sharding.make_mesh([("data", 4), ("fsdp", 2)])
  array = jnp.asarray(VALUES * 10).astype(dtype)
  placed = jax.device_put(array, jax.NamedSharding(mesh, jax.P(*spec)))
  assert total(placed) == total(array)


def test_bound_to_name_and_label():
  tree = {"a": {"x": VALUES}, "b": {"x": VALUES}, "c": jnp.int32(3)}
  sums, later = checksums.checksums(tree, label="1"), checksums.checksums(tree, label="2")
  assert list(sums) == ["a/x", "b/x", "c"] and all(len(value) == 16 for value in sums.values())
  assert len({*sums.values(), *later.values()}) == 6
  assert checksums.digest(tree) != checksums.digest({"a": {"x": VALUES}, "b": {"y": VALUES}, "c": jnp.int32(3)})


def test_odd_shapes():
  for shape in ((), (0,), (1,), (3, 0, 2), (2, 3, 4, 5)):
    assert len(total(np.ones(shape, np.float32))) == 2
  assert total(np.ones((6,), np.float32)) == total(np.ones((2, 3), np.float32))  # the shape is compared apart
