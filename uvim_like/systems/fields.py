"""Builds a Flax module from a config block: unknown fields and missing ones are named before anything compiles."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp

from uvim_like.errors import UserError, suggest, unknown
from uvim_like.models.layers import REMAT

M = TypeVar("M", bound=nn.Module)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(module: type[M], fields: Mapping[str, Any], config: Mapping[str, Any], *, where: str) -> M:
  """`module` with the fields of a config block, and compute type, remat and scan from the config's own keys.

  Args:
    module: a Flax module class; its dataclass fields are what the block may hold.
    fields: the block; lists become tuples.
    config: gives dtype, remat and scan_layers, each optional.
    where: the block's name, for messages.

  Raises:
    UserError: an unknown field, with the nearest; a field without default that is missing; an unknown dtype or remat.
  """
  known = {f.name: f for f in dataclasses.fields(module) if f.name not in ("parent", "name")}
  common = {"dtype": DTYPES, "remat": REMAT, "scan_layers": (True, False)}
  for name in fields:
    if name not in known or name in common:
      raise unknown("field", name, set(known) - set(common), where=where)
  missing = [name for name, f in known.items() if name not in fields and name not in common
             and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
  if missing:
    raise UserError(f"{where}: '{missing[0]}' is missing")
  settings = {name: config.get(name) for name in common if config.get(name) is not None}
  for name, value in settings.items():
    if value not in tuple(common[name]) or (isinstance(value, bool) != (name == "scan_layers")):
      raise unknown("value", str(value), map(str, common[name]), where=f"config.{name}")
  if "dtype" in settings:
    settings["dtype"] = DTYPES[settings["dtype"]]
  return module(**{name: _plain(value) for name, value in fields.items()}, **settings)


def check_patches(size: Any, patch: Any, *, where: str) -> None:
  """Raises UserError unless both are (height, width) pairs and the image is a whole number of patches each way."""
  for key, pair in (("input_size", size), ("patch size", patch)):
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
      example = (pair, pair) if isinstance(pair, int) else (64, 64)
      raise UserError(f"{where}: {key} {pair!r} must be (height, width), e.g. {example}")
  for side, step, axis in zip(size, patch, ("height", "width")):
    if side % step:
      raise UserError(f"{where}.input_size: {axis} {side} is no multiple of the patch's {step}; "
                      f"nearest: {max(step, round(side / step) * step)}")


def check_choice(value: Any, choices: tuple[str, ...], *, where: str) -> None:
  """Raises UserError unless `value` is one of the words that a field may hold."""
  if value not in choices:
    raise UserError(f"{where}: '{value}' is none of {', '.join(choices)}; {suggest(str(value), choices)}")


def check_width(width: int, num_heads: int, posemb: str, *, where: str) -> None:
  """Raises UserError unless the width divides among the heads and the position embedding is of a known kind."""
  if width % num_heads:
    raise UserError(f"{where}: {width} is no multiple of num_heads {num_heads}; nearest: "
                    f"{max(1, round(width / num_heads)) * num_heads}")
  if posemb == "sincos2d" and (width % 4 or width < 8):
    raise UserError(f"{where}: {width} is no multiple of 4 from 8 on, which sincos2d needs; nearest: "
                    f"{max(2, round(width / 4)) * 4}")


def _plain(value: Any) -> Any:
  """Config values as hashable module fields: lists to tuples, blocks to plain dicts."""
  if isinstance(value, Mapping) or hasattr(value, "items"):
    return {k: _plain(v) for k, v in value.items()}
  return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value
