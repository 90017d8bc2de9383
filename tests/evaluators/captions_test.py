"""BLEU of token ids against sentences: perfect, empty and unknown predictions, fewer references, hosts."""

import numpy as np
import pytest

from uvim_like.errors import UserError
from uvim_like.evaluators import captions
from uvim_like.tasks import text

SENTENCES = ["two boxes and a person in a room", "there are two boxes and a person", "a red box behind a blue sphere"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "small.model"
  text.train_scenes(path, examples=24)
  return path


@pytest.fixture
def metric(tokenizer):
  return captions.make(model=str(tokenizer))


def ids(tokenizer, sentence):
  return {"captions": text.encode(text.load(tokenizer), sentence, length=20)}


def truth(*sentences):
  return {"captions/text": np.array([s.encode() for s in sentences], object)}


def scored(metric, *pairs):
  stats = metric.init()
  for one, target in pairs:
    stats = metric.update(stats, one, target)
  return metric.compute(stats)


def test_a_reference_scores_one(metric, tokenizer):
  got = scored(metric, *((ids(tokenizer, s), truth(*SENTENCES)) for s in SENTENCES))
  assert [got[f"BLEU{n}"] for n in range(1, 5)] == pytest.approx([1] * 4)
  assert got["images"] == 3 and got["hypothesis_words"] == sum(len(s.split()) for s in SENTENCES)


def test_empty_and_wrong_predictions_score_zero(metric):
  assert scored(metric, ({"captions": np.zeros(20, np.int32)}, truth(*SENTENCES)))["BLEU1"] == 0
  wrong = {"captions": np.array([1, 2, 10 ** 6, -5, 0, 3], np.int32)}   # control pieces, ids that no piece has
  assert scored(metric, (wrong, truth(*SENTENCES)))["BLEU4"] == 0
  assert np.isnan(scored(metric)["BLEU4"])


def test_images_without_reference_are_left_out(metric, tokenizer):
  one = ids(tokenizer, SENTENCES[0])
  got = scored(metric, (one, truth()), (one, truth("", " ")), (one, truth(SENTENCES[0])))
  assert got["images"] == 1 and got["BLEU4"] == pytest.approx(1)


def test_text_that_ends_beyond_the_first_zero_does_not_count(metric, tokenizer):
  one = ids(tokenizer, SENTENCES[0])["captions"]
  n = int((one > 0).sum())
  tail = one.copy()
  tail[n + 1:] = one[:len(one) - n - 1]
  assert scored(metric, ({"captions": tail}, truth(SENTENCES[0])))["BLEU4"] == pytest.approx(1)


def test_counts_by_hand():
  # "the the cat" against "the cat sat" and "a cat the": the twice is clipped to once; lengths 3, closest 3.
  row = captions.counts("the the cat".split(), ["the cat sat".split(), "a cat the".split()])
  assert row.tolist() == [2, 1, 0, 0, 3, 2, 1, 0, 3, 3, 1]
  assert captions.counts("a b c".split(), ["a b".split(), "a b c d".split()]).tolist()[8:10] == [3, 2]   # tie: shorter


def test_number_of_references(tokenizer):
  metric = captions.make(model=str(tokenizer), references=1)
  assert "first 1 references" in metric.protocol
  assert scored(metric, (ids(tokenizer, SENTENCES[2]), truth(SENTENCES[0], SENTENCES[2])))["BLEU4"] == 0


def test_mistakes(tmp_path):
  with pytest.raises(UserError, match="there is no such file"):
    captions.make(model=str(tmp_path / "none.model"))
  (tmp_path / "bad.model").write_bytes(b"no model")
  with pytest.raises(UserError, match="not a SentencePiece model"):
    captions.make(model=str(tmp_path / "bad.model"))
