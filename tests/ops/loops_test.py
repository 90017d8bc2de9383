"""Loops written out: the same values, no loop in the program, every pass counted."""

import jax
import jax.numpy as jnp
import numpy as np

from uvim_like.ops import loops


def accumulate(x):
  return loops.scan(lambda carry, row: (carry @ carry + row, carry.sum()), jnp.eye(8), x)


def test_same_values_and_no_loop():
  x = jax.random.normal(jax.random.key(0), (3, 8, 8)) / 10
  rolled = accumulate(x)
  with loops.written_out():
    flat_program = jax.jit(lambda x: accumulate(x)).lower(x).compile()
    flat = accumulate(x)
  rolled_program = jax.jit(lambda x: accumulate(x)).lower(x).compile()
  for got, want in zip(flat, rolled):
    np.testing.assert_allclose(got, want, rtol=1e-6)
  assert " while(" not in flat_program.as_text() and " while(" in rolled_program.as_text()
  assert flat_program.cost_analysis()["flops"] > 2.5 * rolled_program.cost_analysis()["flops"]


def test_state_is_put_back():
  before = str(jax.make_jaxpr(accumulate)(jnp.zeros((3, 8, 8))))
  with loops.written_out():
    inside = str(jax.make_jaxpr(lambda x: accumulate(x))(jnp.zeros((3, 8, 8))))
  assert str(jax.make_jaxpr(lambda x: accumulate(x))(jnp.zeros((3, 8, 8)))) == before != inside
