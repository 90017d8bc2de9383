"""The schema names every mistake with its nearest valid form; files, overrides and JSON mean what they say."""

import json

import ml_collections as mlc
import pytest

from uvim_like import config as configs
from uvim_like import config_json, names
from uvim_like.config_schema import EVAL_SCHEMA, ORACLE_SCHEMA, SCHEMA, system_reads
from uvim_like.errors import UserError

DEPTH = "configs/uvim/depth_stage1.py"


def stage_one() -> mlc.ConfigDict:
  """A config as somebody else might write it in the vocabulary of Listing 1, with few of the optional keys."""
  config = mlc.ConfigDict()
  config.task = "depth"
  config.dataset, config.train_split = "scenes", "train"
  config.batch_size = mlc.config_dict.placeholder(int)
  config.batch_size = 8
  config.total_steps = 10
  config.pp_train = "decode|nyu_depth|keep('image', 'labels')"
  config.model_name = "proj.uvim.vit"
  config.model = {"input_size": [32, 64], "patch_size": (8, 8), "inputs": {"depth": (16, 64)}}
  config.model.outputs = config.model.get_ref("inputs")
  config.lr = 1e-3
  config.evals = [["val", "nyu_depth"]]
  config.val = mlc.ConfigDict(dict(pp="nyu_depth|keep('image')", split="validation"))
  return config


def stage_two() -> mlc.ConfigDict:
  """The same for Listing 2, without a task of its own."""
  config = stage_one()
  config.oracle = {"task": config.task, "model_name": config.model_name, "model_init": "o.npz",
                   "model": {**config.model.to_dict(), "dict_size": 64, "code_len": 16}}
  del config.task
  config.model_name = "uvim.lm"
  config.model = {"input_size": 32, "patches": {"size": (8, 8)}}
  config.model.vocab_size = config.oracle.model.get_ref("dict_size") + 1
  config.model.seq_len = config.oracle.model.get_ref("code_len")
  return config


def without(config: mlc.ConfigDict, *keys: str) -> mlc.ConfigDict:
  for key in keys:
    del config[key]
  return config


def changed(config: mlc.ConfigDict, **values) -> mlc.ConfigDict:
  """With keys set ("oracle__task" is oracle.task), whatever their type was."""
  for path, value in values.items():
    *parents, key = path.split("__")
    block = config
    for parent in parents:
      block = block[parent]
    with block.ignore_type():
      block[key] = value
  return config


def message(config: mlc.ConfigDict) -> str:
  with pytest.raises(UserError) as error:
    configs.check(config)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_foreign_configs_pass():
  for config in (stage_one(), stage_two()):
    configs.check(config)
    configs.check(configs.with_defaults(config))
    configs.check(config.copy_and_resolve_references())


def test_schema_documents_every_key():
  for schema in (SCHEMA, ORACLE_SCHEMA, EVAL_SCHEMA):
    for key, entry in schema.items():
      assert entry.meaning and entry.kind.phrase, key


def test_defaults_are_filled_in_and_belong_to_the_copy():
  config = stage_two()
  full = configs.with_defaults(config)
  assert set(SCHEMA) <= set(full) and "seed" not in config
  assert full.task == "depth" and full.model.vocab_size == 65
  assert (full.val.prefix, full.val.pred, full.val.batch_size, full.val.dataset) == ("val/", "predict", 8, "scenes")
  assert full.val.log_steps == full.log_eval_steps
  assert configs.with_defaults(full) == full
  full.optax.b1 = 0.5
  full.evals.append(("x", "y"))
  assert configs.with_defaults(config).optax.to_dict() == {} and len(config.evals) == 1


