"""One self-contained HTML page: sections, tables and rows of pictures; whatever is no `Html` gets escaped."""

import base64
import html
import math
import os
import pathlib
import tempfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from uvim_like.errors import UserError

MAX_BYTES = 5_000_000


class Html(str):
  """Text that is HTML already; made by this module only, from escaped parts."""


class Picture(NamedTuple):
  """A picture on the page.

  Attributes:
    png: the file; a JPEG is as good.
    alt: what it shows, in words.
    caption: a short line below it.
    dark: the file for a dark page, where it differs.
    sharp: enlarge by repeating pixels; False for pictures with text.
    size: in a row of pictures: "" as usual, "large" or "small".
  """
  png: bytes
  alt: str
  caption: str = ""
  dark: bytes | None = None
  sharp: bool = True
  size: str = ""


class Text(NamedTuple):
  """Words in the place of a picture, with a short line below them; `marked` are the positions of words to stress."""
  words: str
  caption: str = ""
  marked: Collection[int] = ()


class Section(NamedTuple):
  """A part of the page: its title and its pieces, plain text (a paragraph each) or `Html`."""
  title: str
  pieces: Sequence[str]


class Page(NamedTuple):
  """The whole page: title, an introduction in plain text, sections."""
  title: str
  intro: str
  sections: Sequence[Section]


def escape(text: Any) -> Html:
  """Any text as HTML that shows it, in content and in attributes."""
  return Html(html.escape(str(text), quote=True))


def piece(content: str) -> Html:
  """`Html` as it is, plain text as a paragraph."""
  return content if isinstance(content, Html) else Html(f"<p>{escape(content)}</p>")


def data_uri(file: bytes) -> Html:
  """A PNG or JPEG file itself as an address."""
  kind = "jpeg" if file.startswith(b"\xff\xd8") else "png"
  return Html(f"data:image/{kind};base64," + base64.b64encode(file).decode("ascii"))


def image(picture: Picture) -> Html:
  """The picture alone, without its caption."""
  plain = f'<img src="{data_uri(picture.png)}" alt="{escape(picture.alt)}">'
  if picture.dark is None:
    return Html(plain)
  dark = f'<source media="(prefers-color-scheme: dark)" srcset="{data_uri(picture.dark)}">'
  return Html(f"<picture>{dark}{plain}</picture>")


def figure(picture: Picture, *, kind: str) -> Html:
  """The picture with its caption; `kind` are classes of STYLE, e.g. "chart", "tile code" or "bar"."""
  caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
  return Html(f'<figure class="{escape(kind)}">{image(picture)}{caption}</figure>')


def charts(pictures: Sequence[Picture]) -> Html:
  """Charts next to each other, as many as fit."""
  return Html('<div class="charts">' + "".join(figure(picture, kind="chart") for picture in pictures) + "</div>")


def picture_rows(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Picture | Text | None]]]) -> Html:
  """A table of pictures.

  Args:
    heads: one for each column of pictures.
    rows: (label, pictures or texts); None leaves a place empty.
  """
  head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
  body = "".join(
      f'<tr><th scope="row">{escape(label)}</th>'
      + "".join(f"<td>{tile(cell) if cell else ''}</td>" for cell in cells) + "</tr>"
      for label, cells in rows)
  return Html(f'<div class="scroll"><table class="pictures"><thead><tr><td></td>{head}</tr></thead>'
              f"<tbody>{body}</tbody></table></div>")


def tile(cell: Picture | Text) -> Html:
  """A picture, or words, in a row of pictures."""
  if isinstance(cell, Text):
    return words(cell)
  return figure(cell, kind=" ".join(filter(None, ("tile", "" if cell.sharp else "code", cell.size))))


def words(text: Text) -> Html:
  """Words with those at the marked positions stressed."""
  shown = " ".join(f"<b>{escape(word)}</b>" if place in text.marked else escape(word)
                   for place, word in enumerate(text.words.split()))
  caption = f"<figcaption>{escape(text.caption)}</figcaption>" if text.caption else ""
  return Html(f'<figure class="tile words"><p>{shown or "–"}</p>{caption}</figure>')


