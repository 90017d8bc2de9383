"""Pretrained image encoders for stage II: AugReg ViTs old and new, stage I's base model, whole language models."""

import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from uvim_like import trees, weights
from uvim_like.errors import UserError
from uvim_like.models.uvim_lm import Model
from uvim_like.systems.base import Vars
from uvim_like.systems.fields import build
from uvim_like.systems.uvim import pretrained, vit

WIDTH, HEADS, MLP, LAYERS, PATCH = 8, 2, 12, 2, 4
SIZES = dict(num_layers=LAYERS, num_heads=HEADS, mlp_dim=MLP, emb_dim=WIDTH, patches={"size": (PATCH, PATCH)})


def make(input_size=(12, 20), **fields):
  return Model(vocab_size=7, seq_len=3, input_size=input_size, **(SIZES | dict(posemb_type="learn") | fields))


def filled(shapes, seed):
  """Numbers for a tree of shapes: what a fresh model has, without compiling an initialiser."""
  draw = arrays(seed)
  return jax.tree.map(lambda leaf: draw(*leaf.shape), shapes)


def init(model):
  return Vars(filled(jax.eval_shape(functools.partial(init_lm, model), jax.random.key(1)), 1))


def init_lm(model, key):
  return model.init(key, jnp.zeros((1, *model.input_size, 3)), jnp.zeros((1, model.seq_len), jnp.int32))["params"]


def encode(model, params, image):
  return jax.jit(functools.partial(model.apply, method="encode"))({"params": params}, image)


def arrays(seed=0):
  """A function (shape) -> small random float32 array."""
  rng = np.random.default_rng(seed)
  return lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)


def augreg(*, old=True, side=3, cls=True, place="Transformer/posembed_input/pos_embedding", blocks=(0, 1)):
  """{key: array} of a ViT as released: old numbering counts all modules of a block together."""
  draw = arrays()
  heads = WIDTH // HEADS
  norm_1, attention, mlp = ("LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3") if old else (
      "LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0")
  flat = {"embedding/kernel": draw(PATCH, PATCH, 3, WIDTH), "embedding/bias": draw(WIDTH), place: draw(
      1, side * side + cls, WIDTH), "head/kernel": draw(WIDTH, 5), "head/bias": draw(5),
      "Transformer/encoder_norm/scale": draw(WIDTH), "Transformer/encoder_norm/bias": draw(WIDTH)}
  if cls:
    flat["cls"] = draw(1, 1, WIDTH)
  for block in blocks:
    at = f"Transformer/encoderblock_{block}/"
    for norm in ("LayerNorm_0", norm_1):
      flat |= {f"{at}{norm}/scale": draw(WIDTH), f"{at}{norm}/bias": draw(WIDTH)}
    for name in ("query", "key", "value"):
      flat |= {f"{at}{attention}/{name}/kernel": draw(WIDTH, HEADS, heads), f"{at}{attention}/{name}/bias": draw(
          HEADS, heads)}
    flat |= {f"{at}{attention}/out/kernel": draw(HEADS, heads, WIDTH), f"{at}{attention}/out/bias": draw(WIDTH)}
    flat |= {f"{at}{mlp}/Dense_0/kernel": draw(WIDTH, MLP), f"{at}{mlp}/Dense_0/bias": draw(MLP),
             f"{at}{mlp}/Dense_1/kernel": draw(MLP, WIDTH), f"{at}{mlp}/Dense_1/bias": draw(WIDTH)}
  return flat


def by_hand(flat, image, positions, blocks, names):
  """The ViT's encoder in numpy, straight from the file's arrays; image (H, W, 3), positions (N, E)."""
  norm_1, attention, mlp = names
  height, width, _ = image.shape
  patches = image.reshape(height // PATCH, PATCH, width // PATCH, PATCH, 3).transpose(0, 2, 1, 3, 4)
  x = patches.reshape(-1, PATCH * PATCH * 3) @ flat["embedding/kernel"].reshape(-1, WIDTH) + flat["embedding/bias"]
  x = x + positions

  def norm(x, at):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-6) * flat[f"{at}/scale"] + flat[f"{at}/bias"]

  for block in blocks:
    at = f"Transformer/encoderblock_{block}/"
    y = norm(x, f"{at}LayerNorm_0")
    query, key, value = (np.einsum("nd,dhk->hnk", y, flat[f"{at}{attention}/{name}/kernel"])
                         + flat[f"{at}{attention}/{name}/bias"][:, None] for name in ("query", "key", "value"))
    scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(WIDTH // HEADS))
    mixed = scores / scores.sum(-1, keepdims=True) @ value
    x = x + np.einsum("hnk,hkd->nd", mixed, flat[f"{at}{attention}/out/kernel"]) + flat[f"{at}{attention}/out/bias"]
    y = norm(x, f"{at}{norm_1}") @ flat[f"{at}{mlp}/Dense_0/kernel"] + flat[f"{at}{mlp}/Dense_0/bias"]
    y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y ** 3)))
    x = x + y @ flat[f"{at}{mlp}/Dense_1/kernel"] + flat[f"{at}{mlp}/Dense_1/bias"]
  return norm(x, "Transformer/encoder_norm")


