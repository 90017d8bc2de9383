"""Captions as tokens and as words: round trips, cuts, determinism, mirrors, the treebank's rules."""

import numpy as np
import pytest

from uvim_like import scenes
from uvim_like.errors import UserError
from uvim_like.scenes.captions import VOCABULARY
from uvim_like.tasks import text


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "scenes.model"
  text.train_scenes(path)
  return path


def test_every_caption_survives_the_round_trip(model):
  tokenizer = text.load(model)
  assert tokenizer.GetPieceSize() <= text.SCENES_PIECES and tokenizer.pad_id() == 0
  for i in range(20):
    for sentence in scenes.example("validation", i, size=32)["captions"]["text"]:
      ids = text.encode(tokenizer, str(sentence), length=40)
      assert text.decode(tokenizer, ids) == sentence and 2 not in ids and ids.dtype == np.int32
  for word in VOCABULARY:
    assert text.decode(tokenizer, text.encode(tokenizer, word, length=40)) == word


def test_training_gives_the_same_bytes_again(model, tmp_path):
  text.train_scenes(tmp_path / "again.model")
  assert (tmp_path / "again.model").read_bytes() == model.read_bytes()


def test_long_sentences_are_cut_and_short_lists_filled(model):
  tokenizer = text.load(model)
  ids = text.encode(tokenizer, "a box and " * 20, length=7)
  assert ids.shape == (7,) and (ids > 0).all()
  rows = text.encode_all(tokenizer, ["A Box"], length=4, references=3)
  assert rows.shape == (3, 4) and (rows[1:] == 0).all()
  assert text.decode(tokenizer, rows[0]) == "a box" and text.decode(tokenizer, rows[1]) == ""
  assert text.encode_all(tokenizer, ["a", "b", "c"], length=4, references=2).shape == (2, 4)
  assert text.encode(tokenizer, "", length=3).tolist() == [0, 0, 0]


def test_a_model_whose_first_piece_is_a_word_is_refused(tmp_path):
  import io

  import sentencepiece
  writer = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(["a box and a ball in a room"] * 20), model_writer=writer, vocab_size=20, minloglevel=2,
      hard_vocab_limit=False, unk_id=0, bos_id=-1, eos_id=-1)
  (tmp_path / "unk.model").write_bytes(writer.getvalue())
  with pytest.raises(UserError, match="0 must be padding"):
    text.load(tmp_path / "unk.model")


def test_mirrored_sentences():
  sentence = "a box to the left of a sphere, leftover right"
  assert text.swap_sides(sentence) == "a box to the right of a sphere, leftover left"
  assert text.swap_sides(text.swap_sides(sentence)) == sentence


@pytest.mark.parametrize("sentence, words", [
    ("Don't touch it; they're hers!", "do n't touch it they 're hers"),
    ("I cannot, I'm 5 and he'll wait...", "i can not i 'm 5 and he 'll wait"),
    ("A U.S. flag costs $5, 20% off (today).", "a u.s. flag costs $ 5 20 % off -lrb- today -rrb-"),
    ("Mr. Smith's dark-blue hat -- \u201cnew\u201d \u2014 at 10 o'clock",
     "mr. smith 's dark-blue hat new at 10 o'clock"),
    ("1,000 men at 10:30 in a 2-story house", "1,000 men at 10:30 in a 2-story house"),
    ("the artists' room", "the artists room"), ("", ""), ("...", "")])
def test_words(sentence, words):
  assert text.ptb_tokens(sentence) == words.split()


def test_words_of_scenes_are_those_between_blanks():
  for i in range(10):
    for sentence in scenes.example("train", i, size=32)["captions"]["text"]:
      assert text.ptb_tokens(str(sentence)) == str(sentence).split()
