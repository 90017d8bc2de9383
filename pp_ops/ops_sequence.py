"""Ops that write sequences of tokens."""

import tensorflow as tf

from pp_ops.registry import Features, Op, features_op
from uvim_like.tasks import text

OPS: dict[str, Op] = {}


@features_op(OPS, reads=("captions/text",), writes=("captions",))
def tokenize_captions(features: Features, model: str = "scenes", length: int = 20, references: int = 5) -> Features:
  """Adds `captions` int32 (references, length): the ids of the lower-cased sentences, 0 behind each end.

  Args:
    features: captions/text (r,) of text.
    model: "scenes", or the path of a SentencePiece .model file.
    length: longer sentences are cut and then have no end marker (MAD, section 2).
    references: sentences beyond are left out; where there are fewer, rows of zeros.
  """
  tokenizer = text.load(model)   # once, while the graph is built

  def encode(sentences):
    words = [sentence.decode("utf-8") for sentence in sentences]
    return text.encode_all(tokenizer, words, length=length, references=references)

  ids = tf.numpy_function(encode, [features["captions/text"]], tf.int32, stateful=False)
  return {**features, "captions": tf.ensure_shape(ids, [references, length])}
