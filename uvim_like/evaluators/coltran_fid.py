"""FID-5k of colourisation (Kumar et al. 2021): needs Inception as a local file, and never makes a number up without it.

The file holds a function serialised with `jax.export`: (n, 256, 256, 3) float32 in [-1, 1] -> (n, D) activations of the
last pooling layer, n symbolic or 1, with the resize to the network's own input inside. It is written, for any function
`activations` that does this, by

  shape = jax.export.symbolic_shape("n, 256, 256, 3")
  exported = jax.export.export(jax.jit(activations))(jax.ShapeDtypeStruct(shape, "float32"))
  pathlib.Path("inception.jaxexport").write_bytes(exported.serialize())
"""

import pathlib
import struct
from collections.abc import Callable

import jax
import jax.export
import numpy as np

from uvim_like.errors import UserError
from uvim_like.evaluators import fid
from uvim_like.evaluators.base import Example, Metric
from uvim_like.evaluators.entries import required

# Size at which ColTran compares images.
SIZE = 256


def load_activations(path: str | None, *, size: int = SIZE) -> Callable[[np.ndarray], np.ndarray]:
  """(size, size, 3) -> (D,), from a serialised `jax.export` file; UserError when there is none or it does not fit."""
  if path is None or not pathlib.Path(path).is_file():
    raise UserError(f"coltran_fid: inception_weights={path!r} is no file; FID needs Inception exported to a local file "
                    "(format: uvim_like/evaluators/coltran_fid.py)")
  try:
    exported = jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
  except (ValueError, TypeError, IndexError, RuntimeError, struct.error) as error:
    raise UserError(f"coltran_fid: '{path}' is no function serialised with jax.export") from error
  shapes = [aval.shape for aval in exported.in_avals]
  if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1:] != (size, size, 3) or shapes[0][0] in range(2, 1 << 20):
    raise UserError(f"coltran_fid: '{path}' takes {shapes}, wanted one argument (n or 1, {size}, {size}, 3)")
  call = jax.jit(exported.call)
  return lambda image: np.asarray(jax.device_get(call(jax.device_put(image[None]))))[0]


def make(*, inception_weights: str | None = None, predicted: tuple[int, int] = (0, 5000),
         reference: tuple[int, int] = (5000, 10000), target_key: str = "image", size: int = SIZE) -> Metric:
  """FID between the colourised images of one range of a split and the true images of another.

  The published ranges, images 0:5000 and 10000:15000, count in the order in which TFDS reads ImageNet's validation set:
  dataset "read_order:imagenet2012", split "validation[:5000]+validation[10000:15000]", which has nothing else.

  Args:
    inception_weights: path of the exported network, see the module.
    predicted: positions (batch entry "_index") whose prediction "color" (h, w, 3) in [-1, 1] is judged.
    reference: positions whose true image (raw feature `target_key`, bytes) is the reference.
    target_key: raw feature with the image.
    size: side at which images are compared.

  Returns:
    A Metric giving {"fid", "predicted_images", "reference_images"}; fid is nan below two images a side. UserError
    without the network.
  """
  activations = load_activations(inception_weights, size=size)

  def update(stats: tuple[tuple, tuple], output: Example, target: Example) -> tuple[tuple, tuple]:
    index = int(required(target, "_index", where="coltran_fid, batch"))
    judged, truth = stats
    if predicted[0] <= index < predicted[1]:
      color = required(output, "color", where="coltran_fid, prediction")
      judged = judged + (activations(fid.predicted_image(color, size)),)
    if reference[0] <= index < reference[1]:
      image = required(target, target_key, where="coltran_fid, target")
      truth = truth + (activations(fid.reference_image(image, size)),)
    return judged, truth

  return Metric(
      init=lambda: ((), ()),
      update=update,
      merge=lambda a, b: (a[0] + b[0], a[1] + b[1]),
      compute=finish,
      target_keys=(target_key,),
      protocol=(f"FID of predictions {predicted[0]}:{predicted[1]} against images {reference[0]}:{reference[1]} of the "
                f"split, area resize to {size}, round((y+1)·128) in "
                f"0..255; activations by '{inception_weights}'"))


def finish(stats: tuple[tuple, tuple]) -> dict[str, float]:
  """{"fid", counts}; nan while one side has fewer than two images."""
  judged, truth = stats
  enough = min(len(judged), len(truth)) >= 2
  distance = fid.frechet_distance(np.stack(judged), np.stack(truth)) if enough else float("nan")
  return dict(fid=distance, predicted_images=float(len(judged)), reference_images=float(len(truth)))
