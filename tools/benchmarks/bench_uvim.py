"""Speed and memory of UViM, each form beside the plain one: the parts of `python -m tools.bench uvim`.

Sizes ("mid"): 128 px, patch 16, width 256, oracle 3 + base 4 layers, 4 heads, mlp 1024, 134 + 100 classes, 64 words of
512, batch 8; stage II width 256, 4 + 4 layers. float32. Times are medians of alternating runs; quote the ratios.
"""

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np

from tools.benchmarks.bench_timing import MIB, alternate, finished, random_arrays, row
from tools.benchmarks.plain_decoding import plain_sequences
from uvim_like import config as configs
from uvim_like.ops.loops import written_out
from uvim_like.ops.planes import Loss, Planes
from uvim_like.systems.base import System, Vars
from uvim_like.systems.uvim import lm, vit
from uvim_like.training import optim, setup, step

HEADER = ("measured", "value", "beside it", "ratio")
MID_CLASSES = {"semantics": (134, 256), "instances": (100, 256)}


def mid_config(**model: Any) -> mlc.ConfigDict:
  """Stage I at mid size, in the vocabulary of the listings."""
  fields = dict(input_size=(128, 128), patch_size=(16, 16), width=256, oracle_depth=3, base_model_depth=4, num_heads=4,
                mlp_dim=1024, code_len=64, dict_size=512, codeword_dim=256, with_encoder_ctx=True,
                with_decoder_ctx=True, inputs=MID_CLASSES, outputs=MID_CLASSES)
  return mlc.ConfigDict(dict(
      task="panoptic_segmentation", model_name="uvim.vit", model=fields | model, optax_name="scale_by_adafactor",
      optax=dict(beta2_cap=0.95), lr=4e-4, wd=4e-5, schedule=dict(decay_type="cosine", warmup_steps=4),
      grad_clip_norm=1.0))


def one_hot_system(config: Mapping[str, Any]) -> System:
  """Stage I as it is written down first: labels as one-hot arrays, in the oracle and in the loss."""
  model = vit.make_model(config["model"], config, where="config.model")
  plain = vit.bind("panoptic_segmentation", config)
  task = plain._replace(to_planes=functools.partial(one_hot_planes, to_planes=plain.to_planes), losses=one_hot_losses)
  return System(init=functools.partial(vit.init, model=model, task=task), predict={}, loss=functools.partial(
      vit.stage_one_loss, model=model, task=task, w_commitment=0.0, freeze_dict=False))


def one_hot_planes(labels: jax.Array, *, to_planes: Callable, patch: tuple[int, int], spec: Mapping) -> dict:
  """(B, N, C, P) float planes."""
  planes = to_planes(labels, patch=patch, spec=spec)
  return {name: jax.nn.one_hot(plane, spec[name][0], axis=2) for name, plane in planes.items()}


def one_hot_losses(outputs: Mapping[str, Planes], planes: Mapping[str, jax.Array]) -> dict[str, Loss]:
  """Cross entropy against one-hot planes."""
  return {f"loss_{name}": Loss.of(-jnp.sum(planes[name] * jax.nn.log_softmax(out.values(), axis=2), axis=2))
          for name, out in outputs.items()}


def lowered_step(system: System, config: Any, *, batch: int) -> tuple[Any, Any]:
  """The lowered training step of stage I on shapes alone, and those shapes."""
  size = tuple(config.model.input_size)
  shapes = {"image": jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32),
            "labels": jax.ShapeDtypeStruct((batch, *size, 2), jnp.int32)}
  variables = jax.eval_shape(system.init, jax.random.key(0), shapes)
  tx, _ = optim.make(config, variables.params, total_steps=100)
  function = functools.partial(step.train_step, system=system, tx=tx)
  arguments = (jax.eval_shape(functools.partial(step.start_from, tx=tx), variables), (), shapes,
               jax.eval_shape(lambda: jax.random.key(0)))
  return jax.jit(function, donate_argnums=0).lower(*arguments), arguments


def compile_options() -> dict | None:
  """What the training itself compiles with."""
  return setup.COMPILER_OPTIONS.get(jax.default_backend())


def step_rows(*, repeats: int) -> list[tuple]:
  """GFLOP, temporary memory and time of a stage I step, integer labels against one-hot labels."""
  config = mid_config()
  forms = {"ours": vit.make(config), "one-hot": one_hot_system(config)}
  flops, memory, runs = {}, {}, {}
  for name, system in forms.items():
    with written_out():
      flops[name] = lowered_step(system, config, batch=8)[0].cost_analysis()["flops"] / 1e9
    lowered, arguments = lowered_step(system, config, batch=8)
    # One-hot as its authors run it: with the compiler's own defaults.
    compiled = lowered.compile(compiler_options=compile_options() if name == "ours" else None)
    memory[name] = compiled.memory_analysis().temp_size_in_bytes / MIB
    runs[name] = functools.partial(_train, compiled, _Box(make_arrays(arguments)))
  times = alternate(runs, repeats)
  return [row("stage I step, GFLOP", flops["ours"], flops["one-hot"], "one-hot"),
          row("stage I step, temporaries MiB", memory["ours"], memory["one-hot"], "one-hot"),
          row("stage I step, s", times["ours"], times["one-hot"], "one-hot")]


