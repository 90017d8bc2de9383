"""The config schema: every key with its meaning and default, and the checks before anything compiles.

A config is an `ml_collections.ConfigDict` in the vocabulary of the UViM paper's listings (appendix D). What stands
inside `model` is checked by the system that builds it.
"""

import ast
import copy
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections as mlc

from uvim_like import names, trees
from uvim_like.config_json import plain
from uvim_like.errors import UserError, unknown

REQUIRED = object()
DTYPES = ("float32", "bfloat16")
REMATS = ("none", "full", "dots")
BAD_EXAMPLE = ("error", "skip")
VAL_PREFIX = "val/"  # before the names of the validation losses
MIXED = ";"   # between the datasets of a mixture, and between their places


class Kind(NamedTuple):
  """What a value must be: a phrase for the message, and the test."""
  phrase: str
  holds: Callable[[Any], bool]


def _is_number(x: Any) -> bool:
  return isinstance(x, (int, float)) and not isinstance(x, bool)


def _is_pairs(x: Any) -> bool:
  """A list of (name, anything) pairs."""
  return isinstance(x, (list, tuple)) and all(
      isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in x)


TEXT = Kind("a string", lambda x: isinstance(x, str))
COUNT = Kind("an integer above 0", lambda x: isinstance(x, int) and not isinstance(x, bool) and x > 0)
FROM_ZERO = Kind("an integer from 0 on", lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 0)
INTEGER = Kind("an integer", lambda x: isinstance(x, int) and not isinstance(x, bool))
NUMBER = Kind("a number", _is_number)
POSITIVE = Kind("a number above 0", lambda x: _is_number(x) and x > 0)
SWITCH = Kind("True or False", lambda x: isinstance(x, bool))
BLOCK = Kind("a block (dict)", lambda x: isinstance(x, dict))
TEXTS = Kind("a list of strings", lambda x: isinstance(x, (list, tuple)) and all(isinstance(t, str) for t in x))
PAIRS = Kind("a list of (name, value) pairs", _is_pairs)
BLOCK_OR_PAIRS = Kind("a dict or a list of (name, value) pairs", lambda x: isinstance(x, dict) or _is_pairs(x))
MODEL_INIT = Kind("a path, or a dict from part to source", lambda x: isinstance(x, (str, dict)))


class Key(NamedTuple):
  """One key of the schema; `default` may be REQUIRED, and None is allowed where it is the default."""
  kind: Kind
  default: Any
  meaning: str


