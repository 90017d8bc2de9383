"""What the evaluation runner knows of a metric: four pure numpy functions over one example at a time."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Example = Mapping[str, np.ndarray]
Stats = Any


class Metric(NamedTuple):
  """A metric that needs no model, usable on saved predictions.

  Attributes:
    init: () -> stats.
    update: (stats, output, target) -> stats, one image at its true size. `output` is what `predict` gave for that
      image; `target` holds the raw dataset features named in `target_keys` and the example's own batch entries.
    merge: (stats, stats) -> stats, over hosts.
    compute: stats -> {name: float}.
    target_keys: raw dataset features that `update` reads.
    protocol: one line that is printed beside the numbers: crop, valid range, resizing, averaging.
  """
  init: Callable[[], Stats]
  update: Callable[[Stats, Example, Example], Stats]
  merge: Callable[[Stats, Stats], Stats]
  compute: Callable[[Stats], dict[str, float]]
  target_keys: tuple[str, ...] = ()
  protocol: str = ""
