"""Variables of PolyMaX's networks: fresh and pretrained."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uvim_like import weights
from uvim_like.errors import UserError, unknown
from uvim_like.systems.base import Vars
from uvim_like.systems.polymax import deeplab2_names
from uvim_like.trees import match_first

Array = jax.Array
Tree = Any
SOURCES = ("model", "encoder", "deeplab2")
INIT_SIDE = 33  # pixels of the image that a fresh network sees: no parameter depends on it
# What may be absent from a checkpoint of another task, or be there in vain: the outputs of queries, and the branch that
# only segmentation has. Everything else must have a counterpart.
TASK_PARTS = (".*/value_head/.*", ".*/transformer_class_head/.*", "semantic_branch/.*")


def init(key: Array, batch: Mapping[str, Array], *, model: nn.Module) -> Vars:
  """Fresh parameters and statistics; the batch is not looked at."""
  del batch
  variables = model.init({"params": key}, jnp.zeros((1, INIT_SIDE, INIT_SIDE, 3)))
  return Vars(params=variables["params"], state=variables.get("state", {}))


def apply(model: nn.Module, variables: Vars, image: Array, key: Array, *, train: bool) -> tuple[Any, Tree]:
  """The network's outputs, and the next batch statistics (the present ones when not training)."""
  collections = {"params": variables.params, "state": variables.state}
  if not train:
    return model.apply(collections, image), variables.state
  outputs, changed = model.apply(collections, image, train=True, mutable=["state"], rngs={"dropout": key})
  return outputs, changed.get("state", variables.state)


def load(variables: Vars, *, sources: str | Mapping[str, str], encoder: Mapping[str, Any],
         dont_load: Sequence[str] = ()) -> tuple[Vars, str]:
  """Fresh variables with the weights that `config.model_init` names.

  Args:
    variables: fresh.
    sources: a file or workdir of a PolyMaX training, also of another task or number of classes: leaves of another
      shape, and heads that only one of the tasks has, stay fresh and are reported. Or {"model": the same, "encoder": a
      backbone's weights, "deeplab2": an .npz under the authors' variable names}, each optional, in this order.
    encoder: the config's backbone block.
    dont_load: patterns of full names that keep their initial value.

  Returns:
    variables and the report of what was taken.

  Raises:
    UserError: an unknown kind of source, a file that is not there, weights of another network.
  """
  sources = {"model": sources} if isinstance(sources, str) else dict(sources)
  reports = []
  for kind, source in sources.items():
    if kind not in SOURCES:
      raise unknown("source", kind, SOURCES, where="config.model_init")
    where = f"config.model_init.{kind}"
    if kind == "encoder":
      variables, text = load_encoder(variables, source, encoder, dont_load, where=where)
    else:
      variables, text = load_model(variables, source, dont_load, kind=kind, where=where)
    reports.append(f"{kind} from {source}: {text}")
  return variables, "\n".join(reports)


def load_model(variables: Vars, source: str, dont_load: Sequence[str], *, kind: str, where: str) -> tuple[Vars, str]:
  """A whole network; what its task alone has, and what has another shape, stays fresh."""
  fresh = {"params": variables.params, "state": variables.state}
  if kind == "deeplab2":
    loaded = deeplab2_names.to_variables(weights.read_npz(weights.locate(source)), fresh)
  else:
    loaded = weights.load(source, where=where)
  prefixed = [f"(params|state)/({pattern})" for pattern in dont_load]
  merged, report = weights.merge(fresh, loaded, prefixed, strict=False, where=where)
  wrong = [name for name in (*report.missing, *report.extra)
           if match_first(name.partition("/")[2], list(TASK_PARTS)) is None]
  if wrong or not report.taken:
    raise UserError(f"{where}: '{source}' is another network: {report.line()}")
  return Vars(params=merged["params"], state=merged["state"]), report.text()


def load_encoder(variables: Vars, source: str, encoder: Mapping[str, Any], dont_load: Sequence[str], *,
                 where: str) -> tuple[Vars, str]:
  """The backbone from a workdir or file of ours: a network that has an `encoder`, or a bare backbone."""
  loaded = weights.load(source, where=where)
  parts = {part: tree.get("encoder", tree) for part, tree in loaded.items()}
  fresh = {"params": variables.params["encoder"], "state": variables.state.get("encoder", {})}
  merged, report = weights.merge(fresh, parts, [f"(params|state)/({p})" for p in dont_load],
                                 where=f"{where} ({encoder.get('name')}): {source}")
  params = {**variables.params, "encoder": merged["params"]}
  state = {**variables.state, "encoder": merged["state"]} if merged["state"] else variables.state
  return Vars(params=params, state=state), report.text()
