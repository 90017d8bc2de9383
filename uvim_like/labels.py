"""What integer labels must fit, for all who read them: training, its numpy batches, the preprocessing pipeline."""

from collections.abc import Sequence

from uvim_like.errors import UserError


def check_channels(channels: int, limits: Sequence[int], *, where: str) -> None:
  """Raises UserError when labels have another number of channels than the model's numbers of classes, one a channel."""
  if channels != len(limits):
    raise UserError(f"{where}: 'labels' have {channels} channels, the model's have {len(limits)}")