def bilinear(square, grid):
  """(k, k, E) resampled to (gh, gw, E) with the corners on the corners, one point at a time."""
  k = square.shape[0]
  out = np.zeros((*grid, square.shape[-1]))
  for i in range(grid[0]):
    for j in range(grid[1]):
      y, x = (index * (k - 1) / (n - 1) if n > 1 else 0.0 for index, n in zip((i, j), grid))
      top, left = min(int(y), k - 2), min(int(x), k - 2)
      for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
        for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
          out[i, j] += weight_y * weight_x * square[row, column]
  return out


OLD_NAMES = ("LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3")
NEW_NAMES = ("LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0")


@pytest.mark.parametrize("old, cls, place, blocks, prefix", [
    (True, True, "Transformer/posembed_input/pos_embedding", (9, 10), ""),
    (True, True, "Transformer/pos_embedding", (0, 1), "opt/target/"),
    (False, False, "pos_embedding", (0, 1), "params/"),
])
def test_augreg_vit_computes_what_its_file_says(tmp_path, old, cls, place, blocks, prefix):
  flat = augreg(old=old, cls=cls, place=place, blocks=blocks)
  np.savez(tmp_path / "vit.npz", **{prefix + key: value for key, value in flat.items()})
  model = make(input_size=(16, 28))
  loaded, report = pretrained.load_lm(init(model), sources={"encoder": str(tmp_path / "vit.npz")}, model=model)
  image = arrays(5)(2, 16, 28, 3)
  got = encode(model, loaded.params, image)
  positions = bilinear(flat[place][0, cls:].reshape(3, 3, WIDTH), (4, 7)).reshape(-1, WIDTH)
  for row in range(2):
    want = by_hand(flat, image[row], positions, blocks, OLD_NAMES if old else NEW_NAMES)
    np.testing.assert_allclose(got[row], want, atol=2e-5)
  assert report.splitlines()[0].startswith("encoder from") and " 0 missing, 0 extra, 0 mis-shaped" in report
  before = init(model).params
  jax.tree.map(np.testing.assert_array_equal, loaded.params["decoder"], before["decoder"])
  np.testing.assert_array_equal(loaded.params["pos_embedding_decoder"], before["pos_embedding_decoder"])


@pytest.mark.parametrize("side, grid", [(14, (32, 32)), (3, (2, 9)), (4, (3, 5)), (2, (5, 1)), (5, (5, 4))])
@pytest.mark.parametrize("cls", [0, 1])
def test_positions_are_resampled_corner_on_corner(side, grid, cls):
  positions = arrays()(1, side * side + cls, 6)
  got = pretrained.resample_positions(positions, grid)
  square = positions[0, cls:].reshape(side, side, 6)
  assert got.shape == (1, grid[0] * grid[1], 6) and got.dtype == np.float32
  np.testing.assert_allclose(got.reshape(*grid, 6), bilinear(square, grid), atol=1e-6)
  np.testing.assert_array_equal(got[0, 0], square[0, 0])
  if grid[0] > 1 and grid[1] > 1:
    np.testing.assert_array_equal(got[0, -1], square[-1, -1])


