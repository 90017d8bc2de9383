"""The page escapes, needs no network, aligns and marks numbers, and is written whole or not at all."""

import base64
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tools.reporting import figures, html
from uvim_like.errors import UserError

EVIL = "<script>alert('1')</script>\"&"
PNG = figures.png(np.zeros((2, 2, 3)))
PICTURE = html.Picture(PNG, EVIL, EVIL, dark=PNG)


class Tags(HTMLParser):
  """Collects tags with their attributes, and text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.text = [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data


def full_page() -> str:
  pieces = [EVIL, html.table([{EVIL: EVIL, "n": 1.0}]), html.picture_rows([EVIL], [(EVIL, [PICTURE]), ("b", [None])]),
            html.charts([PICTURE]), html.chips([(EVIL, (0, 0.5, 1))]), html.details(EVIL, EVIL), html.note(EVIL)]
  return html.render(html.Page(EVIL, EVIL, [html.Section(EVIL, pieces)]))


def test_everything_is_escaped_and_shown():
  text = full_page()
  found = Tags(text)
  assert "<script" not in text
  assert not {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object", "base", "form"}
  assert found.text.count(EVIL) == 15
  assert [attributes["alt"] for tag, attributes in found.tags if tag == "img"] == [EVIL] * 2
  assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


def test_nothing_is_fetched():
  text = full_page()
  addresses = [a[key] for _, a in Tags(text).tags for key in ("src", "srcset", "href") if key in a]
  assert len(addresses) == 4 and all(address.startswith("data:image/png;base64,") for address in addresses)
  assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
  assert "default-src 'none'" in text


def test_the_picture_comes_back():
  address = html.data_uri(PNG)
  assert base64.b64decode(address.partition(",")[2]) == PNG


def test_numbers():
  shown = {None: "–", 0.12345: "0.123", 12.345: "12.3", 123.45: "123.5", 4321.0: "4,321", 12000: "12,000", True: "True",
           math.inf: "inf", "x": "x", 0: "0"}
  assert {value: html.number(value) for value in shown} == shown
  assert html.number(math.nan) == "nan"


def test_the_best_is_bold_and_rows_apart_are_not():
  rows = [{"name": "a", "e": 1.0}, {"name": "b", "e": 0.5}, {"name": "c", "e": 0.1}, {"name": "d", "e": math.nan},
          {"name": "e"}]
  text = html.table(rows, best={"e": "min"}, apart=[2])
  assert re.findall("<b>(.*?)</b>", text) == ["0.500"]
  assert re.findall("<b>(.*?)</b>", html.table(rows, best={"e": "max"})) == ["1.000"]
  assert text.count("<td class=n>–") == 1 and "<tr class=apart><td>c" in text


def test_nothing_is_bold_without_competition():
  assert "<b>" not in html.table([{"e": 1.0}, {"e": math.nan}], best={"e": "min"})
  assert "<tbody></tbody>" in html.table([])


def test_write_is_whole_or_nothing(tmp_path):
  path = tmp_path / "sub" / "page.html"
  assert html.write(path, "aé") == 3 and path.read_text(encoding="utf-8") == "aé"
  with pytest.raises(UserError, match="more than 2"):
    html.write(path, "abc", limit=2)
  assert path.read_text(encoding="utf-8") == "aé"
  assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_words_in_a_row_of_pictures():
  text = html.picture_rows(["caption"], [("1", [html.Text("a <red> box", "BLEU <1>", marked=(1,)), None, html.Text("")])])
  assert "a <b>&lt;red&gt;</b> box" in text and "<figcaption>BLEU &lt;1&gt;</figcaption>" in text and "<p>–</p>" in text


def test_sizes_of_tiles():
  kinds = [html.tile(html.Picture(PNG, "a", **options)) for options in ({}, {"size": "large"}, {"size": "small"}, {"sharp": False})]
  assert [re.search('class="(.*?)"', kind)[1] for kind in kinds] == ["tile", "tile large", "tile small", "tile code"]


def test_a_jpeg_says_so():
  assert html.data_uri(figures.jpeg(np.zeros((2, 2, 3)))).startswith("data:image/jpeg;base64,")
  assert html.data_uri(PNG).startswith("data:image/png;base64,")


def test_folded_pieces():
  text = html.folded("3 <values>", ["plain & simple", html.note("n")])
  assert text.startswith("<details><summary>3 &lt;values&gt;</summary><p>plain &amp; simple</p>") and text.endswith("</details>")


def test_equal_numbers_have_no_winner():
  assert "<b>" not in html.table([{"a": 1.0}, {"a": 1.0}], best={"a": "min"})
  assert html.table([{"a": 1.0}, {"a": 1.0}, {"a": 2.0}], best={"a": "min"}).count("<b>") == 2
