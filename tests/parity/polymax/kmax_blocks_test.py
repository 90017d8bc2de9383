"""Blocks and the whole pixel decoder of kMaX-DeepLab against the authors' program."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from uvim_like.models.kmax_pixel_decoder import AxialAttention2D, Block, PixelDecoder
from uvim_like.trees import flatten_names

pytestmark = pytest.mark.parity
TOLERANCE, TRAIN_TOLERANCE = 1e-5, 5e-5


class Group(nn.Module):
  """Blocks of one kind behind each other, as the pixel decoder puts them."""
  kind: str
  filters: int
  count: int
  dilation: int = 2

  @nn.compact
  def __call__(self, x, train=False):
    for i in range(self.count):
      x = Block(self.kind, self.filters, self.dilation, name=f"block{i + 1}")(x, train)
    return x


def groups(case):
  """[(name, module, input)] of a blocks file."""
  config = case.config
  return [("axial_group", Group("axial", config["filters"], config["blocks"]), case["in/x"]),
          ("bottleneck_group", Group("bottleneck", config["bfilters"], config["bblocks"]), case["in/bottleneck_x"])]


def outputs_of(case, name):
  """The stored key of a group's result: "out/features" of the axial ones, one with "bottleneck" of the others."""
  keys = [key for key in case.under("out/") if "/" not in key and "attention" not in key]
  return next(key for key in keys if ("bottleneck" in key) == name.startswith("bottleneck"))


@pytest.mark.parametrize("train", [False, True])
def test_block_groups(peers, train):
  for case in peers("kmax_blocks"):
    for name, module, x in groups(case):
      variables = case.variables(module, x, group=f"{name}/")
      call = jax.jit(functools.partial(module.apply, train=train, mutable=["state"] if train else False))
      out = call(variables, jnp.asarray(x))
      key = outputs_of(case, name)
      if not train:
        case.close(out, f"out/{key}", TOLERANCE)
        continue
      if f"out/train/{key}" not in case.arrays:
        assert name != "axial_group", f"{case.name}: the training pass of the axial blocks is part of the format"
        continue
      out, changed = out
      case.close(out, f"out/train/{key}", TRAIN_TOLERANCE)
      stored = {k: v for k, v in case.under("out/train/").items() if k.startswith(f"{name}/")}
      want = case.variables(module, x, group=f"{name}/", stored=stored)
      moved = dict(flatten_names(changed["state"]))
      assert set(moved) == {n for n, _ in flatten_names(want["state"])}
      for path, value in flatten_names(want["state"]):
        scale = max(float(jnp.max(jnp.abs(value))), 1e-30)
        assert float(jnp.max(jnp.abs(moved[path] - value))) <= TRAIN_TOLERANCE * scale, f"{case.name}: {path}"


def test_axial_attention_alone(peers):
  for case in peers("kmax_blocks"):
    x = jnp.asarray(case["in/attention2d_x"])
    module = AxialAttention2D(case.config["filters"])
    variables = case.variables(module, x, group="axial_group/block1/attention/")
    case.close(jax.jit(module.apply)(variables, x), "out/block1_attention2d", TOLERANCE)


def test_pixel_decoder(peers):
  for case in peers("kmax_pixel_decoder"):
    module = PixelDecoder(case.config["dims"], case.config["num_blocks"])
    levels = [jnp.asarray(case[f"in/stage{i}"]) for i in (2, 3, 4, 5)]
    variables = case.variables(module, levels)
    made = jax.jit(module.apply)(variables, levels)
    for name, value in zip(("decoder_stage1", "decoder_stage2", "decoder_stage3", "decoder_output"), made, strict=True):
      case.close(value, f"out/{name}", TOLERANCE)
    if case.config.get("train"):
      made, _ = jax.jit(functools.partial(module.apply, train=True, mutable=["state"]))(variables, levels)
      for name, value in zip(("decoder_stage1", "decoder_stage2", "decoder_stage3", "decoder_output"), made, strict=True):
        if f"out/train/{name}" in case.arrays:
          case.close(value, f"out/train/{name}", TRAIN_TOLERANCE)
