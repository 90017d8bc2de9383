"""Flags of all commands: one parser, one check of whole numbers, `--debug` everywhere."""

import importlib
import pathlib

import pytest

from tools import shell
from uvim_like import flags
from uvim_like.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if "def main(" in path.read_text(encoding="utf-8"))


def parse(*words, least=1):
  parser = flags.Parser()
  parser.add_whole("--jobs", least=least, default=7)
  return parser.parse_args(words)


def test_whole_numbers():
  assert parse().jobs == 7 and parse("--jobs=12").jobs == 12 and parse("--jobs", "0", least=0).jobs == 0
  assert flags.whole("3", "--size") == 3
  for text in ("0", "-1", "1.5", "", "two", "٣", "1" * 5000):
    with pytest.raises(UserError, match=r"^--jobs: '.{0,50}' is no whole number from 1 on$"):
      parse(f"--jobs={text}")
    with pytest.raises(UserError, match=r"^--size: '.{0,50}' is no whole number from 1 on$"):
      flags.whole(text, "--size")


def test_debug_is_a_flag_of_every_parser_and_raises_the_mistake(capsys):
  assert parse("--debug").debug and not parse().debug
  assert shell.exit_status("x", lambda words: parse(*words), ["--job=1"]) == 2
  assert capsys.readouterr().err == "x: unknown flag '--job'; did you mean '--jobs'?\n"
  with pytest.raises(UserError, match="did you mean '--jobs'"):
    shell.exit_status("x", lambda words: parse(*words), ["--debug", "--job=1"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_knows_debug(name, capsys):
  """The promise of `shell.exit_status`, which looks for the word."""
  command = importlib.import_module(f"tools.{name}")
  with pytest.raises((UserError, SystemExit)) as raised:
    command.main(["--help", "--debug"])
  assert raised.type is SystemExit and raised.value.code == 0 and "--debug" in capsys.readouterr().out