SCHEMA: dict[str, Key] = {
    "task": Key(TEXT, None, "what is predicted: a module of uvim_like/tasks; the oracle's by default"),
    "dataset": Key(TEXT, REQUIRED, "TFDS name, or another source of pp_ops"),
    "data_dir": Key(TEXT, None, "where datasets are; None for the default"),
    "class_names": Key(BLOCK, None, "own data: names of \"semantic\" classes; id and name of \"objects\" and \"panoptic\" ones"),
    "train_split": Key(TEXT, REQUIRED, 'split to train on, e.g. "train[4096:]"'),
    "val_split": Key(TEXT, None, "split of the validation loss; None for no validation loss"),
    "batch_size": Key(COUNT, REQUIRED, "images a step, over all devices"),
    "num_epochs": Key(POSITIVE, None, "length of training in passes over train_split; this or total_steps"),
    "total_steps": Key(COUNT, None, "length of training in steps; this or num_epochs"),
    "pp_train": Key(TEXT, REQUIRED, "preprocessing of training examples"),
    "pp_eval": Key(TEXT, None, "preprocessing for the validation loss"),
    "pp_modules": Key(TEXTS, None, "modules of pp_ops with the ops; None for the pipeline's own default"),
    "shuffle_buffer_size": Key(COUNT, None, "of the paper's listings; not used: every epoch permutes its whole split"),
    "prefetch": Key(COUNT, 2, "batches made ahead"),
    "on_bad_example": Key(TEXT, "error", "an example that cannot be read in training: " + " or ".join(BAD_EXAMPLE)),
    "max_bad_share": Key(POSITIVE, 0.01, "with 'skip': training stops when more than this share of the split is bad"),
    "log_training_steps": Key(COUNT, 50, "steps between log lines"),
    "log_eval_steps": Key(COUNT, 1000, "steps between validation losses"),
    "checkpoint_steps": Key(COUNT, 1000, "steps between checkpoints"),
    "keep_checkpoint_steps": Key(COUNT, None, "checkpoints at multiples of this stay for good"),
    "keep_last_checkpoints": Key(COUNT, 2, "newest checkpoints that stay: the last, and one to fall back to"),
    "model_name": Key(TEXT, REQUIRED, "the system: a module of uvim_like/systems"),
    "model": Key(BLOCK, REQUIRED, "fields of the network"),
    "model_init": Key(MODEL_INIT, None, "weights to start from: a file, or {part: source}"),
    "model_load": Key(BLOCK, {}, "options of loading, e.g. dont_load: patterns of names to leave at their init"),
    "oracle": Key(BLOCK, None, "stage I, for systems that are guided by one"),
    "tokenizers": Key(BLOCK, None, "AiT's frozen tokenizers: {task: dict(model=…, model_init=its file or workdir)}"),
    "solver": Key(BLOCK, {}, "AiT's tasks, sequences, auxiliary losses; fields of `systems/ait/parts.Options`"),
    "optax_name": Key(TEXT, "scale_by_adam", "scaling rule of the gradients"),
    "optax": Key(BLOCK, {}, "its options"),
    "lr": Key(NUMBER, REQUIRED, "learning rate"),
    "wd": Key(NUMBER, 0.0, "weight decay, not multiplied by lr"),
    "lr_mults": Key(PAIRS, [], "pattern of names -> multiplier of lr; the first match wins"),
    "wd_mults": Key(PAIRS, None, "pattern -> multiplier of wd; None: kernels only"),
    "schedule": Key(BLOCK_OR_PAIRS, {"decay_type": "constant"}, "of lr and wd: a dict, or pattern -> dict or None"),
    "grad_clip_norm": Key(POSITIVE, None, "global norm of the gradients is cut to this"),
    "grad_accum_steps": Key(COUNT, 1, "parts of a batch whose gradients are averaged; a loss per token or pixel that counts is each part's own mean"),
    "ema_decay": Key(POSITIVE, None, "moving average of the parameters, used in evaluation"),
    "sequences": Key(BLOCK, {}, "MAD's vocabulary and sequence lengths; fields of `systems/mad/vocabulary.Vocabulary`"),
    "objectives": Key(BLOCK, {}, "MAD's tasks, masks and loss weights; fields of `systems/mad/settings.Objectives`"),
    "skip_nonfinite": Key(FROM_ZERO, 0, "so many updates with a loss or gradient that is not finite are left out"),
    "head": Key(BLOCK, {}, "options of a system's head that its network does not hold, e.g. PolyMaX's bin centres"),
    "losses": Key(BLOCK, {}, "weights and constants of a system's losses"),
    "freeze_dict": Key(SWITCH, False, "the dictionary of stage I does not learn"),
    "w_commitment": Key(NUMBER, 0.0, "weight of the commitment loss of stage I; 0.25 for AiT's tokenizers"),
    "evals": Key(PAIRS, [], "(name, evaluator): a module of uvim_like/evaluators, options in the block config.<name>"),
    "seed": Key(INTEGER, 0, "of initialisation, data order and dropout"),
    "mesh": Key(BLOCK_OR_PAIRS, [("data", -1)], "axes of devices and their sizes; -1 for the rest"),
    "sharding": Key(PAIRS, [(".*", "replicate")], "pattern of names -> placement on the mesh"),
    "dtype": Key(TEXT, "float32", "compute type: " + " or ".join(DTYPES)),
    "remat": Key(TEXT, "none", "what the backward pass computes again: " + ", ".join(REMATS)),
    "scan_layers": Key(SWITCH, False, "compile one layer and scan it; names of parameters stay"),
    "compilation_cache": Key(TEXT, None, "folder of compiled programs"),
}
ORACLE_SCHEMA: dict[str, Key] = {
    "task": Key(TEXT, REQUIRED, "as config.task"),
    "model_init": Key(TEXT, None, "weights of stage I: a file or a workdir"),
    "model_name": Key(TEXT, REQUIRED, "as config.model_name"),
    "model": Key(BLOCK, REQUIRED, "as config.model"),
}
TOKENIZER_SCHEMA: dict[str, Key] = {
    "model_init": Key(TEXT, None, "weights of the tokenizer: a file or a workdir"),
    "model": Key(BLOCK, REQUIRED, "fields of the tokenizer's network"),
}
# A default of None in the lower five stands for the config's key of the same name (log_steps: log_eval_steps).
EVAL_SCHEMA: dict[str, Key] = {
    "split": Key(TEXT, REQUIRED, "split to evaluate"),
    "pp": Key(TEXT, REQUIRED, "preprocessing; images come decoded"),
    "pred": Key(TEXT, "predict", "which of the system's predict functions"),
    "pred_kw": Key(BLOCK, {}, "its options"),
    "metric": Key(BLOCK, {}, "options of the evaluator's make"),
    "prefix": Key(TEXT, None, 'before the names of its metrics; "<name>/" by default'),
    "log_steps": Key(COUNT, None, "steps between evaluations"),
    "dataset": Key(TEXT, None, "another dataset than the training's"),
    "data_dir": Key(TEXT, None, "another place than the training's"),
    "batch_size": Key(COUNT, None, "another size than the training's"),
}


