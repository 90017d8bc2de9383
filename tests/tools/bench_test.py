"""The benchmarks on small sizes: what is counted and fitted is right, the table holds what was asked for."""

import itertools

import jax
import ml_collections as mlc
import numpy as np
import pytest

from tools import bench
from tools.benchmarks import bench_ait, bench_mad, bench_timing, bench_uvim
from uvim_like.systems.mad import decoder

MAD = {
    "model": {"backbone": {"name": "stem", "widths": [8], "mix": 0}, "width": 8, "num_heads": 2, "mlp_dim": 8,
              "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0},
    "sequences": {"classes": 3, "bins": 10, "text": 9, "queries": 4, "mask_side": 3, "joints": 2, "caption_length": 5},
    "objectives": {}}
GRID = (2, 3)


@pytest.fixture(scope="module")
def heads():
  return bench_ait.make_heads(f"{bench_ait.CONFIG}:runlocal")


def test_functions_are_timed_in_turn(monkeypatch):
  clock, calls = itertools.count(), []
  monkeypatch.setattr(bench_timing.time, "perf_counter", lambda: next(clock) ** 2)
  times = bench_timing.times_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
  assert calls == ["a", "b"] * 3  # the first round is not timed
  assert times == {"a": [1, 9], "b": [5, 13]}
  assert bench_timing.alternate({"a": lambda: None}, 3).keys() == {"a"}


def test_rows_of_uvim_are_what_they_were():
  assert bench_uvim.HEADER == ("measured", "value", "beside it", "ratio")
  assert list(bench_uvim.ROWS) == ["step", "listing1", "decode", "start"]
  assert bench_timing.row("x", 1.0, None, "") == ("x", "1", "", "")
  assert bench_timing.row("x", 1.0, 4.0, "plain") == ("x", "1", "plain 4", "0.25")


def test_the_plain_form_of_decoding_writes_the_same_words():
  planes = {"depth": (16, 64)}
  config = mlc.ConfigDict(dict(
      oracle=dict(task="depth", model_name="uvim.vit", model=dict(
          input_size=(16, 16), patch_size=(8, 8), width=8, oracle_depth=1, base_model_depth=1, num_heads=2, mlp_dim=8,
          code_len=9, dict_size=12, codeword_dim=8, inputs=planes, outputs=planes)),
      model_name="uvim.lm", model=dict(vocab_size=13, seq_len=9, input_size=(16, 16), patches=dict(size=(8, 8)),
                                       num_layers=2, num_heads=2, mlp_dim=16, emb_dim=16, posemb_type="learn")))
  runs = bench_uvim.decode_runs(config, batch=3, scale=0.5)
  for name, samples in (("one", 1), ("four", 4)):
    words = runs[name]()
    assert words.shape == (3, samples, 9)
    np.testing.assert_array_equal(words, runs[f"plain {name}"]())
  assert len(np.unique(words)) > 5  # of 12


@pytest.mark.slow
def test_ait_rows(heads):
  rows = bench_ait.depth_rows(repeats=1, heads=heads) + bench_ait.batch_one_rows(repeats=1, heads=heads)
  rows += bench_ait.tokenizer_rows(repeats=1, parts=heads["ar"]) + bench_ait.machine_rows(repeats=1)
  assert all(len(row) == len(bench_ait.HEADER) for row in rows)
  named = {row[0]: row for row in rows}
  for name, text in (bench_ait.DEPTH | bench_ait.TOKENIZER).items():
    assert float(named[text][1]) > 0 and float(named[text][3]) == pytest.approx(bench_ait.AUTHORS[name])
  assert named[bench_ait.DEPTH["parallel"]][5] == "<= 0.186"
  one, passes = (float(named[bench_ait.DEPTH[name]][1]) for name in ("ar", "parallel"))
  assert float(named["one by one / one pass, batch 4"][1]) == pytest.approx(one / passes, rel=1e-2)


def test_ait_programs_are_the_solvers_own(heads):
  """Words of the tokenizer come out, and the released sizes are those of the table's head line."""
  runs = bench_ait.depth_runs(heads, batch=1)
  assert set(runs) == set(bench_ait.DEPTH)
  whole = bench_ait.make_heads()
  head = whole["ar"].head
  assert (head.width, head.num_encoder_layers, head.num_decoder_layers, head.vocab_size) == (256, 6, 6, 2339)
  assert whole["ar"].length("depth") == 225 and whole["parallel"].head.parallel
  assert whole["ar"].tokenizers["depth"].input_size == (480, 480)


def mad_parts(form, kind=bench_mad.FromMemory):
  parts = decoder.make(MAD | {"objectives": {"form": form}}).predict["predict"].keywords["parts"]
  given = {name: getattr(parts.model, name) for name in decoder.Model.__dataclass_fields__
           if name not in ("parent", "name")}
  return parts._replace(model=kind(**given))


@pytest.mark.slow
def test_mad_calls_are_counted_where_they_happen():
  counts = bench_mad.count_calls(bench_mad.ways(lambda form: mad_parts(form, bench_mad.Counted), GRID, chunk=4))
  tokens = 4 * 5 + 3 * 3 + 2 * 3
  one = counts["autoregressive"]
  assert tokens < one[1] <= tokens + 5 and one[5] == 2  # a caption may end early; prompts of masks and keypoints
  assert counts["parallel"] == {1 + 20: 1, 6 + 9: 1, 6 + 6: 1, 1 + 5: 1}
  assert counts["masked"] == {1 + 20: 1, 6 + 9: 1, 6 + 6: 2, 1 + 5: 4}


def test_mad_full_sizes():
  parts = bench_mad.make_parts("masked")
  assert (parts.model.width, parts.model.decoder_layers, parts.vocabulary.size) == (256, 6, 12_027)
  assert isinstance(parts.model, bench_mad.FromMemory)
  assert sum(map(parts.vocabulary.response, bench_mad.TASKS)) == 827
  shapes = jax.eval_shape(lambda: bench_mad.make_inputs(parts)[0])
  assert not any("encoder" in name or "features" in name for name in shapes.params)


def test_a_line_is_fitted():
  start, slope, explained = bench_mad.fit_line([1, 2, 4], [5, 7, 11])
  np.testing.assert_allclose((start, slope, explained), (3, 2, 1))
  assert bench_mad.fit_line([1, 2, 3, 4], [0, 3, 0, 3])[2] < 0.5


def test_the_table_is_printed(monkeypatch, capsys):
  monkeypatch.setitem(bench_ait.ROWS, "machine", lambda repeats: [(f"row {repeats}", *"abcde")])
  assert bench.main(["ait", "--rows=machine", "--repeats=2"]) == 0
  first, header, line = capsys.readouterr().out.splitlines()
  assert first.startswith("jax ") and header.split()[:2] == ["measured", "best"] and line.split() == "row 2 a b c d e".split()


@pytest.mark.parametrize("argv, message", [
    (["uvm"], "bench: unknown system 'uvm'; did you mean 'uvim'?"),
    (["ait", "--rows=deth"], "--rows: unknown rows 'deth'; did you mean 'depth'?"),
    (["ait", "--rows="], "--rows: is empty"), (["ait", "--repeats=0"], "--repeats: '0' is no whole number"),
    (["ait", "--row=depth"], "unknown flag '--row'"), ([], "what")])
def test_mistakes_are_one_line(capsys, argv, message):
  assert bench.main(argv) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