@pytest.mark.parametrize(("config", "expected"), [
    (changed(stage_one(), batchsize=3), "unknown key 'batchsize'; did you mean 'batch_size'?"),
    (changed(stage_one(), min_dept=0.1), "unknown key 'min_dept'; did you mean 'min_depth'?"),
    (changed(stage_one(), val__splitt="train"), "config.val: unknown key 'splitt'; did you mean 'split'?"),
    (changed(stage_two(), oracle__modell={}), "config.oracle: unknown key 'modell'; did you mean 'model'?"),
    (without(stage_one(), "lr"), "'lr' is missing"),
    (without(stage_one(), "task"), "'task' is missing"),
    (without(stage_one(), "val"), "'val' has no block"),
    (changed(stage_one(), evals=[("val", "nyu_deph")]), "did you mean 'nyu_depth'?"),
    (changed(stage_one(), evals=[("model", "nyu_depth")]), "'model' is a key of the config"),
    (changed(stage_one(), evals=[("val", "nyu_depth"), ("val", "mean")]), "stands twice"),
    (changed(stage_one(), evals=["val"]), "config.evals: must be a list of (name, value) pairs"),
    (changed(stage_one(), evals=[("val", 3)]), "needs the name of an evaluator"),
    (changed(stage_one(), val_split="validation"), "config.val.prefix: 'val/' and 'val/', that of config.val_split, cannot"),
    (changed(stage_one(), val_split="validation", val__prefix=""), "config.val.prefix: '' and 'val/'"),
    (changed(stage_one(), evals=[("val", "nyu_depth"), ("more", "mean")],
             more=dict(split="train", pp="nyu_depth", prefix="val/train_")), "config.more.prefix: 'val/train_' and 'val/'"),
    (changed(stage_one(), solver={"nonsense": 1}),
     "config.solver: model_name 'proj.uvim.vit' does not read it; ait.solver would; leave it out"),
    (changed(stage_one(), oracle=stage_two().oracle.to_dict()), "config.oracle: model_name 'proj.uvim.vit' does not"),
    (changed(stage_two(), w_commitment=0.5), "'uvim.lm' does not read it; ait.vqvae, uvim.vit would"),
    (changed(stage_two(), freeze_dict=True), "config.freeze_dict: model_name 'uvim.lm' does not read it"),
    (changed(stage_one(), task="depht"), "config.task: unknown name 'depht'; did you mean 'depth'?"),
    (changed(stage_one(), model_name="proj.uvim.vitt"), "config.model_name: unknown name"),
    (changed(stage_two(), oracle__model_name="uvim.vitt"), "config.oracle.model_name: unknown name"),
    (changed(stage_one(), batch_size=0), "config.batch_size: must be an integer above 0, not 0"),
    (changed(stage_one(), batch_size=True), "config.batch_size: must be an integer above 0"),
    (changed(stage_one(), batch_size=4.0), "config.batch_size: must be an integer above 0"),
    (changed(stage_one(), log_training_steps=-1), "config.log_training_steps: must be an integer above 0"),
    (changed(stage_one(), val__log_steps=0), "config.val.log_steps: must be an integer above 0"),
    (changed(stage_one(), lr="1e-3"), "config.lr: must be a number"),
    (changed(stage_one(), num_epochs=3), "both set"),
    (changed(stage_one(), total_steps=None), "neither num_epochs nor total_steps"),
    (changed(stage_one(), dtype="float16"), "config.dtype: unknown value 'float16'"),
    (changed(stage_one(), remat="ful"), "did you mean 'full'?"),
    (changed(stage_one(), schedule=dict(warmup_steps=3)), "'decay_type' is missing"),
    (changed(stage_one(), schedule=[(".*", 3)]), "must be a dict, or None to freeze"),
    (changed(stage_one(), lr_mults={"a": 1}), "config.lr_mults: must be a list of (name, value) pairs"),
    (changed(stage_one(), model=3), "config.model: must be a block (dict)"),
])
def test_mistakes_are_named(config, expected):
  assert expected in message(config)


def test_task_options_and_idle_evaluator_blocks_are_keys():
  schedule = [("a.*", None), (".*", {"decay_type": "cosine"})]
  configs.check(changed(stage_one(), min_depth=0.5, max_depth=80.0, evals=[], schedule=schedule))


def test_what_only_some_systems_read():
  assert configs.with_defaults(stage_one()).w_commitment == 0.0
  tokenizer = configs.load_file("configs/ait/vqvae_depth.py", [])
  del tokenizer.w_commitment
  configs.check(tokenizer)
  assert configs.with_defaults(tokenizer).w_commitment == 0.25
  reads = {name: system_reads(name) for name in names.module_names("uvim_like.systems", needs="make")}
  assert all(reads.values()) and {key for own in reads.values() for key in own} <= set(SCHEMA)
  configs.check(changed(stage_two(), w_commitment=0.0, freeze_dict=False))  # the defaults may stand anywhere


