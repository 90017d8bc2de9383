"""AiT's speed beside that of its authors' code: the parts of `python -m tools.bench ait`.

The depth recipe's own sizes: 225 tokens, width 256, 6 + 6 layers, memory 225, vocabulary 2339, tokenizer at 480x480;
float32, random weights. A head's time runs from the backbone's features to tokens and logits, encoder included, as the
authors' times do. Ours are the best of alternating runs, as theirs are, with the median beside it.
"""

import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tools.benchmarks.bench_timing import finished, matmul_speed, random_arrays, times_in_turn
from uvim_like import config as configs
from uvim_like.systems.ait import predict, vqvae
from uvim_like.systems.ait.ait_vocab import TASK_IDS
from uvim_like.systems.ait.parts import Parts, make_parts
from uvim_like.systems.base import Vars

Array = jax.Array
HEADER = ("measured", "best", "median", "authors", "ours / authors", "wanted")
CONFIG = "configs/ait/depth.py"
BATCH = 4
# Seconds of the authors' code at batch 4, best of several runs on 2 shared CPU cores (tests/golden/peers/README.md).
# Their own parallel decoding loops (3.38); 0.186 is what it takes in one pass.
AUTHORS = {"ar": 3.44, "soft": 3.40, "parallel": 0.186, "encode": 0.044, "decode": 0.224, "both": 0.258}
# What we ask of ourselves on such a machine: the largest seconds, at batch 1 the smallest ratio on a GPU.
WANTED = {"ar": 0.4 * AUTHORS["ar"], "parallel": AUTHORS["parallel"], "both": AUTHORS["both"]}
GPU_RATIO = 25
DEPTH = {"ar": "225 tokens, one by one, cached, s", "soft": "225 soft tokens, one by one, cached, s",
         "parallel": "225 tokens in one pass, s"}
TOKENIZER = {"encode": "tokenizer, encode, s", "decode": "tokenizer, decode, s", "both": "tokenizer, both ways, s"}


def make_heads(spec: str = CONFIG) -> dict[str, Parts]:
  """{"ar", "parallel"}: the two forms of a depth recipe; `spec` may have arguments."""
  join = "," if ":" in spec else ":"
  forms = {"ar": spec, "parallel": f"{spec}{join}parallel"}
  return {name: make_parts(configs.plain(configs.load_file(str(configs.ROOT / form)))) for name, form in forms.items()}


def write_depth(variables: Vars, features: Array, key: Array, *, parts: Parts, decode: str,
                soft: bool = False) -> tuple[Array, Array]:
  """Tokens (B, L) and logits (B, L, K) of a depth map from the backbone's features (B, h, w, C)."""
  memory = predict.head_call(variables, parts)(features, method="encode")
  ids = jnp.full((features.shape[0],), TASK_IDS["depth"])
  out = predict.write_map(variables, memory, ids, "depth", key, parts=parts, decode=decode, soft_feedback=soft,
                          temperature=0.0, top_p=0.0)
  return out.tokens[:, 0], out.logits[:, 0]


def depth_runs(heads: Mapping[str, Parts], *, batch: int) -> dict[str, Callable]:
  """{"ar", "soft", "parallel"}: functions that decode a batch of maps and wait for it."""
  runs = {}
  for name, decode, soft in (("ar", "ar", False), ("soft", "ar", True), ("parallel", "parallel", False)):
    parts = heads[decode]
    channels = parts.backbone.width * 2 ** (len(parts.backbone.depths) - 1)
    features = random_arrays(jax.ShapeDtypeStruct((batch, *parts.map_grid("depth"), channels), jnp.float32), scale=1.0)
    shapes = jax.eval_shape(parts.head.init, jax.random.key(0), features[:1], jnp.zeros((1, 1), jnp.int32),
                            jnp.zeros((1,), jnp.int32))
    variables = Vars({"transformer": random_arrays(shapes["params"])})
    run = jax.jit(functools.partial(write_depth, parts=parts, decode=decode, soft=soft))
    runs[name] = finished(run, variables, features, jax.random.key(0))
  return runs


