"""Objects and captions on the report's page: what is drawn, what counts as found, how a caption is scored."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tools.reporting import figures, figures_objects, html
from tools.reporting.examples import Examples
from tools.reporting.html import Html
from tools.reporting.report_maps import Column, Errors
from tools.reporting.validation import Outputs
from uvim_like.evaluators import captions
from uvim_like.evaluators.paste import paste_mask
from uvim_like.tasks import text

SCORE, OVERLAP, MOST = 0.5, 0.5, 20  # of a shown object; IoU of a found one; so many of an image are drawn
PERSON = "person"


class Shown(NamedTuple):
  """The objects of one image that count, the best first.

  Attributes:
    slots: (n,) their places in the prediction.
    boxes: (n, 4) [y0, x0, y1, x1] in fractions of the image without its padding.
    classes, scores: (n,).
  """
  slots: np.ndarray
  boxes: np.ndarray
  classes: np.ndarray
  scores: np.ndarray


class Matched(NamedTuple):
  """Which objects were found: truth (n,) bool, predicted (m,) bool."""
  truth: np.ndarray
  predicted: np.ndarray


def shown_objects(base: Examples, outputs: Outputs, i: int) -> Shown:
  """The objects of example i with a class, an area, and a score of SCORE at least; at most MOST."""
  boxes, classes, scores = (np.asarray(outputs[key][i]) for key in ("boxes", "classes", "scores"))
  height, width = base.image.shape[1:3]
  factors = np.array([height, width, height, width]) / np.tile(base.size(i), 2)
  boxes = np.clip(boxes.astype(np.float64) * factors, 0, 1)
  good = (scores >= SCORE) & (classes > 0) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
  slots = np.flatnonzero(good)
  slots = slots[np.argsort(-scores[slots], kind="stable")][:MOST]
  return Shown(slots, boxes[slots], classes[slots], scores[slots])


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """(n, m) intersection over union of boxes (n, 4) and (m, 4)."""
  low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
  both = np.prod(np.maximum(high - low, 0), axis=-1)
  area = [np.prod(x[:, 2:] - x[:, :2], axis=-1) for x in (a, b)]
  return both / np.maximum(area[0][:, None] + area[1][None] - both, 1e-12)


def match(truth: Shown, predicted: Shown) -> Matched:
  """Each prediction, the best first, takes the free true object of its class with the largest overlap above OVERLAP."""
  taken, hit = np.zeros(len(truth.boxes), bool), np.zeros(len(predicted.boxes), bool)
  over = overlaps(predicted.boxes, truth.boxes)
  for place, row in enumerate(over):
    free = np.where((truth.classes == predicted.classes[place]) & ~taken, row, 0.0)
    if free.size and free.max() >= OVERLAP:
      taken[free.argmax()] = hit[place] = True
  return Matched(taken, hit)


def object_scores(base: Examples, outputs: Outputs) -> np.ndarray:
  """(n,) F1 of found boxes in percent; nan for an image without objects in which none was found."""
  values = []
  for i in range(len(base.image)):
    true, predicted = shown_objects(base, base.truth, i), shown_objects(base, outputs, i)
    number = len(true.boxes) + len(predicted.boxes)
    values.append(200 * match(true, predicted).truth.sum() / number if number else np.nan)
  return np.array(values, np.float64)


def given_boxes(base: Examples) -> str:
  """A remark for runs that do not detect: their boxes are the annotated ones, whose scores are all 1."""
  same = np.array_equal(np.asarray(base.predicted["scores"]), np.asarray(base.truth["scores"]))
  return "true boxes given" if same else ""


def draw_objects(base: Examples, outputs: Outputs, i: int) -> bytes:
  """Example i with masks, boxes, names and, of persons, joints; scores where they are below 1."""
  found = shown_objects(base, outputs, i)
  height, width = base.size(i)
  labels = [base.names.get(int(k), f"class {int(k)}") + ("" if score >= 1 else f" {score:.0%}")
            for k, score in zip(found.classes, found.scores)]
  best = float(np.max(outputs["scores"][i], initial=0.0))
  return figures_objects.objects_image(
      base.image[i][:height, :width], found.boxes, labels=labels, masks=_masks(base, outputs, found, i),
      points=_poses(base, outputs, found, i), remark="" if len(found.boxes) else f"nothing above {SCORE:g}, best {best:.2f}")


def _masks(base: Examples, outputs: Outputs, found: Shown, i: int) -> np.ndarray | None:
  """(n, h, w) bool in the size in which the image is shown."""
  if "masks" not in outputs:
    return None
  size = figures_objects.shown_size(base.size(i))
  pasted = [paste_mask(np.asarray(outputs["masks"][i][slot], np.float32), box * np.tile(size, 2), size)
            for slot, box in zip(found.slots, found.boxes)]
  return np.array(pasted, bool).reshape(len(found.slots), *size)


def _poses(base: Examples, outputs: Outputs, found: Shown, i: int) -> list[np.ndarray | None]:
  """The joints of each object, None where its class has none: a network says some of everything."""
  if "keypoints" not in outputs:
    return []
  height, width = base.image.shape[1:3]
  factors = np.array([height / base.size(i)[0], width / base.size(i)[1], 1.0])
  jointed = jointed_classes(base)
  return [np.asarray(outputs["keypoints"][i][slot]) * factors if int(k) in jointed else None
          for slot, k in zip(found.slots, found.classes)]


def jointed_classes(base: Examples) -> set[int]:
  """Classes whose joints mean something: persons by name, else those of which the truth marks any."""
  named = {number for number, name in base.names.items() if name == PERSON}
  if named or "keypoints" not in base.truth:
    return named
  marked = (np.asarray(base.truth["keypoints"])[..., 2] > 0).any(axis=-1)
  return set(np.asarray(base.truth["classes"])[marked].astype(int).tolist()) - {0}


def found_and_missed(base: Examples, columns: Sequence[Column], shown: int) -> Errors:
  """The images with boxes that say which objects were found, missed, and invented."""
  pictures = []
  for i in range(shown):
    height, width = base.size(i)
    true = shown_objects(base, base.truth, i)
    row = []
    for _, outputs in columns:
      predicted = shown_objects(base, outputs, i)
      matched = match(true, predicted)
      row.append(figures_objects.found_image(base.image[i][:height, :width], {
          figures_objects.MISSED: true.boxes[~matched.truth],
          figures_objects.INVENTED: predicted.boxes[~matched.predicted],
          figures_objects.FOUND: true.boxes[matched.truth]}))
    pictures.append(row)
  chips = [("found", figures_objects.FOUND), ("missed", figures_objects.MISSED), ("invented", figures_objects.INVENTED)]
  return pictures, [html.chips([(name, figures.rgb(paint)) for name, paint in chips])]


def found_pairs(base: Examples, outputs: Outputs) -> list[tuple[int, int, int]]:
  """(image, slot of the truth, slot of the prediction) of every object that was found."""
  pairs = []
  for i in range(len(base.image)):
    true, predicted = shown_objects(base, base.truth, i), shown_objects(base, outputs, i)
    over = np.where(true.classes[None] == predicted.classes[:, None], overlaps(predicted.boxes, true.boxes), 0.0)
    for place in np.flatnonzero(match(true, predicted).truth):
      pairs.append((i, int(true.slots[place]), int(predicted.slots[over[:, place].argmax()])))
  return pairs


def mask_overlaps(base: Examples, outputs: Outputs) -> np.ndarray:
  """(n,) intersection over union of the masks of found objects in percent, both pasted into the image."""
  if "masks" not in outputs or "masks" not in base.truth:
    return np.zeros(0)
  size, values = base.image.shape[1:3], []
  for i, true, predicted in found_pairs(base, outputs):
    a, b = (paste_mask(np.asarray(x["masks"][i][slot], np.float32), np.asarray(x["boxes"][i][slot]) * np.tile(size, 2),
                       size) > 0 for x, slot in ((base.truth, true), (outputs, predicted)))
    values.append(100 * (a & b).sum() / max(1, (a | b).sum()))
  return np.array(values)


def joint_distances(base: Examples, outputs: Outputs) -> np.ndarray:
  """(n,) mean distance of the labelled joints of each found person, in percent of the diagonal of its true box."""
  if "keypoints" not in outputs or "keypoints" not in base.truth:
    return np.zeros(0)
  size, values = np.array(base.image.shape[1:3]), []
  for i, true, predicted in found_pairs(base, outputs):
    a, b = base.truth["keypoints"][i][true], outputs["keypoints"][i][predicted]
    box = base.truth["boxes"][i][true]
    labelled = a[:, 2] > 0
    if labelled.any():
      away = np.linalg.norm((a - b)[labelled, :2] * size, axis=-1).mean()
      values.append(100 * away / np.linalg.norm((box[2:] - box[:2]) * size))
  return np.array(values)


# --- Captions --------------------------------------------------------------------------------------------------------


def sentences(base: Examples, tokens: np.ndarray) -> list[str]:
  """Token ids (…, T) as sentences, empty ones left out; ids themselves where no text model is known."""
  rows = np.asarray(tokens).reshape(-1, np.shape(tokens)[-1])
  if base.text_model is None:
    return [" ".join(map(str, row[row > 0])) for row in rows if (row > 0).any()]
  tokenizer = text.load(base.text_model)
  return [sentence for sentence in (text.decode(tokenizer, row) for row in rows) if sentence.strip()]


def draw_caption(base: Examples, outputs: Outputs, i: int) -> str:
  """The caption, or the first reference."""
  return next(iter(sentences(base, outputs["captions"][i])), "")


def caption_scores(base: Examples, outputs: Outputs) -> np.ndarray:
  """(n,) BLEU-1 in percent against all references; nan where an image has none."""
  values = []
  for i in range(len(base.image)):
    references = [text.ptb_tokens(s) for s in sentences(base, base.truth["captions"][i])]
    words = text.ptb_tokens(draw_caption(base, outputs, i))
    values.append(100 * captions.compute(captions.counts(words, references))["BLEU1"] if references and words else
                  0.0 if references else np.nan)
  return np.array(values, np.float64)


def image_legend(base: Examples, shown: int) -> list[Html]:
  """What no picture explains: where the texts come from when their words are not known."""
  del shown
  return [] if base.text_model else [html.note("The text model of this run is not known: captions are token numbers.")]
