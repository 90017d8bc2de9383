"""Checksums of arrays on their devices: whatever the sharding, and different as soon as a bit or a place differs."""

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvim_like import trees

Tree = Any
# MurmurHash3's 32-bit finaliser (Appleby 2011): a bijection, so that one changed word always changes the sum. A sum of
# words times weights would not do: two flipped sign bits cancel under any odd weights.
MIX = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))
GOLDEN = 0x9E3779B1  # 2³² over the golden ratio: spreads neighbouring positions


def _mix(x: jax.Array) -> jax.Array:
  """uint32 -> uint32, a bijection."""
  for shift, factor in MIX:
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  return x ^ (x >> 16)


def _words(leaf: jax.Array) -> jax.Array:
  """A leaf's bits as uint32; 64-bit numbers make two words each, on a last axis."""
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  size = min(leaf.dtype.itemsize, 4)
  return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)


def _positions(shape: Sequence[int]) -> jax.Array:
  """Row-major position of every element, modulo 2³², made where the element is."""
  position, stride = jnp.zeros(shape, jnp.uint32), 1
  for axis in reversed(range(len(shape))):
    position += jax.lax.broadcasted_iota(jnp.uint32, tuple(shape), axis) * jnp.uint32(stride % 2 ** 32)
    stride *= shape[axis]
  return position


@jax.jit
def leaf_checksum(leaf: jax.Array, seed: jax.Array) -> jax.Array:
  """(2,) uint32: two sums modulo 2³² of words hashed with their place, exact in any order of summation.

  Args:
    leaf: any real array.
    seed: () uint32, what the sum is bound to.
  """
  words = _words(leaf)
  hashed = _mix(words ^ _mix(_positions(words.shape) * jnp.uint32(GOLDEN) + seed))
  return jnp.stack([jnp.sum(hashed, dtype=jnp.uint32), jnp.sum(_mix(hashed + jnp.uint32(GOLDEN)), dtype=jnp.uint32)])


def checksums(tree: Tree, *, label: str = "") -> dict[str, str]:
  """{leaf name: 16 hexadecimal digits}, bound to the leaf's name and the label (a checkpoint's step).

  One small program for each shape, not one for the whole tree: states have hundreds of leaves and a dozen shapes.
  """
  named = trees.flatten_names(tree)
  sums = [leaf_checksum(leaf, np.uint32(zlib.crc32(f"{label}/{name}".encode()))) for name, leaf in named]
  return {name: f"{int(pair[0]):08x}{int(pair[1]):08x}" for (name, _), pair in zip(named, jax.device_get(sums))}


def digest(tree: Tree) -> str:
  """8 hexadecimal digits of a whole tree of arrays: names and bits."""
  return text_digest(checksums(tree))


def text_digest(values: Mapping[str, Any]) -> str:
  """8 hexadecimal digits of what JSON holds, whatever the order of keys."""
  return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"
