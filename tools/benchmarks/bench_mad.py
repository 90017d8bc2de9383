"""MAD's four tasks of one image, decoded in three ways: the parts of `python -m tools.bench mad`.

The paper's sizes: 25 x 42 encoded places (ResNet-50 on 800 x 1333), 100 objects, width 256, 6 decoder layers,
vocabulary 12,027; float32, random weights. Everything here is what comes after the image encoder, which is the same for
all three ways and has a row of its own. Each way is the system's own `predict`.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tools.benchmarks.bench_timing import MIB, alternate, finished, random_arrays
from uvim_like import config as configs
from uvim_like.models.mad import Model, Picture, inside
from uvim_like.systems.base import Vars
from uvim_like.systems.mad import decoder, inference
from uvim_like.systems.mad.vocabulary import TASKS

Array = jax.Array
HEADER = ("measured", "value", "beside it", "ratio", "paper, A100", "wanted")
CONFIGS = {"autoregressive": "configs/mad/ar.py", "masked": "configs/mad/r50.py"}
GRID = (25, 42)
INSTANCES = (10, 25, 50, 100)
ONE_STAGE = dict.fromkeys(TASKS, (1.0,))
# Table 2 of the paper, milliseconds an image on an A100: autoregressive, parallel, with masked inference.
PAPER = {"autoregressive": 3953, "parallel": 137, "masked": 173}
# What we ask of ourselves: one by one / all at once; the paper's are 28.9 and 22.8.
WANTED = {"cpu": {"parallel": ">= 3", "masked": ""}, "gpu": {"parallel": ">= 28", "masked": ">= 22"}}
REPEATS = 3  # at most, of the masks of S instances


class FromMemory(Model):
  """The network behind its image encoder: an "image" (B, h, w, D) is what the encoder would have said."""

  def encode(self, image: Array, valid_size: Array, *, train: bool = False) -> Picture:
    """Keys and values of every decoder layer."""
    del train
    batch, height, width, _ = image.shape
    memory = image.reshape(batch, height * width, -1)
    mask = inside(valid_size, (height, width)).reshape(batch, 1, 1, -1)
    return Picture(tuple(layer.picture_keys(memory, jnp.zeros_like(memory)) for layer in self.decoder), mask)


class Counted(FromMemory):
  """The same, saying for every call of the decoder at run time how many tokens a sequence it was given."""

  def decode(self, tokens: Array, picture: Picture, **options) -> list[Array]:
    """See `Model.decode`."""
    jax.debug.callback(functools.partial(CALLS.update, [tokens.shape[-1]]))
    return super().decode(tokens, picture, **options)

  def step(self, tokens: Array, *arguments):
    """See `Model.step`."""
    jax.debug.callback(functools.partial(CALLS.update, [tokens.shape[-1]]))
    return super().step(tokens, *arguments)


CALLS: collections.Counter = collections.Counter()  # of `Counted`: {tokens of a sequence: calls}


def make_parts(form: str, kind: type[Model] = FromMemory, **fields: Any) -> decoder.Parts:
  """The parts of a recipe with its network as a `kind`; `fields` change sizes of the model."""
  config = configs.plain(configs.load_file(str(configs.ROOT / CONFIGS[form])))
  parts = decoder.make(config).predict["predict"].keywords["parts"]
  given = {name: getattr(parts.model, name) for name in Model.__dataclass_fields__ if name not in ("parent", "name")}
  return parts._replace(model=kind(**(given | fields)))


def make_inputs(parts: decoder.Parts, grid: tuple[int, int] = GRID) -> tuple[Vars, dict[str, Array]]:
  """Random weights and a batch of one encoded image; arrays of the image encoder are left out."""
  memory = random_arrays(jax.ShapeDtypeStruct((1, *grid, parts.model.width), jnp.float32), scale=1.0)
  tokens = jnp.zeros((1, 1, parts.vocabulary.max_length), jnp.int32)
  shapes = jax.eval_shape(parts.model.init, jax.random.key(0), memory, jnp.asarray([grid]), tokens)
  return Vars(random_arrays(shapes["params"], scale=0.05), {}), {"image": memory}


def ways(make: Callable[[str], decoder.Parts], grid: tuple[int, int] = GRID, **options: Any) -> dict[str, Callable]:
  """{"autoregressive", "parallel", "masked"}: functions that decode all tasks of an image and wait for it.

  Args:
    make: form -> parts.
    grid: encoded places.
    **options: of `predict`.
  """
  runs = {}
  for name, form, stages in (("autoregressive", "autoregressive", None), ("parallel", "masked", ONE_STAGE),
                             ("masked", "masked", None)):
    parts = make(form)
    variables, batch = make_inputs(parts, grid)
    arguments = variables, (), batch, jax.random.key(0)
    run = jax.jit(functools.partial(decoder.predict, parts=parts, stages=stages, **options))
    runs[name] = finished(run.lower(*arguments).compile(), *arguments)
  return runs


def count_calls(runs: dict[str, Callable]) -> dict[str, collections.Counter]:
  """{way: {tokens of a sequence: calls of the decoder}} of functions whose networks are `Counted`, by running them."""
  counts = {}
  for name, run in runs.items():
    CALLS.clear()
    run()
    jax.effects_barrier()
    counts[name] = collections.Counter(CALLS)
  return counts


def call_rows(*, repeats: int) -> list[tuple]:
  """Calls of the decoder, one after the other, counted in programs of narrow layers with sequences of full length."""
  del repeats
  narrow = dict(width=8, num_heads=2, mlp_dim=8, decoder_layers=1)
  make = lambda form: make_parts(form, Counted, **narrow)  # noqa: E731
  counts = count_calls(ways(make, (2, 3), chunk=make("masked").vocabulary.queries))
  one, parallel, masked = (counts[name] for name in ("autoregressive", "parallel", "masked"))
  longer = sum(one.values()) - one[1]
  calls = sum(parallel.values())
  return [("decoder calls, one by one: tokens", str(one[1]), f"all at once {calls}", f"{one[1] / calls:.4g}", "", ""),
          ("decoder calls, one by one: prompts of masks and keypoints", str(longer), "", "", "", ""),
          ("decoder calls with masked inference", str(sum(masked.values())), f"all at once {calls}",
           f"{sum(masked.values()) / calls:.4g}", "", "")]


def time_rows(*, repeats: int) -> list[tuple]:
  """Seconds of the three ways and what the image encoder adds to each; one run, since one by one takes minutes."""
  del repeats
  runs = ways(make_parts) | {"encoder": encoder_run(make_parts("masked", Model))}
  times = alternate(runs, 1, warm=False)
  platform = "cpu" if jax.default_backend() == "cpu" else "gpu"
  rows = [("four tasks, one by one, cached, s", f"{times['autoregressive']:.4g}", "", "",
           f"{PAPER['autoregressive'] / 1e3:.4g}", "")]
  for name, text in (("parallel", "four tasks, all at once, s"), ("masked", "four tasks, masked inference, s")):
    ratio, paper = (table["autoregressive"] / table[name] for table in (times, PAPER))
    rows.append((text, f"{times[name]:.4g}", "one by one / this", f"{ratio:.2f}",
                 f"{PAPER[name] / 1e3:.4g}, ratio {paper:.1f}", WANTED[platform][name]))
  return [*rows, ("image encoder without backbone (in none of them), s", f"{times['encoder']:.4g}", "", "", "", "")]


def encoder_run(parts: decoder.Parts) -> Callable:
  """Six layers over the backbone's features, and the keys of every decoder layer."""
  model = parts.model
  features = random_arrays(jax.ShapeDtypeStruct((1, *GRID, 2048), jnp.float32), scale=1.0)
  valid = jnp.ones((1, *GRID), bool)
  shapes = jax.eval_shape(functools.partial(model.init, method="encode_features"), jax.random.key(0), features, valid)
  arguments = random_arrays(dict(shapes)), features, valid
  run = jax.jit(functools.partial(model.apply, method="encode_features"))
  return finished(run.lower(*arguments).compile(), *arguments)


