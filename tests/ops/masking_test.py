"""Hidden patches: exactly as many as asked for, each as likely, whole patches, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops.masking import hidden_patches, zero_patches


@pytest.mark.parametrize(("ratio", "grid", "count"), [(0.5, (30, 30), 450), (0.3, (10, 3), 9), (0.1, (6, 5), 3),
                                                      (0.7, (3, 3), 7), (1.0, (2, 2), 4)])
def test_count_is_exact(ratio, grid, count):
  hidden = hidden_patches(jax.random.key(0), 5, grid, ratio)
  assert hidden.shape == (5, *grid) and np.all(hidden.sum((1, 2)) == count)


def test_every_patch_is_as_likely_and_examples_differ():
  hidden = np.asarray(hidden_patches(jax.random.key(1), 2000, (2, 3), 0.5))
  np.testing.assert_allclose(hidden.mean(0), 0.5, atol=0.05)
  assert len(np.unique(hidden.reshape(2000, -1), axis=0)) == 20  # all choices of 3 from 6


def test_whole_patches_vanish():
  x = jnp.ones((2, 10, 7, 1))
  y = np.asarray(zero_patches(jax.random.key(0), x, patch=4, ratio=0.5))[..., 0]
  for image in y:  # a 3 x 2 grid, the last row and column of patches cut
    blocks = [image[i:i + 4, j:j + 4] for i in (0, 4, 8) for j in (0, 4)]
    assert all(np.all(block == block[0, 0]) for block in blocks)
    assert sum(block[0, 0] == 0 for block in blocks) == 3


def test_nothing_hidden_is_the_map_itself():
  x = jax.random.normal(jax.random.key(0), (1, 5, 5, 1))
  assert zero_patches(jax.random.key(1), x, patch=4, ratio=0.0) is x
  labels = zero_patches(jax.random.key(1), jnp.ones((1, 8, 8, 1), jnp.int32), patch=4, ratio=0.5)
  assert labels.dtype == jnp.int32 and labels.sum() == 32