def test_positions_that_need_nothing_and_that_fit_nothing():
  positions = arrays()(1, 10, 4)
  np.testing.assert_array_equal(pretrained.resample_positions(positions, (3, 3)), positions[:, 1:])
  np.testing.assert_array_equal(pretrained.resample_positions(positions[:, :9], (3, 3)), positions[:, :9])
  # Ten rows are a class token and 3 x 3 places, also where the new grid happens to have ten places.
  assert not np.array_equal(pretrained.resample_positions(positions, (2, 5)), positions)
  half = pretrained.resample_positions(positions.astype(ml_dtypes.bfloat16), (2, 5))
  np.testing.assert_allclose(half, pretrained.resample_positions(positions, (2, 5)), atol=0.01)
  for shape in ((1, 7, 4), (9, 4), (2, 9, 4), (1, 0, 4)):
    with pytest.raises(UserError, match="no square grid"):
      pretrained.resample_positions(np.zeros(shape, np.float32), (3, 3))


def test_a_vit_that_does_not_fit(tmp_path):
  flat = augreg()
  path = tmp_path / "vit.npz"
  load = functools.partial(pretrained.load_lm, sources={"encoder": str(path)})
  np.savez(path, **flat)
  deep = make(num_layers=3)
  with pytest.raises(UserError, match=r"config.model_init.encoder.* 16 missing, 0 extra, 0 mis-shaped; missing enc"):
    load(init(deep), model=deep)
  wide = make(mlp_dim=16)
  with pytest.raises(UserError, match=r"6 mis-shaped; mis-shaped encoder/encoderblock_0/MlpBlock_0/Dense_0/bias: file"):
    load(init(wide), model=wide)
  np.savez(path, **flat, **{"conv_root/kernel": np.ones(3)})
  with pytest.raises(UserError, match="1 extra, 0 mis-shaped; extra conv_root/kernel"):
    load(init(make()), model=make())
  np.savez(path, **{key: value for key, value in flat.items() if "pos_embedding" not in key})
  with pytest.raises(UserError, match="no position embedding"):
    load(init(make()), model=make())
  with pytest.raises(UserError, match="config.model_init: unknown source 'encoders'; did you mean 'encoder'"):
    pretrained.load_lm(init(make()), sources={"encoders": str(path)}, model=make())


def stage_one_model(**fields):
  planes = {"depth": (5, PATCH * PATCH)}
  return vit.Model(inputs=planes, outputs=planes, input_size=(12, 20), patch_size=(PATCH, PATCH), code_len=4,
                   width=WIDTH, oracle_depth=1, base_model_depth=LAYERS, mlp_dim=MLP, num_heads=HEADS, dict_size=6,
                   with_encoder_ctx=True, with_decoder_ctx=True, **fields)


def stage_one(model):
  labels = {"depth": jnp.zeros((1, 15, PATCH * PATCH), jnp.int32)}
  keys = {"params": jax.random.key(3), "state": jax.random.key(4)}
  shapes = jax.eval_shape(model.init, keys, labels, jnp.zeros((1, 12, 20, 3)))
  base = Vars(filled(shapes["params"], 3), filled(shapes["state"], 4))
  base.params["decoder_stem"]["bias"] *= 0  # so that a code of zeros adds nothing to the image
  base.params["bottleneck_upsample"] *= 0
  return base


@pytest.mark.parametrize("posemb", ["learn", "sincos2d"])
@pytest.mark.parametrize("in_workdir", [True, False])
def test_base_model_becomes_the_encoder(tmp_path, posemb, in_workdir):
  base = stage_one(stage_one_model(posemb=posemb))
  file = tmp_path / ("weights.npz" if in_workdir else "stage1.npz")
  weights.save_vars(file, base)
  model = make(posemb_type=posemb)
  sources = {"base_model": str(tmp_path if in_workdir else file)}
  loaded, _ = pretrained.load_lm(init(model), sources=sources, model=model)
  same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  same(loaded.params["encoder"], base.params["decoder"])
  same(loaded.params["EmbedPatches"], base.params["ctx_dec_embedding"])
  same(loaded.params["decoder"], init(model).params["decoder"])
  if posemb == "learn":
    same(loaded.params["pos_embedding_encoder"], base.params["pos_embedding_decoder"])
  image = arrays(2)(1, 12, 20, 3)
  # The base model without any code (see `stage_one`): only the image flows through its blocks.
  blind = vit.Model(**{name: getattr(stage_one_model(posemb=posemb), name) for name in vit.Model.__dataclass_fields__
                       if name not in ("parent", "name", "outputs")}, outputs={})
  look = functools.partial(blind.apply, method="decode",
                           capture_intermediates=lambda module, _: module.name == "decoder")
  _, seen = jax.jit(look)({"params": base.params, "state": base.state}, None, image)
  np.testing.assert_allclose(encode(model, loaded.params, image),
                             seen["intermediates"]["decoder"]["__call__"][0], atol=1e-5)