def test_required_placeholder_is_named():
  config = stage_one()
  config.val_split = mlc.config_dict.required_placeholder(str)
  assert "'val_split' has no value yet" in message(config)


def test_resolve_gives_the_path():
  assert configs.resolve("proj.uvim.vit", "uvim_like.systems") == "uvim_like.systems.uvim.vit"
  with pytest.raises(UserError, match="did you mean 'uvim.vit'"):
    configs.resolve("proj.uvim.vitt", "uvim_like.systems")


# --- JSON -----------------------------------------------------------------------------------------------------------


def test_json_is_exact_and_plain():
  config = stage_two()
  config.schedule = [("a/.*", {"x": (1, (2, [3.0]))}), ("b~", None)]
  config.wd = 1e-6
  config.model.nothing = ()
  text = configs.to_json(config)
  back = configs.from_json(text)
  resolved = config.copy_and_resolve_references()
  assert back == resolved and configs.to_json(back) == text
  assert configs.plain(back) == configs.plain(resolved) and list(back) == list(resolved)
  assert isinstance(back.schedule[0][1]["x"][1][1], list) and isinstance(back.evals[0], list)
  assert json.loads(text)["model"]["patches"]["size"] == [8, 8] and back.model.patches.size == (8, 8)
  assert isinstance(back.batch_size, int) and isinstance(back.lr, float)


@pytest.mark.parametrize(("places", "dataset", "wanted"), [
    ("/coco; /nyu", "coco_instances", "/coco"), ("/coco; /nyu", "nyu", "/nyu"), ("/coco; /nyu", None, "/coco; /nyu"),
    ("/coco; /nyu", "scenes", "/coco; /nyu"), ("/both", "nyu", "/both"), (None, "nyu", None)])
def test_an_evaluator_of_one_part_of_a_mixture_looks_where_that_part_lies(places, dataset, wanted):
  config = changed(stage_one(), dataset="60*coco_instances; 4*nyu", data_dir=places, evals=[("val", "nyu_depth")],
                   val=dict(split="test", pp="decode", dataset=dataset))
  assert configs.with_defaults(config).val.data_dir == wanted


@pytest.mark.parametrize(("override", "wanted"), [
    ("data_dir=/new/coco;/new/nyu", ("/new/coco", "/new/nyu", "/mine")), ("data_dir=/one", ("/one", "/one", "/mine")),
    ("depth.data_dir=/other", ("/coco", "/other", "/mine")), ("seed=3", ("/coco", "/nyu", "/mine"))])
def test_evaluations_of_a_stored_config_follow_an_override(override, wanted):
  """A stored config has every block's own place, as it was: that of its part of a mixture."""
  block = dict(split="test", pp="decode")
  config = changed(stage_one(), dataset="60*coco_instances; 4*nyu", data_dir="/coco;/nyu", batch_size=8,
                   evals=[("objects", "coco_instances"), ("depth", "nyu_depth"), ("own", "nyu_depth")],
                   objects=dict(block, dataset="coco_instances"), depth=dict(block, dataset="nyu"),
                   own=dict(block, dataset="nyu", data_dir="/mine", batch_size=2))
  stored = configs.with_defaults(config)
  moved = configs.from_json(configs.to_json(stored))
  for text in (override, "batch_size=16"):
    configs.override(moved, text)
  found = configs.inherited(configs.with_defaults(moved), stored)
  assert (found.objects.data_dir, found.depth.data_dir, found.own.data_dir) == wanted
  assert (found.objects.batch_size, found.own.batch_size) == (16, 2) and found.evals == stored.evals


@pytest.mark.parametrize(("value", "place"), [
    ({"f": [print]}, "config.optax.f.0"), ({"x": float("nan")}, "config.optax.x"),
    ({"p": [{1: 2}]}, "config.optax.p.0.1")])
def test_json_names_what_it_cannot_hold(value, place):
  with pytest.raises(UserError, match=place):
    configs.to_json(changed(stage_one(), optax=value))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_broken_json_is_named(text):
  with pytest.raises(UserError, match="config.json"):
    configs.from_json(text)


