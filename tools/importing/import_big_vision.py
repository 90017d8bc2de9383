"""big_vision's .npz files under our names: what `tools.import_weights --from=big_vision` reads."""

from collections.abc import Mapping
from typing import Any

from tools.importing.import_backbone import LANGUAGE_MODEL, Loaded
from uvim_like import weights
from uvim_like.errors import UserError
from uvim_like.systems.fields import build
from uvim_like.systems.uvim import lm, pretrained


def read(source: str, config: Mapping[str, Any], shapes: dict[str, Any], *, part: str = "all",
         resample: bool = False) -> Loaded:
  """The arrays of a file, workdir or published name under the names of the config's model.

  Args:
    source: see `weights.locate`.
    config: plain.
    shapes: {"params", "state"} of the model.
    part: "all", or, for a language model, "encoder" (a ViT) or "base_model" (a stage I).
    resample: no choice here: a ViT's position embedding is resampled always, nothing else is.

  Raises:
    UserError: no such source, a part that the system has not.
  """
  del resample
  loaded = weights.load(source, where="--src")
  if part == "all":
    return Loaded(loaded)
  if config["model_name"].removeprefix("proj.") != LANGUAGE_MODEL:
    raise UserError(f"--part={part}: only the language model (uvim.lm) is made of parts, config.model_name is "
                    f"'{config['model_name']}'; use --part=all")
  model = build(lm.Model, config["model"], config, where="config.model")
  params = pretrained.lm_params(loaded["params"], kind=part, model=model, where=f"--src={source}")
  return Loaded({"params": params}, tuple(pretrained.kept_patterns(shapes["params"], part)))