def with_defaults(config: mlc.ConfigDict) -> mlc.ConfigDict:
  """A copy with references resolved and every optional key present, those of the evaluators' blocks too.

  `num_epochs` and `total_steps` are None where not given. `check` first: this function trusts the config.
  """
  values = plain(config)
  full = mlc.ConfigDict(values)
  own = system_reads(values["model_name"])
  _fill(full, {key: entry.default for key, entry in SCHEMA.items()} | own | dict(task=task_of(values)))
  inherited = dict(log_steps=full.log_eval_steps, dataset=full.dataset, batch_size=full.batch_size)
  for name, _ in full.evals:
    own = dict(prefix=f"{name}/", data_dir=place_of(full[name].get("dataset") or full.dataset, full))
    _fill(full[name], {key: entry.default for key, entry in EVAL_SCHEMA.items()} | inherited | own)
  return full


def place_of(dataset: str, config: Mapping[str, Any]) -> str | None:
  """`data_dir` for one of the config's datasets: that of the part which it is of a mixture, else the config's own."""
  places = (config["data_dir"] or "").split(MIXED)
  parts = [part.partition("*")[2].strip() for part in config["dataset"].split(MIXED)]
  if len(places) == len(parts) > 1 and parts.count(dataset) == 1:
    return places[parts.index(dataset)].strip()
  return config["data_dir"]


def inherited(config: mlc.ConfigDict, stored: mlc.ConfigDict) -> mlc.ConfigDict:
  """A run's config with overrides, from which evaluations take over what they took over before, as `with_defaults`.

  A stored config has these values in every block, where an override of the training's own would not reach them.

  Args:
    config: with overrides and defaults.
    stored: as the run has it, with defaults.
  """
  config = mlc.ConfigDict(plain(config))
  for name, _ in config.evals:
    block, old = config[name], stored.get(name)
    if old is None:
      continue
    for key in ("dataset", "batch_size"):
      if old[key] == stored[key] and block[key] == old[key]:
        block[key] = config[key]
    if old.data_dir == place_of(old.dataset, stored) and block.data_dir == old.data_dir:
      block.data_dir = place_of(block.dataset, config)
  return config


def _fill(block: mlc.ConfigDict, defaults: Mapping[str, Any]) -> None:
  for key, default in defaults.items():
    if default is not REQUIRED and (key not in block or block[key] is None):
      block[key] = copy.deepcopy(default)


