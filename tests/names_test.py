"""Names in configs as paths in the tree."""

import pytest

from uvim_like import names
from uvim_like.errors import UserError
from uvim_like.systems.uvim import vit


def test_a_name_is_a_path():
  for name in ("proj.uvim.vit", "uvim.vit"):
    assert names.load("uvim_like.systems", name, where="config.model_name", needs="make") is vit


def test_helpers_are_not_offered():
  found = names.module_names("uvim_like.systems", needs="make")
  assert {"uvim.vit", "uvim.lm"} <= set(found) and not {"base", "fields", "uvim.pretrained"} & set(found)


@pytest.mark.parametrize("name, message", [
    ("proj.uvim.vti", "config.model_name: unknown name 'uvim.vti'; did you mean 'uvim.vit'?"),
    ("uvim.pretrained", "config.model_name: unknown name 'uvim.pretrained'; ")])
def test_unknown_name(name, message):
  with pytest.raises(UserError) as error:
    names.load("uvim_like.systems", name, where="config.model_name", needs="make")
  assert str(error.value).startswith(message)
