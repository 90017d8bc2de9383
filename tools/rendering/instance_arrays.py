"""The objects and captions of `scenes` as finished arrays in N slots, without TensorFlow."""

import numpy as np

from uvim_like import joints
from uvim_like.tasks import text

SLOTS = 20            # `scenes` never shows as many things
BOX_MASK = 16         # pixels of a mask inside its box (MAD, section 3)
TOKENS, REFERENCES = 20, 5
_FIELDS = ("boxes", "box_labels", "masks", "box_masks", "keypoints")


def finish_instances(example: dict, *, tokenizer: text.Tokenizer, slots: int = SLOTS, box_mask: int = BOX_MASK,
                     tokens: int = TOKENS) -> dict[str, np.ndarray]:
  """Image, objects and captions of one example of `scenes`; crowds are left out, as in every training here.

  Args:
    example: as `scenes.example` gives it.
    tokenizer: of the captions.
    slots: N.
    box_mask: S.
    tokens: T.

  Returns:
    "image" (H, W, 3) uint8; "boxes" (N, 4) float32 fractions; "box_labels" (N,) uint8, 0 = empty; "masks/packed"
    (N, H, ceil(W/8)) uint8; "box_masks" (N, S, S) uint8; "keypoints" (N, 17, 3) float32 = (y, x, visibility),
    fractions; "captions" and "captions/mirrored" (5, T) int32.
  """
  size = example["image"].shape[:2]
  ids = example["panoptic_image"].astype(np.int64) @ [1, 256, 65536]
  objects = example["objects"]
  rows = np.flatnonzero(~objects["is_crowd"])[:slots]
  masks = (ids == objects["id"][rows, None, None]).astype(np.uint8).reshape(len(rows), *size)
  boxes = objects["bbox"][rows].astype(np.float32)
  found = {"boxes": boxes, "box_labels": (objects["label"][rows] + 1).astype(np.uint8), "masks": masks,
           "box_masks": rasterise(masks, boxes, box_mask), "keypoints": fractions(objects["keypoints"][rows], size)}
  padded = {key: pad(found[key], slots) for key in _FIELDS}
  sentences = [str(sentence) for sentence in example["captions"]["text"]]
  return {"image": example["image"], "masks/packed": np.packbits(padded.pop("masks"), axis=-1), **padded,
          "captions": text.encode_all(tokenizer, sentences, length=tokens, references=REFERENCES),
          "captions/mirrored": text.encode_all(tokenizer, [text.swap_sides(s) for s in sentences], length=tokens,
                                               references=REFERENCES)}


def pad(array: np.ndarray, slots: int) -> np.ndarray:
  """(n, …) -> (slots, …), zeros behind."""
  return np.pad(array, [(0, slots - len(array))] + [(0, 0)] * (array.ndim - 1))


def fractions(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """(n, J, 3) of (x, y, v) in pixels -> float32 (y, x, v) as fractions of (H, W), zeros where v is 0."""
  x, y, seen = np.moveaxis(points.reshape(-1, len(joints.NAMES), 3), -1, 0)
  out = np.stack([y / size[0], x / size[1], seen], -1)
  return np.where(seen[..., None] > 0, out, 0).astype(np.float32)


def rasterise(masks: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
  """uint8 (n, size, size): cells over each box that the mask covers by half or more; the op `box_masks` in numpy.

  Args:
    masks: (n, H, W) 0/1.
    boxes: (n, 4) fractions.
    size: cells a side.
  """
  rows = coverage(boxes[:, 0], boxes[:, 2], size, masks.shape[1])
  columns = coverage(boxes[:, 1], boxes[:, 3], size, masks.shape[2])
  share = rows @ masks.astype(np.float32) @ np.swapaxes(columns, 1, 2)
  return (share >= 0.5 - 1e-4).astype(np.uint8)   # exact halves must not depend on rounding


def coverage(begin: np.ndarray, end: np.ndarray, cells: int, pixels: int) -> np.ndarray:
  """(n, cells, pixels) float32: the share of each cell of [begin, end], in fractions, that each pixel covers."""
  begin = begin.astype(np.float32) * pixels
  side = np.maximum(end.astype(np.float32) * pixels - begin, np.float32(0.1))
  edges = begin[:, None] + side[:, None] * (np.arange(cells + 1, dtype=np.float32) / cells)
  pixel = np.arange(pixels, dtype=np.float32)
  overlap = np.minimum(edges[:, 1:, None], pixel + 1) - np.maximum(edges[:, :-1, None], pixel)
  return np.maximum(overlap, 0) * (cells / side)[:, None, None]