def check(config: mlc.ConfigDict) -> None:
  """All that can be said about a config before its model is built.

  Raises:
    UserError: an unknown, missing or ill-typed key, an unknown task, system or evaluator, an evaluator without a block,
      sizes that do not fit together; with the nearest valid name.
  """
  values = plain(config)
  task = task_of(values)
  options = task_options(task)
  blocks = eval_blocks(values)
  _check_keys({key: value for key, value in values.items() if key not in blocks and key not in options}, SCHEMA,
              where="config", others=(*blocks, *options))
  resolve(task, "uvim_like.tasks", needs="to_planes", where="config.task")
  resolve(values["model_name"], "uvim_like.systems", where="config.model_name")
  _check_system(values)
  _check_length(values)
  _check_choices(values)
  _check_schedule(values.get("schedule"))
  for key in ("lr_mults", "wd_mults", "sharding", "schedule"):
    for pattern, _ in values.get(key) or () if not isinstance(values.get(key), dict) else ():
      trees.check_pattern(pattern, where=f"config.{key}")
  _check_evals(values)
  if values.get("oracle") is not None:
    _check_oracle(values)
  for name, block in (values.get("tokenizers") or {}).items():
    if not isinstance(block, dict):
      raise UserError(f"config.tokenizers.{name}: must be {BLOCK.phrase}, not {block!r}")
    _check_keys(block, TOKENIZER_SCHEMA, where=f"config.tokenizers.{name}")


def task_of(values: Mapping[str, Any]) -> str:
  """`task`, or the oracle's: the paper's Listing 2 gives it there only. UserError when there is neither."""
  oracle = values.get("oracle")
  task = values.get("task") or (oracle.get("task") if isinstance(oracle, dict) else None)
  if not isinstance(task, str):
    raise UserError(f"config: 'task' is missing or no string ({SCHEMA['task'].meaning})")
  return task


def resolve(name: str, package: str, *, needs: str = "make", where: str = "config") -> str:
  """The dotted path of the module that a name in a config denotes; nothing heavy is imported.

  'proj.uvim.vit' under 'uvim_like.systems' is 'uvim_like.systems.uvim.vit'.

  Args:
    name: as written; a leading 'proj.' is dropped.
    package: where to look.
    needs: function that makes a module one of its kind.
    where: the config key, for the message.

  Raises:
    UserError: no such module, with the nearest.
  """
  short = name.removeprefix("proj.")
  choices = names.module_names(package, needs=needs)
  if short not in choices:
    raise unknown("name", name, choices, where=where)
  return f"{package}.{short}"


def task_options(task: str) -> tuple[str, ...]:
  """Config keys that a task adds to the schema: its constant OPTIONS, read without importing it."""
  return tuple(_constant("tasks", task, "OPTIONS") or ())


def system_reads(model_name: str) -> dict[str, Any]:
  """{key of the schema that only some systems read: default} of those that this one reads: its constant READS."""
  return dict(_constant("systems", model_name, "READS") or {})


@functools.cache
def _constant(folder: str, name: str, constant: str) -> Any:
  """A literal at the top of a module that a name in a config denotes, read without importing it; None without."""
  path = pathlib.Path(__file__).parent / folder / (name.removeprefix("proj.").replace(".", "/") + ".py")
  if not path.is_file():
    return None
  for node in ast.parse(path.read_text(encoding="utf-8")).body:
    if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == [constant]:
      return ast.literal_eval(node.value)
  return None


def eval_blocks(values: Mapping[str, Any]) -> tuple[str, ...]:
  """Names of the evaluators' blocks: those in `evals`, and blocks that `evals` names no more but once did.

  The latter so that `--config.evals=[]` suffices to switch evaluation off.
  """
  evals = values.get("evals")
  named = {name for name, _ in evals} if evals and PAIRS.holds(evals) else set()
  idle = {key for key, value in values.items() if key not in SCHEMA and isinstance(value, dict) and "pp" in value
          and set(value) <= set(EVAL_SCHEMA)}
  return tuple(sorted((named | idle) - set(SCHEMA)))


def _check_keys(values: Mapping[str, Any], schema: Mapping[str, Key], *, where: str,
                others: tuple[str, ...] = ()) -> None:
  """Every key is in the schema, every required one is there, every value is of its kind."""
  for key in values:
    if key not in schema:
      raise unknown("key", key, (*schema, *others), where=where)
  for key, (kind, default, meaning) in schema.items():
    value = values.get(key)
    if value is None and default is REQUIRED:
      raise UserError(f"{where}: '{key}' is missing ({meaning})")
    if value is not None and not kind.holds(value):
      raise UserError(f"{where}.{key}: must be {kind.phrase}, not {value!r}")


