"""Split arithmetic against slices written by hand."""

import pytest

from uvim_like import splits
from uvim_like.errors import UserError

SIZES = {"train": 105, "validation": 7}


@pytest.mark.parametrize("text, want", [
    ("train", [("train", 0, 105)]), ("train[100:]", [("train", 100, 105)]), ("train[:10%]", [("train", 0, 10)]),
    ("train[-5:]", [("train", 100, 105)]), ("train[:-5]", [("train", 0, 100)]), ("train[:]", [("train", 0, 105)]),
    ("train[50%:]", [("train", 52, 105)]), ("train[-10%:]", [("train", 95, 105)]), (" train[64:72] + validation",
     [("train", 64, 72), ("validation", 0, 7)])])
def test_select(text, want):
  got = splits.select(text, SIZES.__getitem__)
  assert [(name, i[0], i[-1] + 1, len(i)) for name, i in got] == [(n, a, b, b - a) for n, a, b in want]


@pytest.mark.parametrize("text, message", [
    ("train[4096:]", "4096 is beyond the 105 examples of 'train'"), ("train[5:5]", "selects no example"),
    ("train[1:2:3]", "cannot read"), ("", "cannot read"), ("train[:110%]", "beyond 100%")])
def test_errors(text, message):
  with pytest.raises(UserError, match=message):
    splits.select(text, SIZES.__getitem__)
