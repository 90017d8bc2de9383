"""BLEU of captions as the image captioning literature computes it: corpus counts over Penn Treebank words."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from uvim_like.evaluators.base import Example, Metric
from uvim_like.evaluators.entries import required
from uvim_like.tasks import text

ORDER = 4
_PROTOCOL = ("BLEU-1..4 over the corpus: words of the Penn Treebank tokenizer (own implementation), lower case, "
             "punctuation dropped; n-gram counts clipped by the references' maximum, brevity against the closest "
             "reference length (the shorter of two), no smoothing; {references}")


def make(*, model: str = text.SCENES, references: int | None = None) -> Metric:
  """BLEU of the output "captions" (T,) int32, token ids, against the raw feature "captions/text" (r,).

  Args:
    model: "scenes" or a SentencePiece .model file, the one that tokenised the training captions.
    references: only the first so many; None for all.

  Returns:
    A Metric giving BLEU1 to BLEU4 as fractions, "hypothesis_words", "reference_words" and "images"; images without a
    reference are left out. Its stats are summable counts: (2 · 4 + 2 + 1,) int64.
  """
  tokenizer = text.load(model)

  def update(stats: np.ndarray, output: Example, target: Example) -> np.ndarray:
    ids = required(output, "captions", where="captions, prediction")
    sentences = [as_text(s) for s in np.reshape(required(target, "captions/text", where="captions, target"), -1)]
    sentences = [s for s in sentences[:references] if s.strip()]
    if not sentences:
      return stats
    return stats + counts(text.ptb_tokens(text.decode(tokenizer, ids)), [text.ptb_tokens(s) for s in sentences])

  return Metric(init=nothing, update=update, merge=np.add, compute=compute, target_keys=("captions/text",),
                protocol=f"{describe(references)}; text model {model}")


def nothing() -> np.ndarray:
  """Counts of no sentence, see `counts`."""
  return np.zeros(2 * ORDER + 3, np.int64)


def describe(references: int | None) -> str:
  """The protocol, however the sentences were decoded."""
  return _PROTOCOL.format(references="all references" if references is None else f"the first {references} references")


def as_text(value: object) -> str:
  """str of text or of UTF-8 bytes."""
  return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def ngrams(words: Sequence[str], n: int) -> Counter:
  """How often each run of n words occurs."""
  return Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1))


def counts(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
  """(11,) int64 of one sentence: n-grams that match and that there are, n = 1..4 each; its length, the closest
  reference's, and 1.
  """
  match, total = [], []
  for n in range(1, ORDER + 1):
    mine, allowed = ngrams(hypothesis, n), Counter()
    for reference in references:
      allowed |= ngrams(reference, n)
    match.append(sum((mine & allowed).values()))
    total.append(sum(mine.values()))
  closest = min((abs(len(r) - len(hypothesis)), len(r)) for r in references)[1]
  return np.array([*match, *total, len(hypothesis), closest, 1], np.int64)


def compute(stats: np.ndarray) -> dict[str, float]:
  """BLEU from summed counts; 0 when some n-gram order has no match, nan without any image."""
  match, total = stats[:ORDER].astype(float), stats[ORDER:2 * ORDER].astype(float)
  length, closest, images = stats[2 * ORDER:].tolist()
  scores = {}
  for n in range(1, ORDER + 1):
    scores[f"BLEU{n}"] = bleu(match[:n], total[:n], length, closest) if images else float("nan")
  return {**scores, "hypothesis_words": float(length), "reference_words": float(closest), "images": float(images)}


def bleu(match: np.ndarray, total: np.ndarray, length: float, closest: float) -> float:
  """Geometric mean of the precisions match / total (n,), times exp(1 - closest / length) where that is below 1."""
  if not length or not match.all():
    return 0.0
  brevity = min(1.0, float(np.exp(1 - closest / length)))
  return brevity * float(np.exp(np.mean(np.log(match / total))))
