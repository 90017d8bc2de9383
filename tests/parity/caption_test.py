"""BLEU and its words against coco-caption's numbers, for every stored case."""

import numpy as np
import pytest

from uvim_like.evaluators import captions
from uvim_like.tasks import text

pytestmark = pytest.mark.parity


def scored(hypotheses, references):
  """BLEU of lists of words, merged from two halves as two hosts would."""
  rows = [captions.counts(h, r) for h, r in zip(hypotheses, references, strict=True)]
  zero = np.zeros(11, np.int64)
  return captions.compute(sum(rows[::2], zero) + sum(rows[1::2], zero)), sum(rows, zero)


def close(ours, case):
  tol = {"rel": case["tol"].get("rtol", 0), "abs": case["tol"].get("atol", 1e-12)}
  for n in range(1, 5):
    assert ours[f"BLEU{n}"] == pytest.approx(case["expected"][f"BLEU{n}"], **tol), (case["case"], n)


def test_bleu_of_words(stored_metrics):
  for case, _ in stored_metrics("caption"):
    ours, rows = scored([h.split() for h in case["hyps_tok"]], [[r.split() for r in rs] for rs in case["refs_tok"]])
    close(ours, case)
    counts = case["expected"].get("stats")
    if counts:
      assert rows[:4].tolist() == counts["correct"] and rows[4:8].tolist() == counts["guess"]
      assert rows[8:10].tolist() == [counts["hyp_len"], counts["ref_len"]]


def test_words_are_those_of_the_treebank_tokenizer(stored_metrics):
  """The acceptance is BLEU from raw sentences; the words themselves are compared too, so that a difference is seen."""
  seen = 0
  for case, _ in stored_metrics("caption"):
    if "hyps_raw" not in case:
      continue
    raw = [*case["hyps_raw"], *(r for rs in case["refs_raw"] for r in rs)]
    words = [*case["hyps_tok"], *(r for rs in case["refs_tok"] for r in rs)]
    wrong = [(a, b) for a, b in zip(raw, words, strict=True) if text.ptb_tokens(a) != b.split()]
    assert not wrong, (case["case"], wrong[:3])
    ours, _ = scored([text.ptb_tokens(h) for h in case["hyps_raw"]],
                     [[text.ptb_tokens(r) for r in rs] for rs in case["refs_raw"]])
    close(ours, case)
    seen += len(raw)
  assert seen
