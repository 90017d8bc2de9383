"""Stored runs of the authors' UViM as cases: found by content, sizes from the files, each program compiled once."""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvim_like.ops.patches import grid_of
from uvim_like.systems.base import Vars
from uvim_like.systems.uvim import lm, vit
from uvim_like.tasks.base import bind
from uvim_like.training import optim
from uvim_like.training.step import start_from, train_step
from uvim_like.trees import flatten_names, unflatten_names

TASKS = {"panoptic": "panoptic_segmentation", "depth": "depth", "color": "colorization"}
RENAMED = {"enc_depth": "oracle_depth", "dec_depth": "base_model_depth"}  # the release's names, the listing's names


def missing(what: str) -> None:
  """The shipped set holds every kind, so what it lacks is a failure; another set, named by GOLDEN_DIR, may hold a part."""
  if "GOLDEN_DIR" not in os.environ:
    pytest.fail(f"the shipped set has no {what}")
  pytest.skip(f"GOLDEN_DIR names a set that has no {what}")


@pytest.fixture(scope="session")
def golden_real_dir() -> pathlib.Path:
  """Folder of cases from COCO's own annotations, named by GOLDEN_REAL_DIR: they are others' data, under terms of their own.

  What they test is tested on drawn annotations of the shipped set as well; a folder that is named and holds none fails.
  """
  folder = os.environ.get("GOLDEN_REAL_DIR")
  if not folder:
    pytest.skip("GOLDEN_REAL_DIR is not set: cases from COCO's annotations are others' data and not shipped")
  return pathlib.Path(folder)


@pytest.fixture(scope="session")
def stored(golden_dir):
  """stored("ait_heads*.npz", …) -> paths of the stored files of these names, at least one."""
  def find(*patterns: str) -> list[pathlib.Path]:
    found = [path for pattern in patterns for path in sorted(golden_dir.rglob(pattern))]
    return found or missing(" or ".join(patterns))
  return find


@pytest.fixture(scope="session")
def stored_metrics(golden_dir):
  """stored_metrics("pq", …) -> [(json, arrays)] of all metric cases of these kinds, at least one; some have no arrays."""
  def find(*kinds: str, folder: pathlib.Path = golden_dir / "metrics") -> list[tuple[dict, dict]]:
    found = []
    for path in sorted(folder.rglob("*.json")):
      case, arrays = json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".npz")
      if case.get("kind") in kinds:
        found.append((case, dict(np.load(arrays)) if arrays.exists() else {}))
    return found or missing(f"metric case of kind {' or '.join(kinds)}")
  return find


class Case:
  """One pair of files NAME_io.npz and NAME_ckpt.npz.

  Attributes:
    io: the arrays of the first.
    config: its config.
    tree: {"params", "state"} of the second.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.name = path.stem.removesuffix("_io")
    with np.load(path) as data:
      self.io = {key: data[key] for key in data.files}
    with np.load(path.with_name(f"{self.name}_ckpt.npz")) as data:
      self.tree = unflatten_names({key: jnp.asarray(data[key]) for key in data.files})
    self.config = json.loads(str(self.io["config"]))

  def __getitem__(self, key):
    return self.io[key]

  def under(self, prefix: str) -> dict:
    """{rest of the name: array} of the arrays below a prefix."""
    return {key.removeprefix(prefix): value for key, value in self.io.items() if key.startswith(prefix)}

  def close(self, got, key: str, tolerance: float):
    """Asserts that a result is the stored array."""
    want = self.io[key]
    assert np.shape(got) == want.shape, f"{self.name}: {key}: {np.shape(got)} is not {want.shape}"
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=f"{self.name}: {key}")

  def same(self, got, key: str):
    """Asserts that whole numbers are the stored ones."""
    np.testing.assert_array_equal(got, self.io[key], err_msg=f"{self.name}: {key}")

  @functools.cached_property
  def value_and_grad(self):
    """Jitted (vars, batch) -> ((loss, LossOut), gradients) in training."""
    def objective(params, variables, batch):
      out = self.system.loss(variables.replace(params=params), self.frozen, batch, jax.random.key(0), True)
      return out.loss, out

    return jax.jit(lambda variables, batch: jax.value_and_grad(objective, has_aux=True)(
        variables.params, variables, batch))

  def grad_norms_are(self, grads, tolerance: float):
    """Asserts the stored global norm and the norm of every leaf."""
    norms = {name: float(np.linalg.norm(leaf)) for name, leaf in flatten_names(grads)}
    names = self["train/grad_names"].tolist()
    assert sorted(names) == sorted(norms), f"{self.name}: {set(names) ^ set(norms)}"
    self.close([norms[name] for name in names], "train/grad_norms", tolerance)
    self.close(np.sqrt(sum(norm ** 2 for norm in norms.values())), "train/grad_global_norm", tolerance)

  @functools.cached_property
  def train4(self):
    """[(state, metrics)] of as many optimizer steps on one batch as are stored, with the config's optimizer."""
    tx, _ = optim.make(self.config, self.variables.params, total_steps=int(self["train4/total_steps"]))
    step = jax.jit(functools.partial(train_step, system=self.system, tx=tx))
    state, history = start_from(self.variables, tx=tx), []
    for _ in self["train4/loss"]:
      state, metrics = step(state, self.frozen, self.batch, jax.random.key(0))
      history.append((state, metrics))
    return history

  def param_norms_are(self, tolerance: float):
    """Asserts the norms of the parameters after each stored step.

    The key biases have no true gradient (a shift of all keys changes no attention): the optimizer scales their
    rounding noise up, so no two programs agree on them.
    """
    names = self["train/grad_names"].tolist()
    keep = [not name.endswith("/key/bias") for name in names]
    for (state, _), want in zip(self.train4, self["train4/param_norms"], strict=True):
      norms = {name: float(np.linalg.norm(leaf)) for name, leaf in flatten_names(state.vars.params)}
      got = np.array([norms[name] for name in names])
      np.testing.assert_allclose(got[keep], want[keep], rtol=tolerance, atol=tolerance, err_msg=self.name)


