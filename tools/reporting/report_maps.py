"""Maps on the report's page: depth, classes, panoptic segments, normals, colours; their errors and their legends."""

from collections.abc import Callable, Sequence

import numpy as np

from tools.reporting import figures, figures_maps, html
from tools.reporting.examples import Examples
from tools.reporting.html import Html, Picture
from tools.reporting.validation import Outputs
from uvim_like.evaluators.surface_normals import angles
from uvim_like.tasks.depth import MIN_DEPTH

Column = tuple[str, Outputs]
Errors = tuple[list[list[bytes]], list[Html]]  # pictures [image][column] and what explains them
CLIPPED = 98  # percentile of the shown errors at which their colours end: one wild pixel must not darken all others


def mean_of(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
  """(n,) mean over all axes but the first, of the counted values; nan where none counts."""
  axes = tuple(range(1, values.ndim))
  number = counted.sum(axes)
  return np.where(number, np.where(counted, values, 0.0).sum(axes) / np.maximum(number, 1), np.nan)


def numeric_errors(base: Examples, columns: Sequence[Column], shown: int, *,
                   values: Callable[[Examples, Outputs, int], np.ndarray], unit: str) -> Errors:
  """Error maps of all columns on one scale.

  Args:
    base: whose truth counts.
    columns: predictions.
    shown: examples.
    values: (examples, prediction, i) -> (H, W) errors, nan where nothing counts.
    unit: of the errors.
  """
  maps = [[values(base, outputs, i) for _, outputs in columns] for i in range(shown)]
  finite = [one[np.isfinite(one)] for row in maps for one in row]
  every = np.concatenate([np.zeros(0), *finite])
  vmax = figures_maps.round_up(float(np.percentile(every, CLIPPED)) if every.size else 0.0)
  bar = Picture(figures.scale_bar("inferno"), "colour scale of the errors", f"error: 0 → {vmax:g} {unit} and more")
  return ([[figures.error_image(one, vmax=vmax) for one in row] for row in maps], [html.figure(bar, kind="bar")])


# --- Depth -----------------------------------------------------------------------------------------------------------


def measured(base: Examples) -> np.ndarray:
  """(n, H, W) bool: where the truth is a depth."""
  truth = base.truth["depth"]
  return (truth > MIN_DEPTH) & (truth < base.max_depth)


def depth_errors(base: Examples, outputs: Outputs) -> np.ndarray:
  """(n,) RMSE in metres over what was measured."""
  return np.sqrt(mean_of(np.square(outputs["depth"].astype(np.float64) - base.truth["depth"]), measured(base)))


def draw_depth(base: Examples, outputs: Outputs, i: int) -> bytes:
  """Example i on the scale of its truth."""
  low, high = figures.depth_range(base.truth["depth"][i])
  return figures.depth_image(outputs["depth"][i], vmin=low, vmax=high)


def depth_differences(base: Examples, outputs: Outputs, i: int) -> np.ndarray:
  """(H, W) metres, nan where nothing was measured."""
  return np.where(measured(base)[i], np.abs(outputs["depth"][i] - base.truth["depth"][i]), np.nan)


def depth_label(base: Examples, i: int) -> str:
  """The range of the truth, e.g. "1.2–4.8 m", in one line."""
  low, high = figures.depth_range(base.truth["depth"][i])
  return f"{low:.1f}–{high:.1f}\N{NO-BREAK SPACE}m"


def depth_legend(base: Examples, shown: int) -> list[Html]:
  """The colours from near to far."""
  del base, shown
  return [html.figure(Picture(figures.scale_bar(), "colour scale from near to far", "near → far"), kind="bar")]


# --- Classes ---------------------------------------------------------------------------------------------------------


def class_errors(base: Examples, outputs: Outputs) -> np.ndarray:
  """(n,) percent of the labelled pixels that have another class."""
  truth = base.truth["semantics"]
  return 100 * mean_of(outputs["semantics"] != truth, truth > 0)


def draw_semantic(base: Examples, outputs: Outputs, i: int) -> bytes:
  """Example i in the colours of its classes."""
  del base
  return figures_maps.semantic_image(outputs["semantics"][i])


def draw_panoptic(base: Examples, outputs: Outputs, i: int) -> bytes:
  """Example i, class by colour, instance by brightness."""
  del base
  return figures.panoptic_image(outputs["semantics"][i], outputs["instances"][i])


def wrong_classes(base: Examples, columns: Sequence[Column], shown: int) -> Errors:
  """The images with pixels of a wrong class in red."""
  truth = base.truth["semantics"]
  pictures = [[figures_maps.wrong_pixels_image(base.image[i], (outputs["semantics"][i] != truth[i]) & (truth[i] > 0),
                                               truth[i] > 0) for _, outputs in columns] for i in range(shown)]
  return pictures, [html.chips([("wrong class", figures_maps.WRONG)])]


def class_legend(base: Examples, shown: int) -> list[Html]:
  """Names and colours of the classes that the shown truths have."""
  present = [int(value) for value in np.unique(base.truth["semantics"][:shown]) if value >= 0]
  return [html.chips([(base.names.get(value, f"class {value}"), figures.class_color(value)) for value in present])]


# --- Normals ---------------------------------------------------------------------------------------------------------


def normal_angles(base: Examples, outputs: Outputs) -> np.ndarray:
  """(n, H, W) degrees between prediction and truth, nan where the truth has no direction."""
  truth, predicted = base.truth["normals"], outputs["normals"]
  known = figures_maps.has_direction(truth)
  found = np.full(known.shape, np.nan)
  found[known] = angles(predicted[known], truth[known])
  return found


def normal_errors(base: Examples, outputs: Outputs) -> np.ndarray:
  """(n,) mean angle in degrees."""
  found = normal_angles(base, outputs)
  return mean_of(np.nan_to_num(found), np.isfinite(found))


def draw_normals(base: Examples, outputs: Outputs, i: int) -> bytes:
  """Example i as a normal map."""
  del base
  return figures_maps.normals_image(outputs["normals"][i])


def normal_differences(base: Examples, outputs: Outputs, i: int) -> np.ndarray:
  """(H, W) degrees of example i."""
  one = base._replace(truth={"normals": base.truth["normals"][i:i + 1]})
  return normal_angles(one, {"normals": outputs["normals"][i:i + 1]})[0]


def normals_legend(base: Examples, shown: int) -> list[Html]:
  """A ball that shows the colour of every direction."""
  del base, shown
  ball = Picture(figures_maps.normals_ball(), "colours of all directions on a ball", "seen from the camera")
  return [html.figure(ball, kind="ball")]


# --- Colours ---------------------------------------------------------------------------------------------------------


def color_errors(base: Examples, outputs: Outputs) -> np.ndarray:
  """(n,) RMSE in levels of 0 to 255."""
  difference = (outputs["color"].astype(np.float64) - base.truth["color"]) * 127.5
  return np.sqrt(mean_of(np.square(difference), np.ones(difference.shape, bool)))


def draw_color(base: Examples, outputs: Outputs, i: int) -> bytes:
  """Example i."""
  del base
  return figures.color_image(outputs["color"][i])


def color_differences(base: Examples, outputs: Outputs, i: int) -> np.ndarray:
  """(H, W) levels: root of the mean square over the three channels."""
  return 127.5 * np.sqrt(np.mean(np.square(outputs["color"][i] - base.truth["color"][i]), axis=-1))


def number_label(base: Examples, i: int) -> str:
  """The example's number, from 1."""
  del base
  return f"{i + 1}"


def no_legend(base: Examples, shown: int) -> list[Html]:
  """Nothing needs to be explained."""
  del base, shown
  return []


def no_remark(base: Examples) -> str:
  """Nothing needs to be known."""
  del base
  return ""