def mask_program(parts: decoder.Parts, picture: Picture, variables: Vars, *, instances: int, chunk: int) -> Any:
  """The compiled decoding of the masks of so many boxes of one image."""
  call = functools.partial(parts.model.apply, {"params": variables.params})

  def run(picture, prompts):
    network = inference.Network(lambda tokens, picture: call(tokens, picture, method="decode")[-1],
                                functools.partial(call, method="logits"), picture, parts.vocabulary, chunk)
    return inference.refine(network, "masks", prompts, jax.random.key(0), stages=ONE_STAGE, order=inference.ORDER,
                            combine="average").logits

  prompts = jax.ShapeDtypeStruct((1, instances, parts.vocabulary.prompt("masks")), jnp.int32)
  return jax.jit(run).lower(picture, prompts).compile()


def instance_rows(*, repeats: int) -> list[tuple]:
  """Seconds and memory of the masks of S instances, with a line through them."""
  parts = make_parts("masked")
  variables, batch = make_inputs(parts)
  picture = parts.model.apply({"params": variables.params}, batch["image"], jnp.asarray([GRID]), method="encode")
  runs, once, split = {}, {}, {}
  for count in INSTANCES:
    program = mask_program(parts, picture, variables, instances=count, chunk=inference.CHUNK)
    split[count] = _memory(program)
    runs[str(count)] = finished(program, picture, jnp.zeros((1, count, parts.vocabulary.prompt("masks")), jnp.int32))
    once[count] = _memory(mask_program(parts, picture, variables, instances=count, chunk=count))
  times = alternate(runs, min(repeats, REPEATS), warm=False)
  rows = [(f"masks of {count} instances, s", f"{times[str(count)]:.4g}",
           f"one call's memory {once[count]:.4g} MiB", "", "", "") for count in INSTANCES]
  last = INSTANCES[-1]
  return [*rows, _line("seconds", INSTANCES, [times[str(count)] for count in INSTANCES]),
          _line("MiB of one call", INSTANCES, [once[count] for count in INSTANCES]),
          (f"memory of {last}, {inference.CHUNK} at a time, MiB", f"{split[last]:.4g}", f"one call {once[last]:.4g}",
           f"{split[last] / once[last]:.2f}", "", "")]


def _memory(program: Any) -> float:
  """MiB of temporaries, arguments and outputs by the compiler's own count."""
  count = program.memory_analysis()
  return (count.temp_size_in_bytes + count.argument_size_in_bytes + count.output_size_in_bytes) / MIB


def fit_line(x: list[float], y: list[float]) -> tuple[float, float, float]:
  """(start, slope, share of the variance that the line explains) of the least-squares line."""
  slope, start = np.polyfit(x, y, 1)
  rest = np.asarray(y) - (start + slope * np.asarray(x))
  return float(start), float(slope), float(1 - np.sum(rest ** 2) / np.sum((y - np.mean(y)) ** 2))


def _line(what: str, x: tuple[int, ...], y: list[float]) -> tuple:
  start, slope, explained = fit_line(list(x), y)
  return (f"{what} = a + b · instances: b", f"{slope:.4g}", f"a {start:.4g}", "", "", f"R² {explained:.4f}")


ROWS = {"calls": call_rows, "time": time_rows, "instances": instance_rows}