class StageOne(Case):
  """A stored run of the base model with its oracle."""

  def __init__(self, path: pathlib.Path):
    super().__init__(path)
    self.kind = next(kind for kind in TASKS if kind in self.config["task"])
    fields = {RENAMED.get(name, name): value for name, value in self.config["model"].items()}
    self.config |= {"task": TASKS[self.kind], "model": fields}
    self.system, self.frozen = vit.make(self.config), ()
    self.model = vit.make_model(fields, self.config, where="config.model")
    self.task = bind(self.config["task"], self.config)
    self.variables = Vars(self.tree["params"], self.tree["state"])
    self.batch = {"image": self["in/image"], "labels": self["in/labels"]}
    self.planes = self.task.to_planes(jnp.asarray(self["in/labels"]), patch=self.model.patch_size,
                                      spec=self.model.inputs)

  @functools.cached_property
  def forward(self):
    """Everything of the evaluation pass: (stems, words, Code, {name: logits}, LossOut)."""
    def run(variables, batch):
      call = functools.partial(vit.apply, self.model, variables)
      stems = call(self.planes, method=lambda model, planes: {k: model.embeddings[k](x) for k, x in planes.items()})
      code = call(self.planes, batch["image"], method="encode")
      logits = call(code.quantized, batch["image"], method="decode")
      out = self.system.loss(variables, (), batch, jax.random.key(0), False)
      return stems, call(method="words"), code, {k: planes.values() for k, planes in logits.items()}, out

    return jax.jit(run)(self.variables, self.batch)

  @functools.cached_property
  def decode(self):
    """Jitted code (B, L) or (B, L, C) -> {name: logits}."""
    return jax.jit(lambda code: {k: planes.values() for k, planes in vit.apply(
        self.model, self.variables, code, self.batch["image"], method="decode").items()})

  def predict(self, **options):
    """The system's prediction as it is stored: panoptic channels together, else {key: array}."""
    run = jax.jit(functools.partial(self.system.predict["predict"], **options))
    return run(self.variables, (), self.batch, jax.random.key(0))


class StageTwo(Case):
  """A stored run of the language model, with the stage I case that its end-to-end arrays were made with."""

  def __init__(self, path: pathlib.Path, stage_one: list[StageOne]):
    super().__init__(path)
    fields = self.config["model"]
    fitting = [case for case in stage_one if self._is_oracle(case)]
    assert len(fitting) == 1, f"{self.name}: the oracle is case a, found {[case.name for case in fitting]}"
    self.oracle = fitting[0]
    block = {"task": self.oracle.config["task"], "model": self.oracle.config["model"]}
    self.end_to_end = lm.make(self.config | {"oracle": block})
    self.model = lm.Model(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
                             if k != "patches"}, patches={"size": tuple(fields["patches"]["size"])})
    self.parts = lm.Parts(self.model, self.oracle.model, self.oracle.task)
    # The stored tokens are no oracle's code: `loss` is the system's own with its targets replaced by them.
    self.system = self.end_to_end._replace(loss=functools.partial(_loss_of_tokens, parts=self.parts))
    self.frozen = ()
    self.variables = Vars(self.tree["params"])
    self.batch = {"image": self["in/image"], "labels": self["in/labels"]}

  def _is_oracle(self, case: StageOne) -> bool:
    """Case "a" of the same set, i.e. a_… beside this file, with the learned bottleneck matrices."""
    return (case.path.parent == self.path.parent and case.name.startswith("a_")
            and not case.config["model"].get("bottleneck_resize", False))

  @property
  def grid(self):
    """(gh, gw) patches."""
    return grid_of(self.model.input_size, self.model.patch_size)

  def apply(self, *args, model=None, params=None, **options):
    """`Model.apply`, jitted."""
    run = jax.jit(functools.partial((model or self.model).apply, **options))
    return run({"params": params or self.variables.params}, *args)

  def sequences(self, key=None, **options):
    """Decoded codes; token 0 may be chosen, as in the authors' program."""
    run = jax.jit(functools.partial(self.end_to_end.predict["sequences"], forbidden=(), **options))
    return run(self.variables, (), {"image": self["in/image"]}, jax.random.PRNGKey(0) if key is None else key)


def _loss_of_tokens(variables, frozen, batch, key, train, *, parts):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(lm, "targets", lambda frozen, batch, *, parts: batch["labels"])
    return lm.loss(variables, frozen, batch, key, train, parts=parts)


def _paths(golden_dir):
  """{path: config} of the stored runs that have a config and weights beside them."""
  found = {}
  for path in sorted(golden_dir.rglob("*_io.npz")):
    if path.with_name(path.name.replace("_io.npz", "_ckpt.npz")).exists():
      with np.load(path) as data:
        if "config" in data.files:
          found[path] = json.loads(str(data["config"]))
  return found


@pytest.fixture(scope="session")
def stage_one_cases(golden_dir):
  """Every stored stage I run."""
  return [StageOne(path) for path, config in _paths(golden_dir).items() if "task" in config] or missing("stage I run")


@pytest.fixture(scope="session")
def stage_two_cases(golden_dir, stage_one_cases):
  """Every stored stage II run."""
  cases = [StageTwo(path, stage_one_cases) for path, config in _paths(golden_dir).items()
           if "vocab_size" in config["model"]]
  return cases or missing("stage II run")

