"""Dictionary splits and code dropout against stored outputs of the authors' program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops import quantize

pytestmark = pytest.mark.parity


def files_with(golden_dir, *keys):
  """Arrays of every stored file that has all of `keys`."""
  found = []
  for path in sorted(golden_dir.rglob("*.npz")):
    with np.load(path) as data:
      if set(keys) <= set(data.files):
        found.append(dict(data))
  assert found, f"no file with {keys} under {golden_dir}"
  return found


def split_files(golden_dir):
  return files_with(golden_dir, "min_count", "perturb")


def split_states(data):
  """Names of the stored states."""
  names = sorted(key.partition("/")[0] for key in data if key.endswith("/in/counts"))
  assert names
  return names


def test_splits_are_exact(golden_dir):
  for data in split_files(golden_dir):
    split = jax.jit(functools.partial(quantize.split_unused, min_count=float(data["min_count"]),
                                      perturb=float(data["perturb"])))
    for name in split_states(data):
      dictionary, counts, key = split(*(jnp.asarray(data[f"{name}/in/{k}"]) for k in ("dictionary", "counts", "rng")))
      np.testing.assert_array_equal(counts, data[f"{name}/out/counts"], err_msg=name)
      np.testing.assert_array_equal(key, data[f"{name}/out/rng"], err_msg=name)
      np.testing.assert_allclose(dictionary, data[f"{name}/out/dictionary"], rtol=1e-6, atol=1e-7, err_msg=name)


def test_order_of_splits(golden_dir):
  """Each stored pair is the most and the least used word of its turn."""
  for data in split_files(golden_dir):
    for name in split_states(data):
      counts = np.array(data[f"{name}/in/counts"])
      for most, least in data[f"{name}/argmax_argmin_trace"]:
        assert (counts < data["min_count"]).any() and (counts.argmax(), counts.argmin()) == (most, least), name
        counts[[most, least]] = counts[most] / 2
      assert not (counts < data["min_count"]).any()
      np.testing.assert_array_equal(counts, data[f"{name}/out/counts"], err_msg=name)


def test_defaults_are_the_authors(golden_dir):
  for data in split_files(golden_dir):
    defaults = quantize.split_unused.__kwdefaults__
    assert np.float32(defaults["min_count"]) == data["min_count"]
    assert np.float32(defaults["perturb"]) == data["perturb"]


def dropout_files(golden_dir):
  return files_with(golden_dir, "importance", "thr", "kept_count_for_thr")


def test_number_of_kept_words_by_threshold(golden_dir):
  for data in dropout_files(golden_dir):
    importance = quantize.dropout_importance(len(data["importance"]))
    np.testing.assert_allclose(importance, data["importance"], atol=1e-6)
    kept = (np.asarray(importance) > data["thr"][:, None]).sum(-1)
    # A threshold that falls on a position's importance up to rounding may fall to either side.
    clear = np.abs(data["importance"] - data["thr"][:, None]).min(-1) > 1e-6
    np.testing.assert_array_equal(kept[clear], data["kept_count_for_thr"][clear])


@pytest.mark.parametrize("mode", ["ordered", "random"])
def test_masks_have_the_properties_of_the_stored_ones(golden_dir, mode):
  for data in dropout_files(golden_dir):
    stored = data[f"{mode}/mask"]
    ours = np.asarray(quantize.keep_mask(jax.random.key(int(data["dropout_rng_seed"])), *stored.shape, mode))
    assert ours.dtype == bool and ours.shape == stored.shape
    length = stored.shape[1]
    for mask in (ours, stored):
      prefix = np.arange(length) < mask.sum(-1, keepdims=True)
      assert (mask == prefix).all() if mode == "ordered" else (mask != prefix).any()
      # Uniform on 0..L, or nearly: 5 standard errors of the mean count.
      error = 5 * np.sqrt(((length + 1) ** 2 - 1) / 12 / len(mask))
      assert abs(mask.sum(-1).mean() - length / 2) < error


def test_dropout_of_many_examples(golden_dir):
  for data in dropout_files(golden_dir):
    length = len(data["importance"])
    for mode in ("ordered", "random"):
      mask = np.asarray(quantize.keep_mask(jax.random.key(1), 4096, length, mode))
      share = np.bincount(mask.sum(-1), minlength=length + 1) / len(mask)
      np.testing.assert_allclose(share, 1 / (length + 1), atol=5 * np.sqrt(1 / (length + 1) / len(mask)))
      expected = np.full(length, 0.5) if mode == "random" else np.asarray(data["importance"])
      np.testing.assert_allclose(mask.mean(0), expected, atol=5 * 0.5 / np.sqrt(len(mask)))
