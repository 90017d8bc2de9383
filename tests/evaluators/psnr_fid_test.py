"""PSNR, the Fréchet distance and the FID evaluator with a toy network in the place of Inception."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.evaluators import coltran_fid, fid, psnr


def test_psnr_of_known_errors():
  metric = psnr.make()
  stats = metric.init()
  for error in (0.2, 0.02):  # 20 log10(2 / error) = 20 and 40 dB
    stats = metric.update(stats, dict(color=np.full((3, 5, 3), error)), dict(labels=np.zeros((3, 5, 3))))
  assert metric.compute(stats) == dict(psnr=pytest.approx(30.0), images=2.0)
  assert metric.compute(metric.merge(stats, metric.init())) == metric.compute(stats)
  assert np.isnan(metric.compute(metric.init())["psnr"])
  assert psnr.peak_signal_to_noise(np.ones((2, 2, 3)), np.ones((2, 2, 3)), 2.0) == np.inf


def test_psnr_against_raw_bytes():
  image = np.array([[[0, 255, 51]]], np.uint8)
  metric = psnr.make(target_key="image")
  stats = metric.update(metric.init(), dict(color=np.array([[[-1.0, 1.0, -0.6]]]) + 0.2), dict(image=image))
  assert metric.target_keys == ("image",) and metric.compute(stats)["psnr"] == pytest.approx(20.0)
  with pytest.raises(UserError, match="differ in size"):
    metric.update(metric.init(), dict(color=np.zeros((2, 2, 3))), dict(image=image))


def test_frechet_distance_of_known_gaussians():
  """Diagonal covariances: the sum of (difference of means)² + (difference of deviations)²."""
  base = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
  a, b = base * [1.0, 2.0], base * [3.0, 2.0] + [0.0, 5.0]
  assert fid.frechet_distance(a, b) == pytest.approx(25 + (2 ** 2) * 4 / 3)
  with pytest.raises(UserError, match="two sets"):
    fid.frechet_distance(a[:1], b)
  assert fid.frechet_distance(a[:, :1], b[:, :1]) == pytest.approx(4 * 4 / 3)


def test_quantising_rounds_clips_and_maps_back():
  color = np.array([-1.5, -1.0, 0.0, 0.5 / 128, 1.5 / 128, 1.0])
  np.testing.assert_array_equal(fid.quantise(color), [0, 0, 128, 128, 130, 255])  # halves go to the even neighbour
  np.testing.assert_array_equal(fid.normalise(np.array([0, 128, 255])), np.float32([-1, 0, 127 / 128]))


@pytest.fixture
def network(tmp_path):
  """An exported function: the mean and the spread of each channel of an 8x8 image."""
  def activations(images):
    return jnp.concatenate([images.mean((1, 2)), images.std((1, 2))], axis=-1)
  shape = jax.export.symbolic_shape("n, 8, 8, 3")
  exported = jax.export.export(jax.jit(activations))(jax.ShapeDtypeStruct(shape, jnp.float32))
  path = tmp_path / "network.jaxexport"
  path.write_bytes(exported.serialize())
  return str(path)


def test_fid_evaluator_compares_the_two_ranges(network):
  rng = np.random.default_rng(0)
  metric = coltran_fid.make(inception_weights=network, predicted=(0, 5), reference=(7, 12), size=8)
  images = rng.integers(0, 256, (12, 21, 16, 3)).astype(np.uint8)
  colors = rng.uniform(-1.2, 1.2, (12, 16, 16, 3)).astype(np.float32)
  stats = metric.init()
  for k in range(12):
    stats = metric.update(stats, dict(color=colors[k]), {"image": images[k], "_index": np.int64(k)})

  def activations(batch):
    return np.concatenate([batch.mean((1, 2)), batch.std((1, 2))], axis=-1)
  pred = activations(np.stack([fid.predicted_image(c, 8) for c in colors[:5]]))
  truth = activations(np.stack([fid.reference_image(i, 8) for i in images[7:]]))
  results = metric.compute(stats)
  assert results["fid"] == pytest.approx(fid.frechet_distance(pred, truth), rel=1e-3)
  assert (results["predicted_images"], results["reference_images"]) == (5, 5)
  assert np.isnan(metric.compute(metric.init())["fid"])
  assert metric.compute(metric.merge(metric.init(), stats)) == results
  with pytest.raises(UserError, match="no '_index'"):
    metric.update(stats, dict(color=colors[0]), dict(image=images[0]))


def test_fid_without_its_network_is_refused(tmp_path, network):
  with pytest.raises(UserError, match="inception_weights=None is no file"):
    coltran_fid.make()
  with pytest.raises(UserError, match="takes .*8, 8, 3.*wanted one argument"):
    coltran_fid.make(inception_weights=network)
  broken = tmp_path / "broken"
  broken.write_bytes(b"these are no weights at all, only text")
  with pytest.raises(UserError, match="no function serialised"):
    coltran_fid.make(inception_weights=str(broken))
