"""Polynomial decay that counts its warm-up (kMaX-DeepLab, PolyMaX)."""

import pytest

from uvim_like.errors import UserError
from uvim_like.training import schedules


def test_decay_counts_from_the_first_step():
  schedule = schedules.make(dict(decay_type="poly", power=0.9, warmup_steps=20, overlap=True), total_steps=100)
  assert [float(schedule(step)) for step in (0, 10, 19)] == pytest.approx([0.0, 0.5, 0.95])
  assert float(schedule(20)) == pytest.approx(0.8 ** 0.9)
  assert float(schedule(60)) == pytest.approx(0.4 ** 0.9) and float(schedule(100)) == 0.0


def test_without_it_the_decay_begins_where_the_warmup_ends():
  schedule = schedules.make(dict(decay_type="poly", power=1.0, warmup_steps=20), total_steps=100)
  assert float(schedule(20)) == 1.0 and float(schedule(60)) == pytest.approx(0.5)


def test_only_poly_has_it():
  with pytest.raises(UserError, match="unknown option 'overlap'"):
    schedules.make(dict(decay_type="cosine", overlap=True), total_steps=10)
