"""Files, folders and patterns as pictures with names that never collide."""

import os

import pytest

from tools.predicting import predict_inputs as inputs
from uvim_like.errors import UserError

SUFFIXES = {".jpg", ".png"}


def made(root, *names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"")
  return root


def gathered(*places, out="/nowhere"):
  import pathlib
  return inputs.gather([str(place) for place in places], suffixes=SUFFIXES, out=pathlib.Path(out))


def test_folders_with_what_is_below_them(tmp_path):
  made(tmp_path, "b.JPG", "a.png", "sub/deep/a.png", "notes.txt", ".hidden.png", ".cache/x.png", "out/overlay/a.png")
  found = gathered(tmp_path, out=tmp_path / "out")
  assert [(s.path.name, s.name, s.number) for s in found.sources] == [
      ("a.png", "a", 0), ("b.JPG", "b", 1), ("a.png", "sub_deep_a", 2)]
  assert [path.name for path in found.skipped] == ["notes.txt"]


def test_named_files_are_tried_whatever_they_are_called(tmp_path):
  made(tmp_path, "x.weird", "y.png", "z.png")
  found = gathered(tmp_path / "x.weird", tmp_path / "*.png", tmp_path / "y.png")
  assert [s.name for s in found.sources] == ["x", "y", "z"]


def test_names_are_different_even_where_capitals_do_not_count():
  wanted = [("a", ".jpg"), ("a", ".png"), ("A", ".JPG"), ("b", ".png"), ("a_jpg", ".png"), ("", ".png"), ("..", "")]
  names = inputs.unique_names(wanted)
  assert names[:5] == ["a_jpg_2", "a_png", "A_jpg_3", "b", "a_jpg"]
  assert len({name.lower() for name in names}) == len(names) and all(names)
  long = inputs.unique_names([("x" * 400, ".png"), ("x" * 400 + "y", ".png")])
  assert len(set(long)) == 2 and max(map(len, long)) < 200


def test_names_fit_into_a_file_system_whatever_their_letters_take():
  wanted = [("深" * 200, ".png"), ("深" * 200, ".jpg"), ("ü" * 70 + ".x", ".jpg"), ("a", "." + "🦊" * 60), ("a", ".\udcff")]
  names = inputs.unique_names(wanted)
  assert len(set(names)) == len(wanted) and all(len(f"{name}_9999.png".encode()) < 200 for name in names)
  assert names[0].startswith("深" * 40) and names[0].endswith("_png") and names[2] == "ü" * 70 + ".x"


def test_numbers_are_those_of_the_names_where_they_are_numbers():
  assert inputs.image_numbers(["000000000139", "7"]) == [139, 7]
  assert inputs.image_numbers(["7", "07"]) == [0, 1]
  assert inputs.image_numbers(["7", "cat"]) == [0, 1]


def test_a_picture_that_is_named_twice_is_one(tmp_path):
  made(tmp_path, "a.png")
  os.symlink(tmp_path / "a.png", tmp_path / "b.png")
  assert len(gathered(tmp_path, tmp_path / "a.png").sources) == 1


def test_mistakes(tmp_path):
  made(tmp_path, "photo.png", "empty/notes.txt")
  with pytest.raises(UserError, match="did you mean 'photo.png'?"):
    gathered(tmp_path / "phoot.png")
  with pytest.raises(UserError, match="there is no folder"):
    gathered(tmp_path / "none" / "a.png")
  with pytest.raises(UserError, match="no picture in"):
    gathered(tmp_path / "empty")
