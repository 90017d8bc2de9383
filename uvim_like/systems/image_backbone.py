"""Which of a system's variables are its image backbone's, so that weights can go in and out of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from uvim_like.errors import UserError
from uvim_like.models.backbones import make_backbone

Tree = Any
NAMES = {"mad": "features", "polymax": "encoder", "ait": "backbone"}  # system's folder -> name among its parameters
SYSTEMS = ("ait.solver", "mad.decoder", "polymax.kmax", "polymax.per_pixel")


class ImageBackbone(NamedTuple):
  """The backbone of a config.

  Attributes:
    module: of `models.backbones`.
    name: of its parameters among the system's.
    owns_state: all of the system's state is the backbone's, under no name of its own.
  """
  module: nn.Module
  name: str
  owns_state: bool

  def of(self, tree: Mapping[str, Tree]) -> dict[str, Tree]:
    """The backbone's {"params", "state"} out of the system's."""
    state = tree.get("state") or {}
    return {"params": tree["params"][self.name], "state": state if self.owns_state else state.get(self.name, {})}

  def within(self, tree: Mapping[str, Tree]) -> dict[str, Tree]:
    """The backbone's {"params", "state"} where the system has them: the inverse of `of`."""
    state = tree["state"] if self.owns_state or not tree["state"] else {self.name: tree["state"]}
    return {"params": {self.name: tree["params"]}, "state": state}

  def full_name(self, name: str) -> str:
    """"params/x" of the backbone as the system's "params/<name>/x"."""
    group, _, rest = name.partition("/")
    return name if group == "state" and self.owns_state else f"{group}/{self.name}/{rest}"


def find(config: Mapping[str, Any], *, where: str) -> ImageBackbone:
  """The backbone of a config that other people's programs know too.

  Args:
    config: has `model_name` and `model`.
    where: the flag, for messages.

  Raises:
    UserError: a system without one, or one of our own kind.
  """
  system = config["model_name"].removeprefix("proj.")
  family, fields = system.partition(".")[0], config["model"].get("backbone")
  if family not in NAMES or not fields:
    raise UserError(f"{where}: '{system}' has no image backbone of the hub's kinds; systems that have: "
                    f"{', '.join(SYSTEMS)}")
  if fields["name"] == "stem":
    raise UserError(f"{where}: the backbone 'stem' is a few convolutions of our own, the hub knows none of its kind")
  return ImageBackbone(make_backbone(fields, where="config.model.backbone"), NAMES[family], family == "ait")
