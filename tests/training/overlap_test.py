"""Decays that count their warm-up: instead of it (kMaX-DeepLab, timm) or times it (mmcv)."""

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


def test_a_cosine_that_counts_its_warmup():
  schedule = schedules.make(dict(decay_type="cosine", warmup_steps=20, warmup_start=0.1, overlap=True), total_steps=100)
  assert [float(schedule(step)) for step in (0, 10)] == pytest.approx([0.1, 0.55])
  assert float(schedule(50)) == pytest.approx(0.5) and float(schedule(100)) == pytest.approx(0.0, abs=1e-6)


def test_a_line_times_its_warmup():
  """lr * (1 - 0.99 it / max) * (1 - 0.9 (1 - it / W)): AiT's detection, 18,330 of 183,300 steps."""
  schedule = schedules.make(dict(decay_type="linear", end=0.01, warmup_steps=18_330, warmup_start=0.1,
                                 overlap="product"), total_steps=183_300)
  for step, ramp in ((0, 0.1), (9165, 0.55), (18_330, 1.0), (91_650, 1.0), (183_300, 1.0)):
    assert float(schedule(step)) == pytest.approx((1 - 0.99 * step / 183_300) * ramp, rel=1e-5)


def test_what_cannot_overlap():
  with pytest.raises(UserError, match="unknown option 'overlap'"):
    schedules.make(dict(decay_type="step", drop_steps=(5,), overlap=True), total_steps=10)
  with pytest.raises(UserError, match="unknown overlap 'products'.*'?product"):
    schedules.make(dict(decay_type="linear", overlap="products"), total_steps=10)
