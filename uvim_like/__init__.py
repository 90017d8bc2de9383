"""UViM, AiT, MAD and PolyMaX in one codebase; `from uvim_like import load` predicts with a trained one."""


def load(source, **options):
  """A trained model that predicts: `model = load("workdir"); out = model("photo.jpg")`.

  Args:
    source: the workdir of a training, or its weights.npz.
    **options: of `uvim_like.inference.model.load`: step, temperature, decode, samples, seed, overrides.

  Returns:
    A `uvim_like.inference.model.Model`, called with a path or an array uint8 (H, W, 3).
  """
  from uvim_like.inference import model  # jax and flax load when a model is wanted, not with the package
  return model.load(source, **options)
