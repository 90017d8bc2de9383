"""Captions as tokens (SentencePiece), and as the words that BLEU counts (Penn Treebank); no TensorFlow.

Token ids are those of a SentencePiece model; 0 is padding and end in one, as MAD has it (section 1 of its vocabulary),
so piece 0 of a model must be its padding or another control piece.
"""

import contextlib
import functools
import io
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from uvim_like import scenes
from uvim_like.errors import UserError
from uvim_like.scenes import captions as grammar

SCENES = "scenes"
SCENES_PIECES = 96       # ids of the model for `scenes`: 3 control pieces, words, and letters for words never seen
SCENES_EXAMPLES = 192    # examples whose captions it is trained on; their words are all of the grammar's but a few
_SCENES_SIZE = 32        # pixels: captions hardly depend on the size, rendering does
CACHE = "~/.cache/uvim_like/text"

Tokenizer = sentencepiece.SentencePieceProcessor


# --- models -------------------------------------------------------------------------------------------------------

def load(model: str | os.PathLike) -> Tokenizer:
  """The tokenizer of a .model file; "scenes" is the project's own, trained when first asked for and then kept.

  Raises:
    UserError: no such file, or no SentencePiece model.
  """
  path = scenes_model() if str(model) == SCENES else pathlib.Path(model).expanduser()
  if not path.is_file():
    raise UserError(f"text model '{model}': there is no such file; give a SentencePiece .model file or '{SCENES}'")
  return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(path: pathlib.Path, _mtime_ns: int) -> Tokenizer:
  try:
    tokenizer = Tokenizer(model_file=str(path))
  except (RuntimeError, OSError) as error:
    raise UserError(f"text model '{path}': not a SentencePiece model ({' '.join(str(error).split())[:120]})") from error
  if not tokenizer.IsControl(0) and tokenizer.pad_id() != 0:
    raise UserError(f"text model '{path}': its piece 0 is '{tokenizer.IdToPiece(0)}', but 0 must be padding")
  return tokenizer


