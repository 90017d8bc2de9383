"""Messages that name the place and the nearest valid choice."""

from uvim_like.errors import UserError, suggest, unknown


def test_nearest():
  assert suggest("resise", ["resize", "crop"]) == "did you mean 'resize'?"


def test_all_when_none_is_near():
  assert suggest("xyz", ["resize", "crop"]) == "valid: crop, resize"
  many = suggest("?", [f"name{i:02d}" for i in range(30)])
  assert many.count(",") == 20 and many.endswith(", …")
  assert suggest("x", []) == "nothing is valid here"


def test_unknown():
  error = unknown("op", "resise", ["resize"], where="pp_train")
  assert isinstance(error, UserError) and str(error) == "pp_train: unknown op 'resise'; did you mean 'resize'?"
  assert str(unknown("op", "a", ["bcd"])) == "unknown op 'a'; valid: bcd"