def _check_length(values: Mapping[str, Any]) -> None:
  epochs, steps = values.get("num_epochs"), values.get("total_steps")
  if epochs is not None and steps is not None:
    raise UserError(f"config: num_epochs ({epochs}) and total_steps ({steps}) are both set; set one of them to None")
  if epochs is None and steps is None:
    raise UserError("config: neither num_epochs nor total_steps is set; set one of them")


def _check_choices(values: Mapping[str, Any]) -> None:
  for key, choices in (("dtype", DTYPES), ("remat", REMATS), ("on_bad_example", BAD_EXAMPLE)):
    if values.get(key) is not None and values[key] not in choices:
      raise unknown("value", values[key], choices, where=f"config.{key}")


def _check_system(values: Mapping[str, Any]) -> None:
  """No block is set that only other systems read: it would be passed over in silence."""
  own = system_reads(values["model_name"])
  readers = {name: system_reads(name) for name in names.module_names("uvim_like.systems", needs="make")}
  for key in sorted({key for reads in readers.values() for key in reads} - own.keys()):
    if values.get(key) not in (None, SCHEMA[key].default):
      others = ", ".join(name for name, reads in readers.items() if key in reads)
      raise UserError(f"config.{key}: model_name '{values['model_name']}' does not read it; {others} would; leave it out")


def _check_schedule(schedule: Any) -> None:
  """One dict, or (pattern, dict or None) pairs; every dict names its decay."""
  pairs = [(".*", schedule)] if isinstance(schedule, dict) else schedule or []
  for pattern, options in pairs:
    where = "config.schedule" if isinstance(schedule, dict) else f"config.schedule ('{pattern}')"
    if options is not None and not isinstance(options, dict):
      raise UserError(f"{where}: must be a dict, or None to freeze, not {options!r}")
    if options is not None and "decay_type" not in options:
      raise UserError(f"{where}: 'decay_type' is missing, e.g. dict(decay_type='cosine', warmup_steps=1000)")


def _check_evals(values: Mapping[str, Any]) -> None:
  seen = set()
  for name, evaluator in values.get("evals") or ():
    if not isinstance(evaluator, str):
      raise UserError(f"config.evals: '{name}' needs the name of an evaluator, not {evaluator!r}")
    if name in seen:
      raise UserError(f"config.evals: the name '{name}' stands twice")
    if name in SCHEMA:
      raise UserError(f"config.evals: '{name}' is a key of the config, its block needs another name")
    if not isinstance(values.get(name), dict):
      raise UserError(f"config.evals: '{name}' has no block; set config.{name} = dict(split=…, pp=…)")
    seen.add(name)
    resolve(evaluator, "uvim_like.evaluators", where=f"config.evals ('{name}')")
    _check_keys(values[name], EVAL_SCHEMA, where=f"config.{name}")
  _check_prefixes(values)


def _check_prefixes(values: Mapping[str, Any]) -> None:
  """What an evaluation has written is known by its prefix alone, after a kill as well: none may begin with another."""
  used = {"val_split": VAL_PREFIX} if values.get("val_split") else {}
  for name, _ in values.get("evals") or ():
    own = values[name].get("prefix")
    own = f"{name}/" if own is None else own
    for other, prefix in used.items():
      if own.startswith(prefix) or prefix.startswith(own):
        raise UserError(f"config.{name}.prefix: {own!r} and {prefix!r}, that of config.{other}, cannot be told apart in "
                        f"the log; give each one of its own, e.g. '{name}_eval/'")
    used[name] = own


def _check_oracle(values: Mapping[str, Any]) -> None:
  """Stage I's block; whether the two networks fit each other is for the system to say."""
  oracle = values["oracle"]
  _check_keys(oracle, ORACLE_SCHEMA, where="config.oracle")
  resolve(oracle["task"], "uvim_like.tasks", needs="to_planes", where="config.oracle.task")
  resolve(oracle["model_name"], "uvim_like.systems", where="config.oracle.model_name")