class _Box:
  """Holds the donated state between timed steps."""

  def __init__(self, arguments):
    self.arguments = arguments


def _train(compiled: Callable, box: _Box) -> None:
  state, *rest = box.arguments
  state, metrics = compiled(state, *rest)
  box.arguments = (state, *rest)
  jax.block_until_ready(metrics)


def make_arrays(shapes: Any) -> Any:
  """Arrays of the given shapes: small random numbers, class ids, ones for counts."""
  numbers = np.random.RandomState(0)

  def one(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
      return jnp.asarray(numbers.randint(0, 100, leaf.shape) if leaf.shape else 0, leaf.dtype)
    return jnp.asarray(numbers.uniform(0.01, 0.1, leaf.shape), leaf.dtype)
  return jax.tree.map(one, shapes)


def listing_rows(*, repeats: int) -> list[tuple]:
  """Temporary memory of Listing 1 at batch 1, compiled but not run."""
  del repeats
  rows = []
  spec = str(configs.ROOT / "configs/uvim/panoptic_stage1.py")
  values = {}
  for name, remat in (("plain", "none"), ("full remat", "full")):
    config = configs.with_defaults(configs.load_file(spec, [f"remat={remat}"]))
    lowered, _ = lowered_step(vit.make(config), config, batch=1)
    values[name] = lowered.compile(compiler_options=compile_options()).memory_analysis().temp_size_in_bytes / MIB
    rows.append(row(f"Listing 1, batch 1, {name}: temporaries MiB", values[name], values["plain"], "plain"))
  return rows


def decode_rows(*, repeats: int) -> list[tuple]:
  """Seconds of greedy decoding and of four samples an image at mid size, beside the plain form."""
  oracle = mid_config().model
  runs = decode_runs(mlc.ConfigDict(dict(
      oracle=dict(task="panoptic_segmentation", model_name="uvim.vit", model=oracle), model_name="uvim.lm",
      model=dict(vocab_size=513, seq_len=64, input_size=(128, 128), patches=dict(size=(16, 16)), num_layers=4,
                 num_heads=4, mlp_dim=1024, emb_dim=256, posemb_type="learn"))), batch=8)
  times = alternate({name: finished(run) for name, run in runs.items()}, repeats)
  return [row("greedy decode of 8 images x 64 words, s", times["one"], times["plain one"], "plain"),
          row("4 samples an image, s", times["four"], times["plain four"], "plain"),
          row("4 samples an image / one, s", times["four"], times["one"], "one sample")]


def decode_runs(config: mlc.ConfigDict, *, batch: int, scale: float = 0.02) -> dict[str, Callable[[], jax.Array]]:
  """Compiled calls that return words (B, samples, L) of random images under random weights: ours and the plain form's."""
  system = lm.make(config)
  model = system.predict["sequences"].keywords["parts"].model
  image = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, (batch, *model.input_size, 3)), jnp.float32)
  key = jax.random.key(0)
  variables = Vars(params=random_arrays(jax.eval_shape(system.init, key, {"image": image}).params, scale=scale))
  runs = {}
  for name, options in (("one", {}), ("four", dict(num_samples=4, temperature=1.0))):
    ours = jax.jit(functools.partial(system.predict["sequences"], **options))
    plain = jax.jit(functools.partial(plain_sequences, model=model, **options))
    runs[name] = functools.partial(_words, ours, variables, (), {"image": image}, key)
    runs[f"plain {name}"] = functools.partial(plain, variables.params, image, key)
  return runs


def _words(decode: Callable, *arguments: Any) -> jax.Array:
  return decode(*arguments)["tokens"]


def start_rows(*, repeats: int) -> list[tuple]:
  """Seconds from the command to the end of the first step, with an empty compilation cache and with a filled one."""
  del repeats
  with tempfile.TemporaryDirectory() as folder:
    data = f"{folder}/data"
    _quiet("tools.make_data", "scenes", f"--out={data}", "--format=npz", "--config=tiny", "--num=train:64",
           "--task=panoptic_segmentation", "--workers=1", "--size=128")
    times = []
    for attempt in ("first", "second"):
      began = time.perf_counter()
      _quiet("train", "--config=configs/uvim/panoptic_stage1.py:scenes,res=128", f"--workdir={folder}/{attempt}",
             "--config.dataset=npz", f"--config.data_dir={data}", "--config.batch_size=8", "--config.num_epochs=None",
             "--config.total_steps=1", "--config.val_split=None", "--config.evals=[]", "--config.pp_train=",
             f"--config.compilation_cache={folder}/cache", "--config.model.width=256", "--config.model.num_heads=4",
             "--config.model.oracle_depth=3", "--config.model.base_model_depth=4", "--config.model.mlp_dim=1024",
             "--config.model.code_len=64", "--config.model.dict_size=512", "--config.model.codeword_dim=256")
      times.append(time.perf_counter() - began)
  return [row("second start to the first step, s", times[1], times[0], "first start")]


def _quiet(module: str, *words: str) -> None:
  subprocess.run([sys.executable, "-m", module, *words], check=True, stdout=subprocess.DEVNULL, cwd=configs.ROOT)


ROWS = {"step": step_rows, "listing1": listing_rows, "decode": decode_rows, "start": start_rows}