def test_several_sources_and_whole_models(tmp_path):
  model = make()
  whole = Vars(jax.tree.map(lambda x: np.asarray(x) + 1, init(model).params))
  weights.save_vars(tmp_path / "lm.npz", whole)
  np.savez(tmp_path / "vit.npz", **augreg())
  sources = {"lm": str(tmp_path / "lm.npz"), "encoder": str(tmp_path / "vit.npz")}
  loaded, report = pretrained.load_lm(init(model), sources=sources, model=model)
  jax.tree.map(np.testing.assert_array_equal, loaded.params["decoder"], whole.params["decoder"])
  np.testing.assert_array_equal(loaded.params["EmbedPatches"]["bias"], augreg()["embedding/bias"])
  assert report.count("taken") == 2
  again, _ = pretrained.load_lm(init(model), sources=str(tmp_path / "lm.npz"), model=model)
  jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
  kept, report = pretrained.load_lm(init(model), sources=str(tmp_path / "lm.npz"), model=model,
                                    dont_load=["decoder/LogitsDense/.*"])
  assert "2 kept" in report
  logits = [params["decoder"]["LogitsDense"] for params in (kept.params, init(model).params)]
  jax.tree.map(np.testing.assert_array_equal, *logits)
  # What was loaded once serves as an encoder again.
  weights.save_vars(tmp_path / "again.npz", loaded)
  second, _ = pretrained.load_lm(init(model), sources={"encoder": str(tmp_path / "again.npz")}, model=model)
  jax.tree.map(np.testing.assert_array_equal, second.params["encoder"], loaded.params["encoder"])
  jax.tree.map(np.testing.assert_array_equal, second.params["decoder"], init(model).params["decoder"])


def golden_configs(golden_dir):
  for path in sorted(golden_dir.rglob("*_io.npz")):
    with np.load(path) as data:
      yield path.with_name(path.name.replace("_io.npz", "_ckpt.npz")), json.loads(str(data["config"]))


def test_published_layout_loads_strictly_and_is_written_back(golden_dir, tmp_path):
  """Every stored checkpoint fits the network of its config in shapes, and exports to the same keys and bits."""
  seen = 0
  for path, config in golden_configs(golden_dir):
    fields = {{"enc_depth": "oracle_depth", "dec_depth": "base_model_depth"}.get(k, k): v
              for k, v in config["model"].items()}
    if "vocab_size" in fields:
      model = build(Model, fields, config, where="config.model")
      shapes = {"params": jax.eval_shape(functools.partial(init_lm, model), jax.random.key(0)), "state": {}}
    else:
      model = vit.make_model(fields, config, where="config.model")
      patches, pixels = model.grid[0] * model.grid[1], model.patch_size[0] * model.patch_size[1]
      planes = {name: jax.ShapeDtypeStruct((1, patches, classes, pixels), jnp.float32)
                for name, (classes, _) in model.inputs.items()}
      image = jax.ShapeDtypeStruct((1, *model.input_size, 3), jnp.float32)
      shapes = jax.eval_shape(model.init, {"params": jax.random.key(0), "state": jax.random.key(0)}, planes, image)
    merged, report = weights.merge(dict(shapes), weights.load(path), where=path.name)
    assert report.fits and not report.kept and not report.renumbered
    weights.save_npz(tmp_path / "again.npz", merged)
    old, new = weights.read_npz(path), weights.read_npz(tmp_path / "again.npz")
    assert old.keys() == new.keys()
    assert all(old[key].dtype == new[key].dtype and old[key].tobytes() == new[key].tobytes() for key in old)
    seen += 1
  assert seen, f"no checkpoints in {golden_dir}"


def test_report_names_parameters_of_the_file(tmp_path):
  """Nothing of the image side stays at its initial value."""
  np.savez(tmp_path / "vit.npz", **augreg())
  model = make()
  before = init(model)
  loaded, _ = pretrained.load_lm(before, sources={"encoder": str(tmp_path / "vit.npz")}, model=model)
  after = dict(trees.flatten_names(loaded.params))
  for name, leaf in trees.flatten_names(before.params):
    image_side = name.startswith(("encoder/", "EmbedPatches/", "pos_embedding_encoder"))
    assert np.array_equal(leaf, after[name]) != image_side, name
