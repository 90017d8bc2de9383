"""DeepLab2's variables under our names: what `tools.import_weights --from=deeplab2` reads, from an .npz.

By the variables' names ("resnet50/stem/conv/kernel", …) a whole network or, with --part=encoder, its encoder; by the
keys of an object-based checkpoint (".../.ATTRIBUTES/VARIABLE_VALUE") the encoder.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tools.importing import import_backbone
from tools.importing.import_backbone import Loaded
from uvim_like import weights
from uvim_like.errors import UserError
from uvim_like.systems import image_backbone
from uvim_like.systems.polymax import deeplab2_names
from uvim_like.weights_peers import VARIABLE

SYSTEMS = ("polymax.kmax", "polymax.per_pixel")
# The optimizer's and the checkpoint's own entries.
PASSED_OVER = r"_CHECKPOINTABLE_OBJECT_GRAPH|(save_counter|global_step|step|optimizer)(/.*)?|.*/\.OPTIMIZER_SLOT/.*"


def read(source: str, config: Mapping[str, Any], shapes: dict[str, Any], *, part: str = "all",
         resample: bool = False) -> Loaded:
  """The arrays of an .npz under the names of the config's model.

  Args:
    source: .npz, {variable's name or key: array}.
    config: plain; its system is one of `SYSTEMS`.
    shapes: {"params", "state"} of the model.
    part: "all" or "encoder".
    resample: no choice here: no network of these has a table of positions that is resized.

  Raises:
    UserError: another system, part or kind of file; a damaged one.
  """
  del resample
  system = config["model_name"].removeprefix("proj.")
  if system not in SYSTEMS or part not in ("all", "encoder"):
    raise UserError(f"--from=deeplab2: config.model_name is '{system}', --part is '{part}'; valid: "
                    f"{', '.join(SYSTEMS)} with --part=all or encoder")
  flat = {name: value for name, value in weights.read_npz(weights.locate(source)).items()
          if not re.fullmatch(PASSED_OVER, name)}
  with import_backbone.about(source):
    if not any(name.endswith(VARIABLE) for name in flat):
      return by_variables(flat, config, shapes, part=part)
    if part == "all":
      raise UserError("keys of an object-based checkpoint, which are known for the encoder alone: use --part=encoder, or "
                      "write the variables by their names")
    found = image_backbone.find(config, where="--from=deeplab2")
    body = {name: value for name, value in flat.items() if name.startswith("encoder/")} or flat
    return import_backbone.place(body, found, ("kmax",), shapes)


def by_variables(flat: Mapping[str, np.ndarray], config: Mapping[str, Any], shapes: dict[str, Any], *,
                 part: str) -> Loaded:
  """Arrays under the names of variables; of the encoder's alone where that is wanted."""
  kept: list[str] = []
  first = ", ".join(list(flat)[:3])
  if part == "encoder":
    found = image_backbone.find(config, where="--from=deeplab2")
    kept = import_backbone.outside(found, shapes)
    ours = deeplab2_names.rename(list(flat))
    flat = {name: value for name, value in flat.items() if ours[name].startswith(f"{found.name}/")}
  loaded = deeplab2_names.to_variables(flat, shapes)
  if not any(set(tree) & set(shapes[group]) for group, tree in loaded.items()):
    raise UserError(f"none of its names is a variable of DeepLab2's; it begins with {first}")
  return Loaded(loaded, tuple(kept))