def test_diff():
  a, b = stage_one(), stage_one()
  assert configs.diff(a, b) == []
  b.lr, b.model.width, b.evals = 1e-4, 8, (("val", "nyu_depth"),)
  assert configs.diff(a, b) == [("lr", 1e-3, 1e-4), ("model.width", "(absent)", 8)]


# --- Files, overrides, command lines --------------------------------------------------------------------------------


def test_overrides_take_the_type_of_what_is_there(repository):
  config = configs.load_file(f"{repository / DEPTH}:scenes,runlocal", [
      "lr=1", "model.width=64", "model.input_size=[128, 128]", "data_dir=/tmp/3", "dtype=bfloat16", "seed=7",
      "model.with_encoder_ctx=false", "dataset=7", "evals=[]", "grad_clip_norm=None", "optax={'b1': 0.5}",
      "depth_val.batch_size=4", "wd_mults=[('.*', 1.0)]", "depth_val.pred_kw={'temperature': 1.0}"])
  configs.check(config)
  assert config.lr == 1.0 and isinstance(config.lr, float) and config.model.width == 64
  assert config.model.input_size == (128, 128) and config.data_dir == "/tmp/3" and config.dtype == "bfloat16"
  assert config.seed == 7 and config.model.with_encoder_ctx is False and config.dataset == "7" and config.evals == []
  assert config.grad_clip_norm is None and config.optax.to_dict() == {"b1": 0.5} and config.depth_val.batch_size == 4
  assert config.wd_mults == [(".*", 1.0)] and config.depth_val.pred_kw.temperature == 1.0


@pytest.mark.parametrize(("text", "expected"), [
    ("batchsize=3", "did you mean 'batch_size'"), ("model.widht=3", "did you mean 'width'"),
    ("modle.width=3", "did you mean 'model'"), ("depth_val.slpit=x", "did you mean 'split'"),
    ("batch_size=0.5", "wants a value of type int"), ("model.width=big", "wants a value of type int"),
    ("model.with_encoder_ctx=3", "wants a value of type bool"), ("model.input_size=3", "wants a value of type tuple"),
    ("model=3", "wants a value of type dict"), ("lr.x=3", "is no block"), ("lr", "key=value is expected")])
def test_wrong_overrides_are_named(text, expected, repository):
  with pytest.raises(UserError, match=expected):
    configs.load_file(str(repository / DEPTH), [text])


def test_files_that_are_no_configs(tmp_path):
  for text, expected in (("x = 1", "get_config"), ("def get_config(): return {}", "ConfigDict"),
                         ("def get_config(): pass", "takes no arguments")):
    path = tmp_path / "c.py"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
      configs.load_file(f"{path}:x" if "arguments" in expected else str(path))
  with pytest.raises(UserError, match="did you mean"):
    configs.load_file(str(tmp_path / "cc.py"))
  with pytest.raises(UserError, match="no file"):
    configs.load_file("nowhere/at/all.py")


def test_files_anywhere_may_use_the_shared_blocks(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "mine.py").write_text(
      "import ml_collections as mlc\nfrom configs import common\n"
      "def get_config(arg=''):\n  return mlc.ConfigDict(dict(common.parse_arg(arg, dict(k=1))))\n")
  assert configs.load_file("mine.py:k=3").k == 3


def test_command_lines_are_split():
  words = ["--config=a.py:x,y=1", "--workdir", "d", "--config.lr=1e-3", "--config.model.width", "64", "-v"]
  assert configs.split_argv(words) == ("a.py:x,y=1", ["lr=1e-3", "model.width=64"], ["--workdir", "d", "-v"])
  assert configs.split_argv(["--configuration=x"]) == (None, [], ["--configuration=x"])
  with pytest.raises(UserError, match="needs a value"):
    configs.split_argv(["--config"])


@pytest.fixture
def repository():
  return configs.ROOT


def test_leaves_of_a_config_are_named_by_their_path():
  assert dict(config_json.leaves({"a": {"b": 1, "c": {}}, "d": None})) == {"a.b": 1, "a.c": {}, "d": None}
