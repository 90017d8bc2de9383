"""The demo's order of work: a second start trains nothing that is finished, and measures nothing that is settled."""

import ml_collections as mlc
import pytest

from tools import demo
from uvim_like import config as configs


@pytest.fixture
def commands(monkeypatch):
  """What the demo would run; its numbers are made up."""
  ran = []
  numbers = {"name": "x", "minutes": 1.0, **dict.fromkeys(demo.METRICS, 0.5)}
  monkeypatch.setattr(demo, "command", lambda module, *words: ran.append((module, *words)))
  monkeypatch.setattr(demo, "constant_map_row", lambda data: numbers)
  monkeypatch.setattr(demo, "table_row", lambda training, out: numbers)
  monkeypatch.setattr(demo, "metrics", lambda workdir: [{"step": 5, "step_seconds": 0.5}])
  return ran


def test_a_second_start_makes_no_trial(commands, tmp_path, capsys):
  demo.run(tmp_path, minutes=10, steps=None, images=8, workers=1)
  assert [words[0] for words in commands] == ["tools.make_data", "train", "train", "train", "train", "tools.report"]
  assert "trial" in commands[1][2] and not any("trial" in words[2] for words in commands[2:])
  for training in demo.trainings(tmp_path):
    (tmp_path / training.name).mkdir()
    (tmp_path / training.name / "config.json").write_text(configs.to_json(mlc.ConfigDict({"total_steps": 77})))
  commands.clear()
  demo.run(tmp_path, minutes=10, steps=None, images=8, workers=1)
  trained = [words for words in commands if words[0] == "train"]
  assert len(trained) == 3 and all("--config.total_steps=77" in words for words in trained)
  assert str(tmp_path / "report.html") in capsys.readouterr().out


@pytest.mark.parametrize("word", ["--steps=0", "--workers=0", "--images=many", "--minuts=3"])
def test_mistakes_are_one_line(word, commands, capsys):
  assert demo.main([word]) == 2
  said = capsys.readouterr().err
  assert said.startswith("demo: ") and said.count("\n") == 1 and word.partition("=")[0][:8] in said and not commands