def train(sentences: Iterable[str], path: str | os.PathLike, *, pieces: int) -> None:
  """Trains a unigram model on lower-cased sentences and writes it; the same sentences give the same bytes.

  Args:
    sentences: text, at least a few dozen words in all.
    path: of the .model file; its folder is made.
    pieces: at most so many ids; a small corpus gives fewer.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter([sentence.lower() for sentence in sentences]), model_writer=model, model_type="unigram",
      vocab_size=pieces, hard_vocab_limit=False, character_coverage=1.0, num_threads=1, shuffle_input_sentence=False,
      pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
  with _replacing(path) as file:
    file.write(model.getvalue())


@contextlib.contextmanager
def _replacing(path: pathlib.Path):
  """A file that appears under its name when it is whole: two processes may train the same model at a time."""
  with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
    yield file
  os.replace(file.name, path)


def train_scenes(path: str | os.PathLike, *, examples: int = SCENES_EXAMPLES) -> None:
  """The model for `scenes`: trained on the captions of the first training examples and the words of the grammar."""
  texts = [str(text) for i in range(examples)
           for text in scenes.example("train", i, size=_SCENES_SIZE)["captions"]["text"]]
  train(texts + list(grammar.VOCABULARY), path, pieces=SCENES_PIECES)


def scenes_model() -> pathlib.Path:
  """Where the model for `scenes` is kept; made by `train_scenes` when it is not there (a few seconds).

  Raises:
    UserError: the folder cannot be written.
  """
  path = pathlib.Path(CACHE).expanduser() / f"scenes-{scenes.VERSION}-{SCENES_PIECES}-{SCENES_EXAMPLES}.model"
  if not path.is_file():
    try:
      train_scenes(path)
    except OSError as error:
      raise UserError(f"text model '{SCENES}': {path} cannot be written ({error.strerror}); write one elsewhere with "
                      "tools.make_data --task=instances and name that file") from error
  return path


# --- tokens -------------------------------------------------------------------------------------------------------

def encode(tokenizer: Tokenizer, sentence: str, *, length: int) -> np.ndarray:
  """(length,) int32 ids of the lower-cased sentence, cut to `length`, 0 behind its end."""
  ids = tokenizer.Encode(sentence.lower())[:length]
  return np.array(ids + [0] * (length - len(ids)), np.int32)


def encode_all(tokenizer: Tokenizer, sentences: Sequence[str], *, length: int, references: int) -> np.ndarray:
  """(references, length) int32: the first sentences, rows of zeros where there are fewer."""
  ids = np.zeros((references, length), np.int32)
  for row, sentence in zip(ids, sentences):
    row[:] = encode(tokenizer, sentence, length=length)
  return ids


def decode(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> str:
  """The sentence of ids (T,), up to the first 0; ids that the model does not have are left out."""
  ids = np.asarray(ids).reshape(-1)
  ends = np.flatnonzero(ids == 0)
  ids = ids[:ends[0]] if ends.size else ids
  return tokenizer.Decode([int(i) for i in ids if 0 < i < tokenizer.GetPieceSize()])


def swap_sides(sentence: str) -> str:
  """The sentence about the mirrored picture: the words left and right exchanged."""
  return re.sub(r"\b(left|right)\b", lambda m: "right" if m[0] == "left" else "left", sentence)


# --- words --------------------------------------------------------------------------------------------------------

# What coco-caption drops after tokenising. Brackets are listed there in capitals and come out of the tokenizer in lower
# case, so they stay; measured on the reference's own output.
_DROPPED = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--",
                      "...", ";"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# Abbreviations that keep their full stop inside a sentence.
_ABBREVIATIONS = ("mr|mrs|ms|messrs|dr|prof|rev|gen|sen|rep|gov|lt|sgt|col|capt|st|jr|sr|inc|ltd|co|corp|bros|vs|etc|"
                  "jan|feb|mar|apr|jun|jul|aug|sept|sep|oct|nov|dec|ave|blvd|rd|no|fig|al")
_TOKEN = re.compile(rf"""
    (?: https?:// | www\. ) [^\s<>"]+ (?<![.,!?)])         # addresses
  | (?: [a-z]\. ){{2,}} (?: [a-z] (?![a-z]) )?              # u.s.  e.g.  p.m.
  | (?: {_ABBREVIATIONS} ) \. (?= \s+ \S )                  # mr. in the middle of a text
  | o'clock | ma'am | o'[a-z]{{2,}} | 'n' | 'em\b | '[0-9]0s\b
  | [a-z]+ (?= n't\b )                                      # does | n't
  | n't\b
  | '(?: s | m | d | re | ve | ll )\b
  | can (?= not\b ) | gon (?= na\b ) | wan (?= na\b ) | got (?= ta\b )
  | [$£€¥¢] | %
  | [-+]? \d+ (?: [,.:/-] \d+ )* (?: st | nd | rd | th | s )? \b (?! - [a-z] )   # 1,000  2.5  10:30  3/4  20th
  | [^\W_]+ (?: [-&_/@] [^\W_]+ )*                         # words, dark-blue, and/or
  | \.{{2,}} | -{{2,}} | `` | ''
  | \S
""", re.VERBOSE)


def ptb_tokens(sentence: str) -> list[str]:
  """Words as the Penn Treebank writes them, lower case, without the punctuation that coco-caption leaves out.

  Written from the treebank's rules and compared with the reference tokenizer's output on captions: contractions are
  split (does n't, it 's), hyphened words are not, currency and percent signs stand alone, abbreviations keep their
  dots.
  """
  found = [_BRACKETS.get(token, token) for token in _TOKEN.findall(_plain(sentence))]
  return [token for token in found if token not in _DROPPED and not re.fullmatch(r"\.{2,}|-{2,}", token)]


def _plain(sentence: str) -> str:
  """Lower case, typographic quotes and dashes as ASCII; double quotes vanish, since all quote tokens are dropped."""
  for old, new in (("\u2018", "'"), ("\u2019", "'"), ("\u201c", '"'), ("\u201d", '"'), ("\u2026", "..."),
                   ("\u2013", " -- "), ("\u2014", " -- ")):
    sentence = sentence.replace(old, new)
  return sentence.lower().replace('"', " ")
