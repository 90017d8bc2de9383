"""detectron2's state dicts under our names: what `tools.import_weights --from=detectron` reads.

A checkpoint of MAD's own program (backbone, transformer, vocabulary), or, with --part=encoder, a backbone alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tools.importing import import_backbone
from tools.importing.import_backbone import Loaded
from uvim_like import weights_torch
from uvim_like.errors import UserError
from uvim_like.models.mad import Model
from uvim_like.systems import image_backbone
from uvim_like.systems.mad import pretrained

FORMATS = ("detectron2",)


def read(source: str, config: Mapping[str, Any], shapes: dict[str, Any], *, part: str = "all",
         resample: bool = False) -> Loaded:
  """The arrays of a file under the names of the config's model.

  Args:
    source: .pth, .safetensors or .npz.
    config: plain; MAD's, or with part "encoder" that of any system with a backbone that detectron2 has too.
    shapes: {"params", "state"} of the model.
    part: "all" or "encoder".
    resample: resize position tables that were made for another window.

  Raises:
    UserError: another system, part or kind of file; a damaged one.
  """
  system = config["model_name"].removeprefix("proj.")
  if part == "base_model" or (part == "all" and system != "mad.decoder"):
    raise UserError(f"--from=detectron: config.model_name is '{system}', --part is '{part}'; a whole checkpoint is "
                    "MAD's (mad.decoder, --part=all), a backbone is read with --part=encoder")
  flat = weights_torch.read_state_dict(source)
  with import_backbone.about(source):
    if part == "all":
      return read_mad(flat, config, shapes, resample=resample)
    found = image_backbone.find(config, where="--from=detectron")
    return import_backbone.place(flat, found, FORMATS, shapes, resample=resample)


def read_mad(flat: Mapping[str, np.ndarray], config: Mapping[str, Any], shapes: dict[str, Any], *,
             resample: bool) -> Loaded:
  """Backbone, transformer and vocabulary of a state dict, and, under their own names, arrays that are none of them."""
  body = {name: value for name, value in flat.items() if name.startswith("backbone.")}
  params, rest = pretrained.from_detectron({name: value for name, value in flat.items() if name not in body},
                                           num_heads=config["model"].get("num_heads", Model.num_heads))
  if not params:
    raise UserError("no checkpoint of MAD's: it has no 'vocab_embed.…' and 'transformer.…', and begins with "
                    f"{', '.join(list(flat)[:3])}; a backbone alone is read with --part=encoder")
  if not body:
    return Loaded({"params": params} | rest)
  found = image_backbone.find(config, where="--from=detectron")
  tree = import_backbone.place(body, found, FORMATS, shapes, resample=resample).tree
  return Loaded(tree | rest | {"params": params | tree["params"]})
