"""Backbones by name: every published name builds, mistakes name the place and the nearest choice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.models.backbones import PRESETS, make_backbone
from uvim_like.ops.constraint import use_mesh

TINY = {"ResNet": {"depths": [1, 1], "widths": [8, 16], "stem_width": 4},
        "ConvNeXt": {"depths": [1, 1], "widths": [8, 16]},
        "Swin": {"depths": [1, 1], "width": 8, "num_heads": [1, 2], "window_size": 4, "out_norms": [1]},
        "SwinV2": {"depths": [1, 1], "width": 8, "num_heads": [1, 2], "window_size": [4, 2], "use_shift": True,
                   "pretrain_window": 0, "out_norms": [0, 1], "position_hidden": 8},
        "ViT": {"width": 16, "depth": 1, "num_heads": 2, "patch": 8, "grid": [4, 4]}}


def test_every_name_builds():
  for name, (module, _) in PRESETS.items():
    assert isinstance(make_backbone({"name": name}), module)


@pytest.mark.parametrize("name", ["resnet50", "kmax_resnet50", "kmax_convnext_t", "swin_t", "swinv2_t", "vit_b"])
def test_maps_have_the_strides_and_the_compute_type(name):
  model = make_backbone({"name": name}, dtype=jnp.bfloat16)
  size = (65, 97) if name.startswith("kmax") else (64, 96)
  features = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0],
                            jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))
  assert len(features) == len(model.strides) and all(x.dtype == jnp.bfloat16 for x in features)
  assert [x.shape[1:3] for x in features] == [tuple(-(-n // s) for n in size) for s in model.strides]


@pytest.mark.parametrize("name", ["resnet50", "convnext_t", "swin_b", "swinv2_b", "vit_b"])
def test_small_variants_are_overrides_and_run_on_a_mesh(name, weights_of):
  model = make_backbone({"name": name, **TINY[PRESETS[name][0].__name__]})
  image = np.random.default_rng(0).normal(size=(4, 32, 48, 3)).astype(np.float32)
  variables = weights_of(model, image)
  want = jax.jit(model.apply)(variables, image)
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.device_put(image, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))

  def run(variables, image):
    with use_mesh(mesh):
      return model.apply(variables, image)

  got = jax.jit(run)(variables, split)
  assert all(len(x.sharding.device_set) == 4 for x in got)
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("fields, message", [
    ({}, "encoder: 'name' is missing"),
    ({"name": "resnet5"}, "encoder.name: unknown backbone 'resnet5'; did you mean 'resnet"),
    ({"name": "swin_b", "window": 7}, "encoder (swin_b): unknown field 'window'; did you mean 'window_size'?"),
    ({"name": "resnet50", "dtype": "bfloat16"}, "unknown field 'dtype'"),
    ({"name": "resnet50", "depths": (1, 2)}, "encoder.widths: (256, 512, 1024, 2048) has 4 values for 2 stages"),
    ({"name": "resnet50", "widths": (6, 8, 8, 8)}, "multiples of 4"),
    ({"name": "swinv2_b", "num_heads": (4, 8, 16, 30)}, "width 1024 is no multiple of 30; nearest: 16"),
    ({"name": "swinv2_b", "window_size": (8, 8)}, "encoder.window_size: (8, 8) has 2 values for 4 stages"),
    ({"name": "swin_b", "out_norms": (4,)}, "encoder.out_norms: (4,) names stages other than 0 to 3"),
    ({"name": "convnext_t", "drop_path": "much"}, "encoder.drop_path: 'much' cannot stand here"),
    ({"name": "resnet50", "frozen": 1}, "encoder.frozen: 1 cannot stand here"),
    ({"name": "kmax_convnext_t", "patch": 2}, "encoder.pad_odd: kMaX's padding is for a patch of 4, not 2"),
    ({"name": "convnext_t", "depths": (3, 3, 9, 3.5)}, "encoder.depths"),
    ({"name": "vit_b", "num_heads": 7}, "width 768 is no multiple of 7; nearest: 6"),
    ({"name": "vit_b", "pyramid": (32, 64)}, "encoder.pyramid: (32, 64): strides over a patch of 16 can be"),
    ({"name": "vit_b", "window": 14, "class_token": True}, "encoder.class_token"),
    ({"name": "vit_b", "global_blocks": (12,)}, "encoder.global_blocks"),
])
def test_mistakes_are_one_line_with_the_place(fields, message):
  with pytest.raises(UserError) as error:
    make_backbone(fields, where="encoder")
  assert message in str(error.value) and "\n" not in str(error.value)


def test_unknown_recomputation():
  with pytest.raises(UserError, match="config.remat: unknown value 'all'"):
    make_backbone({"name": "resnet50"}, remat="all")