def depth_rows(*, repeats: int, heads: Mapping[str, Parts] | None = None) -> list[tuple]:
  """Decoding at batch 4, and how many times as long token by token takes."""
  times = times_in_turn(depth_runs(heads or make_heads(), batch=BATCH), repeats)
  return [*(_row(text, times[name], name) for name, text in DEPTH.items()),
          _ratio("one by one / one pass, batch 4", times, AUTHORS["ar"] / AUTHORS["parallel"])]


def batch_one_rows(*, repeats: int, heads: Mapping[str, Parts] | None = None) -> list[tuple]:
  """The same for one image, where a GPU has least to do in a step."""
  times = times_in_turn(depth_runs(heads or make_heads(), batch=1), repeats)
  wanted = "" if jax.default_backend() == "cpu" else f">= {GPU_RATIO}"
  return [*(_row(f"batch 1: {DEPTH[name]}", times[name]) for name in ("ar", "parallel")),
          _ratio("one by one / one pass, batch 1", times, None, wanted)]


def tokenizer_runs(parts: Parts, *, batch: int) -> dict[str, Callable]:
  """{"encode", "decode", "both"}: depth maps to words, words to maps, and one after the other."""
  model = parts.tokenizers["depth"]
  shapes = jax.eval_shape(functools.partial(vqvae.init, batch={}, model=model, kind="depth"), jax.random.key(0))
  variables = random_arrays(shapes, scale=0.05)
  numbers = np.random.default_rng(0)
  maps = jnp.asarray(numbers.uniform(0.5, 10, (batch, *model.input_size, 1)), jnp.float32)
  words = jnp.asarray(numbers.integers(0, model.dict_size, (batch, *model.grid)), jnp.int32)
  encode = lambda v, x: vqvae.apply(model, v, x, method="encode").code  # noqa: E731
  decode = lambda v, x: vqvae.apply(model, v, x, method="decode")  # noqa: E731
  both = lambda v, x: decode(v, encode(v, x))  # noqa: E731
  return {"encode": finished(jax.jit(encode), variables, maps), "decode": finished(jax.jit(decode), variables, words),
          "both": finished(jax.jit(both), variables, maps)}


def tokenizer_rows(*, repeats: int, parts: Parts | None = None) -> list[tuple]:
  """The depth tokenizer at batch 4."""
  times = times_in_turn(tokenizer_runs(parts or make_heads()["ar"], batch=BATCH), repeats)
  return [_row(text, times[name], name) for name, text in TOKENIZER.items()]


def machine_rows(*, repeats: int) -> list[tuple]:
  """What the machine gives: seconds of another one compare only beside this."""
  return [("this machine: matmul of 1024 x 1024, GFLOP/s", f"{matmul_speed(repeats=repeats):.4g}", "", "", "", "")]


def _row(what: str, seconds: list[float], name: str | None = None) -> tuple:
  """A row of seconds, beside the authors' where `name` says which."""
  best, authors, wanted = min(seconds), AUTHORS.get(name), WANTED.get(name)
  return (what, f"{best:.4g}", f"{statistics.median(seconds):.4g}", f"{authors:.4g}" if authors else "",
          f"{best / authors:.2f}" if authors else "", f"<= {wanted:.4g}" if wanted else "")


def _ratio(what: str, times: Mapping[str, list[float]], authors: float | None, wanted: str = "") -> tuple:
  best, median = (kind(times["ar"]) / kind(times["parallel"]) for kind in (min, statistics.median))
  return what, f"{best:.4g}", f"{median:.4g}", f"{authors:.4g}" if authors else "", "", wanted


ROWS: dict[str, Any] = {"depth": depth_rows, "batch1": batch_one_rows, "tokenizer": tokenizer_rows,
                        "machine": machine_rows}