def number(value: Any) -> str:
  """A value as a table shows it: integers with thousands, floats with three digits that count, "–" for nothing."""
  if value is None:
    return "–"
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return str(value)
  if not math.isfinite(value):
    return str(value)
  if isinstance(value, int) or abs(value) >= 1000:
    return f"{value:,.0f}"
  return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def table(rows: Sequence[Mapping[str, Any]], *, columns: Mapping[str, str] | None = None,
          best: Mapping[str, str] | None = None, apart: Collection[int] = (),
          formats: Mapping[str, str] | None = None) -> Html:
  """Rows of named values; numbers to the right, the best of a column in bold.

  Args:
    rows: {column: value}; a missing value shows as a dash.
    columns: {column: head} in order; by default all columns of all rows as they come.
    best: {column: "min" or "max"}.
    apart: positions of rows that stand outside the comparison: never bold, and set in grey.
    formats: {column: format of its finite numbers, e.g. ".1f"}; by default see `number`.
  """
  columns = columns or {key: key for row in rows for key in row}
  winners = {key: _winner([(i, row.get(key)) for i, row in enumerate(rows) if i not in apart], goal)
             for key, goal in (best or {}).items()}
  head = "".join(f'<th scope="col">{escape(text)}</th>' for text in columns.values())
  body = "".join(f'<tr{" class=apart" if i in apart else ""}>'
                 + "".join(_cell(row.get(key), (formats or {}).get(key), bold=i in winners.get(key, ()))
                           for key in columns) + "</tr>"
                 for i, row in enumerate(rows))
  return Html(f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead>'
              f"<tbody>{body}</tbody></table></div>")


def _winner(values: Sequence[tuple[int, Any]], goal: str) -> set[int]:
  """Positions of the best finite number, when there are two different ones to compare."""
  finite = [(i, v) for i, v in values if isinstance(v, (int, float)) and math.isfinite(v)]
  if len({v for _, v in finite}) < 2:
    return set()
  target = (min if goal == "min" else max)(v for _, v in finite)
  return {i for i, v in finite if v == target}


def _cell(value: Any, form: str | None, *, bold: bool) -> str:
  is_number = value is None or isinstance(value, (int, float))
  text = escape(format(value, form) if form and is_number and value is not None else number(value))
  return f'<td{" class=n" if is_number else ""}>{f"<b>{text}</b>" if bold else text}</td>'


def chips(entries: Sequence[tuple[str, tuple[float, float, float]]]) -> Html:
  """A legend: names with their colours (r, g, b) in [0, 1]."""
  made = (f'<span class="chip"><i style="background:rgb({",".join(str(round(255 * c)) for c in color)})"></i>'
          f"{escape(name)}</span>" for name, color in entries)
  return Html(f'<p class="chips">{"".join(made)}</p>')


def details(summary: str, text: str) -> Html:
  """Long text, folded until it is wanted."""
  return Html(f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>")


def folded(summary: str, pieces: Sequence[str]) -> Html:
  """Pieces of a section, folded until they are wanted."""
  return Html(f"<details><summary>{escape(summary)}</summary>{''.join(map(piece, pieces))}</details>")


def note(text: str) -> Html:
  """A remark in small print."""
  return Html(f'<p class="note">{escape(text)}</p>')


def render(page: Page) -> str:
  """The page as text."""
  parts = [f"<section><h2>{escape(section.title)}</h2>" + "".join(map(piece, section.pieces)) + "</section>"
           for section in page.sections]
  return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(page.title)}</title>'
          '<meta name="viewport" content="width=device-width, initial-scale=1">'
          # Nothing may be fetched or run, whatever ends up in the page.
          '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
          f'style-src \'unsafe-inline\'"><style>{STYLE}</style></head><body><main><header><h1>{escape(page.title)}</h1>'
          f'<p class="lead">{escape(page.intro)}</p></header>{"".join(parts)}</main></body></html>\n')


