"""One table of tokens for boxes, masks, keypoints and captions, and how each task's sequence is laid out (MAD).

The table, first id to last: task tokens 0..18, MASK 19, classes, no-object, coordinates (bins + 1, since 1.0 has a bin
of its own), foreground, background, visible, hidden, text pieces. Each task uses some rows of it; inside a task tokens
are *local*: counted over these rows alone, as its logits are.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
TASKS = ("boxes", "masks", "keypoints", "captions")
BOX_TOKENS = 5    # [x0, y0, x1, y1, class]
POINT_TOKENS = 3  # [x, y, visibility]
INSTANCE_PROMPT = 1 + BOX_TOKENS  # task token and the box
_BOX_PROMPT, _MASK_TASK, _KEYPOINT_TASK, _CAPTION_PROMPT = 0, 6, 7, 8
MASK_TOKEN, _FIRST_CLASS = 19, 20


class Vocabulary(NamedTuple):
  """Sizes, and what follows from them.

  Attributes:
    classes: real classes, labels 1..classes of the batch.
    bins: of a coordinate; bin `bins` is 1.0.
    text: text pieces; piece 0 is both padding and end.
    queries: boxes in a detection sequence.
    mask_side: masks are mask_side² bits inside their box.
    joints: keypoints of an instance.
    caption_length: text tokens of a caption.
    prompt_tokens: task tokens before boxes and captions: 1 in the paper's figure, 6 different ones in its code.
  """
  classes: int = 80
  bins: int = 500
  text: int = 11_421
  queries: int = 100
  mask_side: int = 16
  joints: int = 17
  caption_length: int = 20
  prompt_tokens: int = 1

  @property
  def no_object(self) -> int:
    """The class of slots that hold nothing."""
    return _FIRST_CLASS + self.classes

  @property
  def first_bin(self) -> int:
    """Coordinate 0."""
    return self.no_object + 1

  @property
  def foreground(self) -> int:
    """Mask bit 1; background follows, then visible and hidden joints."""
    return self.first_bin + self.bins + 1

  @property
  def visible(self) -> int:
    """A joint with a position; hidden follows."""
    return self.foreground + 2

  @property
  def first_text(self) -> int:
    """Text piece 0."""
    return self.visible + 2

  @property
  def size(self) -> int:
    """All tokens: 12,027 at the defaults."""
    return self.first_text + self.text

  def rows(self, task: str) -> tuple[tuple[int, int], ...]:
    """(start, stop) ranges of the table that a task's tokens come from, in local order."""
    return {"boxes": ((_FIRST_CLASS, self.foreground),),
            "masks": ((self.foreground, self.visible),),
            "keypoints": ((self.first_bin, self.foreground), (self.visible, self.first_text)),
            "captions": ((self.first_text, self.size),)}[task]

  def rows_of_all_vision(self) -> tuple[tuple[int, int], ...]:
    """Every row before the text: what MAD's code spreads a detection's class probability over."""
    return ((0, self.first_text),)

  def width(self, task: str) -> int:
    """Number of a task's local tokens."""
    return sum(stop - start for start, stop in self.rows(task))

  def response(self, task: str) -> int:
    """Tokens that the model writes."""
    return {"boxes": BOX_TOKENS * self.queries, "masks": self.mask_side ** 2, "keypoints": POINT_TOKENS * self.joints,
            "captions": self.caption_length}[task]

  def prompt(self, task: str) -> int:
    """Tokens before them."""
    return self.prompt_tokens if task in ("boxes", "captions") else INSTANCE_PROMPT

  @property
  def max_length(self) -> int:
    """Of the longest sequence: rows of the learned positions."""
    return max(self.prompt(task) + self.response(task) for task in TASKS)

  def to_table(self, task: str, local: Array) -> Array:
    """Local tokens to ids of the table."""
    return jnp.asarray(_table(self, task))[local]

  def to_local(self, task: str, ids: Array) -> Array:
    """Ids of the table to local tokens; ids of other tasks become 0."""
    return jnp.asarray(_inverse(self, task))[ids]

  def local(self, task: str, token: int) -> int:
    """One id of the table as a local token."""
    return int(_inverse(self, task)[token])

  def legal(self, task: str) -> np.ndarray:
    """(L, V) bool: which local tokens may stand at each place of the response."""
    length, ids = self.response(task), _table(self, task)
    bins = (ids >= self.first_bin) & (ids < self.foreground)
    if task == "boxes":
      real = (ids >= _FIRST_CLASS) & (ids < self.no_object)
      return np.tile(np.stack([bins] * 4 + [real]), (length // BOX_TOKENS, 1))
    if task == "keypoints":
      return np.tile(np.stack([bins, bins, ~bins]), (length // POINT_TOKENS, 1))
    return np.ones((length, len(ids)), bool)


@functools.cache
def _table(vocabulary: Vocabulary, task: str) -> np.ndarray:
  return np.concatenate([np.arange(*span, dtype=np.int32) for span in vocabulary.rows(task)])


@functools.cache
def _inverse(vocabulary: Vocabulary, task: str) -> np.ndarray:
  inverse = np.zeros(vocabulary.size, np.int32)
  ids = _table(vocabulary, task)
  inverse[ids] = np.arange(len(ids))
  return inverse


def task_prompt(vocabulary: Vocabulary, task: str, batch: int) -> Array:
  """(B, 1, P) prompts of boxes or captions."""
  first = {"boxes": _BOX_PROMPT, "captions": _CAPTION_PROMPT}[task]
  prompt = first + jnp.arange(vocabulary.prompt_tokens, dtype=jnp.int32)
  return jnp.broadcast_to(prompt, (batch, 1, vocabulary.prompt_tokens))


def instance_prompt(task: str, box_tokens: Array, valid: Array) -> Array:
  """(..., 6) prompts of masks or keypoints: the task and the instance's five tokens; zeros where there is none.

  Args:
    task: "masks" or "keypoints".
    box_tokens: (..., 5) ids of the table.
    valid: (...,) bool.
  """
  first = {"masks": _MASK_TASK, "keypoints": _KEYPOINT_TASK}[task]
  task_token = jnp.full((*box_tokens.shape[:-1], 1), first, jnp.int32)
  return jnp.where(valid[..., None], jnp.concatenate([task_token, box_tokens], axis=-1), 0)
