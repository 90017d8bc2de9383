"""PolyMaX and its baseline as systems: what learns from what, nothing that is not finite, images of any size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like import weights
from uvim_like.errors import UserError
from uvim_like.systems import batch_stats
from uvim_like.systems.base import Vars
from uvim_like.systems.polymax import kmax, per_pixel
from uvim_like.trees import flatten_names

KEY = jax.random.key(0)
ENCODER = dict(name="kmax_resnet18", depths=[1, 1, 1, 1], widths=[4, 4, 8, 8], stem_width=4)
QUERIES = dict(backbone=ENCODER, dims=[8, 8, 4, 4], blocks=[1, 1, 1, 1], layers=[1, 0, 0], width=16, key_dim=8, mlp_dim=16,
               hidden_dim=8, mask_dim=8, branch_dim=8)
PIXELS = dict(backbone=ENCODER, features=8, aspp_features=8, low_features=4)
SIZE = (20, 37)
FIELDS = {"semantic_segmentation": dict(num_queries=5), "depth": dict(num_queries=6), "surface_normals": dict(num_queries=4),
          "panoptic_segmentation": dict(num_queries=7, num_classes=5)}


def config_of(task, **changes):
  """A small config; `losses`, `head`, `model` (a dict over the model's fields) and others as given."""
  model = QUERIES | FIELDS[task] | changes.pop("model", {})
  head = {"head": dict(num_things=3, max_instances=4)} if task == "panoptic_segmentation" else {}
  return {"task": task, "model": model, **head, **changes}


def batch_of(task, size=SIZE, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  labels = {"semantic_segmentation": lambda: rng.integers(0, 6, (batch, *size, 1)).astype(np.int32),
            "depth": lambda: rng.uniform(-1, 9, (batch, *size, 1)).astype(np.float32),
            "surface_normals": lambda: unit(rng.normal(size=(batch, *size, 3))),
            "panoptic_segmentation": lambda: rng.integers(0, 5, (batch, *size, 2)).astype(np.int32)}[task]()
  return {"image": rng.uniform(-1, 1, (batch, *size, 3)).astype(np.float32), "labels": labels}


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def random_vars(system, batch, seed=0):
  """Variables of the right shapes, none of them zero; drawing them on the device would take minutes to compile."""
  shapes, rng = jax.eval_shape(system.init, KEY, batch), np.random.default_rng(seed)

  def draw(path, leaf):
    name = str(path[-1].key)
    spread = {"scale": lambda: 1 + 0.1 * rng.normal(size=leaf.shape), "var": lambda: rng.uniform(0.5, 1.5, leaf.shape),
              "bias": lambda: 0.1 * rng.normal(size=leaf.shape), "mean": lambda: 0.1 * rng.normal(size=leaf.shape)}
    fan = max(int(np.prod(leaf.shape[:-1])), 1)
    return jnp.asarray(spread.get(name, lambda: rng.normal(size=leaf.shape) * fan ** -0.5)(), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def step_of(system):
  """Jitted (params, state, batch) -> ((loss, LossOut), gradients)."""
  def objective(params, state, batch):
    out = system.loss(Vars(params, state), (), batch, KEY, True)
    return out.loss, out
  return jax.jit(jax.value_and_grad(objective, has_aux=True))


def all_finite(tree):
  return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


@functools.cache
def trained(task):
  """(system, variables, batch, loss, LossOut, gradients, compiled step)."""
  system, batch = kmax.make(config_of(task)), batch_of(task)
  variables, step = random_vars(system, batch), step_of(system)
  (loss, out), grads = step(variables.params, variables.state, batch)
  return system, variables, batch, loss, out, grads, step


TERMS = {"semantic_segmentation": ("mask_id", "dice", "instance"), "depth": ("silog", "relative", "gradient"),
         "surface_normals": ("normals",), "panoptic_segmentation": ("mask_id", "dice", "instance", "class")}

# Half a minute to compile each; panoptic segmentation has the losses of semantics and one more, normals fewer than depth.
SLOW = ("semantic_segmentation", "surface_normals")
BY_TASK = [pytest.param(task, marks=pytest.mark.slow) if task in SLOW else task for task in sorted(FIELDS)]


@pytest.mark.parametrize("task", BY_TASK)
def test_training_step(task):
  _, variables, _, loss, out, grads, _ = trained(task)
  names = {f"loss_{name}{end}" for name in TERMS[task] for end in ("", "_layers")}
  if task.endswith("segmentation"):
    names.add("loss_semantic")
  assert set(out.parts) == names and all(part.shape == (2,) for part in out.parts.values())
  np.testing.assert_allclose(loss, sum(np.mean(part) for part in out.parts.values()), rtol=1e-5)
  assert all_finite(grads) and all_finite(out.state)
  silent = [name for name, leaf in flatten_names(grads) if not np.any(leaf)]
  assert not silent, silent[:5]
  moved = [name for (name, old), new in zip(flatten_names(variables.state), jax.tree.leaves(out.state), strict=True)
           if not np.array_equal(old, new)]
  assert len(moved) == len(jax.tree.leaves(variables.state))


def test_layers_learn_from_their_own_losses_only():
  """The assignment passes no gradient: without losses of its own a layer's predictor gets none."""
  task = "depth"
  _, variables, batch, *_, grads, _ = trained(task)
  alone = kmax.make(config_of(task, losses=dict(layers=0.0)))
  _, cut = step_of(alone)(variables.params, variables.state, batch)
  own = grads["transformer_decoder"]["layer_0"]["predictor"]
  assert all(np.any(leaf) for leaf in jax.tree.leaves(own))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(cut["transformer_decoder"]["layer_0"]["predictor"]))
  assert np.any(cut["transformer_decoder"]["layer_0"]["pixel_v_conv_bn"]["conv"]["kernel"])
  assert np.any(cut["predictor"]["value_head"]["kernel"])


@pytest.mark.parametrize("task", BY_TASK)
def test_nothing_to_learn_from_is_no_nan(task):
  _, variables, batch, *_, step = trained(task)
  (loss, out), grads = step(variables.params, variables.state, {**batch, "labels": np.zeros_like(batch["labels"])})
  assert np.isfinite(loss) and all_finite(grads) and all_finite(out.parts)
  if task == "panoptic_segmentation":  # without masks every query is "no object"
    return
  assert all(np.all(part == 0) for part in out.parts.values())


def test_opposite_vectors_that_cancel_are_no_nan():
  _, variables, batch, *_, step = trained("surface_normals")
  params = jax.tree.map(lambda leaf: leaf, variables.params)  # other dicts, same leaves
  queries = params["transformer_decoder"]["cluster_centers"]
  params["transformer_decoder"]["cluster_centers"] = jnp.zeros_like(queries)  # all queries alike
  head = params["predictor"]["value_head"]
  params["predictor"]["value_head"] = {"kernel": jnp.zeros_like(head["kernel"]), "bias": jnp.zeros_like(head["bias"])}
  (loss, _), grads = step(params, variables.state, batch)
  assert np.isfinite(loss) and all_finite(grads)


OUTPUTS = {"semantic_segmentation": {"semantics": ()}, "depth": {"depth": ()}, "surface_normals": {"normals": (3,)},
           "panoptic_segmentation": {"semantics": (), "instances": ()}}


@pytest.mark.parametrize(("task", "size"), [pytest.param("semantic_segmentation", (33, 50), marks=pytest.mark.slow), ("depth", (1, 70)),
                                            ("surface_normals", (40, 34)), ("panoptic_segmentation", SIZE)])
def test_an_image_of_any_size_gives_a_map_of_its_size(task, size):
  system, variables, *_ = trained(task)
  image = batch_of(task, size=size)["image"]
  out = jax.jit(lambda v, x: system.predict["maps"](v, (), {"image": x}, KEY))(variables, image)
  for name, rest in OUTPUTS[task].items():
    assert out[name].shape == (2, *size, *rest)
  np.testing.assert_allclose(np.sum(out["maps"], -1), 1, rtol=1e-5)
  assert out["maps"].shape == (2, *size, FIELDS[task]["num_queries"])
  if task == "depth":
    assert np.all(out["depth"] > 0) and np.all(np.diff(out["centers"][..., 0], axis=1) >= 0)
  if task == "surface_normals":
    np.testing.assert_allclose(np.linalg.norm(out["normals"], axis=-1), 1, rtol=1e-5)
    assert np.all(np.diff(out["centers"][..., 0], axis=1) >= 0)
  if task == "semantic_segmentation":
    assert out["semantics"].dtype == np.int32 and 1 <= out["semantics"].min() <= out["semantics"].max() <= 5
    np.testing.assert_array_equal(out["centers"][0, :, 0], np.arange(1, 6))


def test_accumulated_statistics_are_the_mean_of_the_micro_batches():
  one, two = ({"n": {"mean": jnp.array([v]), "var": jnp.array([v + 1])}} for v in (1.0, 4.0))
  stats = jax.tree.map(jnp.add, batch_stats.sums(one), batch_stats.sums(two))
  got = batch_stats.advance(one, stats, KEY)
  np.testing.assert_allclose([got["n"]["mean"], got["n"]["var"]], [[2.5], [3.5]])
  *_, out, _, _ = trained("depth")
  assert batch_stats.advance((), out.stats, KEY).keys() == out.state.keys()
  for (name, new), old in zip(flatten_names(batch_stats.advance((), out.stats, KEY)), jax.tree.leaves(out.state), strict=True):
    np.testing.assert_array_equal(new, old, err_msg=name)


@pytest.mark.parametrize("task", ["semantic_segmentation", "depth", "surface_normals"])
def test_baseline(task):
  fields = PIXELS | ({"outputs": 5} if task == "semantic_segmentation" else {})
  losses = {"losses": dict(silog=0.0, relative=0.0, gradient=0.0, charbonnier=1.0)} if task == "depth" else {}
  system, batch = per_pixel.make({"task": task, "model": fields, **losses}), batch_of(task)
  variables = random_vars(system, batch)
  (loss, out), grads = step_of(system)(variables.params, variables.state, batch)
  assert len(out.parts) == 1 and np.isfinite(loss) and all_finite(grads)
  got = jax.jit(lambda v, x: system.predict["predict"](v, (), {"image": x}, KEY))(variables, batch["image"])
  for name, rest in OUTPUTS[task].items():
    assert got[name].shape == (2, *SIZE, *rest)


def test_weights_of_another_task_and_of_another_number_of_queries(tmp_path):
  system, variables, batch, *_ = trained("depth")
  weights.save_vars(tmp_path / "depth.npz", variables)
  other = kmax.make(config_of("surface_normals", model_init=str(tmp_path / "depth.npz")))
  fresh = random_vars(other, batch_of("surface_normals"), seed=1)
  loaded, report = other.load(fresh)
  np.testing.assert_array_equal(loaded.params["encoder"]["stem"]["conv"]["kernel"],
                                variables.params["encoder"]["stem"]["conv"]["kernel"])
  np.testing.assert_array_equal(loaded.params["predictor"]["value_head"]["kernel"],
                                fresh.params["predictor"]["value_head"]["kernel"])
  np.testing.assert_array_equal(loaded.params["transformer_decoder"]["cluster_centers"],
                                fresh.params["transformer_decoder"]["cluster_centers"])
  assert "mis-shaped" in report and "cluster_centers" in report and "value_head" in report
  wide = kmax.make(config_of("depth", model=dict(layers=[1, 1, 0]), model_init=str(tmp_path / "depth.npz")))
  with pytest.raises(UserError, match="another network"):
    wide.load(random_vars(wide, batch))
  encoder = kmax.make(config_of("surface_normals", model_init={"encoder": str(tmp_path / "depth.npz")}))
  loaded, _ = encoder.load(fresh)
  np.testing.assert_array_equal(loaded.state["encoder"]["stem"]["norm"]["mean"],
                                variables.state["encoder"]["stem"]["norm"]["mean"])


@pytest.mark.parametrize(("task", "changes", "message"), [
    ("depth", dict(losses=dict(silogg=1.0)), "unknown option 'silogg'; did you mean 'silog'"),
    ("depth", dict(head=dict(centers="softpluss")), "did you mean 'softplus'"),
    ("depth", dict(losses=dict(silog="1")), "cannot stand here"),
    ("surface_normals", dict(head=dict(upsample="maps")), "did you mean 'map'"),
    ("depth", dict(model=dict(value_dim=2)), "the task 'depth' sets it"),
    ("depth", dict(model=dict(kinds=["axial", "axial", "axiall", "axial"])), "axial"),
    ("depth", dict(model=dict(dims=[12, 8, 4, 4])), "no multiple of the 8 heads; nearest: 16|no multiple of the 8 heads; nearest: 8"),
    ("depth", dict(model=dict(layers=[0, 0, 0])), "not all 0"),
    ("depth", dict(model=dict(layerss=[1])), "did you mean 'layers'"),
    ("depth", dict(model=dict(backbone=dict(name="kmax_resnet51"))), "did you mean 'kmax_resnet50'"),
    ("depth", dict(model=dict(backbone=dict(name="vit_s"))), "4, 8, 16 and 32 are needed"),
    ("semantic_segmentation", dict(model=dict(num_classes=5)), "no class head"),
    ("panoptic_segmentation", dict(head=dict(num_things=9)), "nearest: 5"),
    ("depth", dict(scan_layers=True), "set it to False")])
def test_mistakes_are_named(task, changes, message):
  with pytest.raises(UserError, match=message):
    kmax.make(config_of(task, **changes))


def test_labels_of_another_size_are_named():
  system, variables, batch, *_ = trained("depth")
  with pytest.raises(UserError, match="do not go with images"):
    jax.eval_shape(lambda v: system.loss(v, (), {**batch, "labels": batch["labels"][:, :-1]}, KEY, True), variables)


def test_an_unknown_solver_of_the_matching_is_named():
  with pytest.raises(UserError, match="config.head.solver.*'scpy'.*'scipy'"):
    kmax.make(config_of("panoptic_segmentation") | {"head": dict(num_things=3, solver="scpy")})
