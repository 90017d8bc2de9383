"""The kinds of outputs that the report draws, one entry each: what is drawn, what its error is, how both are explained."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tools.reporting import report_maps as maps
from tools.reporting import report_objects as objects
from tools.reporting.examples import Examples
from tools.reporting.html import Html, Picture, Text
from tools.reporting.report_maps import Column, Errors
from tools.reporting.validation import Outputs


class Family(NamedTuple):
  """A kind of output.

  Attributes:
    title: what is predicted.
    error: what `errors` gives, in words.
    form: one of its numbers.
    caption: what the pictures show.
    errors: (examples, prediction) -> (n,), nan where an example has no truth.
    draw: (examples, prediction, i) -> the picture of example i, or words.
    draw_errors: (examples, columns, shown) -> pictures of what is wrong, and what explains them; None for none.
    legend: (examples, shown) -> what explains the pictures.
    label: (examples, i) -> what stands before the row of example i.
    size: of the pictures, see `Picture`.
    remark: examples -> what must be known of a run's predictions, "" for nothing.
  """
  title: str
  error: str
  form: str
  caption: str
  errors: Callable[[Examples, Outputs], np.ndarray]
  draw: Callable[[Examples, Outputs, int], bytes | str]
  draw_errors: Callable[[Examples, Sequence[Column], int], Errors] | None
  legend: Callable[[Examples, int], list[Html]]
  label: Callable[[Examples, int], str] = maps.number_label
  size: str = ""
  remark: Callable[[Examples], str] = maps.no_remark


FAMILIES = {
    "depth": Family(
        "depth", "RMSE in metres", "{:.2f} m",
        "Bright is near, dark is far; a row shares the scale of its truth, which stands in front. Hatched: the "
        "sensor gave no reading.",
        maps.depth_errors, maps.draw_depth, functools.partial(
            maps.numeric_errors, values=maps.depth_differences, unit="m"), maps.depth_legend, maps.depth_label),
    "semantic": Family(
        "semantic segmentation", "pixels of wrong class, %", "{:.1f} %", "Colour is the class; dark grey is void.",
        maps.class_errors, maps.draw_semantic, maps.wrong_classes, maps.class_legend),
    "panoptic": Family(
        "panoptic", "pixels of wrong class, %", "{:.1f} %",
        "Colour is the class, brightness tells instances apart, white lines are borders of segments.",
        maps.class_errors, maps.draw_panoptic, maps.wrong_classes, maps.class_legend),
    "normals": Family(
        "surface normals", "mean angle in degrees", "{:.1f}°",
        "Red grows to the right, green upwards, blue towards the camera. Hatched: no normal is known.",
        maps.normal_errors, maps.draw_normals, functools.partial(
            maps.numeric_errors, values=maps.normal_differences, unit="degrees"), maps.normals_legend),
    "colour": Family(
        "colour", "RMSE in levels of 0 to 255", "{:.1f}", "The image is the grey input, the truth its original.",
        maps.color_errors, maps.draw_color, functools.partial(
            maps.numeric_errors, values=maps.color_differences, unit="levels"), maps.no_legend),
    "objects": Family(
        "objects", f"F1 of boxes (same class, IoU of {objects.OVERLAP:g} and more), %", "F1 {:.0f} %",
        f"Each object has a colour; names stand at the boxes, with the score where it is a prediction. Shown is what has a "
        f"score of {objects.SCORE:g} or more.",
        objects.object_scores, objects.draw_objects, objects.found_and_missed, maps.no_legend, size="large",
        remark=objects.given_boxes),
    "captions": Family(
        "captions", "BLEU-1 of the sentence against all references, %", "BLEU-1 {:.0f} %",
        "The truth is the first of the references.",
        objects.caption_scores, objects.draw_caption, None, objects.image_legend),
}


def cell(base: Examples, outputs: Outputs, i: int, *, alt: str, caption: str = "") -> Picture | Text:
  """Example i of a prediction as it stands in a row."""
  family = FAMILIES[base.family]
  drawn = family.draw(base, outputs, i)
  return Text(drawn, caption) if isinstance(drawn, str) else Picture(drawn, alt, caption, size=family.size)


def with_error(base: Examples, outputs: Outputs, i: int, values: np.ndarray, *, alt: str) -> Picture | Text:
  """The same with its error below; `values` are those of `Family.errors`."""
  value = float(values[i])
  return cell(base, outputs, i, alt=alt, caption="–" if np.isnan(value) else FAMILIES[base.family].form.format(value))


def mean_error(base: Examples, outputs: Outputs) -> float:
  """Mean of the examples' errors; nan when no truth is known."""
  values = FAMILIES[base.family].errors(base, outputs)
  return float(np.mean(values[np.isfinite(values)])) if np.isfinite(values).any() else float("nan")
