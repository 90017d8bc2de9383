"""Objects: boxes, classes, and masks inside the boxes; in sequences of tokens, not in label planes.

Batches hold "boxes" (B, N, 4) [y0, x0, y1, x1] as fractions of the canvas, "box_labels" (B, N) with 0 for an empty slot,
"masks" (B, N, h, w) over the canvas or "box_masks" (B, N, S, S) inside the boxes. Outputs are those of `OUTPUTS`.
"""

import jax
import jax.numpy as jnp

from uvim_like.errors import UserError

PLANES = ()
OUTPUTS = ("boxes", "scores", "classes", "masks")
LABELS = jax.ShapeDtypeStruct((0,), jnp.int32)


def to_planes(*args, **options):
  """Refuses: a system that wants planes cannot learn objects.

  Raises:
    UserError: always.
  """
  raise UserError("instance_segmentation has no label planes, so the UViM systems cannot learn it; 'ait.solver' can, and "
                  "'panoptic_segmentation' is what UViM predicts")


losses = from_planes = to_planes
