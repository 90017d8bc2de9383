"""Predictions as pictures that one can show: input, result, legend."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from tools.predicting.overlay import maps, objects, page
from tools.predicting.overlay.page import Panel
from uvim_like.inference.full_size import Names

SCORE = 0.5   # detections below are not drawn


def overlay(results: Mapping[str, Any], names: Names, *, score: float = SCORE) -> Image.Image:
  """One picture: the input, a panel with its legend for everything that was predicted, the caption below.

  Args:
    results: of `uvim_like.inference.model`, with "image".
    names: classes of the maps and of the objects.
    score: objects below are left out.
  """
  image = results["image"]
  kinds = kinds_of(results)
  scale = page.scale_of(image.shape[:2], panels=1 + sum(len(samples(results, kind)) for kind in kinds))
  photo = page.resized(image, scale, smooth=True)
  panels = [Panel(photo, "input", None)]
  for kind in kinds:
    panels += _panels(kind, samples(results, kind), photo, names, scale=scale, score=score)
  return page.compose(panels, caption=results.get("caption"))


def kinds_of(results: Mapping[str, Any]) -> list[str]:
  """What there is to draw: "panoptic" stands for semantics with instances."""
  kinds = [kind for kind in ("depth", "semantics", "normals", "color", "objects") if kind in results]
  return ["panoptic" if kind == "semantics" and "instances" in results else kind for kind in kinds]


def samples(results: Mapping[str, Any], kind: str) -> list[Any]:
  """The predictions of a kind: one, or with several samples all of them."""
  if kind == "objects":
    return [results["objects"]]
  if kind == "panoptic":
    pairs = zip(*(_each(results[key], 2) for key in ("semantics", "instances")))
    return list(pairs)
  return _each(results[kind], 3 if kind in ("normals", "color") else 2)


def _each(x: np.ndarray, axes: int) -> list[np.ndarray]:
  return [x] if x.ndim == axes else list(x)


def _panels(kind: str, found: list[Any], photo: np.ndarray, names: Names, *, scale: float,
            score: float) -> list[Panel]:
  """The panels of one kind; the last one has the legend, which all share."""
  small = [_shrunk(x, scale, photo.shape[:2]) if kind != "objects" else x for x in found]
  if kind == "depth":
    drawn, legend = maps.depth(small)
  elif kind == "normals":
    drawn, legend = maps.normals(small)
  elif kind == "color":
    drawn, legend = [page.resized(x, scale, smooth=True) for x in found], None
  elif kind == "objects":
    drawn, legend = objects.draw(found[0], photo, names.objects, scale=scale, score=score)
  else:
    pairs = small if kind == "panoptic" else [(x, None) for x in small]
    drawn, legend = maps.segments(pairs, photo, names.semantic)
  titles = [kind] if len(drawn) == 1 else [f"{kind}, sample {i}" for i in range(1, len(drawn) + 1)]
  return [Panel(picture, title, legend if i == len(drawn) - 1 else None)
          for i, (picture, title) in enumerate(zip(drawn, titles))]


def _shrunk(x: Any, scale: float, size: tuple[int, int]) -> Any:
  """A map (or a pair of maps) at the size of its panel, values only picked."""
  if isinstance(x, tuple):
    return tuple(_shrunk(part, scale, size) for part in x)
  return page.picked(x, size)