def write(path: str | os.PathLike, text: str, *, limit: int = MAX_BYTES) -> int:
  """Writes a rendered page atomically and returns its size in bytes; UserError when it is larger than `limit`."""
  data, path = text.encode("utf-8"), pathlib.Path(path)
  if len(data) > limit:
    raise UserError(f"{path}: the page has {len(data):,} bytes, more than {limit:,}; ask for fewer --rows or workdirs")
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
    file.write(data)
  os.chmod(file.name, 0o644)
  os.replace(file.name, path)
  return len(data)


STYLE = """
:root{color-scheme:light dark;--fg:#1f2328;--dim:#5c6570;--bg:#fbfbfa;--card:#fff;--line:#dfe3e8;--accent:#0072b2}
@media(prefers-color-scheme:dark){
:root{--fg:#dde3ea;--dim:#98a2ad;--bg:#14171b;--card:#1c2026;--line:#333a43;--accent:#6cb8ea}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:2.5rem 1.25rem 4rem}
header{border-bottom:3px solid var(--accent);margin-bottom:1.5rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.3rem;margin:0 0 .4rem}
p{max-width:46rem;margin:.4rem 0 .9rem}
.lead{font-size:1.08rem;color:var(--dim)}
.note{font-size:.86rem;color:var(--dim)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.2rem 1.4rem;margin:1.2rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse}
.numbers{font-variant-numeric:tabular-nums;margin:.6rem 0 .8rem;min-width:60%}
.numbers th{text-align:right;font-size:.84rem;color:var(--dim);font-weight:600;padding:.3rem .7rem}
.numbers th{border-bottom:2px solid var(--line)}
.numbers td{border-bottom:1px solid var(--line);padding:.38rem .7rem}
.numbers th:first-child,.numbers td:first-child{text-align:left;padding-left:0}
.numbers .n{text-align:right}
.numbers td:first-child{white-space:nowrap}
.numbers b{color:var(--accent)}
.apart td{color:var(--dim);font-style:italic}
.pictures thead th{width:1px}
.pictures th{font-size:.8rem;font-weight:600;color:var(--dim);padding:.2rem .35rem;vertical-align:bottom}
.pictures tbody th{text-align:right;vertical-align:middle;font-weight:400;max-width:6rem}
.pictures td{padding:.2rem;vertical-align:top}
figure{margin:0}
.tile{width:120px}
.tile img{display:block;width:100%;height:auto;image-rendering:pixelated;border-radius:4px}
.code{width:144px}
.code img{image-rendering:auto}
.large{width:236px}
.large img{image-rendering:auto}
.small{width:92px}
.tile.small figcaption{font-size:.7rem}
.ball img{width:72px;border-radius:0;image-rendering:auto}
.ball figcaption{font-size:.86rem;color:var(--dim)}
.words{width:200px}
.tile.words figcaption{text-align:left}
.words p{margin:.2rem 0;font-size:.86rem;line-height:1.35}
.words b{color:var(--accent)}
.wide img{width:100%;max-width:1120px;height:auto}
.tile figcaption{font-size:.76rem;color:var(--dim);text-align:center;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem;margin:.6rem 0}
.chart img{display:block;width:100%;max-width:36rem;height:auto}
.chart figcaption{font-size:.86rem;color:var(--dim);max-width:36rem}
.bar{display:inline-block;margin:0 2rem .3rem 0}
.bar figcaption{font-size:.86rem;color:var(--dim)}
.bar img{display:block;height:12px;width:16rem;border-radius:3px;image-rendering:auto}
.chip{display:inline-block;margin:0 .9rem .2rem 0;font-size:.86rem}
.chip i{display:inline-block;width:.9em;height:.9em;border-radius:3px;margin-right:.35em;vertical-align:-.08em}
details{margin:.4rem 0}
summary{cursor:pointer;color:var(--accent)}
pre{overflow:auto;font-size:.78rem;line-height:1.4;max-height:26rem;padding:.8rem}
pre{background:var(--bg);border:1px solid var(--line);border-radius:6px}
@media print{section{break-inside:avoid}}
"""
